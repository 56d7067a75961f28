"""What is known of a media file: frames, rate, audio, and what all chunks of a film must share."""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.codec_header import digest, header_digest
from prefect_renderfarm.blocks.media.frame_grid import exact
from prefect_renderfarm.blocks.media.mp4_index import NotIndexedError, Track, read_boxes

# By name; None or "" where a file does not tell.
Signature = Mapping[str, str | int | None]

_USUAL_LAYOUTS = {"1 channels": "mono", "2 channels": "stereo", "6 channels": "5.1",
                  "8 channels": "7.1"}  # fmt: skip
# Audio packets follow each other closer, whatever the container's clock; lost ones last longer.
HOLE_SECONDS = Fraction(1, 200)
LONGEST_SILENCE = 60  # seconds; it is kept in memory
# ITU-T H.273: unspecified primaries, transfer and matrix; and the matrix of RGB.
_UNSPECIFIED, _MATRIX_OF_RGB = 2, 0
# libav's numbers: AVColorRange.
_RANGES = {1: "limited", 2: "full"}
# The colours that players assume for video that tells none, by their numbers in ITU-T H.273: sRGB
# for RGB; BT.709 for large pictures, BT.601 for small ones, which share a transfer function.
_RGB, _LARGE, _SMALL = range(3)
_ASSUMED: dict[str, tuple[set[str | int | None], ...]] = {
    "colour matrix": ({0}, {1}, {5, 6}),
    "colour primaries": ({1}, {1}, {5, 6}),
    "colour transfer": ({1, 13}, {1}, {1, 6}),
}
# libav's numbers: AVFieldOrder. How a container stores fields ("coded first") changes no picture.
PROGRESSIVE, TOP_FIRST, BOTTOM_FIRST = "progressive", "top field first", "bottom field first"
_FIELDS = {1: PROGRESSIVE, 2: TOP_FIRST, 3: BOTTOM_FIRST, 4: TOP_FIRST, 5: BOTTOM_FIRST}
# FFmpeg's order: libavutil/channel_layout.h, AVChannel.
_CHANNELS = (
    "FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR",
    "TBL", "TBC", "TBR", "DL", "DR", "WL", "WR", "SDL", "SDR", "LFE2", "TSL", "TSR", "BFC", "BFL",
    "BFR",
)  # fmt: skip
# PyAV 18 frees the list of channels of such a layout twice: with the layout, and with its track.
_never_freed: list[Any] = []
# A `tkhd` box of version 0 (ISO/IEC 14496-12, 8.3.2) has its matrix so far behind its name; the
# boxes in a visual sample entry (12.1.3) begin so far behind its length.
_MATRIX_PLACE = 44
_ENTRY_BYTES = 86
# What a container tells of light, depth and direction: ISO/IEC 23001-8 and 14496-12, 12.1.5 to
# 12.1.9; Dolby Vision Streams Within the ISO Base Media File Format; VP Codec ISO Media File Format
# Binding; Spherical Video V2; Apple's Spatial Media. The same on a decoded picture, by PyAV's name.
_SIDE_DATA: dict[str, tuple[str | None, tuple[bytes, ...]]] = {
    "mastering display": ("MASTERING_DISPLAY_METADATA", (b"mdcv", b"SmDm")),
    "content light level": ("CONTENT_LIGHT_LEVEL", (b"clli", b"CoLL")),
    "ambient light": ("AMBIENT_VIEWING_ENVIRONMENT", (b"amve",)),
    "Dolby Vision record": (None, (b"dvcC", b"dvvC", b"dvwC")),
    "stereo mode": ("STEREO3D", (b"st3d", b"vexu")),
    "projection": ("SPHERICAL", (b"sv3d",)),
}


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
    # Where the first packet is missing, or begins before the end of another, in seconds.
    hole: Fraction | None = None
    overlap: Fraction | None = None

    @property
    def audible(self) -> int:
        """Length in samples, without those before the first frame."""
        return self.samples + min(0, round(self.start * self.rate))

    @property
    def is_pcm(self) -> bool:
        """Whether the audio is uncompressed, so that pieces can be joined without a gap."""
        return pcm_bytes(self.codec) is not None


