"""The plan for a film's audio: where it comes from, and whether it is copied or encoded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.codec import Codec, CodecContext

from prefect_renderfarm.blocks.errors import MediaFault, StitchInputError
from prefect_renderfarm.blocks.media.model import Audio, layout_of, open_media

# mp4 can hold PCM (ISO/IEC 23003-5), but browsers and many players cannot play it.
_KEEPS_PCM = frozenset({".mkv", ".mov"})
NO_TRACK = (
    "the stitcher's 'audio' is 'track', but there is none: set its 'audio_track', or the job's "
    "'audioTrack', to an audio file that is as long as the film"
)
# A packet of AAC has 1,024 samples (ISO/IEC 14496-3); encoders add up to two first and one last.
_PACKET = 1024.0
_EXTRA = 4 * _PACKET
# Matroska rounds the start of each packet to 1 ms.
_CLOCK_SECONDS = Fraction(3, 2000)


class AudioMode(StrEnum):
    """How a film gets its audio."""

    AUTO = "auto"
    NONE = "none"
    COPY = "copy"
    ENCODE = "encode"
    TRACK = "track"


@dataclass(frozen=True)
class AudioPlan:
    """Where the audio of one film comes from, and how it is written.

    Attributes:
        mode: `none`, `copy` or `encode`.
        source: The audio of the first chunk, or of the track; None means no audio.
        track: The file with the whole film's audio; None means that the chunks have it.
    """

    mode: AudioMode
    source: Audio | None = None
    track: Path | None = None


def plan_audio(
    mode: AudioMode, audio: Audio | None, film: Path, track: Path | None = None
) -> AudioPlan:
    """Resolve `auto` for a film, and refuse audio that would click at every seam.

    Args:
        mode: The mode that the user has chosen.
        audio: The audio of the first chunk, if it has any.
        film: The film; its ending tells the container.
        track: The file with the whole film's audio, if there is one.

    Raises:
        StitchInputError: The audio cannot be joined in that way.
    """
    if mode is AudioMode.TRACK and track is None:
        raise StitchInputError(NO_TRACK)
    if track is not None and mode in (AudioMode.AUTO, AudioMode.TRACK):
        whole = read_track(track)
        keep = whole.is_pcm and film.suffix.lower() in _KEEPS_PCM
        return AudioPlan(AudioMode.COPY if keep else AudioMode.ENCODE, whole, track)
    if audio is None or mode is AudioMode.NONE:
        return AudioPlan(AudioMode.NONE)
    if mode is AudioMode.AUTO and not audio.is_pcm:
        # A compressed chunk begins with samples that only prime its decoder: joined by copy, they
        # come out as a gap of some 1,600 samples and a click at every seam.
        raise StitchInputError(
            f"the chunks' audio is {audio.codec}, which cannot be joined by copy without a click "
            "at every seam: render the chunks with PCM audio (mov or mkv), or set the stitcher's "
            "'audio' to 'encode' or 'none', or to 'copy' if clicks do not matter"
        )
    if mode is AudioMode.AUTO:
        mode = AudioMode.COPY if film.suffix.lower() in _KEEPS_PCM else AudioMode.ENCODE
    return AudioPlan(mode, audio)


def read_track(path: Path) -> Audio:
    """Read the header of a file with a whole film's audio; 0 samples mean an unknown length.

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
                    f"has audio that begins {float(late):.3f} s after its video: begin it with "
                    "silence"
                )
            seconds = (stream.duration or 0) * (stream.time_base or 0)
            samples = round(seconds * context.sample_rate)
            return Audio(context.name, context.sample_rate, layout_of(context), samples)
    except MediaFault as fault:
        raise StitchInputError(f"audio track {str(path)!r} {fault}") from None


def track_too_short(path: Path, missing: Fraction) -> str:
    """Return the error text for a whole film's audio that ends before its video does."""
    return (
        f"audio track {str(path)!r} is at least {float(missing):.3f} s shorter than the film: make "
        "it as long as the film, with silence at its end"
    )


def check_track(plan: AudioPlan, frames: int, fps: Fraction) -> None:
    """Refuse a track that is more than one frame shorter than the film, by its header.

    Raises:
        StitchInputError: It is too short.
    """
    if plan.track is None or plan.source is None or not plan.source.samples:
        return
    missing = frames / fps - Fraction(plan.source.samples, plan.source.rate)
    if missing * fps > 1:
        raise StitchInputError(track_too_short(plan.track, missing))


def audio_fault(audio: Audio, mode: AudioMode, frames: int, fps: Fraction) -> str | None:
    """Return in what a chunk's audio does not fit its frames; None if it fits.

    PCM may be one sample off, and begin one sample off or, in containers with a clock of 1 ms, one
    tick. Compressed audio has inaudible samples before and behind, up to a few packets. Copied
    audio is cut by whole packets: it may begin as early as it likes, and one packet late, and lack
    one packet at its end.
    """
    expected = frames / fps * audio.rate
    tick = float(_CLOCK_SECONDS * audio.rate)
    samples = audio.samples if audio.is_pcm else audio.audible
    if audio.is_pcm:
        early, late, lacking, extra = tick, tick, 1.0, 1.0
    elif mode is AudioMode.COPY:
        early, late, lacking, extra = math.inf, _PACKET, _PACKET, _EXTRA
    else:
        early, late, lacking, extra = _EXTRA, tick, tick, _EXTRA
    if not -early <= audio.start * audio.rate <= late:
        return (
            f"has audio that begins {float(audio.start) * 1000:+.1f} ms from its first frame: "
            "render both from the same moment on"
        )
    if not -lacking <= samples - expected <= extra:
        return (
            f"has {samples} audio samples, but its {frames} frames last "
            f"{round(expected)}: render audio as long as the frames"
        )
    return None


def codec_for(named: str | None, film: Path) -> str:
    """Return FFmpeg's name of the codec to encode a film's audio with."""
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


def check_codec(name: str, audio: Audio) -> None:
    """Refuse a codec that does not exist, or would need the audio resampled or remixed.

    Raises:
        StitchInputError: With what the codec does not take.
    """
    codec = find_encoder(name)
    rates = codec.audio_rates
    if rates and audio.rate not in rates:
        raise StitchInputError(
            f"the audio has {audio.rate} samples a second, which {name} does not take "
            f"({', '.join(str(known) for known in sorted(rates))}): render it with one of these, "
            "or set the stitcher's 'audio_codec' to another; audio is never resampled"
        )
    trial: Any = CodecContext.create(codec)
    try:
        trial.sample_rate = audio.rate
        trial.layout = audio.layout
        trial.format = codec.audio_formats[0]
        trial.time_base = Fraction(1, audio.rate)
        trial.open()
    except (av.FFmpegError, ValueError):
        raise StitchInputError(
            f"the audio has the channels {audio.layout!r}, which {name} does not take: render "
            "others, or set the stitcher's 'audio_codec' to another; audio is never remixed"
        ) from None


def nearest_format(codec: Any, source: Any) -> Any:
    """Return the sample format of an encoder that loses least of a source's format."""

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
