"""A film of copied packets compared with its chunks: properties, labels, and decoded pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from operator import sub
from pathlib import Path
from typing import Any

import av
from av.codec import CodecContext

from prefect_renderfarm.blocks.errors import MediaFault
from prefect_renderfarm.blocks.media.frame_grid import exact
from prefect_renderfarm.blocks.media.model import (
    PROGRESSIVE,
    Media,
    Signature,
    difference,
    read_labels,
    read_signature,
)
from prefect_renderfarm.blocks.media.reader import faults, field_order, open_media

# Seams at which pictures are compared: a picture of 4K takes some 100 ms to decode.
_SEAMS = 4
# How far before a frame a demuxer is sent for it, as a transport stream has no index; None: back to
# the beginning.
_SEEK_SECONDS = (0, 1, 10, None)
_MOST_FAILED = 300  # packets: more than between two key frames
# Matroska's clock is one of 1 ms; the highest rate is 1,000 frames a second.
_SAME_TIME = Fraction(1, 2000)
# Headers that are the same in each container; other codecs have another in each, or none.
_SAME_HEADER = ("h264", "hevc")
# Their key frames need nothing of what was decoded before, nor what comes behind: one is decoded
# alone. Others may need it, though each chunk begins with such a frame.
_ALONE = frozenset(
    {"h264", "hevc", "vvc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "prores",
     "ffv1", "dnxhd", "mjpeg", "rawvideo", "png", "utvideo", "huffyuv"}
)  # fmt: skip
_OF_THE_CONTAINER = frozenset({"container", "tracks", "time base"})
# Properties without which a film is as most are.
_NOTHING = {
    "pixel aspect": "1", "rotation": "0 degrees", "field order": PROGRESSIVE,
    "mastering display": "none", "content light level": "none", "ambient light": "none",
    "Dolby Vision record": "none", "stereo mode": "none", "projection": "none",
}  # fmt: skip


def sample_of(starts: Sequence[tuple[Path, int]], first: Media) -> list[tuple[Path, int]]:
    """Return those chunks at whose first frames a film is looked at, of all with their starts."""
    if first.signature["codec"] in _ALONE:
        return list(starts[:2])
    if len(starts) <= _SEAMS + 1:
        return list(starts)
    step = Fraction(len(starts) - 2, _SEAMS - 1)
    return [starts[0], *(starts[1 + round(number * step)] for number in range(_SEAMS))]


def check_content(film: Path, first: Media, starts: Sequence[tuple[Path, int]]) -> list[str]:
    """Compare a film with its chunks, which are coded as the `first`; return the labels it lost.

    `starts` has chunk files, each with the number of the film's frame at which it starts. Raises
    MediaFault if a property of the chunks is not the film's, because its container has no place for
    it, or if a picture is another one.
    """
    with faults(), open_media(film, probe=False) as container:
        video: Any = container.streams.video[0]
        audio = next(iter(container.streams.audio), None)
        shown = _pictures(container, starts, first)
        picture = next(shown)
        found = _signature(container, video, picture)
        fault = difference(_comparable(first, film, found), found)
        if fault:
            raise MediaFault(f"has {fault}: a {film.suffix} film may have no place for it")
        labels = read_labels(container, video, audio)
        for _ in shown:
            pass
        return first.labels.lost(labels)


def check_encoded(film: Path, first: Media) -> list[str]:
    """Return what a film that was encoded from chunks lacks of theirs, in words.

    Raises MediaFault if the film cannot be decoded.
    """
    with faults(), open_media(film, probe=False) as container:
        video: Any = container.streams.video[0]
        picture = next(_decoded(container, video, alone=False), None)
        if picture is None:
            raise MediaFault("cannot be decoded at frame 0")
        found = _signature(container, video, picture)
        lost = [
            f"{name} {value}"
            for name, value in first.signature.items()
            if value not in (None, _NOTHING.get(name, value)) and found[name] != value
        ]
        if _has_alpha(first.signature) and not _has_alpha(found):
            lost.append("the alpha channel")
        audio = next(iter(container.streams.audio), None)
        return [*lost, *first.labels.lost(read_labels(container, video, audio))]


def _signature(container: Any, video: Any, picture: Any) -> dict[str, Any]:
    """Return a film's signature; its decoder, and its first picture, complete what headers tell."""
    signature = dict(read_signature(container, video, None))
    if signature["field order"] != PROGRESSIVE:
        signature["field order"] = field_order(picture)
    return signature