@dataclass(frozen=True)
class Labels:
    """What a file tells people; a film has the labels of its first chunk."""

    title: str | None = None
    timecode: str | None = None  # of the first frame (SMPTE ST 12-1)
    language: str | None = None  # of the video track
    audio_language: str | None = None

    def lost(self, film: Labels) -> list[str]:
        """Return those that a film does not have, in words."""
        return [
            f"{name.replace('_', ' ')} {value!r}"
            for name, value in vars(self).items()
            if value and getattr(film, name) != value
        ]


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
    labels: Labels = Labels()
    extras: tuple[str, ...] = ()  # what else is in the file, in words: no film has it
    origin: int = 0  # time from which the audio counts, in the video track's time base


def layout_of(context: Any) -> str:
    """Return FFmpeg's name of a channel layout; PCM in Matroska tells only how many channels.

    Raises MediaFault if the channels have an order of their own, which PyAV cannot decode.
    """
    layout = context.layout
    names = [channel.name for channel in layout.channels] if "+" in layout.name else []
    if names != [name for name in _CHANNELS if name in names]:
        _never_freed.append(layout)
        raise MediaFault(
            f"has audio with an unusual order of channels, {layout.name}: render a usual one, such "
            "as stereo, 5.1 or 7.1, with a later FFmpeg, or as WAV"
        )
    return _USUAL_LAYOUTS.get(layout.name, str(layout.name))


def pcm_bytes(codec: str) -> int | None:
    """Return the bytes of one PCM sample of one channel; None if the codec is not plain PCM."""
    match = re.fullmatch(r"pcm_[suf](8|16|24|32|64)(le|be)?", codec)
    return int(match[1]) // 8 if match else None


def read_labels(container: Any, video: Any, audio: Any) -> Labels:
    """Return what an open file tells people."""
    timecodes = (_tag(each, "timecode") for each in (video, *container.streams.data, container))
    return Labels(
        title=_tag(container, "title"),
        timecode=next(filter(None, timecodes), None),
        language=_language(video),
        audio_language=audio and _language(audio),
    )


def read_extras(container: Any) -> tuple[str, ...]:
    """Return what an open file has that no film gets, in words."""
    streams = container.streams
    counts = {
        "chapters": len(container.chapters()),
        "subtitle tracks": len(streams.subtitles),
        "data tracks": sum(_tag(track, "timecode") is None for track in streams.data),
        "attachments": len(streams.attachments),
        "cover pictures": sum(map(is_cover, streams.video)),
    }
    return tuple(
        f"{count} {name if count > 1 else name[:-1]}" for name, count in counts.items() if count
    )


def is_cover(track: Any) -> bool:
    """Return whether a video track is a picture about the file, and no part of the film."""
    return bool(track.disposition & track.disposition.attached_pic)


def _language(track: Any) -> str | None:
    language = _tag(track, "language")
    return None if language == "und" else language


def _tag(holder: Any, name: str) -> str | None:
    """Return a tag of a file or of a track; Matroska writes the names of some in capitals."""
    tags = {key.lower(): value for key, value in holder.metadata.items()}
    return tags.get(name) or None


def read_signature(container: Any, video: Any, audio: Any) -> Signature:
    """Return the signature of an open file, of its video track and of its audio track, if any."""
    context = video.codec_context
    tracks = sorted((track for track in (video, audio) if track), key=lambda track: track.index)
    signature: dict[str, str | int | None] = {
        "container": container.format.name,
        "tracks": " and ".join(track.type for track in tracks),
        "codec": context.codec.canonical_name,
        "codec tag": context.codec_tag.strip("\0 ") or None,
        "profile": context.profile,
        "frame size": f"{context.width}x{context.height}",
        "pixel format": context.pix_fmt,
        # The container has precedence over the codec; without either, pixels are square.
        "pixel aspect": str(
            exact(video.sample_aspect_ratio) or exact(context.sample_aspect_ratio) or 1
        ),
        "colour range": _colour_range(context),
        "colour matrix": _colour_matrix(context),
        "colour primaries": specified(context.color_primaries),
        "colour transfer": specified(context.color_trc),
        "field order": _FIELDS.get(context.field_order),
        "alpha": "yes" if _tag(video, "alpha_mode") == "1" else "no",
        **_told_by_head(video),
        "time base": str(exact(video.time_base)),
        "codec header": header_digest(context.codec.canonical_name, context.extradata),
    }
    if audio is not None:
        coding = audio.codec_context
        layout, told = layout_of(coding), coding.layout
        signature |= {
            "audio codec": coding.name,
            "audio rate": coding.sample_rate or None,
            "audio channels": told.nb_channels,
            "audio format": coding.format.packed.name if coding.format else None,
            # "2 channels" and the like do not tell the layout.
            "audio layout": None if "channels" in told.name else layout,
            "audio codec header": header_digest(coding.name, coding.extradata),
        }
    return signature


