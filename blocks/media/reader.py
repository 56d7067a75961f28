"""Media files read with PyAV, packet by packet, and held to their frame grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.frame_grid import clock_error, frame_order, reorder_depth
from prefect_renderfarm.blocks.media.frame_rate import exact
from prefect_renderfarm.blocks.media.image_sequence import (
    complete_images,
    is_image_sequence,
    read_images,
)
from prefect_renderfarm.blocks.media.model import (
    Media,
    Sound,
    Verify,
    layout_of,
    open_media,
    pcm_bytes,
    reason_of,
)
from prefect_renderfarm.blocks.media.mp4_index import (
    MP4_ENDINGS,
    NotIndexedError,
    Track,
    read_mp4_index,
)
from prefect_renderfarm.blocks.media.signature import difference, read_signature
from prefect_renderfarm.blocks.media.tail import FileTail

# ISO/IEC 13818-1: the bytes of a transport packet; and with the time stamp that Blu-ray adds.
_TRANSPORT_PACKETS = (188, 192)
_BUFFER_BYTES = 1 << 20
# ISO/IEC 14496-15: sample entries of H.264 and H.265 whose parameter sets may be among the frames.
_IN_BAND = (b"avc3", b"hev1")


def read_media(
    path: Path,
    fps: Fraction | None = None,
    *,
    like: Media | None = None,
    verify: Verify = Verify.PACKETS,
    planned: int | None = None,
) -> Media:
    """Read a file, or an image sequence, and check that its frames lie on a grid of `fps`.

    Args:
        path: The file; or the folder of a sequence, or a name such as `film/%05d.png`.
        fps: Frames a second that are planned; None: the file's own rate.
        like: A file that has been read in full. One that is coded in the same way, byte for byte of
            its headers, is then taken by its sample table alone, or else without a probe.
        verify: `packets`: the time and place of every packet; `decode`: also decode every frame;
            `header`: where a file does not tell its frames, believe that it has the planned ones.
        planned: Number of frames that are planned, for `header`.

    Raises:
        MediaFault: The file is missing, damaged or cut short; has no or several video tracks, or
            several audio tracks; or has frames that are doubled, missing or off the grid.
    """
    if is_image_sequence(path):
        return _read_sequence(path, fps, verify)
    media = (like and read_alike(path, fps, like)) or _read_packets(
        path, fps, like=like, planned=planned if verify is Verify.HEADER else None
    )
    if verify is Verify.DECODE:
        for _ in decoded_frames(path, media.frames, strict=True):
            pass
    return media


def read_alike(path: Path, fps: Fraction | None, like: Media) -> Media | None:
    """Read a file by its sample table alone, if it is coded like another one.

    Args:
        path: The file.
        fps: Frames a second that are planned; None: those of the other.
        like: The other, which has been read in full.

    Returns:
        What it holds; None: that cannot be told in this way, and nothing is said of the file.
    """
    known = like.table
    # Without a header of the codec, only its frames tell the pixel format and the colours.
    if known is None or not like.signature["codec header"] or known.description[:4] in _IN_BAND:
        return None
    if (table := video_table(path)) is None:
        return None
    coding = (known.description, known.presentation, known.timescale)
    if coding != (table.description, table.presentation, table.timescale):
        return None
    rate = fps or like.fps
    try:
        order = frame_order(table.pts, Fraction(1, table.timescale), rate)
    except MediaFault:
        return None
    return replace(like, path=path, frames=len(order), first_time=0, fps=rate,
                   reorder=reorder_depth(order), table=table)  # fmt: skip


def decoded_frames(path: Path, frames: int, *, strict: bool = False) -> Iterator[Any]:
    """Give the pictures of a file, one after the other.

    Args:
        path: The file.
        frames: How many there are.
        strict: Whether to let nothing pass that a decoder can notice.

    Raises:
        MediaFault: A frame is damaged, or there are more or fewer of them.
    """
    decoded = 0
    with open_media(path, strict=strict) as container:
        container.streams.video[0].thread_type = "AUTO"
        try:
            for frame in container.decode(video=0):
                if frame.is_corrupt:
                    raise MediaFault(f"has damage in frame {decoded}")
                decoded += 1
                yield frame
        except av.FFmpegError as error:
            raise MediaFault(
                f"cannot be decoded past frame {decoded} ({reason_of(error)}): render it again"
            ) from None
    if decoded != frames:
        raise MediaFault(f"has {frames} frames, of which only {decoded} can be decoded")


def video_table(path: Path) -> Track | None:
    """Return the sample table of an mp4 or mov file that holds one video track and nothing else."""
    if path.suffix.lower() not in MP4_ENDINGS:
        return None
    with suppress(NotIndexedError, OSError):
        tracks = read_mp4_index(path).tracks
        if len(tracks) == 1 and tracks[0].kind == "vide":
            return tracks[0]
    return None


def _read_sequence(path: Path, fps: Fraction | None, verify: Verify) -> Media:
    images = complete_images(path)
    if fps is None:
        raise MediaFault(f"has {len(images)} images, which tell no frame rate: give fps")
    signature = read_images(images, decode=verify is not Verify.HEADER)
    return Media(path, len(images), 0, fps, 0, signature, images=images)


def _read_packets(
    path: Path, fps: Fraction | None, *, like: Media | None = None, planned: int | None = None
) -> Media:
    # Compressed sound tells how long its packets are only to who can decode it.
    probe = like is None or (like.sound is not None and not like.sound.is_pcm)
    with open_media(path, probe=probe) as container:
        _check_transport_packets(path, container)
        video, audio = _tracks(container)
        signature = read_signature(container, video, audio)
        # Without a probe only the same codec header tells that all is the same that it stands for.
        if like is not None and (
            signature["codec header"] is None or difference(like.signature, signature)
        ):
            return _read_packets(path, fps, planned=planned)
        rate = fps or exact(video.average_rate) or exact(video.guessed_rate)
        if not rate:
            raise MediaFault("does not tell its frame rate: give fps")
        believed = planned is not None and audio is None and not video.frames
        if planned is not None and believed and video.start_time is not None:
            depth = video.codec_context.reorder_depth
            return Media(path, planned, video.start_time, rate, depth, signature)
        times, sound = _read_times(container, video, audio)
        clock = exact(video.time_base)
        order = frame_order(times, clock, rate)
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
            sound=sound,
            clock_error=clock_error(times, clock, rate),
            table=None if audio else video_table(path),
        )


def read_growing(
    file: FileTail, *, probe: bool = False
) -> tuple[list[int], Fraction, Sound | None]:
    """Read every packet of a file that is still being written, to its end.

    Args:
        file: The file.
        probe: Let libav decode a little: without that a transport stream tells nothing of sound.

    Returns:
        The display times of all frames, their time base in seconds, and the sound.

    Raises:
        MediaFault: It is no whole media file.
    """
    options = {} if probe else {"codec_whitelist": "none"}
    try:
        with av.open(file, "r", options=options, buffer_size=_BUFFER_BYTES) as container:
            video, audio = _tracks(container)
            times, sound = _read_times(container, video, audio)
            return times, exact(video.time_base), sound
    except (av.FFmpegError, ValueError) as error:
        raise MediaFault(f"cannot be read back ({reason_of(error)})") from None


def _read_times(container: Any, video: Any, audio: Any) -> tuple[list[int], Sound | None]:
    """Return the display times of all frames, and the sound with its start after the first."""
    times: list[int] = []
    pcm = 0
    start: Fraction | None = None
    end = Fraction(0)
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
                if not times and not packet.is_keyframe:
                    raise MediaFault(
                        "does not begin with a key frame, so that its first frames cannot be "
                        "decoded: encode it, do not cut it out of a stream"
                    )
                times.append(packet.pts)
                continue
            pcm += packet.size
            if packet.pts is not None:
                begin = packet.pts * packet.time_base
                start = begin if start is None else start
                # Not the sum of the lengths: Matroska rounds each of them to 1 ms.
                end = begin + (packet.duration or 0) * packet.time_base
    except av.FFmpegError as error:
        raise MediaFault(
            f"cannot be read past frame {len(times)} ({reason_of(error)}): is it whole?"
        ) from None
    if audio is None:
        return times, None
    context = audio.codec_context
    start = start or Fraction(0)
    if size := pcm_bytes(context.name):
        samples = pcm // (size * len(context.layout.channels))
    else:
        samples = round((end - start) * context.sample_rate)
    after_first = start - min(times, default=0) * video.time_base
    return times, Sound(context.name, context.sample_rate, layout_of(context), samples, after_first)


def _check_transport_packets(path: Path, container: av.container.InputContainer) -> None:
    """Refuse a transport stream that ends within a packet: its last frame would lack its end."""
    size = path.stat().st_size
    if container.format.name == "mpegts" and all(size % each for each in _TRANSPORT_PACKETS):
        whole = _TRANSPORT_PACKETS[0]
        raise MediaFault(
            f"is cut short: its last transport packet has {size % whole} bytes, not {whole}"
        )


def _tracks(container: av.container.InputContainer) -> tuple[Any, Any]:
    videos, audios = container.streams.video, container.streams.audio
    if len(videos) != 1:
        raise MediaFault(f"has {len(videos)} video tracks, not one")
    if len(audios) > 1:
        raise MediaFault(f"has {len(audios)} audio tracks: at most one can be assembled")
    return videos[0], audios[0] if audios else None
