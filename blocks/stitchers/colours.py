"""Colours and pixel format of a film that is encoded from pictures, or from video in RGB."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import av
from av.codec import Codec

from prefect_renderfarm.blocks.media.model import Signature, is_rgb

# What players decode in hardware, and browsers: 8 bits, 4:2:0; 10 bits for HDR.
_FOR_PLAYERS, _HDR_FOR_PLAYERS = "yuv420p", "yuv420p10le"
_PLAYED = frozenset(
    {"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "theora", "vvc"}
)
# They store colours in their own way: full range, and the matrix of BT.601 (ITU-T T.871, 7).
_JPEG = frozenset({"mjpeg", "ljpeg", "jpegls"})
# Its RGB needs a profile that must be asked for.
_YUV_BY_DEFAULT = frozenset({"dnxhd"})
# FFmpeg's options and filters by which a user decides for himself.
_OWN = {"colorspace", "color_primaries", "color_trc", "color_range"}
_OWN |= {"zscale", "setparams", "libplacebo"}
# ITU-T H.273: BT.2020; PQ and HLG; linear.
_BT_2020, _HDR, _LINEAR = 9, (16, 18), 8
# Filters that make pictures of fields.
_DEINTERLACERS = frozenset(
    {"bwdif", "estdif", "fieldmatch", "kerndeint", "nnedi", "pullup", "separatefields", "w3fdif",
     "yadif", "bwdif_cuda", "yadif_cuda", "deinterlace_vaapi", "deinterlace_qsv"}
)  # fmt: skip


@dataclass(frozen=True)
class Colours:
    """Filters of FFmpeg before and behind a user's, and options, that convert and tell colours."""

    before: str | None = None
    behind: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def colours_of_encoding(codec: str, source: Signature, own: Mapping[str, str]) -> Colours:
    """Return what makes a film with the colours of its pictures, on any player.

    Pictures are sRGB, unless they tell primaries of BT.2020, or are linear, as OpenEXR. Video is
    BT.709 (ITU-R BT.709-6, 3.3) or BT.2020, limited range, and told so: without, FFmpeg takes the
    matrix of BT.601 and tells nothing, and players of large pictures take BT.709. Codecs that keep
    RGB get it as it is, but linear pictures as sRGB. A user's own options and filters for colours
    have precedence.
    """
    if not (pixel_format := str(source.get("pixel format") or "")):
        return Colours()
    pixels, filters = av.VideoFormat(pixel_format), filters_of(own)
    becomes_yuv = pixels.is_rgb or pixels.has_palette or len(pixels.components) < 3
    if ("container" in source and not becomes_yuv) or _OWN & (own.keys() | filters):
        return Colours()
    name, formats = codec.partition("_")[0], set[str]()
    with suppress(av.FFmpegError, ValueError):  # such as h264_nvenc, which only the program has
        encoder = Codec(codec, "w")
        name, formats = encoder.canonical_name, {each.name for each in encoder.video_formats or ()}
    to_players = name in _PLAYED and (not formats or _FOR_PLAYERS in formats)
    keeps_rgb = not formats or any(map(is_rgb, formats))
    wanted = own.get("pix_fmt")
    linear = ""
    if source.get("colour transfer") == _LINEAR:
        grey = "format=gbrpf32le," if pixel_format.startswith("gray") else ""
        linear = f"{grey}scale=in_transfer=linear:out_transfer=iec61966-2-1,"
    if wanted is None and not to_players and keeps_rgb and name not in _YUV_BY_DEFAULT:
        # FFV1 takes floating point, and then cannot be encoded.
        alpha = any(part.is_alpha for part in pixels.components)
        whole = "gbrap16le" if alpha else "gbrp16le"
        kept = f"format={whole}" if linear and whole in formats else ""
        return Colours(f"{linear}{kept}".rstrip(",") or None)
    if name in _JPEG or (wanted is not None and (wanted.startswith("yuvj") or is_rgb(wanted))):
        return Colours()
    wide = source.get("colour primaries") == _BT_2020
    matrix = "bt2020nc" if wide else "bt709"
    told = {"color_range": "tv", "colorspace": matrix}
    behind = None
    if to_players and wanted is None and "format" not in filters:
        hdr = source.get("colour transfer") in _HDR and (not formats or _HDR_FOR_PLAYERS in formats)
        behind = f"format={_HDR_FOR_PLAYERS if hdr else _FOR_PLAYERS}"
    if not wide:
        told |= {"color_primaries": "bt709", "color_trc": "bt709"}
    parameters = ":".join(f"{name.replace('color_range', 'range')}={told[name]}" for name in told)
    before = f"{linear}scale=out_color_matrix={matrix}:out_range=tv,setparams={parameters}"
    return Colours(before, behind, told)


def filters_of(own: Mapping[str, str]) -> frozenset[str]:
    """Return the names of the filters in a user's options."""
    return frozenset(re.findall(r"(?:^|[,;\]])\s*([a-z0-9_]+)", own.get("vf", "")))


def deinterlaces(own: Mapping[str, str]) -> bool:
    """Return whether a user's filters make pictures of fields."""
    return bool(filters_of(own) & _DEINTERLACERS)
