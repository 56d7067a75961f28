"""The pictures of chunks of differing codecs or settings, encoded anew as one stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
from av.codec import find_best_pix_fmt_of_list
from av.video.reformatter import ColorRange

from prefect_renderfarm.blocks.errors import AssemblyError, MediaFault, StitchInputError
from prefect_renderfarm.blocks.media.model import Media, open_media
from prefect_renderfarm.blocks.media.reader import decoded_frames, read_media
from prefect_renderfarm.blocks.stitchers.muxer import writing
from prefect_renderfarm.blocks.stitchers.progress import watcher

_FRAMES_BETWEEN_WORDS = 100


def encode_pictures(chunks: Sequence[Media], encoder: str, target: Path) -> Media:
    """Decode the pictures of each chunk, and encode all of them as one stream.

    Not through FFmpeg's concat demuxer: it hands the packets of all chunks to the decoder of the
    first, and takes their times for ticks of its clock (libavformat/concatdec.c).

    Args:
        chunks: The chunks, of one size, rate and colour.
        encoder: FFmpeg's name of the encoder.
        target: The file to write; it has no sound.

    Returns:
        What was written, in the pixel format of the first chunk, or in what the encoder takes that
        loses least of it.

    Raises:
        StitchInputError: Some chunks are RGB, and others are not.
        AssemblyError: A chunk cannot be decoded to its end, or not be encoded.
    """
    if odd := next((chunk for chunk in chunks if _is_rgb(chunk) != _is_rgb(chunks[0])), None):
        raise StitchInputError(
            f"chunk file {str(odd.path)!r} has pixel format {odd.signature['pixel format']}, not "
            f"{chunks[0].signature['pixel format']}: RGB is not converted unasked"
        )
    tell, fps, size = watcher(), chunks[0].fps, 0
    try:
        with writing(target), ExitStack() as stack:
            first = stack.enter_context(open_media(chunks[0].path)).streams.video[0]
            output = stack.enter_context(av.open(str(target), "w"))
            stream: Any = output.add_stream(encoder, rate=fps)
            ranges = _look_like(stream, first)
            for number, frame in enumerate(_frames(chunks)):
                picture = frame.reformat(format=stream.pix_fmt, **ranges)
                picture.pts, picture.time_base, picture.pict_type = number, 1 / fps, 0
                for packet in stream.encode(picture):
                    size += packet.size
                    output.mux(packet)
                if number % _FRAMES_BETWEEN_WORDS == 0:
                    tell(number, size)
            output.mux(stream.encode(None))
        made = read_media(target, fps)
    except MediaFault as fault:
        raise AssemblyError(f"what {encoder} made of the chunks {fault}") from None
    for name in ("frame size", "pixel aspect", "rotation"):
        if made.signature[name] != chunks[0].signature[name]:
            raise AssemblyError(
                f"encoding with {encoder} loses the chunks' {name}, {chunks[0].signature[name]}: "
                "render all chunks with the same settings"
            )
    return made


def _look_like(stream: Any, source: Any) -> dict[str, Any]:
    """Have a stream's pictures look like those of another one; return their ranges of colour."""
    context, given = stream.codec_context, source.codec_context
    for name in ("width", "height", "colorspace", "color_primaries", "color_trc"):
        setattr(context, name, getattr(given, name))
    if source.sample_aspect_ratio:
        context.sample_aspect_ratio = source.sample_aspect_ratio
    shades, _ = find_best_pix_fmt_of_list(context.codec.video_formats or [given.pix_fmt],
                                          given.pix_fmt)  # fmt: skip
    if shades is None or shades.is_rgb != given.format.is_rgb:
        raise AssemblyError(f"{context.codec.name} cannot encode pictures in {given.pix_fmt}")
    context.pix_fmt = shades.name
    of_source = _range(given.pix_fmt, given.color_range)
    of_stream = context.color_range = _range(shades.name, of_source)
    # Slices, PyAV's default, cost some encoders quality.
    stream.thread_type = "AUTO"
    return {"src_color_range": of_source, "dst_color_range": of_stream}


def _is_rgb(chunk: Media) -> bool:
    shades = chunk.signature["pixel format"]
    return bool(shades) and av.VideoFormat(str(shades)).is_rgb


def _range(shades: str, told: int) -> ColorRange:
    full = shades.startswith("yuvj") or told == ColorRange.JPEG
    return ColorRange.JPEG if full else ColorRange.MPEG


def _frames(chunks: Sequence[Media]) -> Iterator[Any]:
    for chunk in chunks:
        try:
            yield from decoded_frames(chunk.path, chunk.frames)
        except MediaFault as fault:
            raise AssemblyError(f"chunk file {str(chunk.path)!r} {fault}") from None
