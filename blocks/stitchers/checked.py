"""A stitcher that checks every chunk before, and the film after, and only then publishes it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from pydantic import Field

from prefect_renderfarm.blocks.errors import StitchInputError
from prefect_renderfarm.blocks.media.model import Media, Verify
from prefect_renderfarm.blocks.stitchers.audio_plan import (
    NO_TRACK,
    SoundMode,
    SoundPlan,
    check_codec,
    check_track,
    find_encoder,
    plan_sound,
    sound_codec,
)
from prefect_renderfarm.blocks.stitchers.base import ChunkRules, StitchReport, VideoStitcher
from prefect_renderfarm.blocks.stitchers.chunk_check import ChunkCheck
from prefect_renderfarm.blocks.stitchers.film_check import FilmFigures
from prefect_renderfarm.blocks.storage.publish import publishing

FILM_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts")


class CheckedStitcher(VideoStitcher, ABC):
    """What `RemuxStitcher` and `FfmpegStitcher` share: the checks, the sound, the publishing."""

    verify: Verify = Field(
        default=Verify.PACKETS,
        title="Verify",
        description=(
            "How closely chunks are looked at. packets: the time and place of every frame; decode: "
            "also decode every frame, which takes about as long as playing it; header: believe "
            "the header of files without an index."
        ),
    )
    audio: SoundMode = Field(
        default=SoundMode.AUTO,
        title="Audio",
        description=(
            "Where the film's sound comes from. auto: the job's track, if it has one; else the "
            "chunks' PCM, kept where the film's container plays it (mov, mkv) and otherwise "
            "encoded once; none: leave it out; copy: the chunks' sound as it is, which clicks "
            "unless it is PCM; encode: decode it and encode it once; track: the track."
        ),
    )
    audio_track: Path | None = Field(
        default=None,
        title="Audio track",
        description="A file with the sound of the whole film. Empty: the job's, if it has one.",
    )
    audio_codec: str | None = Field(
        default=None,
        title="Audio codec",
        description="FFmpeg's name of the codec to encode with. Empty: aac, in WebM libopus.",
    )
    audio_bitrate: int = Field(
        default=192_000,
        gt=0,
        title="Audio bit rate",
        description="Bits a second to encode sound with; lossless codecs ignore it.",
    )
    faststart: bool = Field(
        default=False,
        title="Fast start",
        description="Put the index of an mp4 or mov film first, so that it plays while it loads.",
    )

    def check_output(self, output: Path, inputs: Sequence[Path] = ()) -> None:
        """Refuse a film whose ending names no container, and one that is a folder."""
        if output.is_dir():
            raise StitchInputError(f"film {str(output)!r} is a folder: name a file")
        if self.audio is SoundMode.TRACK and self.audio_track is None:
            raise StitchInputError(NO_TRACK)
        if self.audio_codec is not None:
            find_encoder(self.audio_codec)
        if output.suffix.lower() not in FILM_ENDINGS:
            raise StitchInputError(
                f"film {str(output)!r}: the ending must be one of {', '.join(FILM_ENDINGS)}"
            )

    def chunk_rules(self) -> ChunkRules:
        """Return what this stitcher asks of chunks; a worker counts their packets at the least."""
        verify = Verify.DECODE if self.verify is Verify.DECODE else Verify.PACKETS
        return ChunkRules(verify, uniform=True)

    def check_track(self, frames: int, fps: Fraction) -> None:
        """Refuse an audio track that is not there, is no sound, or is shorter than the film."""
        if self.audio in (SoundMode.AUTO, SoundMode.TRACK):
            plan = plan_sound(self.audio, None, Path("film.mkv"), self.audio_track)
            check_track(plan, frames, fps)

    def with_track(self, track: Path) -> CheckedStitcher:
        """Return this stitcher with the sound of a job, unless it has its own."""
        if self.audio_track is not None:
            return self
        return self.model_copy(update={"audio_track": track})

    def stitch(
        self,
        inputs: Sequence[Path],
        output: Path,
        *,
        fps: float | str | Fraction | None = None,
        frame_counts: Sequence[int] | None = None,
    ) -> StitchReport:
        """Check the chunks, assemble them, check the film, publish it. See `VideoStitcher`."""
        started = time.monotonic()
        output = Path(output).absolute()
        self.check_output(output, inputs)
        check = self._chunk_check(inputs, output, fps, frame_counts)
        chunks = self._take_all(check, output)
        with publishing(output) as film:
            figures = self._assemble(chunks, film, check)
        return figures.report(output, len(chunks), time.monotonic() - started)

    @abstractmethod
    def _assemble(self, chunks: Sequence[Media], film: Path, check: ChunkCheck) -> FilmFigures:
        """Write the film from checked chunks, check it, and say what it is."""

    def _chunk_check(
        self,
        inputs: Sequence[Path],
        output: Path,
        fps: float | str | Fraction | None,
        frame_counts: Sequence[int] | None,
    ) -> ChunkCheck:
        return ChunkCheck(inputs, output, fps, frame_counts, self.verify)

    def _take_all(self, check: ChunkCheck, output: Path) -> list[Media]:
        first = check.take()
        check.plan_sound(self._plan_sound(first, output))
        chunks = [first, *(check.take() for _ in check.paths[1:])]
        check_track(check.sound, sum(chunk.frames for chunk in chunks), first.fps)
        return chunks

    def _plan_sound(self, first: Media, output: Path) -> SoundPlan:
        plan = plan_sound(self.audio, first.sound, output, self.audio_track)
        if plan.mode is SoundMode.ENCODE and plan.source is not None:
            check_codec(sound_codec(self.audio_codec, output), plan.source)
        return plan
