"""Media files read with PyAV, packet by packet, and compared with their frame grid."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.filter import Graph

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.codec_header import NAL_CODECS, light_of_frame
from prefect_renderfarm.blocks.media.frame_grid import exact, frame_order, reorder_depth
from prefect_renderfarm.blocks.media.image_sequence import (
    complete_images,
    is_image_sequence,
    read_images,
)
from prefect_renderfarm.blocks.media.model import (
    BOTTOM_FIRST,
    HOLE_SECONDS,
    LONGEST_SILENCE,
    PROGRESSIVE,
    TOP_FIRST,
    Audio,
    Media,
    Signature,
    Verify,
    difference,
    is_cover,
    layout_of,
    pcm_bytes,
    read_extras,
    read_labels,
    read_signature,
    told_by_picture,
)
from prefect_renderfarm.blocks.media.mp4_index import (
    MP4_ENDINGS,
    NotIndexedError,
    Track,
    read_mp4_index,
)
from prefect_renderfarm.blocks.media.reader_process import read_apart

# `aggressive` reports left-over bits, by which most damage to H.264 shows.
_STRICT = "crccheck+bitstream+buffer+careful+compliant+aggressive+explode"
# ISO/IEC 13818-1: the bytes of a transport packet; and with the time stamp that Blu-ray adds.
_TRANSPORT_PACKETS = (188, 192)
_BUFFER_BYTES = 1 << 20
# ISO/IEC 14496-15: sample entries of H.264 and H.265 whose parameter sets may be among the frames.
_IN_BAND = (b"avc3", b"hev1")
# Bytes of a frame in which what stands before its picture ends.
_MOST_BEFORE_PICTURE = 65_536
_UNDECODABLE = "has a track of {} of a codec that PyAV cannot decode"
# Pictures of other codecs have no fields, whatever their container tells.
_TELL_FIELDS = frozenset(
    {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "cavs", "prores", "dvvideo"}
)
_BEGIN_AT_0 = ("mov,", "matroska,")
_coding = attrgetter("description", "presentation", "timescale")


@dataclass(frozen=True)
class Packets:
    """The packets of a file: when each frame is displayed and decoded, in units of `time_base`."""

    pts: Sequence[int]
    dts: Sequence[int | None]  # where a container has none, libav's guess
    time_base: Fraction  # in seconds
    audio: Audio | None
    origin: int = 0  # from which the audio counts
    light: str | None = None  # what the first frame tells of its light


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

    libav reads it in another process. `first` is a file that has been read in full: one that is
    coded in the same way, byte for byte of its headers, is then read by its index alone, or else
    without a probe. `verify` may be `header`, which assumes the planned number of frames where a
    file does not tell it.

    MediaFault: it is damaged, or has other tracks than one of video and at most one of audio, or
    frames that are doubled, missing or off the grid.
    """
    if first is not None:
        if verify is not Verify.DECODE and (media := read_by_index(path, fps, first)) is not None:
            return media
        first = replace(first, mp4_track=None)  # a large part of what the process is sent
    return read_apart(read_in_full, path.absolute(), fps, first, verify, planned)


@contextmanager
def faults() -> Iterator[None]:
    """Turn what PyAV raises of a damaged file into a MediaFault: damage has many faces."""
    try:
        yield
    except (av.FFmpegError, ValueError, ArithmeticError, struct.error) as error:
        raise MediaFault(f"cannot be read ({_reason(error)}): is it complete?") from None


@faults()
def read_in_full(
    path: Path, fps: Fraction | None, first: Media | None, verify: Verify, planned: int | None
) -> Media:
    """Read a file as `read_media` does, with libav, in this process."""
    if is_image_sequence(path):
        images = complete_images(path)
        if fps is None:
            raise MediaFault(f"has {len(images)} images, which have no frame rate: give fps")
        signature = read_images(images, decode=verify is not Verify.HEADER)
        return Media(path, len(images), 0, fps, 0, signature, images=images)
    # The length of compressed audio packets is known only to the decoder.
    probe = first is None or (first.audio is not None and not first.audio.is_pcm)
    with open_media(path, probe=probe) as container:
        video, audio = _tracks(container)
        signature = read_signature(container, video, audio)
        if _needs_picture(signature, first) and (picture := _first_picture(path)) is not None:
            signature = complete(signature, picture)
        # Without a probe, only an equal codec header proves that the rest is equal.
        if first is not None and (
            signature["codec header"] is None or difference(first.signature, signature)
        ):
            return read_in_full(path, fps, None, verify, planned)
        rate = fps or exact(video.average_rate) or exact(video.guessed_rate)
        if not rate:
            raise MediaFault("has no frame rate in its header: give fps")
        # A single frame does not show the depth that its encoder uses elsewhere.
        depth = video.codec_context.reorder_depth
        media = Media(path, planned or 0, video.start_time or 0, rate, depth, signature,
                      labels=read_labels(container, video, audio),
                      extras=read_extras(container))  # fmt: skip
        no_index = audio is None and not video.frames and video.start_time is not None
        if verify is Verify.HEADER and planned is not None and no_index:
            return media
        packets = _read_tracks(container, video, audio)
        order, _ = frame_order(packets.pts, packets.time_base, rate)
        count = len(order)
        if video.frames and video.frames != count:
            raise MediaFault(f"is cut short: {count} of the {video.frames} frames of its header")
        media = replace(
            media,
            frames=count,
            first_time=min(packets.pts),
            reorder=max(reorder_depth(order), depth if probe else 0),
            signature={**signature, "light of the frames": packets.light},
            audio=packets.audio,
            mp4_track=None if audio else _only_video_track(path),
            origin=packets.origin,
        )
    if verify is Verify.DECODE:
        for _ in decoded_frames(path, media.frames, strict=True):
            pass
    return media


