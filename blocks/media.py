"""What a media file holds: read with PyAV, packet by packet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.frame_grid import clock_error, frame_order, reorder_depth
from prefect_renderfarm.blocks.growing_file import GrowingFile
from prefect_renderfarm.blocks.mp4_index import (
    MP4_ENDINGS,
    NotIndexedError,
    Track,
    read_mp4_index,
)
from prefect_renderfarm.blocks.signature import Signature, read_signature

_BUFFER_BYTES = 1 << 20


class Verify(StrEnum):
    """How closely a chunk is looked at before assembly."""

    HEADER = "header"
    PACKETS = "packets"
    DECODE = "decode"


@dataclass(frozen=True)
class Sound:
    """The sound of a media file.

    Attributes:
        codec: FFmpeg's name of the codec.
        rate: Samples a second.
        samples: Length in samples, from its start; exact for PCM, else as the packets tell it.
        start: When it begins, in seconds after the first frame; below 0 where an encoder put
            samples first that only prime a decoder.
    """

    codec: str
    rate: int
    samples: int
    start: Fraction = Fraction(0)

    @property
    def is_pcm(self) -> bool:
        """Whether the sound is uncompressed, so that pieces join without a seam."""
        return pcm_bytes(self.codec) is not None


@dataclass(frozen=True)
class Media:
    """A media file with one video track.

    Attributes:
        path: The file.
        frames: Number of video frames.
        first_time: Display time of the first frame, in the video track's own time base.
        fps: Frames a second of the grid on which the frames were found.
        reorder: Number of packets by which decoding order runs ahead of display order (B-frames).
        signature: What must be the same in all chunks of a film.
        sound: The audio track, if there is one.
        clock_error: Largest distance of a frame from its place on the grid, in seconds.
        table: The video's sample table, if the file is an mp4 or mov with nothing else in it.
    """

    path: Path
    frames: int
    first_time: int
    fps: Fraction
    reorder: int
    signature: Signature
    sound: Sound | None = None
    clock_error: Fraction = Fraction(0)
    table: Track | None = None


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
            f"cannot be opened as a media file ({_reason(error)}): is it whole?"
        ) from None
    with container:
        yield container


def read_media(
    path: Path,
    fps: Fraction | None = None,
    *,
    like: Media | None = None,
    verify: Verify = Verify.PACKETS,
    planned: int | None = None,
) -> Media:
    """Read a file and check that its frames lie on a grid of `fps`.

    Args:
        path: The file.
        fps: Frames a second that are planned; None: the file's own rate.
        like: A file that has been read in full. One that is coded in the same way, byte for byte of
            its headers, is then taken by its sample table alone, and others without a probe.
        verify: `packets`: the time and place of every packet; `decode`: also decode every frame;
            `header`: where a file has no sample table, believe that it has the planned frames.
        planned: Number of frames that are planned, for `header`.

    Raises:
        MediaFault: The file is missing, damaged or cut short; has no or several video tracks, or
            several audio tracks; or has frames that are doubled, missing or off the grid.
    """
    media = (like and _read_alike(path, fps, like)) or _read_packets(
        path, fps, probe=like is None, planned=planned if verify is Verify.HEADER else None
    )
    if verify is Verify.DECODE:
        decode_frames(path, media.frames)
    return media


def decode_frames(path: Path, frames: int) -> None:
    """Decode every frame of a file, and let nothing pass that a decoder can notice.

    Raises:
        MediaFault: A frame is damaged, or there are more or fewer than `frames`.
    """
    decoded = 0
    with open_media(path, strict=True) as container:
        container.streams.video[0].thread_type = "AUTO"
        try:
            for frame in container.decode(video=0):
                if frame.is_corrupt:
                    raise MediaFault(f"has damage in frame {decoded}")
                decoded += 1
        except av.FFmpegError as error:
            raise MediaFault(
                f"cannot be decoded past frame {decoded} ({_reason(error)}): render it again"
            ) from None
    if decoded != frames:
        raise MediaFault(f"has {frames} frames, of which only {decoded} can be decoded")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def video_table(path: Path) -> Track | None:
    """Return the sample table of an mp4 or mov file that holds one video track and nothing else."""
    if path.suffix.lower() not in MP4_ENDINGS:
        return None
    with suppress(NotIndexedError, OSError):
        tracks = read_mp4_index(path).tracks
        if len(tracks) == 1 and tracks[0].kind == "vide":
            return tracks[0]
    return None


def _read_alike(path: Path, fps: Fraction | None, like: Media) -> Media | None:
    """Take a file by its sample table if it is coded like another; None if that cannot be told."""
    known, table = like.table, None if like.table is None else video_table(path)
    rate = fps or like.fps
    if known is None or table is None:
        return None
    told = (known.description, known.matrix, known.timescale)
    if told != (table.description, table.matrix, table.timescale):
        return None
    try:
        order = frame_order(table.shown, Fraction(1, table.timescale), rate)
    except MediaFault:
        return None
    return replace(like, path=path, frames=len(order), first_time=0, fps=rate,
                   reorder=reorder_depth(order), table=table)  # fmt: skip


def _read_packets(
    path: Path, fps: Fraction | None, *, probe: bool, planned: int | None = None
) -> Media:
    with open_media(path, probe=probe) as container:
        # A codec without a header of its own tells nothing unless it is decoded.
        if not probe and any(not v.codec_context.extradata for v in container.streams.video):
            return _read_packets(path, fps, probe=True, planned=planned)
        video, audio = _tracks(container)
        signature = read_signature(container, video, audio)
        rate = fps or video.average_rate or video.guessed_rate
        if not rate:
            raise MediaFault("does not tell its frame rate: give fps")
        if planned is not None and audio is None and video.start_time is not None:
            depth = video.codec_context.reorder_depth
            return Media(path, planned, video.start_time, rate, depth, signature)
        times, sound = _read_times(container, video, audio)
        order = frame_order(times, video.time_base, rate)
        announced = video.frames
        if announced and announced != len(order):
            raise MediaFault(f"is cut short: {len(order)} of the {announced} frames of its header")
        return Media(
            path=path,
            frames=len(order),
            first_time=min(times),
            fps=rate,
            # One frame tells nothing of the depth that its encoder uses elsewhere.
            reorder=max(reorder_depth(order), video.codec_context.reorder_depth if probe else 0),
            signature=signature,
            sound=sound and replace(sound, start=sound.start - min(times) * video.time_base),
            clock_error=clock_error(times, video.time_base, rate),
            table=None if audio else video_table(path),
        )


def read_growing(file: GrowingFile) -> tuple[list[int], Fraction, Sound | None]:
    """Read every packet of a file that is still being written, to its end.

    Returns:
        The display times of all frames, their time base in seconds, and the sound.

    Raises:
        MediaFault: It is no whole media file.
    """
    options = {"codec_whitelist": "none"}
    try:
        with av.open(file, "r", options=options, buffer_size=_BUFFER_BYTES) as container:
            video, audio = _tracks(container)
            times, sound = _read_times(container, video, audio)
            return times, video.time_base, sound
    except (av.FFmpegError, ValueError) as error:
        raise MediaFault(f"cannot be read back ({_reason(error)})") from None


def _read_times(container: Any, video: Any, audio: Any) -> tuple[list[int], Sound | None]:
    """Return the display times of all frames, and the sound with its start on the same clock."""
    times: list[int] = []
    samples = Fraction(0)
    start: Fraction | None = None
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
                if start is None and packet.pts is not None:
                    start = packet.pts * packet.time_base
    except av.FFmpegError as error:
        raise MediaFault(
            f"cannot be read past frame {len(times)} ({_reason(error)}): is it whole?"
        ) from None
    if audio is None:
        return times, None
    context = audio.codec_context
    return times, Sound(context.name, context.sample_rate, round(samples), start or Fraction(0))


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