def _has_alpha(signature: Signature) -> bool:
    kind = av.VideoFormat(str(signature["pixel format"]))
    return signature.get("alpha") == "yes" or any(part.is_alpha for part in kind.components)


def _comparable(first: Media, film: Path, found: Signature) -> Signature:
    """Return those properties of a chunk that its film must have, too."""
    signature = first.signature
    left_out = {name for name in signature if name in _OF_THE_CONTAINER or name.startswith("audio")}
    containers = {str(signature["container"]), str(found["container"])}
    same_header = signature["codec"] in _SAME_HEADER and "mpegts" not in containers
    if len(containers) > 1 and not same_header:
        left_out.add("codec header")
    if film.suffix.lower() != first.path.suffix.lower():  # mp4 has fewer tags than mov
        left_out.add("codec tag")
    if film.suffix.lower() == ".webm":  # which tells a size in whole pixels
        width = int(str(signature["frame size"]).split("x")[0])
        aspects = (Fraction(str(each["pixel aspect"])) for each in (signature, found))
        if abs(sub(*aspects)) <= Fraction(1, width):
            left_out.add("pixel aspect")
    return {name: value for name, value in signature.items() if name not in left_out}


def _pictures(container: Any, starts: Sequence[tuple[Path, int]], first: Media) -> Iterator[Any]:
    """Give some of a film's frames, of which each equals a chunk's first one."""
    video, alone = container.streams.video[0], first.signature["codec"] in _ALONE
    beginning = 0
    with ThreadPoolExecutor(1) as pool:  # chunks are decoded beside the film
        coming = [pool.submit(_first_picture, path, alone) for path, _ in starts]
        for (path, start), future in zip(starts, coming, strict=True):
            if (expected := future.result()) is None:
                raise MediaFault(f"is made of {path.name!r}, whose first frame cannot be decoded")
            if start:
                frame = _frame_at(container, video, beginning, start / first.fps, first.fps, alone)
            else:
                frame = next(_decoded(container, video, alone), None)
            if frame is None:
                raise MediaFault(f"cannot be decoded at frame {start}")
            beginning = beginning if start else frame.pts or 0
            if _picture(frame) != expected:
                raise MediaFault(f"shows another picture than {path.name!r} at frame {start}")
            yield frame


def _first_picture(path: Path, alone: bool) -> bytes | None:
    with open_media(path, probe=False) as container:
        frame = next(_decoded(container, container.streams.video[0], alone), None)
        return frame and _picture(frame)


def _frame_at(
    container: Any, video: Any, beginning: int, seconds: Fraction, fps: Fraction, alone: bool
) -> Any:
    """Return a film's frame by its time; None if there is none.

    The `beginning` of the film counts in ticks, the time in seconds after it. A frame that may need
    others is decoded behind the one before it.
    """
    clock, lead = exact(video.time_base), 0 if alone else 1 / fps
    for before in _SEEK_SECONDS:
        seek = beginning if before is None else beginning + round((seconds - before - lead) / clock)
        container.seek(max(seek, beginning), stream=video)
        for frame in _decoded(container, video, alone, (beginning, seconds)):
            if frame.pts is not None:
                distance = (frame.pts - beginning) * clock - seconds
                if abs(distance) <= _SAME_TIME:
                    return frame
                if distance > 0:
                    break
    return None


def _decoded(
    container: Any, video: Any, alone: bool, wanted: tuple[int, Fraction] | None = None
) -> Iterator[Any]:
    """Give a film's frames from where it is read on; `alone`, only a key frame.

    That is the first one, or the one with the `wanted` time: ticks, and seconds behind them. Behind
    a seek the first packets may need others before them, but not more than a few.
    """
    failed, clock = 0, exact(video.time_base)
    for packet in container.demux(video):
        if alone and packet.size:
            distance = Fraction(0)
            if wanted is not None and packet.pts is not None:
                distance = (packet.pts - wanted[0]) * clock - wanted[1]
            if distance > 1:
                return
            if not packet.is_keyframe or abs(distance) > _SAME_TIME:
                continue
        try:
            frames = packet.decode()
            if alone and not frames and packet.size:
                frames = video.codec_context.decode(None)
        except (av.FFmpegError, ValueError):  # ValueError: PyAV 19 has no such decoder
            failed += 1
            if failed > _MOST_FAILED:
                return
            continue
        yield from frames
        if alone:
            return


def _picture(frame: Any) -> bytes:
    """Return a frame's pixels without the bytes between its lines."""
    encoder: Any = CodecContext.create("rawvideo", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
    encoder.time_base = Fraction(1, 1)
    return b"".join(map(bytes, encoder.encode(frame)))