def read_by_index(path: Path, fps: Fraction | None, first: Media) -> Media | None:
    """Read a file by its mp4 index alone, if it is coded as `first`; None if that is impossible."""
    known, told = first.mp4_track, first.signature
    if known is None or known.description[:4] in _IN_BAND:
        return None
    # Without a header of the codec, only its frames tell the pixel format and the colours; which
    # field comes first, often only they.
    if not told["codec header"] or told["field order"] != PROGRESSIVE:
        return None
    track = _only_video_track(path)
    if track is None or _coding(track) != _coding(known):
        return None
    rate = fps or first.fps
    try:
        order, _ = frame_order(track.pts, Fraction(1, track.timescale), rate)
        if _light_of_file(path, track, str(told["codec"])) != told.get("light of the frames"):
            return None
    except (MediaFault, OSError):
        return None
    return replace(first, path=path, frames=len(order), first_time=0, fps=rate,
                   reorder=reorder_depth(order), mp4_track=track)  # fmt: skip


def _light_of_file(path: Path, track: Track, codec: str) -> str | None:
    """Return what a file's first frame tells of its light, by the beginning of the frame."""
    _, _, header = track.description.partition(b"avcC" if codec == "h264" else b"hvcC")
    with path.open("rb", buffering=0) as file:
        size = min(track.sizes[0], _MOST_BEFORE_PICTURE)
        packet = os.pread(file.fileno(), size, track.offsets[0])
    return light_of_frame(codec, header, packet)


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


def _needs_picture(signature: Signature, first: Media | None) -> bool:
    """Return whether only a decoded picture tells its fields, or its rotation.

    Headers of H.264 tell whether there are fields, but not which comes first; those of DNxHD tell
    nothing.
    """
    told, codec = signature["field order"], signature["codec"]
    like_first = first is not None and first.signature["field order"] == PROGRESSIVE
    known = told == PROGRESSIVE or (like_first and (told is not None or codec in NAL_CODECS))
    return signature["rotation"] is None or not known


def field_order(frame: Any) -> str:
    """Return which field of a frame is shown first."""
    if not frame.interlaced_frame:
        return PROGRESSIVE
    graph = Graph()  # PyAV tells it by FFmpeg's filters only
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    chosen, sink = graph.add("select", "eq(interlace_type,TOPFIRST)"), graph.add("buffersink")
    graph.link_nodes(source, chosen, sink).configure()
    graph.push(frame)
    graph.push(None)
    try:
        graph.pull()
    except (av.BlockingIOError, av.EOFError):
        return BOTTOM_FIRST
    return TOP_FIRST


def complete(signature: Signature, picture: Any) -> Signature:
    """Add what a file's first picture tells, and its header does not."""
    told = dict(signature)
    if told["field order"] != PROGRESSIVE:
        # FFmpeg calls interlaced what PNG stores in passes.
        shown = PROGRESSIVE if told["codec"] == "png" else field_order(picture)
        if shown != PROGRESSIVE or not told["field order"] or told["codec"] in _TELL_FIELDS:
            told["field order"] = shown
    return told if told["rotation"] is not None else told | told_by_picture(picture)


def _first_picture(path: Path) -> Any | None:
    """Return a file's first picture; None if it cannot be decoded."""
    with open_media(path, probe=False) as container, suppress(av.FFmpegError):
        return next(container.decode(video=0), None)
    return None


def _only_video_track(path: Path) -> Track | None:
    """Return the video track of an mp4 or mov file that has no other track."""
    with suppress(NotIndexedError, OSError):
        tracks = read_mp4_index(path).tracks if path.suffix.lower() in MP4_ENDINGS else ()
        if len(tracks) == 1 and tracks[0].kind == "vide":
            return tracks[0]
    return None


