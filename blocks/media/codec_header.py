"""Headers of codecs without the notes of encoders, so that equal settings have equal headers.

Frames of codecs of NAL units, whatever container they are from, so that equal ones are equal.

x265 writes its version and settings into the header as an SEI message, MPEG-4 encoders their name
as user data: neither changes a picture, and both may differ between chunks of one job.
"""

from __future__ import annotations

import hashlib
import io
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
_START = b"\0\0\1"
# ITU-T H.264, D.1.7: user data of an encoder of its own.
_UNREGISTERED = 5
# What tells of light: ITU-T H.274, 8: mastering display, content light level, the transfer that is
# meant, ambient light. AV1 Bitstream Specification, 6.7.1: OBU_METADATA with content light level,
# mastering display.
_LIGHT = (137, 144, 147, 148)
_METADATA_OBU, _LIGHT_OBU = 5, (1, 2)
# The type and the size of a message are each the sum of such bytes: ITU-T H.264, 7.3.2.3.1.
_MESSAGE = re.compile(rb"(\xff*[^\xff])(\xff*[^\xff])")
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
    if codec in NAL_CODECS:
        with suppress(struct.error, IndexError):  # damaged: compared as it is
            units = list(_units(codec, header))
            told = {unit for unit in units if _kind(codec, unit) in _SETS[codec]}
            told.update(*(_messages(codec, unit) for unit in units))
            if told:
                header = b"".join(struct.pack(">I", len(unit)) + unit for unit in sorted(told))
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
    last = reversed(dict.fromkeys(reversed(list(_units(codec, header, packet)))))
    kept = [unit for unit in last if _kind(codec, unit) != _DELIMITER[codec]]
    return sorted(kept, key=lambda unit: _kind(codec, unit) not in _SETS[codec])


def light_of_frame(codec: str, header: bytes | None, packet: bytes) -> str | None:
    """Return a digest of what a first frame tells of its light; None if its codec cannot tell."""
    if codec not in ("av1", *NAL_CODECS):
        return None
    told: list[bytes] = []
    with suppress(struct.error, IndexError):  # damaged, or only its beginning is here
        if codec == "av1":
            told += _metadata(packet)
        else:
            for unit in coded_units(codec, header or b"", packet):
                told += (each for each in _messages(codec, unit) if each[3] in _LIGHT)
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


def _units(codec: str, header: bytes, packet: bytes = b"") -> Iterator[bytes]:
    """Give the NAL units of a header, then those of a packet.

    The header is a configuration record (ISO/IEC 14496-15), which tells the size of the lengths in
    a packet, or both have start codes before their units.
    """
    if header[:1] != b"\1":
        found = [*header.split(_START)[1:], *packet.split(_START)[1:]]
        yield from filter(None, (unit.rstrip(b"\0") for unit in found))
        return
    data = io.BytesIO(header)
    if codec == "h264":  # 5.3.3.1.2: the sequence sets, then the picture sets
        data.seek(5)
        for mask in (31, 255):
            for _ in range(data.read(1)[0] & mask):
                yield _sized(data)
    else:  # 8.3.3.1.2: arrays of units of one type
        data.seek(22)
        for _ in range(data.read(1)[0]):
            (count,) = struct.unpack(">xH", data.read(3))
            for _ in range(count):
                yield _sized(data)
    length = (header[4 if codec == "h264" else 21] & 3) + 1
    data = io.BytesIO(packet)
    while size := data.read(length):
        if unit := data.read(int.from_bytes(size)).rstrip(b"\0"):
            yield unit


def _sized(data: io.BytesIO) -> bytes:
    """Return what follows, its size in two bytes before it."""
    (size,) = struct.unpack(">H", data.read(2))
    return data.read(size)


def _messages(codec: str, unit: bytes) -> Iterator[bytes]:
    """Give the messages of a unit, if it is one of SEI, but those of encoders' own kind."""
    if _kind(codec, unit) not in _SEI[codec]:
        return
    data = unit[1 if codec == "h264" else 2 :].replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 < len(data) and (head := _MESSAGE.match(data, at)):
        kind, size = map(sum, head.groups())
        end = head.end() + size
        if kind != _UNREGISTERED:
            yield b"SEI" + data[at:end]
        at = end
