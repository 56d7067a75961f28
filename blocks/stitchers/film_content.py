"""A film of copied packets compared with its chunks: properties, labels, and decoded pictures."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.codec import CodecContext

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.codec_header import (
    NAL_CODECS,
    coded_units,
    digest,
    light_of_frame,
)
from prefect_renderfarm.blocks.media.frame_grid import exact
from prefect_renderfarm.blocks.media.model import (
    PROGRESSIVE,
    Media,
    Signature,
    difference,
    is_digest,
    layout_of,
    read_labels,
    read_signature,
)
from prefect_renderfarm.blocks.media.reader import complete, faults, open_media

# Seams at which pictures are compared: a picture of 4K takes some 100 ms to decode.
_SEAMS = 4
# How far before a frame a demuxer is sent for it, as a transport stream has no index; at last to
# the beginning of any film.
_SEEK_SECONDS = (0, 1, 10, 10**9)
_MOST_FAILED = 300  # packets: more than between two key frames
# Matroska's clock is one of 1 ms; the highest rate is 1,000 frames a second.
_SAME_TIME = Fraction(1, 2000)
# Their decoders use nothing else than header and packet.
_BY_BYTES = ("vp9", "av1")
# ValueError: PyAV 19 has no such decoder.
_UNDECODABLE = (av.FFmpegError, ValueError)
# Their key frames need nothing of what was decoded before, nor what comes behind: one is decoded
# alone. Others may need it, though each chunk begins with such a frame.
_ALONE = frozenset(
    {"h264", "hevc", "vvc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "prores",
     "ffv1", "dnxhd", "mjpeg", "rawvideo", "png", "utvideo", "huffyuv"}
)  # fmt: skip
# What a film that was encoded may lack, with what it means to tell nothing. FFmpeg turns pictures.
_USUAL = {"pixel aspect": "1", "field order": PROGRESSIVE} | dict.fromkeys(
    ("mastering display", "content light level", "ambient light", "Dolby Vision record",
     "stereo mode", "projection", "light of the frames"), "none"
)  # fmt: skip


def sample_of(
    starts: Sequence[tuple[Path, int]], codec: str, *, complete: bool
) -> list[tuple[Path, int]]:
    """Return those chunks at whose first frames a film is looked at; none before all are known.

    `starts` has the chunks so far, with the numbers of their first frames, or the `complete` list.
    """
    if codec in _ALONE and (complete or len(starts) > 1):
        return list(starts[:2])
    if not complete:
        return []
    if len(starts) <= _SEAMS + 1:
        return list(starts)
    step = Fraction(len(starts) - 2, _SEAMS - 1)
    return [starts[0], *(starts[1 + round(number * step)] for number in range(_SEAMS))]


@dataclass(frozen=True)
class Beginning:
    """The first frame of a chunk, by digests."""

    path: Path
    start: int  # its number in the film
    coded: str | None  # what a decoder is given, where nothing else decides what it shows
    picture: str | None  # its pixels; None: cannot be decoded


def read_beginnings(starts: Sequence[tuple[Path, int]], codec: str) -> list[Beginning]:
    """Read and decode the first frames of chunks, each with its frame's number in the film."""
    return [Beginning(path, start, *_read_beginning(path, codec)) for path, start in starts]


def _read_beginning(path: Path, codec: str) -> tuple[str | None, str | None]:
    coded, frame = None, None
    with suppress(MediaFault), faults(), open_media(path, probe=False) as container:
        video: Any = container.streams.video[0]
        if codec not in _ALONE:
            frame = next(_frames(container, video), None)
        elif packet := next(_key_packets(container, video), None):
            coded, frame = _coded(video, packet, codec), _decode_alone(video, packet)
        told, own = (exact(each.sample_aspect_ratio) or 1 for each in (video, video.codec_context))
        if told != own:  # which the decoder has set, and does not count
            coded = None
    return coded, frame and _picture(frame)


