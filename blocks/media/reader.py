"""Media files read with PyAV, packet by packet, and compared with their frame grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
    Audio,
    Media,
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
from prefect_renderfarm.blocks.media.tail import TailReader

# ISO/IEC 13818-1: the bytes of a transport packet; and with the time stamp that Blu-ray adds.
_TRANSPORT_PACKETS = (188, 192)
_BUFFER_BYTES = 1 << 20
# ISO/IEC 14496-15: sample entries of H.264 and H.265 whose parameter sets may be among the frames.
_IN_BAND = (b"avc3", b"hev1")


@dataclass(frozen=True)
class Packets:
    """The packets of a file.

    Attributes:
        pts: Display time of each frame, in units of `time_base`, in the order of the file.
        dts: Decoding time of each frame; where a container has none, libav's guess.
        time_base: Seconds.
        audio: The audio track, if there is one.
    """

    pts: Sequence[int]
    dts: Sequence[int | None]
    time_base: Fraction
    audio: Audio | None


def read_media(
    path: Path,
    fps: Fraction | None = None,
    *,
    first: Media | None = None,
    verify: Verify = Verify.PACKETS,
    planned: int | None = None,
) -> Media:
    """Read a file, or an image sequence, and check that its frames lie on a grid of `fps`.

    Args:
        path: The file; or the folder of a sequence, or a name such as `film/%05d.png`.
        fps: Frames a second that are planned; None means the file's own rate.
        first: A file that has been read in full. A file that is coded in the same way, byte for
            byte of its headers, is then read by its index alone, or else without a probe.
        verify: `packets`: check the time of every packet; `decode`: also decode every frame;
            `header`: assume the planned number of frames where a file does not tell it.
        planned: Number of frames that are planned, for `header`.

    Raises:
        MediaFault: The file is missing, damaged or cut short; has no or several video tracks, or
            several audio tracks; or has frames that are doubled, missing or off the grid.
    """
    if is_image_sequence(path):
        images = complete_images(path)
        if fps is None:
            raise MediaFault(f"has {len(images)} images, which have no frame rate: give fps")
        signature = read_images(images, decode=verify is not Verify.HEADER)
        return Media(path, len(images), 0, fps, 0, signature, images=images)
    media = (first and read_by_index(path, fps, first)) or _read_packets(
        path, fps, first=first, planned=planned if verify is Verify.HEADER else None
    )
    if verify is Verify.DECODE:
        for _ in decoded_frames(path, media.frames, strict=True):
            pass
    return media


def read_by_index(path: Path, fps: Fraction | None, first: Media) -> Media | None:
    """Read a file by its mp4 index alone, if it is coded as another one.

    Args:
        path: The file.
        fps: Frames a second that are planned; None means those of the other file.
        first: The other file, which has been read in full.

    Returns:
        The contents; None if they cannot be read in this way, which does not mean a fault.
    """
    known = first.mp4_track
    # Without a header of the codec, only its frames tell the pixel format and the colours.
    if known is None or not first.signature["codec header"] or known.description[:4] in _IN_BAND:
        return None
    if (track := _only_video_track(path)) is None:
        return None
    coding = (known.description, known.presentation, known.timescale)
    if coding != (track.description, track.presentation, track.timescale):
        return None
    rate = fps or first.fps
    try:
        order = frame_order(track.pts, Fraction(1, track.timescale), rate)
    except MediaFault:
        return None
    return replace(first, path=path, frames=len(order), first_time=0, fps=rate,
                   reorder=reorder_depth(order), mp4_track=track)  # fmt: skip


def decoded_frames(path: Path, frames: int, *, strict: bool = False) -> Iterator[Any]:
    """Give the pictures of a file, one after the other.

    Args:
        path: The file.
        frames: Their number.
        strict: Whether to raise any damage that a decoder can detect.

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


def _only_video_track(path: Path) -> Track | None:
    """Return the video track of an mp4 or mov file that has no other track."""
    if path.suffix.lower() not in MP4_ENDINGS:
        return None
    with suppress(NotIndexedError, OSError):
        tracks = read_mp4_index(path).tracks
        if len(tracks) == 1 and tracks[0].kind == "vide":
            return tracks[0]
    return None


