"""The test of an ffmpeg program that a user names: it has to assemble small films exactly, once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av

from prefect_renderfarm.blocks.errors import RenderFarmError, SetupError
from prefect_renderfarm.blocks.media.frame_grid import exact
from prefect_renderfarm.blocks.media.model import Media
from prefect_renderfarm.blocks.media.mp4_index import MP4_ENDINGS
from prefect_renderfarm.blocks.media.reader import decoded_frames, open_media, read_media
from prefect_renderfarm.blocks.processes.programs import is_carried
from prefect_renderfarm.blocks.stitchers.audio import AudioMode
from prefect_renderfarm.blocks.stitchers.film_check import check_figures, read_figures

_FPS = Fraction(30_000, 1001)
_FRAMES, _CHUNKS = 7, 3
_WIDTH, _HEIGHT = 64, 48
# The endings of chunks and film. Each pair has caught a release of FFmpeg: 5.1 writes decoding
# times one tick apart into mp4 and ts, and refuses H.264 from mkv.
_PAIRS = ((".mp4", ".mp4"), (".mkv", ".mp4"), (".mov", ".mkv"), (".mkv", ".ts"))

Assemble = Callable[[Sequence[Media], Path], object]
_faults: dict[tuple[Path, int, int], str | None] = {}


def require_exact(program: Path, assemble: Assemble) -> None:
    """Refuse an ffmpeg program that does not write exact films; `assemble` makes one with it.

    The program that this package carries needs no test. Another one makes small films of H.264 with
    B-frames at 29.97 frames a second, of which decoded frames, display and decoding times, rate and
    length are compared with the chunks'. The result is kept until the program is replaced.
    """
    if is_carried(program):
        return
    status = program.stat()
    key = (program, status.st_mtime_ns, status.st_size)
    if key not in _faults:
        _faults[key] = _first_fault(assemble)
    if fault := _faults[key]:
        raise SetupError(
            f"ffmpeg {str(program)!r} does not assemble exact films: {fault}; leave the block's "
            "'ffmpeg' field empty, for the FFmpeg that comes with this package, or name a later one"
        )


def _first_fault(assemble: Assemble) -> str | None:
    with tempfile.TemporaryDirectory(prefix="renderfarm-ffmpeg-check-") as name:
        folder = Path(name)
        for number, (chunk_ending, film_ending) in enumerate(_PAIRS):
            film = folder / f"film{number}{film_ending}"
            try:
                paths = [folder / f"{number}-{n}{chunk_ending}" for n in range(_CHUNKS)]
                chunks = [read_media(_write_sample(path), _FPS) for path in paths]
                assemble(chunks, film)
                fault = _fault_of(film, chunks)
            except RenderFarmError as error:
                fault = str(error).removesuffix("; it is not published")
            if fault:
                return f"of {chunk_ending} chunks, a {film_ending} film: {fault}"
    return None


def _write_sample(path: Path) -> Path:
    """Write a chunk of H.264 with B-frames."""
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream("libx264", rate=_FPS)
        video.width, video.height, video.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        video.options = {"preset": "ultrafast", "bf": "2", "b-adapt": "0",
                         "x264-params": "scenecut=0"}  # fmt: skip
        for number in range(_FRAMES):
            frame: Any = av.VideoFrame(_WIDTH, _HEIGHT, "yuv420p")
            for plane in frame.planes:
                shades = (8 * (place + number) % 256 for place in range(plane.buffer_size))
                plane.update(bytes(shades))
            frame.pts, frame.time_base = number, 1 / _FPS
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return path


def _fault_of(film: Path, chunks: Sequence[Media]) -> str | None:
    """Return in what a film differs from its chunks; the usual check of films raises the rest."""
    frames = sum(chunk.frames for chunk in chunks)
    with open_media(film) as container:
        rate = exact(container.streams.video[0].average_rate)
    check_figures(read_figures(film, _FPS), frames, len(chunks), AudioMode.NONE)
    if film.suffix in MP4_ENDINGS and rate != _FPS:
        return f"{rate} frames a second, not {_FPS}"
    wanted = chain.from_iterable(decoded_frames(chunk.path, chunk.frames) for chunk in chunks)
    for pair in zip(decoded_frames(film, frames), wanted, strict=True):
        made, expected = ([bytes(plane) for plane in frame.planes] for frame in pair)
        if made != expected:
            return "other pictures than its chunks"
    return None