def difference(expected: Signature, found: Signature) -> str | None:
    """Say in what two signatures differ; None if they agree in all that both of them know.

    A film has the colours of its first chunk. So a chunk without colours fits one that tells them
    only if these are what players assume anyway.
    """
    for name, value in expected.items():
        other = found.get(name)
        if value == other:
            continue
        known = {value, other} - {None, ""}
        if len(known) < 2 and (
            name not in _ASSUMED or known <= _ASSUMED[name][_kind_of_picture(expected)]
        ):
            continue
        if name in _SIDE_DATA and is_digest(value) and is_digest(other):
            return f"another {name} than expected"
        shown = ("unspecified" if each is None else str(each) for each in (other, value))
        return f"{name} {', not '.join(shown)}"
    return None


def is_digest(value: str | int | None) -> bool:
    """Return whether a property is known by its digest only."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def _kind_of_picture(signature: Signature) -> int:
    if is_rgb(str(signature["pixel format"] or "")):
        return _RGB
    width, height = map(int, str(signature["frame size"]).split("x"))
    return _LARGE if width >= 1280 or height > 576 else _SMALL


def is_rgb(pixel_format: str) -> bool:
    """Return whether a pixel format has red, green and blue."""
    return bool(pixel_format) and av.VideoFormat(pixel_format).is_rgb


def _colour_range(context: Any) -> str:
    """Return the range that players take: if it is not told, full for RGB and limited for YUV."""
    pixel_format = context.pix_fmt or ""
    if pixel_format.startswith("yuvj"):
        return "full"
    return _RANGES.get(context.color_range, "full" if is_rgb(pixel_format) else "limited")


def _colour_matrix(context: Any) -> int | None:
    """Return the matrix; FLV tells that of RGB for all video."""
    matrix = specified(context.colorspace)
    return None if matrix == _MATRIX_OF_RGB and not is_rgb(context.pix_fmt) else matrix


def specified(value: int) -> int | None:
    """Return a number of ITU-T H.273; None if it means "unspecified"."""
    return None if value == _UNSPECIFIED else value


def _told_by_head(video: Any) -> dict[str, str | None]:
    """Return the rotation and the side data of a track: unknown without a place for its codec.

    PyAV gives no access to them, but copies them: the head of an mp4 or QuickTime file with such a
    track, written in memory, contains them.
    """
    for kind in ("mp4", "mov"):
        head = io.BytesIO()
        options = {"movflags": "empty_moov", "strict": "unofficial"}
        try:
            with av.open(head, "w", kind, container_options=options) as file:
                file.add_stream_from_template(video, opaque=True)
                file.start_encoding()
        except (av.FFmpegError, ValueError):
            continue
        data = head.getvalue()
        place, entry = data.index(b"tkhd") + _MATRIX_PLACE, data.index(b"stsd") + 12
        end = entry + int.from_bytes(data[entry : entry + 4])
        found: dict[bytes, bytes] = {}
        with suppress(NotIndexedError):  # a palette, and no box
            found.update(read_boxes(data[entry + _ENTRY_BYTES : end]))
        told: dict[str, str | None] = {
            "rotation": _rotation(*struct.unpack_from(">5i", data, place))
        }
        for name, (_, kinds) in _SIDE_DATA.items():
            content = b"".join(found.get(each, b"") for each in kinds)
            told[name] = digest(content) if content else "none"
        return told
    return dict.fromkeys(("rotation", *_SIDE_DATA))


def told_by_picture(picture: Any) -> dict[str, str | None]:
    """Return the same as a decoded picture tells it, of side data only that there are some."""
    data = {each.type.name: bytes(each) for each in picture.side_data}
    matrix = data.get("DISPLAYMATRIX")
    rotation = _rotation(*struct.unpack_from("=5i", matrix)) if matrix else "0 degrees"
    known = {name: kind for name, (kind, _) in _SIDE_DATA.items() if kind}
    told = {name: "some" if kind in data else "none" for name, kind in known.items()}
    return {"rotation": rotation, **told}


def _rotation(a: int, b: int, _: int, c: int, d: int) -> str:
    """Return what the first numbers of a display matrix do (ISO/IEC 14496-12, 6.2.2)."""
    mirrored = " and mirrored" if a * d - b * c < 0 else ""
    return f"{round(math.degrees(math.atan2(b, a))) % 360} degrees{mirrored}"
