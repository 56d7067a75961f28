"""What happens to a film's sound: where it comes from, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.codec import Codec, CodecContext

from prefect_renderfarm.blocks.errors import MediaFault, StitchInputError
from prefect_renderfarm.blocks.media.model import Sound, layout_of, open_media

# mp4 has a place for PCM (ISO/IEC 23003-5), but browsers and many players cannot play it.
_KEEPS_PCM = frozenset({".mkv", ".mov"})
NO_TRACK = (
    "the stitcher's 'audio' is 'track', but there is none: set its 'audio_track', or the job's "
    "'audioTrack', to a sound file that lasts as long as the film"
)
# A packet of AAC has 1,024 samples (ISO/IEC 14496-3); encoders put up to two first and one last.
_PACKET = 1024
_PACKETS_OF_SLACK = 4 * _PACKET
# Matroska rounds the start of each packet to 1 ms.
_CLOCK_SECONDS = Fraction(3, 2000)


class SoundMode(StrEnum):
    """How a film gets its sound."""

    AUTO = "auto"
    NONE = "none"
    COPY = "copy"
    ENCODE = "encode"
    TRACK = "track"


@dataclass(frozen=True)
class SoundPlan:
    """What to do with the sound of one film.

    Attributes:
        mode: `none`, `copy` or `encode`.
        source: The sound to take: the first chunk's, or the track's. None: no sound.
        track: The file of the whole film's sound; None: the chunks carry it.
    """

    mode: SoundMode
    source: Sound | None = None
    track: Path | None = None


def plan_sound(
    mode: SoundMode, sound: Sound | None, film: Path, track: Path | None = None
) -> SoundPlan:
    """Choose what `auto` means for a film, and refuse what would click at every seam.

    Args:
        mode: What the user asked for.
        sound: The sound of the chunks; None if they have none.
        film: The film; its ending tells the container.
        track: The file of the whole film's sound, if there is one.

    Raises:
        StitchInputError: The sound cannot be joined in that way.
    """
    if mode is SoundMode.TRACK and track is None:
        raise StitchInputError(NO_TRACK)
    if track is not None and mode in (SoundMode.AUTO, SoundMode.TRACK):
        whole = read_track(track)
        keep = whole.is_pcm and film.suffix.lower() in _KEEPS_PCM
        return SoundPlan(SoundMode.COPY if keep else SoundMode.ENCODE, whole, track)
    if sound is None or mode is SoundMode.NONE:
        return SoundPlan(SoundMode.NONE)
    if mode is SoundMode.AUTO and not sound.is_pcm:
        # A compressed chunk begins with samples that only prime its decoder: joined by copy, they
        # come out as a gap of some 1,600 samples and a click at every seam.
        raise StitchInputError(
            f"the chunks' sound is {sound.codec}, which cannot be joined by copy without a click "
            "at every seam: render the chunks with PCM sound (mov or mkv), or set the stitcher's "
            "'audio' to 'encode' or 'none', or to 'copy' to have the clicks"
        )
    if mode is SoundMode.AUTO:
        mode = SoundMode.COPY if film.suffix.lower() in _KEEPS_PCM else SoundMode.ENCODE
    return SoundPlan(mode, sound)


def read_track(path: Path) -> Sound:
    """Read the header of a file with the sound of a whole film; 0 samples: it tells no length.

    Raises:
        StitchInputError: It is missing, has no audio track, or one that begins late.
    """
    try:
        with open_media(path) as container:
            if len(container.streams.audio) != 1:
                raise MediaFault(f"has {len(container.streams.audio)} audio tracks, not one")  # noqa: TRY301
            stream = container.streams.audio[0]
            context = stream.codec_context
            late = (stream.start_time or 0) * (stream.time_base or 0)
            late -= Fraction(container.start_time or 0, av.time_base)
            if late > _CLOCK_SECONDS:
                raise MediaFault(  # noqa: TRY301
                    f"has sound that begins {float(late):.3f} s after its picture: begin it with "
                    "silence"
                )
            seconds = (stream.duration or 0) * (stream.time_base or 0)
            samples = round(seconds * context.sample_rate)
            return Sound(context.name, context.sample_rate, layout_of(context), samples)
    except MediaFault as fault:
        raise StitchInputError(f"audio track {str(path)!r} {fault}") from None


def track_too_short(path: Path, missing: Fraction) -> str:
    """Say that the sound of a whole film ends before its picture does."""
    return (
        f"audio track {str(path)!r} is at least {float(missing):.3f} s shorter than the film: make "
        "it as long as the film, with silence if need be"
    )


def check_track(plan: SoundPlan, frames: int, fps: Fraction) -> None:
    """Refuse a track that its header says is over one frame shorter than the film.

    Raises:
        StitchInputError: It is.
    """
    if plan.track is None or plan.source is None or not plan.source.samples:
        return
    missing = frames / fps - Fraction(plan.source.samples, plan.source.rate)
    if missing * fps > 1:
        raise StitchInputError(track_too_short(plan.track, missing))


def sound_fault(sound: Sound, mode: SoundMode, frames: int, fps: Fraction) -> str | None:
    """Say in what a chunk's sound does not fit its frames; None if it does.

    PCM may be one sample off, and begin one sample off or, in containers with a clock of 1 ms, one
    tick. Compressed sound has samples before and behind that nobody hears, as many as there may be
    in a few packets; what is copied may lack one at its end.
    """
    due = Fraction(frames) / fps * sound.rate
    tick = _CLOCK_SECONDS * sound.rate
    if sound.is_pcm:
        off, short = abs(sound.start) > _CLOCK_SECONDS, abs(sound.samples - due) > 1
    else:
        lacking = _PACKET if mode is SoundMode.COPY else tick
        off = not -tick <= -sound.start * sound.rate <= _PACKETS_OF_SLACK
        short = not -lacking <= sound.heard - due <= _PACKETS_OF_SLACK
    if off and (sound.is_pcm or mode is not SoundMode.COPY):
        return (
            f"has sound that begins {float(sound.start) * 1000:+.1f} ms from its first frame: "
            "render both from the same moment on"
        )
    if short:
        return (
            f"has {sound.heard} audio samples, but its {frames} frames last "
            f"{round(due)}: render sound as long as the frames"
        )
    return None


def sound_codec(named: str | None, film: Path) -> str:
    """Return FFmpeg's name of the codec to encode a film's sound with."""
    return named or ("libopus" if film.suffix.lower() == ".webm" else "aac")


def find_encoder(name: str) -> Any:
    """Return the audio encoder of PyAV's FFmpeg that has this name.

    Raises:
        StitchInputError: There is none, or it encodes something else.
    """
    try:
        codec: Any = Codec(name, "w")
    except (av.FFmpegError, ValueError):
        codec = None
    if codec is None or codec.type != "audio":
        raise StitchInputError(
            f"audio_codec {name!r} is not an audio encoder of PyAV's FFmpeg: name another, such as "
            "aac or flac"
        )
    return codec


def check_codec(name: str, sound: Sound) -> None:
    """Refuse a codec that is not there, or would need the sound resampled or remixed.

    Raises:
        StitchInputError: Saying what it does not take.
    """
    codec = find_encoder(name)
    rates = codec.audio_rates
    if rates and sound.rate not in rates:
        raise StitchInputError(
            f"the sound has {sound.rate} samples a second, which {name} does not take "
            f"({', '.join(str(known) for known in sorted(rates))}): render it so, or set the "
            "stitcher's 'audio_codec' to another; nothing is resampled unasked"
        )
    trial: Any = CodecContext.create(codec)
    try:
        trial.sample_rate = sound.rate
        trial.layout = sound.layout
        trial.format = codec.audio_formats[0]
        trial.time_base = Fraction(1, sound.rate)
        trial.open()
    except (av.FFmpegError, ValueError):
        raise StitchInputError(
            f"the sound has the channels {sound.layout!r}, which {name} does not take: render "
            "others, or set the stitcher's 'audio_codec' to another; nothing is remixed unasked"
        ) from None


def nearest_format(codec: Any, source: Any) -> Any:
    """Return the sample format of an encoder that loses least of a source's."""

    def loss(known: Any) -> tuple[bool, bool, int]:
        narrower = known.bytes < source.bytes
        return (
            known.packed.name != source.packed.name,
            narrower,
            -known.bytes if narrower else known.bytes,
        )

    return min(codec.audio_formats, key=loss)


def samples_at(frame: int, fps: Fraction, rate: int) -> int:
    """Return how many samples have passed when frame number `frame` begins, rounded."""
    return round(frame * rate / fps)
