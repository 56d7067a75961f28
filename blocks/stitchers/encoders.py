"""The encoders of PyAV's FFmpeg, which encode sound and what a mismatch has encoded anew."""

from __future__ import annotations

from typing import Any, Literal

import av
from av.codec import Codec

from prefect_renderfarm.blocks.errors import StitchInputError

_EXAMPLES = {"audio": "aac or flac", "video": "libx264"}


def find_encoder(field: str, name: str, kind: Literal["audio", "video"]) -> Any:
    """Return the encoder of that name.

    Args:
        field: The block's field that names it, for the error.
        name: FFmpeg's name of the encoder.
        kind: What it has to encode.

    Raises:
        StitchInputError: There is none, or it encodes something else.
    """
    try:
        codec: Any = Codec(name, "w")
    except (av.FFmpegError, ValueError):
        codec = None
    if codec is None or codec.type != kind:
        raise StitchInputError(
            f"{field} {name!r} is no {kind} encoder of PyAV's FFmpeg: name another, such as "
            f"{_EXAMPLES[kind]}"
        )
    return codec
