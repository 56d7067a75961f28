"""The index of an mp4 or mov file: where each frame lies, when it is decoded and displayed.

Reading it takes some 0.1 ms and touches no frame. libav needs several times as long to open a file,
and tells display times only by reading all packets: stitching would take two to four times as long.
What is unusual in a file is not parsed here: the caller then lets libav read the file.

Source of all boxes: ISO/IEC 14496-12, ISO base media file format, chapter 8.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect_renderfarm.blocks.errors import AssemblyError

MP4_ENDINGS = (".mp4", ".m4v", ".mov")
_MAX_INDEX_BYTES = 256 * 1024 * 1024
_NORMAL_SPEED = 1 << 16
_READ_BYTES = 1 << 20
_BIT_RATES = re.compile(rb"\0\0\0\x14btrt.{12}", re.DOTALL)


class NotIndexedError(Exception):
    """A file is fragmented, edited, damaged, or not mp4 or mov: libav may be able to read it."""


@dataclass(frozen=True)
class Track:
    """One track of an mp4 or mov file; samples are listed for video only: PCM has millions.

    Samples are in decoding order. Times are in ticks; the first display time is 0.
    """

    kind: str  # `vide`, `soun`, or another handler type
    timescale: int  # ticks a second
    duration: int  # that the header tells; of audio, what its edit list shows
    description: bytes  # how the track is coded: its sample entry, without bit rates
    presentation: bytes  # the size and the rotation in which the picture is displayed
    sizes: Sequence[int] = ()
    offsets: Sequence[int] = ()
    dts: Sequence[int] = ()
    pts: Sequence[int] = ()
    keyframes: frozenset[int] | None = None  # samples that can be decoded alone; None means all


@dataclass(frozen=True)
class Mp4Index:
    """The tracks of an mp4 or mov file, and its duration in ticks of `timescale`."""

    tracks: tuple[Track, ...]
    duration: int
    timescale: int


def read_mp4_index(path: Path) -> Mp4Index:
    """Read the index of a file; NotIndexedError if a sample is not within the file."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            moov = _find_moov(file.fileno(), size)
        boxes = list(read_boxes(moov))
        _require(not {b"mvex", b"cmov"} & {kind for kind, _ in boxes}, "fragmented or compressed")
        timescale, duration = _clock(dict(boxes)[b"mvhd"])
        tracks = (_track(body, timescale, size) for kind, body in boxes if kind == b"trak")
        return Mp4Index(tuple(tracks), duration, timescale)
    except (struct.error, IndexError, KeyError, ValueError, OverflowError) as error:
        raise NotIndexedError(f"the index cannot be read: {error}") from None


def read_samples(descriptor: int, track: Track) -> Iterator[memoryview]:
    """Give the bytes of each sample, in decoding order; adjacent samples are read at once."""
    start, count = 0, len(track.sizes)
    while start < count:
        begin = end = track.offsets[start]
        stop = start
        while stop < count and track.offsets[stop] == end and end - begin < _READ_BYTES:
            end += track.sizes[stop]
            stop += 1
        data = memoryview(os.pread(descriptor, end - begin, begin))
        if len(data) != end - begin:
            raise AssemblyError("a chunk file was cut short while it was being copied")
        for offset, size in zip(track.offsets[start:stop], track.sizes[start:stop], strict=True):
            yield data[offset - begin : offset - begin + size]
        start = stop


def _require(fact: bool, otherwise: str) -> None:
    if not fact:
        raise NotIndexedError(otherwise)


def _find_moov(descriptor: int, size: int) -> bytes:
    position, found = 0, None
    while position + 8 <= size:
        head = os.pread(descriptor, 16, position)
        length, kind = struct.unpack_from(">I4s", head)
        header = 16 if length == 1 else 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", head, 8)
        elif length == 0:
            length = size - position
        whole = header <= length <= size - position
        _require(whole and kind not in (b"moof", b"sidx"), f"box {kind!r} at {position}")
        _require(position > 0 or kind == b"ftyp", "does not begin with ftyp")
        if kind == b"moov":
            _require(found is None and length <= _MAX_INDEX_BYTES, "two indexes, or a huge one")
            found = os.pread(descriptor, length - header, position + header)
        position += length
    _require(position == size, "bytes behind the last box")
    return found or b""  # in which there is no index


