"""Media files read with PyAV, packet by packet, and compared with their frame grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.frame_grid import exact, frame_order, reorder_depth
from prefect_renderfarm.blocks.media.image_sequence import (
    complete_images,
    is_image_sequence,
    read_images,
)
from prefect_renderfarm.blocks.media.model import (
    Audio,
    Media,
    Verify,
    difference,
    layout_of,
    pcm_bytes,
    read_signature,
)
from prefect_renderfarm.blocks.media.mp4_index import (
    MP4_ENDINGS,
    NotIndexedError,
    Track,
    read_mp4_index,
)

# `aggressive` reports left-over bits, by which most damage to H.264 shows.
_STRICT = "crccheck+bitstream+buffer+careful+compliant+aggressive+explode"
# ISO/IEC 13818-1: the bytes of a transport packet; and with the time stamp that Blu-ray adds.
_TRANSPORT_PACKETS = (188, 192)
_BUFFER_BYTES = 1 << 20
# ISO/IEC 14496-15: sample entries of H.264 and H.265 whose parameter sets may be among the frames.
_IN_BAND = (b"avc3", b"hev1")
_coding = attrgetter("description", "presentation", "timescale")


@dataclass(frozen=True)
class Packets:
    """The packets of a file: when each frame is displayed and decoded, in units of `time_base`."""

    pts: Sequence[int]
    dts: Sequence[int | None]  # where a container has none, libav's guess
    time_base: Fraction  # in seconds
    audio: Audio | None


@contextmanager
def open_media(path: Path, *, probe: bool = True, strict: bool = False) -> Iterator[InputContainer]:
    """Open a file for demuxing; MediaFault if it does not exist, is empty, or is no media file.

    Its absolute path keeps a part of its name from being taken for a protocol; it may refer to
    local files only. With `probe`, libav decodes a few frames to find the pixel format, which takes
    most of the time of opening. With `strict`, decoders fail at any damage instead of hiding it.
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
            f"cannot be opened as a media file ({_reason(error)}): is it complete?"
        ) from None
    with container:
        if strict:
            # Options of the container do not reach the decoders.
            for stream in container.streams.video:
                stream.codec_context.options = {"err_detect": _STRICT}
        yield container


def _reason(error: Exception) -> str:
    """Return the reason that the system or libav gives, without numbers and names."""
    return getattr(error, "strerror", None) or str(error)


def read_media(
    path: Path,
    fps: Fraction | None = None,
    *,
    first: Media | None = None,
    verify: Verify = Verify.PACKETS,
    planned: int | None = None,
) -> Media:
    """Read a file, or an image sequence, and check that its frames lie on a grid of `fps`.

    `first` is a file that has been read in full: one that is coded in the same way, byte for byte
    of its headers, is then read by its index alone, or else without a probe. `verify` may be
    `header`, which assumes the planned number of frames where a file does not tell it.

    MediaFault: it is damaged, or has other tracks than one of video and at most one of audio, or
    frames that are doubled, missing or off the grid.
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
    """Read a file by its mp4 index alone, if it is coded as `first`; None if that is impossible."""
    known = first.mp4_track
    # Without a header of the codec, only its frames tell the pixel format and the colours.
    if known is None or not first.signature["codec header"] or known.description[:4] in _IN_BAND:
        return None
    track = _only_video_track(path)
    if track is None or _coding(track) != _coding(known):
        return None
    rate = fps or first.fps
    try:
        order, _ = frame_order(track.pts, Fraction(1, track.timescale), rate)
    except MediaFault:
        return None
    return replace(first, path=path, frames=len(order), first_time=0, fps=rate,
                   reorder=reorder_depth(order), mp4_track=track)  # fmt: skip


def decoded_frames(path: Path, frames: int, *, strict: bool = False) -> Iterator[Any]:
    """Give the `frames` pictures of a file; MediaFault if there are others, or one is damaged."""
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
                f"cannot be decoded past frame {decoded} ({_reason(error)}): render it again"
            ) from None
    if decoded != frames:
        raise MediaFault(f"has {frames} frames, of which only {decoded} can be decoded")


def _only_video_track(path: Path) -> Track | None:
    """Return the video track of an mp4 or mov file that has no other track."""
    with suppress(NotIndexedError, OSError):
        tracks = read_mp4_index(path).tracks if path.suffix.lower() in MP4_ENDINGS else ()
        if len(tracks) == 1 and tracks[0].kind == "vide":
            return tracks[0]
    return None


def _read_packets(
    path: Path, fps: Fraction | None, *, first: Media | None = None, planned: int | None = None
) -> Media:
    # The length of compressed audio packets is known only to the decoder.
    probe = first is None or (first.audio is not None and not first.audio.is_pcm)
    with open_media(path, probe=probe) as container:
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
        # A single frame does not show the depth that its encoder uses elsewhere.
        depth = video.codec_context.reorder_depth
        no_index = audio is None and not video.frames and video.start_time is not None
        if planned is not None and no_index:
            return Media(path, planned, video.start_time, rate, depth, signature)
        packets = _read_tracks(container, video, audio)
        order, _ = frame_order(packets.pts, packets.time_base, rate)
        count = len(order)
        if video.frames and video.frames != count:
            raise MediaFault(f"is cut short: {count} of the {video.frames} frames of its header")
        reorder = max(reorder_depth(order), depth if probe else 0)
        track = None if audio else _only_video_track(path)
        first_time = min(packets.pts)
        return Media(path, count, first_time, rate, reorder, signature, packets.audio, track)


def read_back(film: Path | Any, *, probe: bool) -> Packets:
    """Read every packet of a film, to its end: of a file, or of what has a method `read`.

    With `probe`, libav decodes a little: a transport stream needs that for its audio.
    """
    if isinstance(film, Path):
        with open_media(film, probe=probe) as container:
            return _read_tracks(container, *_tracks(container))
    options = {} if probe else {"codec_whitelist": "none"}
    try:
        with av.open(film, "r", options=options, buffer_size=_BUFFER_BYTES) as container:
            return _read_tracks(container, *_tracks(container))
    except (av.FFmpegError, ValueError) as error:
        raise MediaFault(f"cannot be read back ({_reason(error)})") from None


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
            f"cannot be read past frame {len(times)} ({_reason(error)}): is it complete?"
        ) from None
    clock, found = exact(video.time_base), None
    if audio is not None:
        context = audio.codec_context
        start = start or Fraction(0)
        if size := pcm_bytes(context.name):
            samples = audio_bytes // (size * len(context.layout.channels))
        else:
            samples = round((end - start) * context.sample_rate)
        start -= min(times, default=0) * clock
        found = Audio(context.name, context.sample_rate, layout_of(context), samples, start)
    return Packets(times, decoding_times, clock, found)


def _tracks(container: InputContainer) -> tuple[Any, Any]:
    """Return the video track, and the audio track if there is one."""
    size = container.size or -1  # None or below 0 if it is not known yet
    if container.format.name == "mpegts" and size > 0 and all(size % n for n in _TRANSPORT_PACKETS):
        # Its last frame would lack its end.
        raise MediaFault(f"is cut short: its last transport packet has {size % 188} bytes, not 188")
    videos, audios = container.streams.video, container.streams.audio
    if len(videos) != 1:
        raise MediaFault(f"has {len(videos)} video tracks, not one")
    if len(audios) > 1:
        raise MediaFault(f"has {len(audios)} audio tracks: at most one can be assembled")
    return videos[0], audios[0] if audios else None
