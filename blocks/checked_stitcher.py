"""A stitcher that checks every chunk before, and the film after, and only then publishes it."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from pydantic import Field

from prefect_renderfarm.blocks.errors import AssemblyError, StitchInputError
from prefect_renderfarm.blocks.frame_rate import parse_fps
from prefect_renderfarm.blocks.media import Media, MediaFault, difference, read_media
from prefect_renderfarm.blocks.sound_plan import SoundMode, plan_sound, samples_at
from prefect_renderfarm.blocks.video_stitcher import StitchReport, VideoStitcher
from prefect_renderfarm.blocks.whole_file import whole_file

FILM_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts")


class CheckedStitcher(VideoStitcher, ABC):
    """What `RemuxStitcher` and `FfmpegStitcher` share: the checks, the sound, the publishing."""

    audio: SoundMode = Field(
        default=SoundMode.AUTO,
        title="Audio",
        description=(
            "What to do with the chunks' sound. auto: keep PCM where the film's container plays "
            "it (mov, mkv), else encode it once; none: leave it out; copy: keep PCM; encode: "
            "decode it and encode it once."
        ),
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
        description=(
            "Put the index of an mp4 or mov film first, so that it plays while it loads. "
            "Costs one more pass over the film."
        ),
    )

    def check_output(self, output: Path) -> None:
        """Refuse a film whose ending names no container, and one that is a folder."""
        if output.is_dir():
            raise StitchInputError(f"film {str(output)!r} is a folder: name a file")
        if output.suffix.lower() not in FILM_ENDINGS:
            raise StitchInputError(
                f"film {str(output)!r}: the ending must be one of {', '.join(FILM_ENDINGS)}"
            )

    @abstractmethod
    def _assemble(self, chunks: Sequence[Media], film: Path, sound: SoundMode) -> None:
        """Write the film from checked chunks."""

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
        self.check_output(output)
        chunks = check_chunks(inputs, output, fps, frame_counts)
        sound = plan_sound(self.audio, chunks[0].sound, output)
        if sound is not SoundMode.NONE:
            check_sound(chunks)
        try:
            with whole_file(output) as film:
                self._assemble(chunks, film, sound)
                made = check_film(film, chunks, sound)
        except OSError as error:
            raise AssemblyError(
                f"film {str(output)!r} cannot be written: {error.strerror or error}{_free(output)}"
            ) from error
        return StitchReport(
            output=output,
            frames=made.frames,
            fps=str(made.fps),
            duration=float(made.frames / made.fps),
            audio_samples=made.sound.samples if made.sound else None,
            audio_rate=made.sound.rate if made.sound else None,
            chunks=len(chunks),
            size=output.stat().st_size,
            seconds=time.monotonic() - started,
        )


def _free(output: Path) -> str:
    if not output.parent.is_dir():
        return ""
    free = shutil.disk_usage(output.parent).free
    return f" ({free:,} bytes are free in {str(output.parent)!r})"


def check_chunks(
    inputs: Sequence[Path],
    output: Path,
    fps: float | str | Fraction | None,
    frame_counts: Sequence[int] | None,
) -> list[Media]:
    """Read all chunk files and hold them to the plan and to the first of them.

    Raises:
        StitchInputError: One does not fit; the message names it.
    """
    paths = [Path(path).absolute() for path in inputs]
    if not paths:
        raise StitchInputError(f"film {str(output)!r}: there are no chunk files to assemble")
    if frame_counts is not None and len(frame_counts) != len(paths):
        raise StitchInputError(
            f"film {str(output)!r}: {len(paths)} chunk files, but {len(frame_counts)} frame counts"
        )
    try:
        rate = None if fps is None else parse_fps(fps)
    except ValueError as error:
        raise StitchInputError(f"film {str(output)!r}: {error}") from None
    if output.resolve() in {path.resolve() for path in paths}:
        raise StitchInputError(f"film {str(output)!r} is also a chunk file: name another film")
    if len(set(paths)) != len(paths):
        double = next(path for path in paths if paths.count(path) > 1)
        raise StitchInputError(f"chunk file {str(double)!r} is named more than once")

    chunks: list[Media] = []
    for number, path in enumerate(paths):
        try:
            chunk = read_media(path, rate, probe=number == 0)
            planned = frame_counts[number] if frame_counts is not None else chunk.frames
            if chunk.frames != planned:
                raise MediaFault(f"has {chunk.frames} frames, not the planned {planned}")  # noqa: TRY301
            if chunks and (odd := difference(chunks[0].signature, chunk.signature)):
                raise MediaFault(f"differs from the first chunk file: {odd}")  # noqa: TRY301
        except MediaFault as fault:
            raise StitchInputError(
                f"chunk file {str(path)!r} (number {number + 1} of {len(paths)}) {fault}"
            ) from None
        rate = chunk.fps
        chunks.append(chunk)
    return chunks


def check_sound(chunks: Sequence[Media]) -> None:
    """Refuse chunks whose PCM sound is longer or shorter than their frames by over one sample.

    Raises:
        StitchInputError: One does not fit; the message names it.
    """
    for number, chunk in enumerate(chunks):
        sound = chunk.sound
        if sound is None or not sound.is_pcm:
            continue
        due = Fraction(chunk.frames) / chunk.fps * sound.rate
        if abs(sound.samples - due) > 1:
            raise StitchInputError(
                f"chunk file {str(chunk.path)!r} (number {number + 1} of {len(chunks)}) has "
                f"{sound.samples} audio samples, but its {chunk.frames} frames last "
                f"{round(due)}: render sound as long as the frames, or set the stitcher's "
                "'audio' to 'none'"
            )


def check_film(film: Path, chunks: Sequence[Media], sound: SoundMode) -> Media:
    """Read a new film back: the sum of the frames, a uniform clock, the length of the sound.

    Raises:
        AssemblyError: It is not what the chunks should have become.
    """
    frames = sum(chunk.frames for chunk in chunks)
    try:
        made = read_media(film, chunks[0].fps)
    except MediaFault as fault:
        raise AssemblyError(f"the assembled film {fault}; it is not published") from None
    if made.frames != frames:
        raise AssemblyError(
            f"the assembled film has {made.frames} frames, its chunks have {frames}; "
            "it is not published"
        )
    if (sound is SoundMode.NONE) != (made.sound is None):
        raise AssemblyError("the assembled film's sound is missing or not wanted; not published")
    if made.sound is not None:
        due = samples_at(frames, made.fps, made.sound.rate)
        # A chunk's PCM may be one sample off. Codecs work in packets: AAC's has 1,024 samples
        # (ISO/IEC 14496-3), Opus' up to 120 ms (RFC 6716).
        allowed = len(chunks) if made.sound.is_pcm else max(2048, round(0.12 * made.sound.rate))
        if abs(made.sound.samples - due) > allowed:
            raise AssemblyError(
                f"the assembled film has {made.sound.samples} audio samples for {due} samples of "
                "video; it is not published"
            )
    return made
