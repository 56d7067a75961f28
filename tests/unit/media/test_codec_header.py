"""Headers of codecs: parameter sets decide, encoders' notes do not."""

from __future__ import annotations

import struct

import pytest

from prefect_renderfarm.blocks.media.codec_header import header_digest

SPS, PPS, OTHER_PPS = b"\x67sequence", b"\x68picture", b"\x68other"
VPS, SPS5, PPS5 = b"\x40\1video", b"\x42\1sequence", b"\x44\1picture"


def message(kind: int, content: bytes) -> bytes:
    """Return an SEI message."""
    size = len(content)
    return bytes([kind]) + b"\xff" * (size // 255) + bytes([size % 255]) + content


def sei(head: bytes, *messages: bytes) -> bytes:
    """Return an SEI unit."""
    return head + b"".join(messages) + b"\x80"


NOTE, LONG_NOTE = message(5, b"x" * 16 + b"crf=20"), message(5, b"y" * 700)
LIGHT, OTHER_LIGHT = message(144, b"\1\2\3\4"), message(144, b"\4\3\2\1")


def avcc(*sets: bytes) -> bytes:
    """Return a configuration record of H.264: ISO/IEC 14496-15, 5.3.3.1.2."""
    first = [unit for unit in sets if unit[0] == 0x67]
    second = [unit for unit in sets if unit[0] != 0x67]
    head = b"\1\x64\0\x0c\xff" + bytes([0xE0 | len(first)])
    packed = [struct.pack(">H", len(unit)) + unit for unit in first]
    return b"".join([head, *packed, bytes([len(second)]),
                     *(struct.pack(">H", len(unit)) + unit for unit in second)])  # fmt: skip


def hvcc(*units: bytes, complete: int = 0) -> bytes:
    """Return a configuration record of H.265: ISO/IEC 14496-15, 8.3.3.1.2."""
    arrays = [
        bytes([complete | unit[0] >> 1 & 63]) + struct.pack(">HH", 1, len(unit)) + unit
        for unit in units
    ]
    return b"\1" + bytes(21) + bytes([len(arrays)]) + b"".join(arrays)


def with_start_codes(*units: bytes) -> bytes:
    """Return units as a transport stream has them (ITU-T H.264, annex B)."""
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def test_h264() -> None:
    """Both forms have one digest; another set has another one, a note has not."""
    digest = header_digest("h264", avcc(SPS, PPS))
    assert digest is not None
    assert len(digest) == 16
    assert header_digest("h264", with_start_codes(SPS, PPS)) == digest
    assert header_digest("h264", with_start_codes(SPS, PPS, sei(b"\6", NOTE))) == digest
    assert header_digest("h264", with_start_codes(b"\x09\xf0", SPS, PPS)) == digest  # a delimiter
    assert header_digest("h264", avcc(SPS, OTHER_PPS)) != digest
    assert header_digest("h264", avcc(SPS, PPS, OTHER_PPS)) != digest
    assert header_digest("h264", avcc(SPS)) != digest


def test_h265() -> None:
    """Light and mastering display count, wherever notes stand."""
    sets = (VPS, SPS5, PPS5)
    digest = header_digest("hevc", hvcc(*sets))
    assert header_digest("hevc", hvcc(*sets, complete=0x80)) == digest
    assert header_digest("hevc", with_start_codes(*sets)) == digest
    for note in (NOTE, LONG_NOTE):
        assert header_digest("hevc", hvcc(*sets, sei(b"\x4e\1", note))) == digest
    bright = header_digest("hevc", hvcc(*sets, sei(b"\x4e\1", LIGHT)))
    assert bright != digest
    for unit in (sei(b"\x4e\1", LONG_NOTE, LIGHT), sei(b"\x50\1", LIGHT, NOTE)):
        assert header_digest("hevc", with_start_codes(*sets, unit)) == bright
    assert header_digest("hevc", hvcc(*sets, sei(b"\x4e\1", OTHER_LIGHT))) != bright
    for left_out in sets:
        left = [unit for unit in sets if unit is not left_out]
        assert header_digest("hevc", hvcc(*left)) != digest


def test_user_data_of_mpeg() -> None:
    """The name of an encoder changes nothing."""
    start, end = b"\0\0\1\xb0\1", b"\0\0\1\x20\0\x84"
    for codec in ("mpeg4", "mpeg1video", "mpeg2video"):
        plain = header_digest(codec, start + end)
        assert header_digest(codec, start + b"\0\0\1\xb2Lavc" + end) == plain
        assert header_digest(codec, start + end + b"\0\0\1\xb2Lavc") == plain
        assert header_digest(codec, start + b"\0\0\1\xb3Lavc" + end) != plain


@pytest.mark.parametrize("codec", ["flac", "alac", "tta", "wavpack", "ape", "tak", "mp4als"])
def test_headers_of_one_file(codec: str) -> None:
    """What describes its own file only is no reason to keep two files apart."""
    assert header_digest(codec, b"checksum") is None


def test_other_headers() -> None:
    """Others count byte for byte; no header is none."""
    assert header_digest("av1", b"\x81\0") != header_digest("av1", b"\x81\1")
    assert header_digest("av1", b"") is header_digest("av1", None) is None


@pytest.mark.parametrize("size", range(1, 40))
def test_cut_headers(size: int) -> None:
    """A header that ends too early is compared as it is."""
    for codec, header in (("h264", avcc(SPS, PPS)), ("hevc", hvcc(VPS, SPS5, PPS5))):
        assert header_digest(codec, header[:size])
