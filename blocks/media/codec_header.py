"""Headers of codecs without the notes of encoders, so that equal settings have equal headers.

Frames of codecs of NAL units, whatever container they are from, so that equal ones are equal.

x265 writes its version and settings into the header as an SEI message, MPEG-4 encoders their name
as user data: neither changes a picture, and both may differ between chunks of one job.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from contextlib import suppress

NAL_CODECS = ("h264", "hevc")
# ITU-T H.264, 7.3.1: the type of an SEI unit is 6; ITU-T H.265, 7.4.2.2: 39 (prefix), 40 (suffix).
_SEI = {"h264": (6,), "hevc": (39, 40)}
# Parameter sets. The same tables.
_SETS = {"h264": (7, 8), "hevc": (32, 33, 34)}
# Access unit delimiters, which transport streams have. The same tables.
_DELIMITER = {"h264": 9, "hevc": 35}
# ITU-T H.264, D.1.7: user data of an encoder of its own.
_UNREGISTERED = 5
# What tells of light: ITU-T H.274, 8: mastering display, content light level, the transfer that is
# meant, ambient light. AV1 Bitstream Specification, 6.7.1: OBU_METADATA with content light level,
# mastering display.
_LIGHT = (137, 144, 147, 148)
_METADATA_OBU, _LIGHT_OBU = 5, (1, 2)
_START = re.compile(rb"\x00\x00\x01")
# ISO/IEC 14496-2, 6.3.3, and ISO/IEC 13818-2, 6.3.4.1: user_data_start_code.
_USER_DATA = re.compile(rb"\x00\x00\x01\xb2.*?(?=\x00\x00\x01|$)", re.DOTALL)
# Lengths, checksums or bit rates of the file itself: FLAC's STREAMINFO (RFC 9639, 8.2), the header
# of TTA, WavPack's flags of the first block, ALAC's largest frame and bit rate.
ONE_FILE_ONLY = frozenset({"flac", "alac", "tta", "wavpack", "ape", "tak", "mp4als"})


def header_digest(codec: str, header: bytes | None) -> str | None:
    """Return a digest of what a codec's header says of its pictures or sound; None if no header.

    Headers of H.264 and H.265 have the same digest in mp4, QuickTime and Matroska; libav finds only
    the parameter sets in a transport stream.
    """
    if not header or codec in ONE_FILE_ONLY:
        return None
    if codec in _SEI:
        with suppress(struct.error, IndexError):  # damaged: compared as it is
            if told := sorted(_told(codec, header)):
                header = b"".join(struct.pack(">I", len(unit)) + unit for unit in told)
    elif codec in ("mpeg4", "mpeg1video", "mpeg2video"):
        header = _USER_DATA.sub(b"", header)
    return digest(header)


def digest(*parts: bytes) -> str:
    """Return a digest of byte strings, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(struct.pack(">Q", len(part)))
        found.update(part)
    return found.hexdigest()[:16]


def coded_units(codec: str, header: bytes, packet: bytes) -> list[bytes]:
    """Return the NAL units that a decoder is given with a track's first packet, without delimiters.

    Parameter sets come first: a transport stream has those of mp4's header in the packet. Of equal
    units the last one counts.
    """
    units = [*_units(codec, header), *_units_of_packet(codec, header, packet)]
    last = reversed(dict.fromkeys(reversed(units)))
    kept = [unit for unit in last if _kind(codec, unit) != _DELIMITER[codec]]
    return sorted(kept, key=lambda unit: _kind(codec, unit) not in _SETS[codec])


def light_of_frame(codec: str, header: bytes, packet: bytes) -> str | None:
    """Return a digest of what a first frame tells of its light; None if its codec cannot tell."""
    told: list[bytes] = []
    with suppress(struct.error, IndexError):  # damaged, or only its beginning is here
        if codec == "av1":
            told += _metadata(packet)
        elif codec in NAL_CODECS:
            head = 1 if codec == "h264" else 2
            for unit in coded_units(codec, header, packet):
                if _kind(codec, unit) in _SEI[codec]:
                    told += (each for each in _messages(unit[head:]) if each[3] in _LIGHT)
        else:
            return None
    return digest(*told) if told else "none"


def _metadata(packet: bytes) -> Iterator[bytes]:
    """Give the metadata of light in an AV1 temporal unit (AV1 Bitstream Specification, 5.3)."""
    at = 0
    while at < len(packet):
        kind, extended, sized = packet[at] >> 3 & 15, packet[at] & 4, packet[at] & 2
        at += 2 if extended else 1
        size = len(packet) - at
        if sized:  # leb128, 4.10.5
            size = shift = 0
            while True:
                size |= (packet[at] & 127) << shift
                shift, at = shift + 7, at + 1
                if not packet[at - 1] & 128:
                    break
        if kind == _METADATA_OBU and packet[at] in _LIGHT_OBU:
            yield packet[at : at + size]
        at += size


def _kind(codec: str, unit: bytes) -> int:
    """Return a unit's type (ITU-T H.264, 7.3.1; ITU-T H.265, 7.3.1.2)."""
    return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63


def _told(codec: str, header: bytes) -> set[bytes]:
    """Return the units of a header; of SEI units, their messages without encoders' notes."""
    told: set[bytes] = set()
    for unit in _units(codec, header):
        kind = _kind(codec, unit)
        if kind in _SEI[codec]:
            told.update(_messages(unit[1 if codec == "h264" else 2 :]))
        elif kind in _SETS[codec]:
            told.add(unit)
    return told


def _units(codec: str, header: bytes) -> Iterator[bytes]:
    """Give the NAL units of a configuration record (ISO/IEC 14496-15), or between start codes."""
    if header[:1] != b"\1":
        yield from _units_between_start_codes(header)
        return
    if codec == "h264":  # 5.3.3.1.2: the sequence sets, then the picture sets
        at = 5
        for mask in (31, 255):
            count = header[at] & mask
            at += 1
            for _ in range(count):
                (size,) = struct.unpack_from(">H", header, at)
                yield header[at + 2 : at + 2 + size]
                at += 2 + size
        return
    at = 23  # 8.3.3.1.2: arrays of units of one type
    for _ in range(header[22]):
        (count,) = struct.unpack_from(">H", header, at + 1)
        at += 3
        for _ in range(count):
            (size,) = struct.unpack_from(">H", header, at)
            yield header[at + 2 : at + 2 + size]
            at += 2 + size


def _units_between_start_codes(data: bytes) -> Iterator[bytes]:
    for unit in _START.split(data)[1:]:
        if unit := unit.rstrip(b"\0"):
            yield unit


def _units_of_packet(codec: str, header: bytes, packet: bytes) -> Iterator[bytes]:
    """Give a packet's units; a configuration record tells the size of their lengths."""
    if header[:1] != b"\1":
        yield from _units_between_start_codes(packet)
        return
    length, at = (header[4 if codec == "h264" else 21] & 3) + 1, 0
    while at < len(packet):
        size = int.from_bytes(packet[at : at + length], "big")
        if unit := packet[at + length : at + length + size].rstrip(b"\0"):
            yield unit
        at += length + size


def _messages(unit: bytes) -> Iterator[bytes]:
    """Give the messages of an SEI unit (ITU-T H.264, 7.3.2.3.1) but those of encoders' own kind."""
    data = unit.replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 < len(data):
        begin, values = at, []
        for _ in range(2):  # type and size
            value = 0
            while data[at] == 255:
                value, at = value + 255, at + 1
            values.append(value + data[at])
            at += 1
        kind, size = values
        if kind != _UNREGISTERED:
            yield b"SEI" + data[begin : at + size]
        at += size
