"""The interface that every stitcher implements: chunk files in, one film out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from prefect_renderfarm.blocks.base import FarmBlock
from prefect_renderfarm.blocks.errors import StitchInputError
from prefect_renderfarm.blocks.media.model import Signature, Verify

# Takes the number of frames and of bytes that are written so far, in any thread.
progress: ContextVar[Callable[[int, int], None]] = ContextVar(
    "assembly_progress", default=lambda _frames, _size: None
)


@contextmanager
def watching(report: Callable[[int, int], None]) -> Iterator[None]:
    """Inside the block, report the progress of assemblies in this context to `report`."""
    token = progress.set(report)
    try:
        yield
    finally:
        progress.reset(token)


class StitchReport(BaseModel):
    """The film that a stitcher has assembled."""

    model_config = ConfigDict(frozen=True)

    output: Path = Field(description="The film.")
    frames: int = Field(description="Number of video frames.")
    fps: str = Field("", description="Frames a second, as a fraction.")
    duration: float = Field(0.0, description="Length of the video, in seconds.")
    clock_error: float = Field(0.0, description="A frame's largest distance from n / fps, in s.")
    audio_samples: int | None = Field(None, description="Samples of audio. None means no audio.")
    audio_rate: int | None = Field(None, description="Audio samples a second.")
    dropped: tuple[str, ...] = Field((), description="What chunks have and the film has not.")
    chunks: int = Field(0, description="Number of chunk files.")
    size: int = Field(0, description="Size of the film, in bytes.")
    seconds: float = Field(0.0, description="Time that the assembly took, in seconds.")


@dataclass(frozen=True)
class ChunkRules:
    """The rules of a stitcher for chunks, which workers check as part of rendering."""

    verify: Verify = Verify.PACKETS
    uniform: bool = False  # whether all chunks must have the same stream signature
    # Raises StitchInputError if the film cannot be made of chunks coded as the first one.
    check_first: Callable[[Signature], None] = lambda _: None


class GrowingFilm(ABC):
    """A film to which chunks are appended while others still render."""

    frames = 0  # so far
    size = 0  # in bytes, so far
    report: StitchReport  # there once the film is published

    @abstractmethod
    def append(self) -> None:
        """Check the next chunk file and append it.

        NotAppendableError means that it fits, but that all chunks must be stitched at once.
        """


class VideoStitcher(FarmBlock, ABC):
    """Assembles chunk files into one film. A subclass implements `stitch`."""

    def check_output(self, output: Path, inputs: Sequence[Path] = ()) -> None:
        """Raise StitchInputError if this stitcher cannot make a film; before any chunk is rendered.

        The inputs need not exist yet: only their names are checked.
        """

    def check_length(self, output: Path, frames: int, fps: Fraction) -> None:
        """Raise StitchInputError if a film cannot be that long; before any chunk is rendered."""

    def check_first_chunk(self, output: Path, signature: Signature) -> None:
        """Raise StitchInputError if a film cannot be made of chunks coded so; after the first."""

    def chunk_rules(self) -> ChunkRules:
        """Return the rules of this stitcher for chunks."""
        return ChunkRules()

    def check_track(self, frames: int, fps: Fraction) -> None:
        """Raise StitchInputError if the film's audio track cannot be used; before any rendering."""

    def with_track(self, track: Path) -> VideoStitcher:
        """Return a stitcher that takes the film's audio from one file, a job's audio track."""
        raise StitchInputError(
            f"a {type(self).__name__} cannot take the job's audio track {str(track)!r}: choose "
            "another stitcher, or leave audioTrack out of the job"
        )

    def grow(
        self,
        inputs: Sequence[Path],
        output: Path,
        *,
        fps: float | str | Fraction,
        frame_counts: Sequence[int],
    ) -> AbstractContextManager[GrowingFilm] | None:
        """Begin a film to which chunks are appended; None if this stitcher does not support it.

        The arguments are those of `stitch`, but the inputs need not exist yet. The film appears
        when the context ends without an error.
        """
        return None

    @abstractmethod
    def stitch(
        self,
        inputs: Sequence[Path],
        output: Path,
        *,
        fps: float | str | Fraction | None = None,
        frame_counts: Sequence[int] | None = None,
    ) -> StitchReport:
        """Assemble chunk files into one film.

        Args:
            inputs: The chunk files, in the order of the film.
            output: The film. It appears whole or not at all; an older film stays until then.
            fps: Frames a second that are planned, a number or a string such as `"30000/1001"`.
                None means the rate of the first chunk.
            frame_counts: Number of frames that is planned for each input. None means unchecked.

        Raises:
            StitchInputError: A chunk does not fit the plan or the other chunks.
            AssemblyError: The film could not be made.
        """
