"""What must be the same in all chunks of a film."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any

# By name; None and the like where a file does not tell.
Signature = Mapping[str, str | int | None]

# Values that say "not given" (ITU-T H.273: 2 is unspecified for primaries, transfer and matrix).
_UNKNOWN = (None, 0, 2, "")


def read_signature(container: Any, video: Any, audio: Any) -> Signature:
    """Return the signature of an open file, of its video track and of its audio track, if any."""
    context = video.codec_context
    aspect = context.sample_aspect_ratio
    rotation = re.search(r"displaymatrix: (.+)", container.dumps_format())
    tracks = sorted((track for track in (video, audio) if track), key=lambda track: track.index)
    signature: dict[str, str | int | None] = {
        "container": container.format.name,
        "tracks": ", ".join(track.type for track in tracks),
        "codec": context.name,
        "profile": context.profile,
        "frame size": f"{context.width}x{context.height}",
        "pixel format": context.pix_fmt,
        "pixel aspect": str(aspect) if aspect else None,
        "colour range": context.color_range,
        "colour matrix": context.colorspace,
        "colour primaries": context.color_primaries,
        "colour transfer": context.color_trc,
        "rotation": rotation[1].strip() if rotation else "none",
        "time base": str(video.time_base),
        "codec header": _short_hash(context.extradata),
    }
    if audio is not None:
        sound = audio.codec_context
        signature |= {
            "audio codec": sound.name,
            "audio rate": sound.sample_rate,
            "audio channels": len(sound.layout.channels),
            # "2 channels" and the like: where they stand is not told
            "audio layout": None if "channels" in sound.layout.name else sound.layout.name,
            "audio codec header": _short_hash(sound.extradata),
        }
    return signature


def difference(expected: Signature, found: Signature, but_for: Collection[str] = ()) -> str | None:
    """Say in what two signatures differ; None if they agree in all that both of them know.

    Args:
        expected: A signature.
        found: Another one.
        but_for: Names that do not count.
    """
    if expected is found:
        return None
    for name, value in expected.items():
        if name in but_for:
            continue
        if value == "video" and found.get(name) != value:
            return "an audio track of its own"
        if "audio codec" in expected and "audio codec" not in found:
            return "audio track missing"
        other = found.get(name)
        if value != other and value not in _UNKNOWN and other not in _UNKNOWN:
            return f"{name} {other}, not {value}"
    return None


def _short_hash(data: bytes | None) -> str | None:
    return hashlib.sha256(data).hexdigest()[:16] if data else None