def check_content(
    film: Path, first: Media, beginnings: Sequence[Beginning], layout: str | None = None
) -> list[str]:
    """Compare a film with its chunks, which are coded as the `first`; return what it lacks.

    That are labels, and the `layout` of its audio's channels. Raises MediaFault if a property of
    the chunks is not the film's, because its container has no place for it, or if the first frame
    of one of the chunks shows another picture in the film. A frame of which a decoder is given the
    same bytes needs no decoding.
    """
    with faults(), open_media(film, probe=False) as container:
        video: Any = container.streams.video[0]
        pictures = _pictures(container, beginnings, first)
        found = read_signature(container, video, None)  # before a decoder changes what it tells
        picture = next(pictures)
        if picture is not None or difference(_comparable(first, film, found), found):
            found = _probed(film, picture)  # perhaps only a decoder knows
        if fault := difference(_comparable(first, film, found), found):
            other = "" if film.suffix.lower() == ".mkv" else ", let its name end in .mkv"
            raise MediaFault(f"has {fault}: a {film.suffix} film may have no place for it{other}")
        for _ in pictures:
            pass
        audio = next(iter(container.streams.audio), None)
        labels = read_labels(container, video, audio)
        return [*first.labels.lost(labels), *_lost_layout(container, audio, layout)]


def check_encoded(film: Path, first: Media, layout: str | None = None) -> list[str]:
    """Return what a film that was encoded from chunks lacks of theirs, in words.

    Raises MediaFault if the film cannot be decoded.
    """
    with faults(), open_media(film, probe=False) as container:
        video: Any = container.streams.video[0]
        if (picture := next(_frames(container, video), None)) is None:
            raise MediaFault("cannot be decoded at frame 0")
        found = _probed(film, picture)
        lost = [
            name if is_digest(value) else f"{name} {value}"
            for name, usual in _USUAL.items()
            if (value := first.signature.get(name)) not in (None, usual, found.get(name))
        ]
        if _has_alpha(first.signature) and not _has_alpha(found):
            lost.append("the alpha channel")
        audio = next(iter(container.streams.audio), None)
        lost += first.labels.lost(read_labels(container, video, audio))
        return [*lost, *_lost_layout(container, audio, layout)]


def _probed(film: Path, picture: Any | None) -> Signature:
    """Return a film's signature as that of a chunk is read: with a decoder, and its picture."""
    with open_media(film) as container:
        video: Any = container.streams.video[0]
        signature = dict(read_signature(container, video, None))
        if (packet := next(_key_packets(container, video), None)) is not None:
            codec, header = str(signature["codec"]), video.codec_context.extradata or b""
            signature["light of the frames"] = light_of_frame(codec, header, bytes(packet))
            picture = picture or _decode_alone(video, packet)
        return signature if picture is None else complete(signature, picture)


def _lost_layout(container: Any, audio: Any, layout: str | None) -> list[str]:
    """Return the layout of a film's audio if the film does not tell it; refuse another one."""
    if audio is None or layout is None:
        return []
    container.seek(0)
    frame = next(container.decode(audio), None)
    found = layout if frame is None else layout_of(frame)
    if _places(found) == _places(layout):
        return []
    if found.endswith(" channels"):
        return [f"the layout {layout} of its audio's channels"]
    raise MediaFault(
        f"has audio in the channels {found}, not {layout}, which {audio.codec_context.name} cannot "
        "tell here: set the stitcher's 'audio_codec' to another, or let the film's name end in .mov"
    )


def _places(layout: str) -> list[str]:
    """Return the channels of a layout; those at the sides count as those behind."""
    with suppress(ValueError):
        names = (channel.name for channel in av.AudioLayout(layout).channels)
        return sorted({"SL": "BL", "SR": "BR"}.get(name, name) for name in names)
    return []


def _has_alpha(signature: Signature) -> bool:
    kind = av.VideoFormat(str(signature["pixel format"]))
    return signature.get("alpha") == "yes" or any(part.is_alpha for part in kind.components)


