"""A stitcher that checks every chunk before assembly, and the film before it is published."""

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
    AudioMode,
    AudioPlan,
    check_codec,
    check_track,
    codec_for,
    find_encoder,
    plan_audio,
)
from prefect_renderfarm.blocks.stitchers.base import ChunkRules, StitchReport, VideoStitcher
from prefect_renderfarm.blocks.stitchers.chunk_check import ChunkCheck
from prefect_renderfarm.blocks.stitchers.film_check import FilmFigures
from prefect_renderfarm.blocks.storage.atomic_file import publishing

FILM_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts")


class CheckedStitcher(VideoStitcher, ABC):
    """The common part of `RemuxStitcher` and `FfmpegStitcher`: checks, audio, publishing."""

    verify: Verify = Field(
        default=Verify.PACKETS,
        title="Verify",
        description=(
            "How thoroughly chunks are checked. packets: the time of every frame; decode: also "
            "decode every frame, which takes about as long as playing it; header: trust the "
            "header of files without an index."
        ),
    )
    audio: AudioMode = Field(
        default=AudioMode.AUTO,
        title="Audio",
        description=(
            "Source and treatment of the film's audio. auto: the job's track, if it has one; else "
            "the chunks' PCM, copied where the film's container plays it (mov, mkv) and otherwise "
            "encoded once; none: no audio; copy: the chunks' audio as it is, which clicks at every "
            "seam unless it is PCM; encode: decode it and encode it once; track: the track."
        ),
    )
    audio_track: Path | None = Field(
        default=None,
        title="Audio track",
        description="A file with the audio of the whole film. Empty: the job's, if it has one.",
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
        description="Bits a second of encoded audio; lossless codecs ignore it.",
    )
    faststart: bool = Field(
        default=False,
        title="Fast start",
        description=(
            "Put the index of an mp4 or mov film first, so that the film plays while it loads."
        ),
    )

    def check_output(self, output: Path, inputs: Sequence[Path] = ()) -> None:
        """Refuse a film whose ending names no container, and one that is a folder."""
        if output.is_dir():
            raise StitchInputError(f"film {str(output)!r} is a folder: name a file")
        if self.audio is AudioMode.TRACK and self.audio_track is None:
            raise StitchInputError(NO_TRACK)
        if self.audio_codec is not None:
            find_encoder(self.audio_codec)
        if output.suffix.lower() not in FILM_ENDINGS:
            raise StitchInputError(
                f"film {str(output)!r}: the ending must be one of {', '.join(FILM_ENDINGS)}"
            )

    def chunk_rules(self) -> ChunkRules:
        """Return the rules of this stitcher; a worker always counts the packets of a chunk."""
        verify = Verify.DECODE if self.verify is Verify.DECODE else Verify.PACKETS
        return ChunkRules(verify, uniform=True)

    def check_track(self, frames: int, fps: Fraction) -> None:
        """Refuse an audio track that is missing, has no audio, or is shorter than the film."""
        if self.audio in (AudioMode.AUTO, AudioMode.TRACK):
            plan = plan_audio(self.audio, None, Path("film.mkv"), self.audio_track)
            check_track(plan, frames, fps)

    def with_track(self, track: Path) -> CheckedStitcher:
        """Return this stitcher with a job's audio track, unless it has its own."""
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
        check = ChunkCheck(inputs, output, fps, frame_counts, self.verify)
        first = check.take()
        check.plan_audio(self._plan_audio(first, output))
        chunks = [first, *(check.take() for _ in check.paths[1:])]
        check_track(check.audio, sum(chunk.frames for chunk in chunks), first.fps)
        with publishing(output) as film:
            figures = self._assemble(chunks, film, check)
        return figures.report(output, len(chunks), time.monotonic() - started)

    @abstractmethod
    def _assemble(self, chunks: Sequence[Media], film: Path, check: ChunkCheck) -> FilmFigures:
        """Write the film from checked chunks, check it, and return its figures."""

    def _plan_audio(self, first: Media, output: Path) -> AudioPlan:
        plan = plan_audio(self.audio, first.audio, output, self.audio_track)
        if plan.mode is AudioMode.ENCODE and plan.source is not None:
            check_codec(codec_for(self.audio_codec, output), plan.source)
        return plan
