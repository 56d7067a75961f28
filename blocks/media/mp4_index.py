"""The sample table of an mp4 or mov file: where each frame lies and when it is shown.

Reading it takes some 0.1 ms and touches no frame, where opening a file with libav takes several
times as long. It is used to accept a file that is like one that libav has read, to copy frames, and
to look at a finished film. Whatever is unusual in a file makes it unreadable here: the caller then
lets libav read it.

Source of all boxes: ISO/IEC 14496-12, ISO base media file format, chapter 8.
"""

from __future__ import annotations

import itertools
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefect_renderfarm.blocks.errors import AssemblyError

MP4_ENDINGS = (".mp4", ".m4v", ".mov")
_MOST_INDEX_BYTES = 256 * 1024 * 1024
_WHOLE_SPEED = 1 << 16
_READ_BYTES = 1 << 20


class NotIndexedError(Exception):
    """A file is no plain mp4 or mov file; nothing is said about whether it is whole."""


@dataclass(frozen=True)
class Track:
    """One track of an mp4 or mov file; of sound no samples are listed: PCM has millions.

    Attributes:
        kind: `vide`, `soun`, or another handler type.
        timescale: Ticks a second of all times.
        duration: Length as its header tells it, in ticks; of sound, what its edit list shows.
        description: How it is coded: the sample entry, without its bit rates.
        presented: How large the picture is shown, and how it is turned.
        sizes: Bytes of each sample, in decoding order.
        offsets: Where each sample begins in the file.
        decoded: Decoding time of each sample, in ticks.
        shown: Display time of each sample, in ticks, the edit list applied: the first is at 0.
        keys: Numbers of the samples that stand alone; None: all.
    """

    kind: str
    timescale: int
    duration: int
    description: bytes
    presented: bytes
    sizes: array[int]
    offsets: array[int]
    decoded: array[int]
    shown: array[int]
    keys: frozenset[int] | None


@dataclass(frozen=True)
class Mp4Index:
    """What an mp4 or mov file tells of itself.

    Attributes:
        tracks: Its tracks.
        duration: Length of the film as its header tells it, in ticks of `timescale`.
        timescale: Ticks a second.
    """

    tracks: tuple[Track, ...]
    duration: int
    timescale: int


