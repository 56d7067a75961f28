"""What a media file holds: read with PyAV, packet by packet, without decoding a frame."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from prefect_renderfarm.blocks.errors import RenderFarmError

# Values that say "not given" (ITU-T H.273: 2 is unspecified for primaries, transfer and matrix).
_UNKNOWN: tuple[object, ...] = (None, 0, 2, "")


class MediaFault(RenderFarmError):
    """A file is not a whole media file, or not the one that was planned. The message says how."""


@dataclass(frozen=True)
class Sound:
    """The sound of a media file.

    Attributes:
        codec: FFmpeg's name of the codec.
        rate: Samples a second.
        samples: Length in samples; exact for PCM, as the packets tell it otherwise.
    """

    codec: str
    rate: int
    samples: int

    @property
    def is_pcm(self) -> bool:
        """Whether the sound is uncompressed, so that pieces join without a seam."""
        return pcm_bytes(self.codec) is not None


@dataclass(frozen=True)
class Media:
    """A media file with one video track, every packet of which has been seen.

    Attributes:
        path: The file.
        frames: Number of video frames.
        first_time: Display time of the first frame, in the video track's own time base.
        fps: Frames a second of the grid on which the frames were found.
        reorder: Number of packets by which decoding order runs ahead of display order (B-frames).
        signature: What must be the same in all chunks of a film, by name.
        sound: The audio track, if there is one.
    """

    path: Path
    frames: int
    first_time: int
    fps: Fraction
    reorder: int
    signature: Mapping[str, object]
    sound: Sound | None


def pcm_bytes(codec: str) -> int | None:
    """Return the bytes of one PCM sample of one channel; None if the codec is not plain PCM."""
    match = re.fullmatch(r"pcm_[suf](8|16|24|32|64)(le|be)?", codec)
    return int(match[1]) // 8 if match else None


@contextmanager
def open_media(path: Path, *, probe: bool = True) -> Iterator[av.container.InputContainer]:
    """Open a file for demuxing.

    Args:
        path: The file. It is opened by its absolute path, so that no part of its name can be taken
            for a protocol, and it may not refer to anything but local files.
        probe: Let libav decode a few frames to find the pixel format. Most of the time of opening
            goes there; without it only the container and the codec's own header are read.

    Raises:
        MediaFault: It does not exist, is empty, or is no media file.
    """
    options = {"protocol_whitelist": "file"} | ({} if probe else {"codec_whitelist": "none"})
    try:
        if path.stat().st_size == 0:
            raise MediaFault("is empty")
        container = av.open(str(path.absolute()), options=options)
    except FileNotFoundError:
        raise MediaFault("does not exist") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaFault(
            f"cannot be opened as a media file ({_reason(error)}): is it whole?"
        ) from None
    with container:
        yield container


def read_media(path: Path, fps: Fraction | None = None, *, probe: bool = True) -> Media:
    """Read every packet of a file and check that its frames lie on a grid of `fps`.

    Args:
        path: The file.
        fps: Frames a second that are planned; None: the file's own rate.
        probe: As for `open_media`. Ignored for codecs that keep no header of their own.

    Raises:
        MediaFault: The file is missing, damaged or cut short; has no or several video tracks, or
            several audio tracks; or has frames that are doubled, missing or off the grid.
    """
    with open_media(path, probe=probe) as container:
        if not probe and any(not v.codec_context.extradata for v in container.streams.video):
            return read_media(path, fps)
        video, audio = _tracks(container)
        signature = _signature(container, video, audio)
        rate = fps or video.average_rate or video.guessed_rate
        if not rate:
            raise MediaFault("does not tell its frame rate: give fps")
        times: list[int] = []
        samples = Fraction(0)
        try:
            for packet in container.demux(*filter(None, (video, audio))):
                if packet.size == 0:
                    continue
                if packet.is_corrupt:
                    raise MediaFault(f"has a damaged packet after {len(times)} frames")
                if packet.stream_index == video.index:
                    if packet.pts is None or packet.is_discard:
                        raise MediaFault(
                            "has frames without a timestamp, or hidden by an edit list: "
                            "write it as mp4, mov, mkv or ts without cutting"
                        )
                    times.append(packet.pts)
                else:
                    samples += _samples(packet, audio)
        except av.FFmpegError as error:
            raise MediaFault(
                f"cannot be read past frame {len(times)} ({_reason(error)}): is it whole?"
            ) from None
        order = frame_order(times, video.time_base, rate)
        announced = video.frames
        if announced and announced != len(order):
            raise MediaFault(f"is cut short: {len(order)} of the {announced} frames of its header")
        return Media(
            path=path,
            frames=len(order),
            first_time=min(times),
            fps=rate,
            reorder=max(place - index for place, index in enumerate(order)),
            signature=signature,
            sound=Sound(audio.codec_context.name, audio.codec_context.sample_rate, round(samples))
            if audio
            else None,
        )


def frame_order(times: list[int], time_base: Fraction, fps: Fraction) -> list[int]:
    """Return the frame number of each packet, in the order of the packets, and check the grid.

    Args:
        times: Presentation timestamps in units of `time_base`.
        time_base: Seconds.
        fps: Frames a second.

    Raises:
        MediaFault: The numbers are not exactly 0 … n - 1.
    """
    if not times:
        raise MediaFault("has no video frame")
    first = min(times)
    order = []
    for time in times:
        place = (time - first) * time_base * fps
        order.append(round(place))
        # Containers round to their own clock: both this time and the first may be half a tick off.
        if abs(place - order[-1]) > min(time_base * fps, Fraction(1, 3)):
            raise MediaFault(
                f"has frames off the grid of {fps} frames a second: one at "
                f"{float((time - first) * time_base):.6f} s"
            )
    seen = set(order)
    if len(seen) != len(order):
        raise MediaFault(f"has two frames at one time on the grid of {fps} frames a second")
    if max(seen) != len(order) - 1:
        missing = next(number for number in range(len(order)) if number not in seen)
        raise MediaFault(
            f"has {len(order)} frames with a hole at frame {missing} on the grid of {fps} frames "
            "a second"
        )
    return order


def difference(expected: Mapping[str, object], found: Mapping[str, object]) -> str | None:
    """Say in what two signatures differ; None if they agree in all that both of them know."""
    for name, value in expected.items():
        other = found.get(name)
        if value != other and value not in _UNKNOWN and other not in _UNKNOWN:
            return f"{name} {other}, not {value}"
    if expected.keys() != found.keys():
        return "audio track " + ("missing" if "audio codec" in expected else "of its own")
    return None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _tracks(container: av.container.InputContainer) -> tuple[Any, Any]:
    videos, audios = container.streams.video, container.streams.audio
    if len(videos) != 1:
        raise MediaFault(f"has {len(videos)} video tracks, not one")
    if len(audios) > 1:
        raise MediaFault(f"has {len(audios)} audio tracks: at most one can be assembled")
    return videos[0], audios[0] if audios else None


def _samples(packet: Any, audio: Any) -> Fraction:
    context = audio.codec_context
    if size := pcm_bytes(context.name):
        return Fraction(packet.size, size * len(context.layout.channels))
    return Fraction((packet.duration or 0) * packet.time_base * context.sample_rate)


def _signature(container: Any, video: Any, audio: Any) -> dict[str, object]:
    context = video.codec_context
    aspect = context.sample_aspect_ratio
    rotation = re.search(r"displaymatrix: (.+)", container.dumps_format())
    signature: dict[str, object] = {
        "container": container.format.name,
        "codec": context.name,
        "profile": context.profile,
        "frame size": f"{context.width}x{context.height}",
        "pixel format": context.pix_fmt,
        "pixel aspect": str(aspect) if aspect else None,
        "colour range": context.color_range,
        "colour matrix": context.colorspace,
        "colour primaries": context.color_primaries,
        "colour transfer": context.color_trc,
        "rotation": rotation[1].strip() if rotation else "none",
        "codec header": _short_hash(context.extradata),
    }
    if audio is not None:
        sound = audio.codec_context
        signature |= {
            "audio codec": sound.name,
            "audio rate": sound.sample_rate,
            "audio channels": len(sound.layout.channels),
            # "2 channels" and the like: where they stand is not told
            "audio layout": None if "channels" in sound.layout.name else sound.layout.name,
            "audio codec header": _short_hash(sound.extradata),
        }
    return signature


def _short_hash(data: bytes | None) -> str | None:
    return hashlib.sha256(data).hexdigest()[:16] if data else None
