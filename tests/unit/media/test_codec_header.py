"""Headers of codecs: parameter sets decide, encoders' notes do not."""

from __future__ import annotations

import struct

import pytest

from prefect_renderfarm.blocks.media.codec_header import (
    coded_units,
    digest,
    header_digest,
    light_of_frame,
)

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


SLICE, OTHER = b"\x65slice", b"\x65other"
SLICE5 = b"\x26\1slice"


def with_lengths(*units: bytes) -> bytes:
    """Return units as mp4 and Matroska have them: ISO/IEC 14496-15, 5.3.4.2."""
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)


def test_units_of_a_first_frame() -> None:
    """Whether they are in the header or in the packet, a decoder is given the same units."""
    header, note = avcc(SPS, PPS), sei(b"\6", NOTE)
    units = coded_units("h264", header, with_lengths(note, SLICE))
    assert units == [SPS, PPS, note, SLICE]
    stream = with_start_codes(b"\x09\xf0", SPS, PPS, note, SLICE)
    assert coded_units("h264", b"", stream) == units
    assert coded_units("h264", with_start_codes(SPS, PPS), stream + b"\0\0") == units
    assert coded_units("h264", b"", with_start_codes(note, SPS, PPS, SLICE)) == units
    assert coded_units("h264", header, with_lengths(note, OTHER)) != units
    assert coded_units("h264", header, with_lengths(SPS, PPS, note, SLICE)) == units
    short = header[:4] + b"\xfd" + header[5:]  # lengths of two bytes
    packet = b"".join(struct.pack(">H", len(unit)) + unit for unit in (note, SLICE))
    assert coded_units("h264", short, packet) == units


def test_units_of_a_first_frame_of_h265() -> None:
    """So it is with H.265, where the length of lengths has another place."""
    sets = (VPS, SPS5, PPS5)
    header = hvcc(*sets)
    header = header[:21] + b"\x03" + header[22:]
    units = coded_units("hevc", header, with_lengths(SLICE5))
    assert units == [*sets, SLICE5]
    assert coded_units("hevc", b"", with_start_codes(b"\x46\1\x50", *sets, SLICE5)) == units


def test_set_that_is_exchanged() -> None:
    """Of two sets the later one is in use, so their order counts."""
    ends_with_first = coded_units("h264", avcc(SPS, PPS, OTHER_PPS), with_lengths(PPS, SLICE))
    ends_with_other = coded_units("h264", avcc(SPS, PPS), with_lengths(OTHER_PPS, SLICE))
    assert ends_with_first == [SPS, OTHER_PPS, PPS, SLICE]
    assert ends_with_other == [SPS, PPS, OTHER_PPS, SLICE]


DISPLAY, AMBIENT, HLG = (message(kind, b"\1\2") for kind in (137, 148, 147))


def test_light_of_a_frame() -> None:
    """Messages of light count, from the header and the packet; others, and notes, do not."""
    header, plain = avcc(SPS, PPS), message(1, b"\1")
    assert light_of_frame("h264", header, with_lengths(SLICE)) == "none"
    assert light_of_frame("h264", header, with_lengths(sei(b"\6", NOTE, plain), SLICE)) == "none"
    found = {
        light_of_frame("h264", header, with_lengths(sei(b"\6", each), SLICE))
        for each in (DISPLAY, AMBIENT, HLG, LIGHT, OTHER_LIGHT)
    }
    assert len(found) == 5
    assert "none" not in found
    both = sei(b"\6", NOTE, DISPLAY, plain, LIGHT)
    expected = digest(b"SEI" + DISPLAY, b"SEI" + LIGHT)
    assert light_of_frame("h264", header, with_lengths(both, SLICE)) == expected
    cut = with_lengths(both, SLICE)[:-3]  # within its picture
    assert light_of_frame("h264", header, cut) == expected
    sets = (VPS, SPS5, PPS5)
    unit = sei(b"\x4e\1", DISPLAY)
    stream = light_of_frame("hevc", b"", with_start_codes(*sets, unit, SLICE5))
    record = hvcc(*sets, unit)
    assert light_of_frame("hevc", record[:21] + b"\3" + record[22:], with_lengths(SLICE5)) == stream
    assert stream == digest(b"SEI" + DISPLAY)


def test_light_of_av1() -> None:
    """Metadata units count, whatever else is in the temporal unit."""
    begin, frame = b"\x12\0", b"\x32\x03abc"
    display, other = b"\x2a\x04\2xyz", b"\x2a\x04\4xyz"  # mastering display; time code
    assert light_of_frame("av1", b"", begin + frame) == "none"
    assert light_of_frame("av1", b"", begin + other + frame) == "none"
    assert light_of_frame("av1", b"", begin + display + frame) == digest(b"\2xyz")
    long = b"\x2a\x81\1" + b"\1" + bytes(128)  # a size of 129 in two bytes: content light level
    assert light_of_frame("av1", b"", begin + long + display) == digest(
        b"\1" + bytes(128), b"\2xyz"
    )
    assert light_of_frame("av1", b"", begin + b"\x2e\0" + display[1:] + frame) == digest(b"\2xyz")
    assert light_of_frame("av1", b"", begin + b"\x28\2xyz") == digest(b"\2xyz")  # to the end


def test_light_that_a_codec_cannot_tell() -> None:
    """It is unknown, as in other codecs; damage is no light."""
    assert light_of_frame("prores", b"", b"frame") is None
    assert light_of_frame("h264", avcc(SPS), b"\0\0") == "none"
    assert light_of_frame("av1", b"", b"\x2a") == "none"
