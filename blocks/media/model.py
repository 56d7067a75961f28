"""The contents of a media file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.mp4_index import Track
from prefect_renderfarm.blocks.media.signature import Signature

# `aggressive` reports left-over bits, by which most damage to H.264 shows.
_STRICT = "crccheck+bitstream+buffer+careful+compliant+aggressive+explode"
_USUAL_LAYOUTS = {
    "1 channels": "mono",
    "2 channels": "stereo",
    "6 channels": "5.1",
    "8 channels": "7.1",
}


class Verify(StrEnum):
    """How thoroughly a chunk is checked before assembly."""

    HEADER = "header"
    PACKETS = "packets"
    DECODE = "decode"


@dataclass(frozen=True)
class Audio:
    """The audio track of a media file.

    Attributes:
        codec: FFmpeg's name of the codec.
        rate: Samples a second.
        layout: FFmpeg's name of the channel layout.
        samples: Length in samples, from its start; exact for PCM, else by the packets' times.
        start: When it begins, in seconds after the first frame; below 0 where an encoder puts
            priming samples first.
    """

    codec: str
    rate: int
    layout: str
    samples: int
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
    """A media file with one video track.

    Attributes:
        path: The file.
        frames: Number of video frames.
        first_time: Display time of the first frame, in the video track's own time base.
        fps: Frames a second of the grid on which the frames lie.
        reorder: Number of packets by which decoding order runs ahead of display order (B-frames).
        signature: What must be the same in all chunks of a film.
        audio: The audio track, if there is one.
        clock_error: Largest distance of a frame from its place on the grid, in seconds.
        mp4_track: The video's index, if the file is an mp4 or mov without any other track.
        images: The pictures, if it is an image sequence.
    """

    path: Path
    frames: int
    first_time: int
    fps: Fraction
    reorder: int
    signature: Signature
    audio: Audio | None = None
    clock_error: Fraction = Fraction(0)
    mp4_track: Track | None = None
    images: tuple[Path, ...] = ()


def layout_of(context: Any) -> str:
    """Return FFmpeg's name of an audio track's channel layout.

    PCM in Matroska tells only the number of channels: then it is the usual layout of so many.
    """
    name = str(context.layout.name)
    return _USUAL_LAYOUTS.get(name, name)


def pcm_bytes(codec: str) -> int | None:
    """Return the bytes of one PCM sample of one channel; None if the codec is not plain PCM."""
    match = re.fullmatch(r"pcm_[suf](8|16|24|32|64)(le|be)?", codec)
    return int(match[1]) // 8 if match else None


@contextmanager
def open_media(
    path: Path, *, probe: bool = True, strict: bool = False
) -> Iterator[av.container.InputContainer]:
    """Open a file for demuxing.

    Args:
        path: The file. It is opened by its absolute path, so that no part of its name can be taken
            for a protocol, and it may not refer to anything but local files.
        probe: Let libav decode a few frames to find the pixel format. Most of the time of opening
            goes there; without it only the container and the codec's own header are read.
        strict: Let decoders fail at any damage instead of hiding it.

    Raises:
        MediaFault: It does not exist, is empty, or is no media file.
    """
    options = {"protocol_whitelist": "file"} | ({} if probe else {"codec_whitelist": "none"})
    if strict:
        options["err_detect"] = "crccheck+bitstream+buffer+explode"
    try:
        if path.stat().st_size == 0:
            raise MediaFault("is empty")
        container = av.open(str(path.absolute()), options=options)
    except FileNotFoundError:
        raise MediaFault("does not exist") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaFault(
            f"cannot be opened as a media file ({reason_of(error)}): is it complete?"
        ) from None
    with container:
        if strict:
            # Options of the container do not reach the decoders.
            for stream in container.streams.video:
                stream.codec_context.options = {"err_detect": _STRICT}
        yield container


def reason_of(error: Exception) -> str:
    """Return the reason that the system or libav gives, without numbers and names."""
    return getattr(error, "strerror", None) or str(error)