def read_mp4_index(path: Path) -> Mp4Index:
    """Read the sample tables of a file; every sample is within the file.

    Raises:
        NotIndexedError: It is no plain mp4 or mov file: fragmented, edited, or damaged.
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        moov = _find_moov(descriptor, size)
    finally:
        os.close(descriptor)
    try:
        return _parse_moov(moov, size)
    except (struct.error, IndexError, KeyError, ValueError, OverflowError) as error:
        raise NotIndexedError(f"the index cannot be read: {error}") from None


def read_samples(descriptor: int, table: Track) -> Iterator[memoryview]:
    """Give the bytes of each sample, in decoding order; those that lie together are read together.

    Raises:
        AssemblyError: The file ends before its last sample.
    """
    start = 0
    count = len(table.sizes)
    while start < count:
        begin = end = table.offsets[start]
        stop = start
        while stop < count and table.offsets[stop] == end and end - begin < _READ_BYTES:
            end += table.sizes[stop]
            stop += 1
        data = memoryview(os.pread(descriptor, end - begin, begin))
        if len(data) != end - begin:
            raise AssemblyError("a chunk file was cut short while it was being copied")
        for offset, size in zip(table.offsets[start:stop], table.sizes[start:stop], strict=True):
            yield data[offset - begin : offset - begin + size]
        start = stop


def _find_moov(descriptor: int, size: int) -> bytes:
    position = 0
    found = None
    while position + 8 <= size:
        head = os.pread(descriptor, 16, position)
        length, kind = struct.unpack_from(">I4s", head)
        skipped = 8
        if length == 1 and len(head) == 16:
            length, skipped = struct.unpack_from(">Q", head, 8)[0], 16
        elif length == 0:
            length = size - position
        if length < skipped or position + length > size or kind in (b"moof", b"sidx"):
            raise NotIndexedError(f"box {kind!r} at {position}")
        if position == 0 and kind != b"ftyp":
            raise NotIndexedError("does not begin with ftyp")
        if kind == b"moov":
            if found is not None or length > _MOST_INDEX_BYTES:
                raise NotIndexedError("more than one index, or a very long one")
            found = os.pread(descriptor, length - skipped, position + skipped)
        position += length
    if found is None or position != size:
        raise NotIndexedError("no index, or bytes behind the last box")
    return found


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if length < 8 or position + length > len(data):
            raise NotIndexedError(f"box {kind!r} is cut short")
        yield kind, data[position + 8 : position + length]
        position += length


def _parse_moov(moov: bytes, file_size: int) -> Mp4Index:
    boxes = list(_boxes(moov))
    kinds = [kind for kind, _ in boxes]
    if b"mvex" in kinds or b"cmov" in kinds:
        raise NotIndexedError("fragmented or compressed")
    header = dict(boxes)[b"mvhd"]
    timescale, duration = _clock(header)
    tracks = [_parse_track(body, timescale, file_size) for kind, body in boxes if kind == b"trak"]
    return Mp4Index(tuple(tracks), duration, timescale)


def _clock(header: bytes) -> tuple[int, int]:
    """Return timescale and duration of an `mvhd` or `mdhd` box (8.2.2, 8.4.2)."""
    layout, place = (">IQ", 20) if header[0] else (">II", 12)
    timescale, duration = struct.unpack_from(layout, header, place)
    if not timescale:
        raise NotIndexedError("a clock without ticks")
    return timescale, duration


def _parse_track(trak: bytes, movie_timescale: int, file_size: int) -> Track:
    boxes = dict(_boxes(trak))
    media = dict(_boxes(boxes[b"mdia"]))
    info = dict(_boxes(media[b"minf"]))
    table = dict(_boxes(info[b"stbl"]))
    references = dict(_boxes(info[b"dinf"]))[b"dref"]
    if references[4:8] != b"\0\0\0\1" or not references[19] & 1:
        raise NotIndexedError("its frames are in another file")
    timescale, duration = _clock(media[b"mdhd"])
    presented = boxes[b"tkhd"][52:96] if boxes[b"tkhd"][0] else boxes[b"tkhd"][40:84]
    kind = media[b"hdlr"][8:12].decode("latin-1")
    if kind == "soun":
        duration -= _edit(boxes[b"edts"])[1] if b"edts" in boxes else 0
        entry, none = _description(table[b"stsd"]), array("q")
        return Track(kind, timescale, duration, entry, presented, none, none, none, none, None)
    sizes = _sizes(table, file_size)
    offsets = _offsets(table, sizes)
    if not all(sizes):
        raise NotIndexedError("a frame without bytes, which is none")
    if any(offset + size > file_size for offset, size in zip(offsets, sizes, strict=True)):
        raise NotIndexedError("the file ends before its last frame")
    decoded = array("q", [0, *itertools.accumulate(_runs(table[b"stts"], ">II", len(sizes)))])
    end = decoded.pop()
    shown = array("q", decoded)
    if b"ctts" in table:
        later = _runs(table[b"ctts"], ">Ii", len(sizes))
        shown = array("q", map(int.__add__, decoded, later))
    start = min(shown, default=0)
    if b"edts" in boxes:
        _check_edit(boxes[b"edts"], start, max(shown, default=0), timescale, movie_timescale)
    keys = None
    if b"stss" in table:
        keys = frozenset(number - 1 for number in _numbers(table[b"stss"], 4, "I"))
        if 0 not in keys:
            raise NotIndexedError("does not begin with a key frame")
    return Track(
        kind=kind,
        timescale=timescale,
        duration=duration or end,
        description=_description(table[b"stsd"]),
        presented=presented,
        sizes=sizes,
        offsets=offsets,
        decoded=array("q", [time - start for time in decoded]),
        shown=array("q", [time - start for time in shown]),
        keys=keys,
    )


def _numbers(box: bytes, at: int, code: str) -> tuple[int, ...]:
    """Return a counted list of numbers, as many boxes hold one."""
    (count,) = struct.unpack_from(">I", box, at)
    return struct.unpack_from(f">{count}{code}", box, at + 4)


def _runs(box: bytes, layout: str, expected: int) -> list[int]:
    """Return the values of `stts` (8.6.1.2) or `ctts` (8.6.1.3), one a sample."""
    (count,) = struct.unpack_from(">I", box, 4)
    values: list[int] = []
    for length, value in struct.iter_unpack(layout, box[8 : 8 + 8 * count]):
        if len(values) + length > expected:
            raise NotIndexedError("more times than frames")
        values += [value] * length
    if len(values) != expected:
        raise NotIndexedError("fewer times than frames")
    return values


def _sizes(table: dict[bytes, bytes], file_size: int) -> array[int]:
    """Return the bytes of each sample (`stsz`, 8.7.3)."""
    fixed, count = struct.unpack_from(">II", table[b"stsz"], 4)
    if fixed:
        if count > _MOST_INDEX_BYTES or count * fixed > file_size:
            raise NotIndexedError("more samples than the file has bytes for")
        return array("q", itertools.repeat(fixed, count))
    return array("q", _numbers(table[b"stsz"], 8, "I"))


def _offsets(table: dict[bytes, bytes], sizes: array[int]) -> array[int]:
    """Return where each sample begins (`stsc`, 8.7.4, with `stco` or `co64`, 8.7.5)."""
    wide = b"co64" in table
    starts = _numbers(table[b"co64" if wide else b"stco"], 4, "Q" if wide else "I")
    (count,) = struct.unpack_from(">I", table[b"stsc"], 4)
    runs = list(struct.iter_unpack(">III", table[b"stsc"][8 : 8 + 12 * count]))
    if any(description != 1 for _, _, description in runs):
        raise NotIndexedError("more than one way of coding")
    offsets = array("q")
    sample = 0
    borders = [*(first for first, _, _ in runs[1:]), len(starts) + 1]
    for (first, each, _), border in zip(runs, borders, strict=True):
        for start in starts[first - 1 : border - 1]:
            position = start
            for size in sizes[sample : sample + each]:
                offsets.append(position)
                position += size
            sample += each
    if sample != len(sizes):
        raise NotIndexedError("the frames of its index do not add up")
    return offsets


def _edit(edts: bytes) -> tuple[int, int]:
    """Return the length of the one edit (8.6.6), and where in the media it begins."""
    edit = dict(_boxes(edts))[b"elst"]
    (count,) = struct.unpack_from(">I", edit, 4)
    duration, begin, rate = struct.unpack_from(">Qqi" if edit[0] else ">Iii", edit, 8)
    if count != 1 or begin < 0 or rate != _WHOLE_SPEED:
        raise NotIndexedError("an edit list moves a track")
    return duration, begin


def _check_edit(edts: bytes, start: int, last: int, timescale: int, movie_timescale: int) -> None:
    """Make sure that the edit list shows every frame, the first one at once."""
    duration, begin = _edit(edts)
    if begin != start or duration * timescale <= (last - start) * movie_timescale:
        raise NotIndexedError("an edit list hides frames")


def _description(box: bytes) -> bytes:
    """Return the one sample entry of `stsd` (8.5.2), without the bit rates in `btrt`."""
    if struct.unpack_from(">I", box, 4)[0] != 1:
        raise NotIndexedError("more than one way of coding")
    entry = box[8:]
    at = entry.find(b"btrt")
    if at >= 4 and entry[at - 4 : at] == b"\0\0\0\x14":
        # The length of the entry itself counts the bit rates, too.
        return entry[4 : at - 4] + entry[at + 16 :]
    return entry[4:]
