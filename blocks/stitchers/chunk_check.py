"""Checks of chunk files before assembly: each against the plan and against the first."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from prefect_renderfarm.blocks.errors import MediaFault, StitchInputError
from prefect_renderfarm.blocks.media.frame_rate import parse_fps
from prefect_renderfarm.blocks.media.model import Media, Verify
from prefect_renderfarm.blocks.media.reader import read_media
from prefect_renderfarm.blocks.media.signature import difference
from prefect_renderfarm.blocks.stitchers.audio_plan import AudioMode, AudioPlan, audio_fault


class ChunkCheck:
    """Reads the chunk files of one film, in order, and refuses those that do not fit.

    Args:
        inputs: The chunk files, in the order of the film.
        output: The film.
        fps: Frames a second that are planned; None means those of the first chunk.
        frame_counts: Number of frames that is planned for each chunk; None means unchecked.
        verify: How thoroughly to check a chunk.

    Raises:
        StitchInputError: No film can be made of these files, whatever they contain.
    """

    def __init__(
        self,
        inputs: Sequence[Path],
        output: Path,
        fps: float | str | Fraction | None,
        frame_counts: Sequence[int] | None,
        verify: Verify = Verify.PACKETS,
    ) -> None:
        self.paths = [Path(path).absolute() for path in inputs]
        self.output = output
        self.audio = AudioPlan(AudioMode.NONE)
        self._frame_counts = frame_counts
        self._verify = verify
        self._taken: list[Media] = []
        film = f"film {str(output)!r}"
        if not self.paths:
            raise StitchInputError(f"{film}: there are no chunk files to assemble")
        if frame_counts is not None and len(frame_counts) != len(self.paths):
            raise StitchInputError(
                f"{film}: {len(self.paths)} chunk files, but {len(frame_counts)} frame counts"
            )
        try:
            self._fps = None if fps is None else parse_fps(fps)
        except ValueError as error:
            raise StitchInputError(f"{film}: {error}") from None
        if same := [path for path in self.paths if path.resolve() == output.resolve()]:
            raise StitchInputError(f"{film} is also chunk file {str(same[0])!r}: name another film")
        if len(set(self.paths)) != len(self.paths):
            double = next(path for path in self.paths if self.paths.count(path) > 1)
            raise StitchInputError(
                f"chunk file {str(double)!r} is named {self.paths.count(double)} times, not once"
            )

    @property
    def total_frames(self) -> int | None:
        """Number of frames of the film, if it is planned."""
        return None if self._frame_counts is None else sum(self._frame_counts)

    @property
    def missing(self) -> int:
        """Number of chunk files that were not taken yet."""
        return len(self.paths) - len(self._taken)

    def plan_audio(self, plan: AudioPlan) -> None:
        """Check the audio of all chunks against a plan: of those taken, and of those to come.

        Raises:
            StitchInputError: The audio of one does not fit its frames.
        """
        self.audio = plan
        for number, chunk in enumerate(self._taken):
            self._check_audio(number, chunk)

    def take(self) -> Media:
        """Read and check the next chunk file.

        Raises:
            StitchInputError: It does not fit; the message names it.
        """
        number = len(self._taken)
        path = self.paths[number]
        first = self._taken[0] if self._taken else None
        planned = None if self._frame_counts is None else self._frame_counts[number]
        try:
            chunk = read_media(path, self._fps, first=first, verify=self._verify, planned=planned)
        except MediaFault as fault:
            raise self._refusal(number, str(fault)) from None
        if planned is not None and chunk.frames != planned:
            raise self._refusal(number, f"has {chunk.frames} frames, not the planned {planned}")
        if first and (found := difference(first.signature, chunk.signature)):
            raise self._refusal(
                number,
                f"differs from the first chunk file: {found}; render all with the same settings",
            )
        self._check_audio(number, chunk)
        self._fps = chunk.fps
        self._taken.append(chunk)
        return chunk

    def _check_audio(self, number: int, chunk: Media) -> None:
        if self.audio.mode is AudioMode.NONE or self.audio.track or chunk.audio is None:
            return
        if fault := audio_fault(chunk.audio, self.audio.mode, chunk.frames, chunk.fps):
            raise self._refusal(number, f"{fault}, or set the stitcher's 'audio' to 'none'")

    def _refusal(self, number: int, fault: str) -> StitchInputError:
        place = f"number {number + 1} of {len(self.paths)}"
        if self._frame_counts is not None:
            place += f", {self._frame_counts[number]} frames planned"
        return StitchInputError(f"chunk file {str(self.paths[number])!r} ({place}) {fault}")