def read_audio(path: Path) -> Audio:
    """Read the header of a file with one audio track; 0 samples mean an unknown length."""
    with faults(), open_media(path) as container:
        if (tracks := len(container.streams.audio)) != 1:
            raise MediaFault(f"has {tracks} audio tracks, not one")
        stream = container.streams.audio[0]
        if (context := stream.codec_context) is None:
            raise MediaFault(_UNDECODABLE.format("audio"))
        tick = exact(stream.time_base)
        start = (stream.start_time or 0) * tick - beginning(container)
        length = start + stream.duration * tick if stream.duration else 0
        if start > LONGEST_SILENCE:
            raise MediaFault(
                f"has audio that begins {float(start):.1f} s after the file does: begin it with "
                "silence"
            )
        rate = context.sample_rate
        return Audio(context.name, rate, layout_of(context), round(length * rate), start)


def beginning(container: Any) -> Fraction:
    """Return the time in a file at which its film begins, in seconds.

    It is 0 in Matroska, mp4 and QuickTime; a transport stream begins anywhere, with a first packet.
    """
    if container.format.name.startswith(_BEGIN_AT_0):
        return Fraction(0)
    return Fraction(container.start_time or 0, av.time_base)


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
    audio_bytes = samples = 0
    start: Fraction | None = None
    hole: Fraction | None = None
    overlap: Fraction | None = None
    end = usual = Fraction(0)
    counting, light = False, None
    if audio is not None:
        tick, sound = exact(audio.time_base), audio.codec_context
        if sound.frame_size and sound.sample_rate:
            usual = Fraction(sound.frame_size, sound.sample_rate)
        # The times of packets are no exact measure, and of some codecs they are wrong.
        counting = sound.codec.lossless and not pcm_bytes(sound.name)
    try:
        for packet in container.demux(*filter(None, (video, audio))):
            if packet.size == 0:
                if packet.stream_index == video.index and packet.pts is not None:
                    raise MediaFault(
                        f"repeats frame {len(times) - 1} by a frame without data, as Theora does: "
                        "use another codec"
                    )
                continue
            if packet.is_corrupt:
                raise MediaFault(f"has a damaged packet after {len(times)} frames")
            if packet.stream_index == video.index:
                if packet.pts is None or packet.is_discard:
                    raise MediaFault(
                        "has frames without a timestamp, or hidden by an edit list: "
                        "write it as mp4, mov, mkv or ts without cutting"
                    )
                if not times:
                    if not packet.is_keyframe:
                        raise MediaFault(
                            "does not begin with a key frame, so that its first frames cannot be "
                            "decoded: encode it, do not cut it out of a stream"
                        )
                    coding, data = video.codec_context, bytes(packet)
                    light = light_of_frame(coding.codec.canonical_name, coding.extradata, data)
                times.append(packet.pts)
                decoding_times.append(packet.dts)
                continue
            audio_bytes += packet.size
            if counting:
                samples += sum(frame.samples for frame in packet.decode())
            if packet.pts is not None:
                begin = packet.pts * tick
                if start is None:
                    start = end = begin
                length = (packet.duration or 0) * tick
                if length and begin - end > HOLE_SECONDS:
                    hole = end - start if hole is None else hole
                elif length and end - begin > HOLE_SECONDS:
                    overlap = begin - start if overlap is None else overlap
                # Not the sum of the lengths: Matroska rounds each of them to 1 ms. In mp4 the
                # packet before a hole lasts until its end.
                end = begin + (min(length, usual) if usual else length)
    except av.FFmpegError as error:
        raise MediaFault(
            f"cannot be read past frame {len(times)} ({_reason(error)}): is it complete?"
        ) from None
    clock, found = exact(video.time_base), None
    origin = min(times, default=0)
    if container.format.name == "avi":  # which has no display times: they are libav's guess
        origin = min([origin, *(each for each in decoding_times[:1] if each is not None)])
    if audio is not None:
        start, rate = start or Fraction(0), sound.sample_rate
        if size := pcm_bytes(sound.name):
            samples = audio_bytes // (size * sound.channels)
        elif not counting:
            samples = round((end - start) * rate)
        start -= origin * clock
        found = Audio(sound.name, rate, layout_of(sound), samples, start, hole, overlap)
    return Packets(times, decoding_times, clock, found, origin, light)


def _tracks(container: InputContainer) -> tuple[Any, Any]:
    """Return the video track, and the audio track if there is one."""
    size = container.size or -1  # None or below 0 if it is not known yet
    if container.format.name == "mpegts" and size > 0 and all(size % n for n in _TRANSPORT_PACKETS):
        # Its last frame would lack its end.
        raise MediaFault(f"is cut short: its last transport packet has {size % 188} bytes, not 188")
    audios = container.streams.audio
    videos = [track for track in container.streams.video if not is_cover(track)]
    if videos and is_cover(container.streams.video[0]):
        raise MediaFault("has a cover picture before its video track: put it behind, or leave it")
    if len(videos) != 1:
        raise MediaFault(f"has {len(videos)} video tracks, not one")
    if len(audios) > 1:
        raise MediaFault(f"has {len(audios)} audio tracks: at most one can be assembled")
    for track in (*videos, *audios):
        if track.codec_context is None:
            raise MediaFault(_UNDECODABLE.format(track.type))
    return videos[0], audios[0] if audios else None