def _read_packets(
    path: Path, fps: Fraction | None, *, first: Media | None = None, planned: int | None = None
) -> Media:
    # The length of compressed audio packets is known only to the decoder.
    probe = first is None or (first.audio is not None and not first.audio.is_pcm)
    with open_media(path, probe=probe) as container:
        _check_transport_packets(path, container)
        video, audio = _tracks(container)
        signature = read_signature(container, video, audio)
        # Without a probe, only an equal codec header proves that the rest is equal.
        if first is not None and (
            signature["codec header"] is None or difference(first.signature, signature)
        ):
            return _read_packets(path, fps, planned=planned)
        rate = fps or exact(video.average_rate) or exact(video.guessed_rate)
        if not rate:
            raise MediaFault("has no frame rate in its header: give fps")
        no_index = audio is None and not video.frames and video.start_time is not None
        if planned is not None and no_index:
            depth = video.codec_context.reorder_depth
            return Media(path, planned, video.start_time, rate, depth, signature)
        packets = _read_tracks(container, video, audio)
        order = frame_order(packets.pts, packets.time_base, rate)
        if video.frames and video.frames != len(order):
            raise MediaFault(
                f"is cut short: {len(order)} of the {video.frames} frames of its header"
            )
        return Media(
            path=path,
            frames=len(order),
            first_time=min(packets.pts),
            fps=rate,
            # A single frame does not show the depth that its encoder uses elsewhere.
            reorder=max(reorder_depth(order), video.codec_context.reorder_depth if probe else 0),
            signature=signature,
            audio=packets.audio,
            clock_error=clock_error(packets.pts, packets.time_base, rate),
            mp4_track=None if audio else _only_video_track(path),
        )


def read_back(film: Path | TailReader, *, probe: bool) -> Packets:
    """Read every packet of a film, to its end.

    Args:
        film: The film, which may still be being written.
        probe: Let libav decode a little: a transport stream needs that for its audio.

    Raises:
        MediaFault: It is not a complete media file.
    """
    if isinstance(film, Path):
        with open_media(film, probe=probe) as container:
            _check_transport_packets(film, container)
            return _read_tracks(container, *_tracks(container))
    options = {} if probe else {"codec_whitelist": "none"}
    try:
        with av.open(film, "r", options=options, buffer_size=_BUFFER_BYTES) as container:
            return _read_tracks(container, *_tracks(container))
    except (av.FFmpegError, ValueError) as error:
        raise MediaFault(f"cannot be read back ({reason_of(error)})") from None


def _read_tracks(container: Any, video: Any, audio: Any) -> Packets:
    """Read all packets; the audio starts relative to the first frame."""
    times: list[int] = []
    decoding_times: list[int | None] = []
    audio_bytes = 0
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
                decoding_times.append(packet.dts)
                continue
            audio_bytes += packet.size
            if packet.pts is not None:
                begin = packet.pts * packet.time_base
                start = begin if start is None else start
                # Not the sum of the lengths: Matroska rounds each of them to 1 ms.
                end = begin + (packet.duration or 0) * packet.time_base
    except av.FFmpegError as error:
        raise MediaFault(
            f"cannot be read past frame {len(times)} ({reason_of(error)}): is it complete?"
        ) from None
    clock = exact(video.time_base)
    if audio is None:
        return Packets(times, decoding_times, clock, None)
    context = audio.codec_context
    start = start or Fraction(0)
    if size := pcm_bytes(context.name):
        samples = audio_bytes // (size * len(context.layout.channels))
    else:
        samples = round((end - start) * context.sample_rate)
    start -= min(times, default=0) * clock
    layout = layout_of(context)
    found = Audio(context.name, context.sample_rate, layout, samples, start)
    return Packets(times, decoding_times, clock, found)


def _check_transport_packets(path: Path, container: av.container.InputContainer) -> None:
    """Refuse a transport stream that ends within a packet: its last frame would lack its end."""
    size = path.stat().st_size
    if container.format.name == "mpegts" and all(size % each for each in _TRANSPORT_PACKETS):
        raise MediaFault(
            f"is cut short: its last transport packet has {size % _TRANSPORT_PACKETS[0]} bytes, "
            f"not {_TRANSPORT_PACKETS[0]}"
        )


def _tracks(container: av.container.InputContainer) -> tuple[Any, Any]:
    videos, audios = container.streams.video, container.streams.audio
    if len(videos) != 1:
        raise MediaFault(f"has {len(videos)} video tracks, not one")
    if len(audios) > 1:
        raise MediaFault(f"has {len(audios)} audio tracks: at most one can be assembled")
    return videos[0], audios[0] if audios else None
