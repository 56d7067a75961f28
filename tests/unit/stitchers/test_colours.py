"""Colours and pixel format of films that are encoded from pictures."""

from __future__ import annotations

import pytest

from prefect_renderfarm.blocks.stitchers.colours import (
    Colours,
    colours_of_encoding,
    deinterlaces,
)

RGB = {"pixel format": "rgb24"}
VIDEO: dict[str, str | int | None] = {"container": "mov", "pixel format": "gbrp"}
TOLD = {
    "color_range": "tv",
    "color_primaries": "bt709",
    "color_trc": "bt709",
    "colorspace": "bt709",
}


@pytest.mark.parametrize(
    "codec", ["libx264", "libx265", "libvpx-vp9", "mpeg4", "h264_of_a_card", "no_h264"]
)
@pytest.mark.parametrize(
    "source",
    [
        RGB,
        VIDEO,
        {"pixel format": "gray"},
        {"pixel format": "yuvj420p"},
        {"container": "mov", "pixel format": "pal8"},
    ],
)
def test_codecs_of_players(codec: str, source: dict[str, str]) -> None:
    """They get 4:2:0 of 8 bits, in tagged BT.709, but not from an encoder that nobody knows."""
    found = colours_of_encoding(codec, source, {})
    if codec == "no_h264":
        assert found == Colours()
        return
    assert found.options == TOLD
    assert found.before == (
        "scale=out_color_matrix=bt709:out_range=tv,"
        "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    )
    assert found.behind == "format=yuv420p"


def test_codecs_of_editors() -> None:
    """They keep their own pixel format: in RGB as it is, in YUV tagged."""
    for codec in ("ffv1", "png", "libx264rgb", "utvideo", "qtrle"):
        assert colours_of_encoding(codec, RGB, {}) == Colours()
    for codec in ("prores_ks", "dnxhd"):
        found = colours_of_encoding(codec, RGB, {})
        assert found.options == TOLD
        assert found.behind is None


def test_yuv_video_stays() -> None:
    """Video that is YUV already has its own colours."""
    assert colours_of_encoding("libx264", {"container": "mov", "pixel format": "yuv444p"}, {}) == (
        Colours()
    )
    assert colours_of_encoding("libx264", {"container": "mov", "pixel format": None}, {}) == (
        Colours()
    )


@pytest.mark.parametrize(
    "own",
    [
        {"colorspace": "bt2020nc"}, {"color_trc": "linear"}, {"color_primaries": "bt2020"},
        {"color_range": "pc"}, {"vf": "zscale=m=709"}, {"vf": "hflip,setparams=range=pc"},
        {"pix_fmt": "yuvj420p"}, {"pix_fmt": "gbrp"}, {"vf": "[a]colorspace=bt709"},
    ],
)  # fmt: skip
def test_own_colours(own: dict[str, str]) -> None:
    """Who says something about colours decides himself."""
    assert colours_of_encoding("libx265", RGB, own) == Colours()


@pytest.mark.parametrize(
    "own",
    [{"pix_fmt": "yuv422p"}, {"vf": "scale=1280:-2"}, {"vf": "hflip,format=yuv444p"},
     {"vf": "drawtext=text='Setparams: Information'"}, {"crf": "18"}],
)  # fmt: skip
def test_own_pixels(own: dict[str, str]) -> None:
    """Another size or pixel format changes no colour."""
    found = colours_of_encoding("libx264", RGB, own)
    assert found.options == TOLD
    takes_format = "pix_fmt" in own or "format=" in own.get("vf", "")
    assert found.behind == (None if takes_format else "format=yuv420p")
    assert colours_of_encoding("ffv1", RGB, {"pix_fmt": "yuv420p"}).options == TOLD


def test_wide_colours() -> None:
    """RGB in BT.2020 stays in it, and HDR keeps 10 bits."""
    for transfer, pixels in ((16, "yuv420p10le"), (18, "yuv420p10le"), (14, "yuv420p")):
        source = VIDEO | {"colour primaries": 9, "colour transfer": transfer}
        found = colours_of_encoding("libx265", source, {})
        assert found.options == {"color_range": "tv", "colorspace": "bt2020nc"}
        assert found.behind == f"format={pixels}"
        assert "primaries" not in str(found.before)


def test_linear_pictures() -> None:
    """They get the curve of sRGB first."""
    for pixels, grey in (("gbrpf32le", ""), ("grayf32le", "format=gbrpf32le,")):
        found = colours_of_encoding("libx264", {"pixel format": pixels, "colour transfer": 8}, {})
        curve = "scale=in_transfer=linear:out_transfer=iec61966-2-1,scale=out_color_matrix=bt709"
        assert str(found.before).startswith(grey + curve)


@pytest.mark.parametrize(
    ("codec", "pixels", "kept"),
    [("ffv1", "gbrpf32le", ",format=gbrp16le"), ("ffv1", "gbrapf32le", ",format=gbrap16le"),
     ("png", "gbrpf32le", "")],
)  # fmt: skip
def test_linear_pictures_that_stay_rgb(codec: str, pixels: str, kept: str) -> None:
    """They get the curve of sRGB, and whole numbers of 16 bits where the codec has them."""
    source = {"pixel format": pixels, "colour transfer": 8}
    curve = "scale=in_transfer=linear:out_transfer=iec61966-2-1"
    assert colours_of_encoding(codec, source, {}) == Colours(f"{curve}{kept}")


def test_hdr_of_a_card() -> None:
    """An encoder that only the program has is taken to know 10 bits."""
    source = VIDEO | {"colour primaries": 9, "colour transfer": 16}
    assert colours_of_encoding("hevc_of_a_card", source, {}).behind == "format=yuv420p10le"


def test_jpeg_has_its_own() -> None:
    """JPEG is full range in BT.601."""
    assert colours_of_encoding("mjpeg", RGB, {}) == Colours()


def test_deinterlacing() -> None:
    """Filters that make pictures of fields are known, wherever they stand."""
    assert deinterlaces({"vf": "scale=64:48,yadif=1"})
    assert deinterlaces({"vf": "bwdif"})
    assert not deinterlaces({"vf": "drawtext=text=yadif"})
    assert not deinterlaces({})