def read_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give the kind and the content of each box; NotIndexedError if one is cut short."""
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        _require(8 <= length <= len(data) - position, f"box {kind!r} is cut short")
        yield kind, data[position + 8 : position + length]
        position += length


def _clock(header: bytes) -> tuple[int, int]:
    """Return timescale and duration of an `mvhd` or `mdhd` box (8.2.2, 8.4.2)."""
    layout, place = (">IQ", 20) if header[0] else (">II", 12)
    timescale, duration = struct.unpack_from(layout, header, place)
    _require(timescale > 0, "a clock without ticks")
    return timescale, duration


def _track(trak: bytes, movie_timescale: int, file_size: int) -> Track:
    boxes = dict(read_boxes(trak))
    media = dict(read_boxes(boxes[b"mdia"]))
    info = dict(read_boxes(media[b"minf"]))
    table = dict(read_boxes(info[b"stbl"]))
    references = dict(read_boxes(info[b"dinf"]))[b"dref"]
    _require(references[4:8] == b"\0\0\0\1" and references[19] & 1 == 1, "data in another file")
    timescale, duration = _clock(media[b"mdhd"])
    tkhd = boxes[b"tkhd"]
    presentation = tkhd[52:96] if tkhd[0] else tkhd[40:84]
    kind = media[b"hdlr"][8:12].decode("latin-1")
    _require(table[b"stsd"][4:8] == b"\0\0\0\1", "several sample entries")
    # Neither the length of the entry, which includes the bit rates, nor these: 8.5.2.
    description = _BIT_RATES.sub(b"", table[b"stsd"][12:], 1)
    edit = _edit(boxes[b"edts"]) if b"edts" in boxes else None
    if kind == "soun":
        duration -= edit[1] if edit else 0
        return Track(kind, timescale, duration, description, presentation)
    sizes = _sizes(table[b"stsz"], file_size)
    offsets = _offsets(table, sizes)
    _require(all(sizes), "a frame without bytes")
    _require(
        all(offset + size <= file_size for offset, size in zip(offsets, sizes, strict=True)),
        "the file ends before its last frame",
    )
    dts = list(itertools.accumulate(_runs(table[b"stts"], ">II", len(sizes)), initial=0))
    end = dts.pop()
    delays = _runs(table[b"ctts"], ">Ii", len(sizes)) if b"ctts" in table else itertools.repeat(0)
    pts = [time + delay for time, delay in zip(dts, delays, strict=False)]
    first, last = min(pts, default=0), max(pts, default=0)
    if edit is not None:
        shown = edit[0] * timescale > (last - first) * movie_timescale
        _require(edit[1] == first and shown, "an edit list hides frames")
    keyframes = None
    if b"stss" in table:
        keyframes = frozenset(number - 1 for number in _list(table[b"stss"], 4, "I"))
        _require(0 in keyframes, "does not begin with a key frame")
    shifted_dts, shifted_pts = (array("q", [time - first for time in each]) for each in (dts, pts))
    return Track(kind, timescale, duration or end, description, presentation, sizes, offsets,
                 shifted_dts, shifted_pts, keyframes)  # fmt: skip


def _list(box: bytes, at: int, code: str) -> tuple[int, ...]:
    """Return a list of numbers with its length in front, as many boxes hold one."""
    (count,) = struct.unpack_from(">I", box, at)
    return struct.unpack_from(f">{count}{code}", box, at + 4)


def _runs(box: bytes, layout: str, expected: int) -> list[int]:
    """Return the values of `stts` (8.6.1.2) or `ctts` (8.6.1.3), one a sample."""
    (count,) = struct.unpack_from(">I", box, 4)
    values: list[int] = []
    for length, value in struct.iter_unpack(layout, box[8 : 8 + 8 * count]):
        _require(len(values) + length <= expected, "more times than frames")
        values += [value] * length
    _require(len(values) == expected, "fewer times than frames")
    return values


def _sizes(stsz: bytes, file_size: int) -> array[int]:
    """Return the bytes of each sample (8.7.3)."""
    fixed, count = struct.unpack_from(">II", stsz, 4)
    if not fixed:
        return array("q", _list(stsz, 8, "I"))
    possible = count <= _MAX_INDEX_BYTES and count * fixed <= file_size
    _require(possible, "more samples than the file has bytes for")
    return array("q", itertools.repeat(fixed, count))


def _offsets(table: dict[bytes, bytes], sizes: array[int]) -> array[int]:
    """Return the position of each sample (`stsc`, 8.7.4, with `stco` or `co64`, 8.7.5)."""
    wide = b"co64" in table
    starts = _list(table[b"co64" if wide else b"stco"], 4, "Q" if wide else "I")
    (count,) = struct.unpack_from(">I", table[b"stsc"], 4)
    runs = list(struct.iter_unpack(">III", table[b"stsc"][8 : 8 + 12 * count]))
    _require(all(description == 1 for _, _, description in runs), "several sample entries")
    offsets = array("q")
    sample = 0
    borders = [*(first for first, _, _ in runs[1:]), len(starts) + 1]
    for (first, each, _), border in zip(runs, borders, strict=True):
        for position in starts[first - 1 : border - 1]:
            for size in sizes[sample : sample + each]:
                offsets.append(position)
                position += size
            sample += each
    _require(sample == len(sizes), "the frames of its index do not add up")
    return offsets


def _edit(edts: bytes) -> tuple[int, int]:
    """Return the length of the one edit (8.6.6), and where in the media it begins."""
    edit = dict(read_boxes(edts))[b"elst"]
    (count,) = struct.unpack_from(">I", edit, 4)
    duration, begin, rate = struct.unpack_from(">Qqi" if edit[0] else ">Iii", edit, 8)
    plain = count == 1 and begin >= 0 and rate == _NORMAL_SPEED
    _require(plain, "an edit list moves a track")
    return duration, begin
