"""How chunk files become one film: the interface that every stitcher implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from prefect_renderfarm.blocks.farm_block import FarmBlock


class StitchReport(BaseModel):
    """What a stitcher made."""

    model_config = ConfigDict(frozen=True)

    output: Path = Field(description="The film.")
    frames: int = Field(description="Number of video frames.")
    fps: str = Field(default="", description="Frames a second, as a fraction.")
    duration: float = Field(default=0.0, description="Length of the video, in seconds.")
    audio_samples: int | None = Field(
        default=None, description="Length of the audio, in samples. None: no audio."
    )
    audio_rate: int | None = Field(default=None, description="Audio samples a second.")
    chunks: int = Field(default=0, description="Number of chunk files.")
    size: int = Field(default=0, description="Size of the film, in bytes.")
    seconds: float = Field(default=0.0, description="Time that the assembly took, in seconds.")


class VideoStitcher(FarmBlock, ABC):
    """Assembles chunk files into one film. A subclass implements `stitch`."""

    def check_output(self, output: Path) -> None:
        """Refuse a film that this stitcher cannot make; called before any chunk is rendered.

        Raises:
            StitchInputError: Saying what is wrong with the film's path.
        """

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
