"""The pictures of chunks of differing codecs or settings, encoded anew as one stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
from av.codec import Codec

from prefect_renderfarm.blocks.errors import AssemblyError, StitchInputError
from prefect_renderfarm.blocks.media import Media, open_media, reason_of
from prefect_renderfarm.blocks.media_reader import read_media


def encode_pictures(chunks: Sequence[Media], encoder: str, target: Path) -> Media:
    """Decode the pictures of each chunk, and encode all of them as one stream.

    Not through FFmpeg's concat demuxer: it hands the packets of all chunks to the decoder of the
    first, and takes their times for ticks of its clock (libavformat/concatdec.c).

    Args:
        chunks: The chunks, of one size, rate and colour.
        encoder: FFmpeg's name of the encoder.
        target: The file to write; it has no sound.

    Returns:
        What was written, in the pixel format of the first chunk.

    Raises:
        AssemblyError: A chunk cannot be decoded to its end, or not be encoded.
    """
    fps = chunks[0].fps
    try:
        with open_media(chunks[0].path) as first, av.open(str(target), "w") as output:
            stream = _like(first.streams.video[0], output.add_stream(encoder, rate=fps))
            for number, frame in enumerate(_frames(chunks)):
                picture = frame.reformat(format=stream.pix_fmt)
                picture.pts, picture.time_base, picture.pict_type = number, 1 / fps, 0
                output.mux(stream.encode(picture))
            output.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        raise AssemblyError(f"{encoder} cannot encode the chunks: {reason_of(error)}") from None
    return read_media(target, fps)


def check_encoder(encoder: str) -> None:
    """Refuse a name that is no video encoder's.

    Raises:
        StitchInputError: It is not.
    """
    try:
        codec: Any = Codec(encoder, "w")
    except (av.FFmpegError, ValueError):
        codec = None
    if codec is None or codec.type != "video":
        raise StitchInputError(
            f"on_mismatch {encoder!r} is no video encoder of this FFmpeg: name another, such as "
            "libx264, or 'refuse'"
        )


def _like(source: Any, stream: Any) -> Any:
    """Have a stream's pictures look like those of another one."""
    context, given = stream.codec_context, source.codec_context
    for name in ("width", "height", "pix_fmt", "color_range", "colorspace", "color_primaries",
                 "color_trc"):  # fmt: skip
        setattr(context, name, getattr(given, name))
    if source.sample_aspect_ratio:
        context.sample_aspect_ratio = source.sample_aspect_ratio
    return stream


def _frames(chunks: Sequence[Media]) -> Iterator[Any]:
    for chunk in chunks:
        count = 0
        with open_media(chunk.path) as container:
            container.streams.video[0].thread_type = "AUTO"
            try:
                for frame in container.decode(video=0):
                    if frame.is_corrupt:
                        raise AssemblyError(f"chunk file {str(chunk.path)!r} is damaged")
                    count += 1
                    yield frame
            except av.FFmpegError as error:
                raise AssemblyError(
                    f"chunk file {str(chunk.path)!r} cannot be decoded past frame {count} "
                    f"({reason_of(error)}): render it again"
                ) from None
        if count != chunk.frames:
            raise AssemblyError(
                f"chunk file {str(chunk.path)!r} has {chunk.frames} frames, of which {count} can "
                "be decoded: render it again"
            )
