"""Headers of codecs without the notes of encoders, so that equal settings have equal headers.

x265 writes its version and settings into the header as an SEI message, MPEG-4 encoders their name
as user data: neither changes a picture, and both may differ between chunks of one job.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from contextlib import suppress

# ITU-T H.264, 7.3.1: the type of an SEI unit is 6; ITU-T H.265, 7.4.2.2: 39 (prefix), 40 (suffix).
_SEI = {"h264": (6,), "hevc": (39, 40)}
# ITU-T H.264, D.1.7: user data of an encoder of its own.
_UNREGISTERED = 5
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
    return hashlib.sha256(header).hexdigest()[:16]


def _told(codec: str, header: bytes) -> set[bytes]:
    """Return the units of a header; of SEI units, their messages without encoders' notes."""
    told: set[bytes] = set()
    for unit in _units(codec, header):
        kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        if kind in _SEI[codec]:
            told.update(_messages(unit[1 if codec == "h264" else 2 :]))
        elif kind in ((7, 8) if codec == "h264" else (32, 33, 34)):
            told.add(unit)
    return told


def _units(codec: str, header: bytes) -> Iterator[bytes]:
    """Give the NAL units of a configuration record (ISO/IEC 14496-15), or between start codes."""
    if header[0] != 1:
        for unit in _START.split(header)[1:]:
            if unit := unit.rstrip(b"\0"):
                yield unit
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
