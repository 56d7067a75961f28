"""How chunk files become one film: the interface that every stitcher implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from prefect_renderfarm.blocks.base import FarmBlock
from prefect_renderfarm.blocks.errors import StitchInputError
from prefect_renderfarm.blocks.media.model import Verify


class StitchReport(BaseModel):
    """What a stitcher made."""

    model_config = ConfigDict(frozen=True)

    output: Path = Field(description="The film.")
    frames: int = Field(description="Number of video frames.")
    fps: str = Field(default="", description="Frames a second, as a fraction.")
    duration: float = Field(default=0.0, description="Length of the video, in seconds.")
    clock_error: float = Field(
        default=0.0, description="Largest distance of a frame's time from n / fps, in seconds."
    )
    audio_samples: int | None = Field(
        default=None, description="Length of the audio, in samples. None: no audio."
    )
    audio_rate: int | None = Field(default=None, description="Audio samples a second.")
    chunks: int = Field(default=0, description="Number of chunk files.")
    size: int = Field(default=0, description="Size of the film, in bytes.")
    seconds: float = Field(default=0.0, description="Time that the assembly took, in seconds.")


@dataclass(frozen=True)
class ChunkRules:
    """What a stitcher asks of chunks, for their workers to check as part of rendering them.

    Attributes:
        verify: How closely to look.
        uniform: Whether all chunks must have the same stream signature.
    """

    verify: Verify = Verify.PACKETS
    uniform: bool = False


class GrowingFilm(ABC):
    """A film under assembly, to which chunks are added while others still render."""

    @abstractmethod
    def append(self) -> None:
        """Check the next chunk file and add it.

        Raises:
            StitchInputError: It does not fit the plan or the other chunks.
            NotAppendableError: It fits, but not at the end of what is written: stitch all at once.
        """

    @property
    @abstractmethod
    def frames(self) -> int:
        """Number of frames so far."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Size of the film so far, in bytes."""

    @property
    @abstractmethod
    def report(self) -> StitchReport:
        """What was made; once the film has its name."""


class VideoStitcher(FarmBlock, ABC):
    """Assembles chunk files into one film. A subclass implements `stitch`."""

    def check_output(self, output: Path, inputs: Sequence[Path] = ()) -> None:
        """Refuse a film that this stitcher cannot make; called before any chunk is rendered.

        Args:
            output: The film.
            inputs: The chunk files, which need not be there yet; their names tell enough.

        Raises:
            StitchInputError: Saying what is wrong, and what to do.
        """

    def chunk_rules(self) -> ChunkRules:
        """Return what this stitcher asks of chunks."""
        return ChunkRules()

    def check_track(self, frames: int, fps: Fraction) -> None:
        """Refuse a whole-film audio track that cannot be used; called before any chunk is rendered.

        Raises:
            StitchInputError: Saying what is wrong with the track.
        """

    def with_track(self, track: Path) -> VideoStitcher:
        """Return a stitcher that takes the film's sound from one file, a job's audio track.

        Raises:
            StitchInputError: This stitcher cannot.
        """
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
        """Begin a film to which chunks are added as they come; None if this stitcher cannot.

        Args:
            inputs: The chunk files, in the order of the film; they need not be there yet.
            output: The film. It appears when the context is left well.
            fps: Frames a second that are planned.
            frame_counts: Number of frames that is planned for each input.
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
                None: those of the first chunk.
            frame_counts: Number of frames that is planned for each input. None: not checked.

        Returns:
            What was made.

        Raises:
            StitchInputError: A chunk does not fit the plan or the other chunks.
            AssemblyError: The film could not be made.
        """