def _comparable(first: Media, film: Path, found: Signature) -> Signature:
    """Return those properties of a chunk that its film must have, too."""
    signature, left_out = first.signature, {"container", "tracks", "time base"}
    containers = {signature["container"], found["container"]}
    # NAL codecs have the same header in each container, others another in each, or none.
    same_header = signature["codec"] in NAL_CODECS and "mpegts" not in containers
    if len(containers) > 1 and not same_header:
        left_out.add("codec header")
    if film.suffix.lower() != first.path.suffix.lower():  # mp4 has fewer tags than mov
        left_out.add("codec tag")
    if film.suffix.lower() == ".webm":  # which tells a size in whole pixels
        width = int(str(signature["frame size"]).split("x")[0])
        chunks, films = (Fraction(str(each["pixel aspect"])) for each in (signature, found))
        if abs(chunks - films) <= Fraction(1, width):
            left_out.add("pixel aspect")
    left_out |= {name for name in signature if name.startswith("audio")}
    return {name: value for name, value in signature.items() if name not in left_out}


def _pictures(container: Any, beginnings: Sequence[Beginning], first: Media) -> Iterator[Any]:
    """Give those frames of a film that equal chunks' first ones; None if one needs no decoding."""
    video, codec = container.streams.video[0], str(first.signature["codec"])
    progressive = first.signature["field order"] == PROGRESSIVE
    alone = codec in _ALONE
    read, lead = (_key_packets, 0) if alone else (_frames, 1 / first.fps)
    origin = 0
    for each in beginnings:
        name = each.path.name
        if each.picture is None:
            raise MediaFault(f"is made of {name!r}, whose first frame cannot be decoded")
        if each.start:
            found = _found_at(container, origin, each.start / first.fps, lead, read)
        else:
            found = next(read(container, video), None)
            origin = (found and found.pts) or 0
        if found and each.coded and progressive and each.coded == _coded(video, found, codec):
            yield None
            continue
        picture = _decode_alone(video, found) if found and alone else found
        if picture is None:
            raise MediaFault(f"cannot be decoded at frame {each.start}")
        if _picture(picture) != each.picture:
            raise MediaFault(f"shows another picture than {name!r} at frame {each.start}")
        yield picture


def _found_at(
    container: Any, origin: int, seconds: Fraction, lead: Fraction | int, read: Callable[..., Any]
) -> Any | None:
    """Return that of a film's frames or packets which has a time; None if there is none.

    The `origin` of the film counts in ticks, the time in seconds after it. Reading begins by `lead`
    before it: a frame that may need others is decoded behind the one before it.
    """
    video = container.streams.video[0]
    clock = exact(video.time_base)
    for before in _SEEK_SECONDS:
        after = max(0, round((seconds - before - lead) / clock))
        container.seek(origin + after, stream=video)
        for found in read(container, video):
            if found.pts is not None:
                distance = (found.pts - origin) * clock - seconds
                if abs(distance) <= _SAME_TIME:
                    return found
                if distance > 0:
                    break
    return None


def _key_packets(container: Any, video: Any) -> Iterator[Any]:
    """Give a film's key packets from where it is read on."""
    return (each for each in container.demux(video) if each.size and each.is_keyframe)


def _frames(container: Any, video: Any) -> Iterator[Any]:
    """Give a film's frames from where it is read on.

    Behind a seek the first packets may need others before them, but not more than a few.
    """
    failed = 0
    for packet in container.demux(video):
        try:
            yield from packet.decode()
        except _UNDECODABLE:
            failed += 1
            if failed > _MOST_FAILED:
                return


def _decode_alone(video: Any, packet: Any) -> Any | None:
    """Return the frame of a key packet; None if it cannot be decoded."""
    with suppress(*_UNDECODABLE):
        return next(iter(packet.decode() or video.codec_context.decode(None)), None)
    return None


def _coded(video: Any, packet: Any, codec: str) -> str | None:
    """Return a digest of what decides how a packet is decoded; None if there may be more to it."""
    header, data = video.codec_context.extradata or b"", bytes(packet)
    if codec in NAL_CODECS:
        with suppress(struct.error, IndexError):  # damaged
            return digest(*coded_units(codec, header, data))
    return digest(header, data) if codec in _BY_BYTES else None


def _picture(frame: Any) -> str:
    """Return a digest of a frame's pixels without the bytes between its lines."""
    encoder: Any = CodecContext.create("rawvideo", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
    encoder.time_base = Fraction(1, 1)
    size = f"{frame.width}x{frame.height} {frame.format.name}"
    return digest(size.encode(), *map(bytes, encoder.encode(frame)))
