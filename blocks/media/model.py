"""What is known of a media file: frames, rate, audio, and what all chunks of a film must share."""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from prefect_renderfarm.blocks.media.frame_grid import exact
from prefect_renderfarm.blocks.media.mp4_index import Track

# By name; None or "" where a file does not tell.
Signature = Mapping[str, str | int | None]

_USUAL_LAYOUTS = {"1 channels": "mono", "2 channels": "stereo", "6 channels": "5.1",
                  "8 channels": "7.1"}  # fmt: skip
_UNKNOWN = (None, "")
# ITU-T H.273: this is unspecified for primaries, transfer and matrix.
_UNSPECIFIED = 2
# libav's numbers: AVColorRange.
_RANGES = {1: "limited", 2: "full"}
# The colours that players assume for video that tells none, by their numbers in ITU-T H.273: sRGB
# for RGB; BT.709 for large pictures, BT.601 for small ones, which share a transfer function.
_RGB, _LARGE, _SMALL = (
    dict(zip(("colour matrix", "colour primaries", "colour transfer"), values, strict=True))
    for values in (((0,), (1,), (1, 13)), ((1,), (1,), (1,)), ((5, 6), (5, 6), (1, 6)))
)
# A `tkhd` box of version 0 (ISO/IEC 14496-12, 8.3.2) has its matrix so far behind its name.
_MATRIX_PLACE = 44


class Verify(StrEnum):
    """How thoroughly a chunk is checked before assembly."""

    HEADER = "header"
    PACKETS = "packets"
    DECODE = "decode"


@dataclass(frozen=True)
class Audio:
    """The audio track of a media file."""

    codec: str
    rate: int
    layout: str
    samples: int  # from its start; exact for PCM, else by the packets' times
    # In seconds after the first frame; below 0 where an encoder puts priming samples first.
    start: Fraction = Fraction(0)

    @property
    def audible(self) -> int:
        """Length in samples, without those before the first frame."""
        return self.samples + min(0, round(self.start * self.rate))

    @property
    def is_pcm(self) -> bool:
        """Whether the audio is uncompressed, so that pieces can be joined without a gap."""
        return pcm_bytes(self.codec) is not None


@dataclass(frozen=True)
class Media:
    """A media file with one video track, or an image sequence."""

    path: Path
    frames: int
    first_time: int  # display time of the first frame, in the video track's time base
    fps: Fraction  # of the grid on which the frames lie
    reorder: int  # number of packets by which decoding runs ahead of display (B-frames)
    signature: Signature
    audio: Audio | None = None
    mp4_track: Track | None = None  # the index of an mp4 or mov file without any other track
    images: tuple[Path, ...] = ()


def layout_of(context: Any) -> str:
    """Return FFmpeg's name of a channel layout; PCM in Matroska tells only how many channels."""
    name = str(context.layout.name)
    return _USUAL_LAYOUTS.get(name, name)


def pcm_bytes(codec: str) -> int | None:
    """Return the bytes of one PCM sample of one channel; None if the codec is not plain PCM."""
    match = re.fullmatch(r"pcm_[suf](8|16|24|32|64)(le|be)?", codec)
    return int(match[1]) // 8 if match else None


def read_signature(container: Any, video: Any, audio: Any) -> Signature:
    """Return the signature of an open file, of its video track and of its audio track, if any."""
    context = video.codec_context
    tracks = sorted((track for track in (video, audio) if track), key=lambda track: track.index)
    signature: dict[str, str | int | None] = {
        "container": container.format.name,
        "tracks": " and ".join(track.type for track in tracks),
        "codec": context.codec.canonical_name,
        "profile": context.profile,
        "frame size": f"{context.width}x{context.height}",
        "pixel format": context.pix_fmt,
        # The container has precedence over the codec; without either, pixels are square.
        "pixel aspect": str(exact(video.sample_aspect_ratio) or 1),
        "colour range": _colour_range(context),
        "colour matrix": _specified(context.colorspace),
        "colour primaries": _specified(context.color_primaries),
        "colour transfer": _specified(context.color_trc),
        "rotation": _rotation(video),
        "time base": str(exact(video.time_base)),
        "codec header": _short_hash(context.extradata),
    }
    if audio is not None:
        coding = audio.codec_context
        signature |= {
            "audio codec": coding.name,
            "audio rate": coding.sample_rate or None,
            "audio channels": len(coding.layout.channels),
            # "2 channels" and the like do not tell the layout.
            "audio layout": None if "channels" in coding.layout.name else coding.layout.name,
            "audio codec header": _short_hash(coding.extradata),
        }
    return signature


def difference(expected: Signature, found: Signature) -> str | None:
    """Say in what two signatures differ; None if they agree in all that both of them know.

    A film has the colours of its first chunk. So a chunk without colours fits one that tells them
    only if these are what players assume anyway.
    """
    if expected is found:
        return None
    for name, value in expected.items():
        other = found.get(name)
        if value == other:
            continue
        if name in _RGB and None in (value, other):
            if (other if value is None else value) in _assumed_colours(expected)[name]:
                continue
        elif value in _UNKNOWN or other in _UNKNOWN:
            continue
        shown = ("unspecified" if each is None else str(each) for each in (other, value))
        return f"{name} {', not '.join(shown)}"
    return None


def _assumed_colours(signature: Signature) -> Mapping[str, tuple[int, ...]]:
    if _is_rgb(str(signature["pixel format"] or "")):
        return _RGB
    width, height = map(int, str(signature["frame size"]).split("x"))
    return _LARGE if width >= 1280 or height > 576 else _SMALL


def _is_rgb(pixel_format: str) -> bool:
    return bool(pixel_format) and av.VideoFormat(pixel_format).is_rgb


def _short_hash(data: bytes | None) -> str | None:
    return hashlib.sha256(data).hexdigest()[:16] if data else None


def _colour_range(context: Any) -> str:
    """Return the range that players take: if it is not told, full for RGB and limited for YUV."""
    pixel_format = context.pix_fmt or ""
    if pixel_format.startswith("yuvj"):
        return "full"
    return _RANGES.get(context.color_range, "full" if _is_rgb(pixel_format) else "limited")


def _specified(value: int) -> int | None:
    return None if value == _UNSPECIFIED else value


def _rotation(video: Any) -> str | None:
    """Return how players rotate the picture; None if that is unknown.

    PyAV gives no access to a track's display matrix, but copies it: the head of a QuickTime or mp4
    file with such a track, written in memory, contains it.
    """
    for kind in ("mov", "mp4"):
        head = io.BytesIO()
        try:
            with av.open(head, "w", kind, container_options={"movflags": "empty_moov"}) as file:
                file.add_stream_from_template(video, opaque=True)
                file.start_encoding()
        except (av.FFmpegError, ValueError):
            continue
        data = head.getvalue()
        place = data.index(b"tkhd") + _MATRIX_PLACE
        a, b, _, c, d = struct.unpack_from(">5i", data, place)
        degrees = round(math.degrees(math.atan2(b, a))) % 360
        return f"{degrees} degrees{' and mirrored' if a * d - b * c < 0 else ''}"
    return None
