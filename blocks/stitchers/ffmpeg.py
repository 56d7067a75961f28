"""Assembly by the ffmpeg program: its concat demuxer, with or without encoding anew."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import ffmpeg
from pydantic import Field

from prefect_renderfarm.blocks.errors import AssemblyError, StitchInputError
from prefect_renderfarm.blocks.media.image_sequence import has_number, is_image_sequence
from prefect_renderfarm.blocks.media.model import Media
from prefect_renderfarm.blocks.processes.ffmpeg_binary import find_ffmpeg
from prefect_renderfarm.blocks.processes.process_group import run_program
from prefect_renderfarm.blocks.runtime.run_log import run_log
from prefect_renderfarm.blocks.stitchers.audio import join_sound
from prefect_renderfarm.blocks.stitchers.audio_plan import SoundMode, SoundPlan, sound_codec
from prefect_renderfarm.blocks.stitchers.base import StitchReport
from prefect_renderfarm.blocks.stitchers.checked import CheckedStitcher
from prefect_renderfarm.blocks.stitchers.chunk_check import ChunkCheck
from prefect_renderfarm.blocks.stitchers.ffmpeg_check import require_exact
from prefect_renderfarm.blocks.stitchers.film_check import MATROSKA_ENDINGS, FilmFigures, check_film
from prefect_renderfarm.blocks.stitchers.image_sequence import (
    check_sequence_folder,
    join_sequences,
    link_sequence,
)
from prefect_renderfarm.blocks.stitchers.muxer import check_container, muxer_options
from prefect_renderfarm.blocks.stitchers.progress import watcher
from prefect_renderfarm.blocks.storage.atomic_file import scratch_folder
from prefect_renderfarm.blocks.storage.publish import naming_the_disk

GLOBAL_ARGUMENTS = (
    *("-nostdin", "-hide_banner", "-loglevel", "warning"),
    *("-nostats", "-progress", "pipe:1", "-stats_period", "0.5"),
)
_PASSED = ("PATH", "LD_LIBRARY_PATH")
_PROGRESS = re.compile(r"[a-z_0-9]+=")


def run_ffmpeg(command: Sequence[str], folder: Path, film: Path) -> None:
    """Run ffmpeg in `folder`, and tell its progress.

    Raises:
        AssemblyError: It failed; with its last words.
    """
    log, tell = run_log(), watcher()
    done = {"frame": 0, "total_size": 0}

    def on_line(line: str) -> None:
        name, _, value = line.partition("=")
        if name in done and value.strip().isdigit():
            done[name] = int(value)
        elif name == "progress":
            tell(done["frame"], done["total_size"])
        elif not _PROGRESS.match(line):
            log.debug("ffmpeg | %s", line)

    code, _, stderr = run_program(
        command,
        name="ffmpeg",
        cwd=folder,
        environment={key: os.environ[key] for key in _PASSED if key in os.environ},
        on_line=on_line,
        stop=threading.Event(),
        timeout=None,
        grace=5.0,
    )
    if code != 0:
        words = " / ".join(stderr.splitlines()[-4:])
        raise AssemblyError(f"ffmpeg could not assemble {film.name!r} (exit code {code}): {words}")


_FROM_FIRST_FRAME = "setpts=PTS-STARTPTS"


class FfmpegStitcher(CheckedStitcher):
    """Assemble chunks with the ffmpeg program, and encode the film anew where that is asked for.

    `RemuxStitcher` is faster for a plain copy. This one offers all that FFmpeg can do to the film:
    another codec, filters, any output option.

    Example:
        Load a saved stitcher and assemble a film:
        ```python
        from pathlib import Path
        from prefect_renderfarm.blocks import FfmpegStitcher

        stitcher = FfmpegStitcher.load("BLOCK_NAME")
        stitcher.stitch([Path("0.mp4"), Path("1.mp4")], Path("film.mp4"), fps=24)
        ```
    """

    _block_type_name: ClassVar[str | None] = "FFmpeg Stitcher"
    _block_type_slug: ClassVar[str | None] = "ffmpeg-stitcher"
    _description: ClassVar[str | None] = (
        "Assemble chunks into one film with the ffmpeg program, by copy or by encoding anew. "
        "Every chunk is checked before, the film after."
    )

    ffmpeg: Path | None = Field(
        default=None,
        title="FFmpeg",
        description=(
            "The ffmpeg program. Empty: the one that comes with this package. Another one has "
            "to assemble small films exactly at its first use, or it is refused."
        ),
    )
    video_codec: str = Field(
        default="copy",
        title="Video codec",
        description="FFmpeg's name of the codec to encode the video with, or copy.",
    )
    input_options: dict[str, str] = Field(
        default={},
        title="Input options",
        description="Options of ffmpeg for reading the chunks, such as layer or part for OpenEXR.",
    )
    output_options: dict[str, str] = Field(
        default={},
        title="Output options",
        description="Further output options of ffmpeg, without the dash, such as crf: 18.",
    )

    def check_output(self, output: Path, inputs: Sequence[Path] = ()) -> None:
        """Refuse a film that has no container for it, and images that nothing would encode."""
        images = [path for path in inputs if is_image_sequence(path)]
        if images and len(images) < len(inputs):
            other = next(path for path in inputs if path not in images)
            raise StitchInputError(
                f"chunk file {str(images[0])!r} is an image sequence, but {str(other)!r} is not: "
                "let all chunks write the same kind"
            )
        if has_number(output):
            if inputs and not images:
                raise StitchInputError(
                    f"sequence {str(output)!r}: the chunks are no image sequences: name a film"
                )
            check_sequence_folder(output)
            return
        super().check_output(output, inputs)
        if self.ffmpeg is not None and shutil.which(self.ffmpeg):  # else it is another machine's
            self._exact_program()
        if images and self.video_codec == "copy":
            raise StitchInputError(
                f"chunk file {str(images[0])!r} is an image sequence, which has to be encoded: set "
                "the stitcher's 'video_codec', such as libx264, or name a sequence as the output"
            )

    def stitch(
        self,
        inputs: Sequence[Path],
        output: Path,
        *,
        fps: float | str | Fraction | None = None,
        frame_counts: Sequence[int] | None = None,
    ) -> StitchReport:
        """Check the chunks, assemble them, check the film, publish it. See `VideoStitcher`.

        An output such as `film/%05d.png` makes one image sequence of several.
        """
        output = Path(output).absolute()
        if not has_number(output):
            return super().stitch(inputs, output, fps=fps, frame_counts=frame_counts)
        started = time.monotonic()
        self.check_output(output, inputs)
        check = self._chunk_check(inputs, output, fps or 1, frame_counts)
        chunks = [check.take() for _ in inputs]
        with naming_the_disk(output):
            size = join_sequences(chunks, output)
        frames = sum(chunk.frames for chunk in chunks)
        return StitchReport(
            output=output,
            frames=frames,
            fps=str(chunks[0].fps),
            duration=float(frames / chunks[0].fps),
            chunks=len(chunks),
            size=size,
            seconds=time.monotonic() - started,
        )

    def _assemble(self, chunks: Sequence[Media], film: Path, check: ChunkCheck) -> FilmFigures:
        if self.video_codec == "copy":
            check_container(film, str(chunks[0].signature["codec"]))
        self._write(self._exact_program(), chunks, film, check.sound, check.output)
        return check_film(film, chunks, check.sound.mode)

    def _exact_program(self) -> Path:
        """Return the ffmpeg program to assemble with.

        Raises:
            SetupError: It does not exist, or does not write exact films.
        """
        program = find_ffmpeg(self.ffmpeg)
        copying, silent = FfmpegStitcher(), SoundPlan(SoundMode.NONE)
        require_exact(
            program,
            lambda chunks, film: copying._write(program, chunks, film, silent, film),
        )
        return program

    def _write(
        self,
        program: Path,
        chunks: Sequence[Media],
        film: Path,
        sound: SoundPlan,
        output: Path,
    ) -> None:
        with scratch_folder(output) as folder:
            # By their names alone: ffmpeg would take parts of a folder's name for its own syntax.
            if chunks[0].images:
                inputs = [Path(link_sequence(chunks, folder))]
            else:
                inputs = [Path(write_playlist(chunks, folder).name)]
            if sound.mode is not SoundMode.NONE:
                # The concat demuxer neither cuts nor fills sound: it would drift off the frames.
                inputs.append(Path("sound.nut"))
                join_sound(chunks, sound, folder / inputs[1])
            run_ffmpeg(self.command(program, inputs, film, sound, chunks), folder, output)

    def command(
        self,
        program: Path,
        inputs: Sequence[Path],
        film: Path,
        sound: SoundPlan,
        chunks: Sequence[Media],
    ) -> list[str]:
        """Return the command line that makes the film.

        Args:
            program: The ffmpeg program.
            inputs: A playlist of the chunks, or the name of their images; and a file with their
                sound if that is wanted.
            film: The film to write.
            sound: What to do with the sound.
            chunks: The chunks.
        """
        fps = chunks[0].fps
        options: dict[str, Any] = {"c:v": self.video_codec}
        own = dict(self.output_options)
        if self.video_codec == "copy":
            # Containers with a coarse clock (Matroska: 1 ms) have rounded the times: put every
            # frame back onto the grid, first in the chunks' clock, then in the film's. Decoding
            # begins as many frames early as any chunk's B-frames need. Times count from the first
            # frame: sound of the chunks' own may begin before it, with what primes its decoder.
            early = max(chunk.reorder for chunk in chunks)
            frame = f"round((PTS-STARTPTS)*TB*{fps})"
            setts = f"setts=pts=round({frame}/({fps})/TB):dts=round((N-{early})/({fps})/TB)"
            clock = 1 / fps
            if film.suffix.lower() in MATROSKA_ENDINGS:
                # The film's length is where its last frame ends: at the tick of the next one.
                clock = Fraction(1, 1000)
                begin, end = (f"round(({frame}+{more})/({fps})/({clock}))" for more in (0, 1))
                setts += f":duration=round(({end}-{begin})*({clock})/TB)"
            options |= {"bsf:v": setts, "time_base:v": str(clock)}
        else:
            options |= {"r": str(fps), "fps_mode": "cfr"}
            own["vf"] = ",".join(filter(None, [_FROM_FIRST_FRAME, own.get("vf")]))
        if sound.mode is SoundMode.COPY:
            options["c:a"] = "copy"
        elif sound.mode is SoundMode.ENCODE:
            options |= {"c:a": sound_codec(self.audio_codec, film), "b:a": self.audio_bitrate}
        frames = sum(chunk.frames for chunk in chunks)
        options |= muxer_options(film, fps, self.faststart, frames)
        if chunks[0].images:
            # A damaged picture would else be skipped, or filled up from the one before.
            how = {"framerate": str(fps), "err_detect": "explode", "xerror": None}
        else:
            how = {"format": "concat", "safe": "0"}
        streams = [ffmpeg.input(str(inputs[0]), **(how | self.input_options))["v:0"]]
        if sound.source is not None:
            # NUT tells how many channels there are, not where they stand.
            layout = {"channel_layout": sound.source.layout}
            streams += [ffmpeg.input(str(path), **layout)["a:0"] for path in inputs[1:]]
        graph = ffmpeg.output(*streams, str(film), **(options | own))
        graph = graph.global_args(*GLOBAL_ARGUMENTS).overwrite_output()
        return [str(word) for word in ffmpeg.compile(graph, cmd=str(program))]


def write_playlist(chunks: Sequence[Media], folder: Path) -> Path:
    """Write a list for FFmpeg's concat demuxer into `folder`, and return its path.

    The list names links with plain names, because it has no way to write a line end in a name. A
    `duration` line a file keeps the clock exact: without it the demuxer adds up rounded lengths.
    The durations come from the sum of the frames, so that their rounding (1 µs) does not add up.

    Args:
        chunks: The chunks in order.
        folder: An empty folder.
    """
    lines = ["ffconcat version 1.0"]
    frames, microseconds = 0, 0
    for number, chunk in enumerate(chunks):
        ending = chunk.path.suffix if chunk.path.suffix[1:].isalnum() else ""
        link = folder / f"{number:06d}{ending}"
        link.symlink_to(chunk.path)
        frames += chunk.frames
        until = round(frames / chunk.fps * 1_000_000)
        lines += [f"file {link.name}", f"duration {(until - microseconds) / 1_000_000:.6f}"]
        microseconds = until
    playlist = folder / "chunks.ffconcat"
    playlist.write_text("\n".join(lines) + "\n", encoding="ascii")
    return playlist
