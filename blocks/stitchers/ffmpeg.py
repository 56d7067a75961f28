"""Assembly by the ffmpeg program: its concat demuxer, by copy or with encoding."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import av
import ffmpeg
from pydantic import Field

from prefect_renderfarm.blocks.errors import (
    AssemblyError,
    MediaFault,
    RenderFarmError,
    SetupError,
    StitchInputError,
)
from prefect_renderfarm.blocks.media.codec_header import NAL_CODECS
from prefect_renderfarm.blocks.media.frame_grid import exact
from prefect_renderfarm.blocks.media.image_sequence import (
    has_number,
    is_image_sequence,
    list_images,
    numbered,
)
from prefect_renderfarm.blocks.media.model import BOTTOM_FIRST, TOP_FIRST, Media, Signature
from prefect_renderfarm.blocks.media.mp4_index import MP4_ENDINGS
from prefect_renderfarm.blocks.media.reader import decoded_frames, open_media, read_media
from prefect_renderfarm.blocks.processes.process_group import run_program
from prefect_renderfarm.blocks.processes.programs import find_ffmpeg, is_carried
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.audio import AudioMode, AudioPlan, join_audio
from prefect_renderfarm.blocks.stitchers.base import StitchReport, progress
from prefect_renderfarm.blocks.stitchers.checked import (
    CheckedStitcher,
    ChunkCheck,
    codec_tag,
    film_labels,
    muxer_name,
    muxer_options,
    writing,
)
from prefect_renderfarm.blocks.stitchers.colours import colours_of_encoding, deinterlaces
from prefect_renderfarm.blocks.stitchers.film_check import (
    MATROSKA_ENDINGS,
    FilmFigures,
    check_figures,
    read_figures,
)
from prefect_renderfarm.blocks.storage.atomic_file import (
    exchange,
    naming_the_disk,
    remove_leftovers,
    scratch_folder,
)

GLOBAL_ARGUMENTS = (
    *("-nostdin", "-hide_banner", "-loglevel", "warning"),
    *("-nostats", "-progress", "pipe:1", "-stats_period", "0.5"),
)
_PASSED = ("PATH", "LD_LIBRARY_PATH")
_PROGRESS = re.compile(r"[a-z_0-9]+=")
# The films of the test of a program: chunks of H.264 with B-frames.
_FPS = Fraction(30_000, 1001)
_FRAMES, _CHUNKS = 7, 3
_WIDTH, _HEIGHT = 64, 48
# The endings of chunks and film. Each pair has caught a release of FFmpeg: 5.1 writes decoding
# times one tick apart into mp4 and ts, and refuses H.264 from mkv.
_PAIRS = ((".mp4", ".mp4"), (".mkv", ".mp4"), (".mov", ".mkv"), (".mkv", ".ts"))
_FIELDS = {TOP_FIRST: "setfield=tff", BOTTOM_FIRST: "setfield=bff"}


class FfmpegStitcher(CheckedStitcher):
    """Assemble chunks with the ffmpeg program, by copy or with another codec.

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

    _block_type_name = "FFmpeg Stitcher"
    _block_type_slug = "ffmpeg-stitcher"
    _description = (
        "Assemble chunks into one film with the ffmpeg program, by copy or with another codec. "
        "Every chunk is checked before, the film after."
    )

    ffmpeg: Path | None = Field(default=None, title="FFmpeg")
    """The ffmpeg program. Empty: the one that comes with this package. Another one is tested at its
    first use, and refused unless it assembles small films exactly."""
    video_codec: str = Field(default="copy", title="Video codec")
    """FFmpeg's name of the codec to encode the video with, or copy."""
    input_options: dict[str, str] = Field(default={}, title="Input options")
    """Options of ffmpeg for reading the chunks, such as layer or part for OpenEXR."""
    output_options: dict[str, str] = Field(default={}, title="Output options")
    """Further output options of ffmpeg, without the dash, such as crf: 18."""

    def check_output(self, output: Path, inputs: Sequence[Path] = ()) -> None:
        """Refuse a film without a container, and images without a codec to encode them."""
        images = [path for path in inputs if is_image_sequence(path)]
        if images and len(images) < len(inputs):
            other = next(path for path in inputs if path not in images)
            raise StitchInputError(
                f"chunk file {str(images[0])!r} is an image sequence, but {str(other)!r} is not: "
                "render all chunks as the same kind of file"
            )
        if has_number(output):
            if inputs and not images:
                raise StitchInputError(
                    f"sequence {str(output)!r}: the chunks are not image sequences: name a film"
                )
            for path in inputs:
                if has_number(path):  # of a folder the kind of pictures is not known yet
                    _check_kind_of_pictures(path, path, output)
            _check_sequence_folder(output)
            return
        super().check_output(output, inputs)
        if self.ffmpeg is not None and shutil.which(self.ffmpeg):  # else on another machine
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
        """See `VideoStitcher`; an output such as `film/%05d.png` makes one sequence of several."""
        output = Path(output).absolute()
        if not has_number(output):
            return super().stitch(inputs, output, fps=fps, frame_counts=frame_counts)
        self.check_output(output, inputs)
        check = ChunkCheck(inputs, output, fps or 1, frame_counts, self.verify)
        chunks = [check.take() for _ in inputs]
        for chunk in chunks:
            _check_kind_of_pictures(chunk.path, chunk.images[0], output)
        with naming_the_disk(output):
            size = _join_sequences(chunks, output)
        frames = sum(chunk.frames for chunk in chunks)
        return check.report(FilmFigures(frames, chunks[0].fps, Fraction(0)), size)

    def check_first_chunk(self, output: Path, signature: Signature) -> None:
        """Refuse chunks whose video the film's container cannot hold, unless it is encoded."""
        if self.video_codec == "copy":
            super().check_first_chunk(output, signature)

    def _assemble(self, chunks: Sequence[Media], film: Path, check: ChunkCheck) -> FilmFigures:
        if self.video_codec == "copy":
            guessed = chunks[0].signature["codec"] in NAL_CODECS
            guessed = guessed or any(chunk.reorder for chunk in chunks)
            if chunks[0].signature["container"] == "avi" and guessed:
                raise StitchInputError(
                    f"chunk file {str(chunks[0].path)!r} may have B-frames in AVI, which has no "
                    "display times: choose a remux-stitcher, or render chunks into Matroska or mp4"
                )
            check.begin_comparing()
        self._write(self._exact_program(), chunks, film, check.audio, check.output)
        frames, figures = sum(chunk.frames for chunk in chunks), read_figures(film, chunks[0].fps)
        figures = check_figures(figures, frames, len(chunks), check.audio.mode)
        check.check_film(film, encoded=self.video_codec != "copy")
        return figures

    def _exact_program(self) -> Path:
        """Return the ffmpeg program; SetupError if it does not write exact films."""
        program = find_ffmpeg(self.ffmpeg)
        if is_carried(program):
            return program
        status = program.stat()  # tested once, until it is replaced
        if fault := _first_fault(program, status.st_mtime_ns, status.st_size):
            raise SetupError(
                f"ffmpeg {str(program)!r} does not assemble exact films: {fault}; leave the "
                "block's 'ffmpeg' field empty, for the FFmpeg that comes with this package, or "
                "name a later one"
            )
        return program

    def _write(
        self, program: Path, chunks: Sequence[Media], film: Path, audio: AudioPlan, output: Path
    ) -> None:
        with scratch_folder(output) as folder:
            # Names without a folder: ffmpeg would take parts of its path for its own syntax.
            if images := [image for chunk in chunks for image in chunk.images]:
                inputs = [Path(f"%08d{images[0].suffix}")]
                for number, image in enumerate(images):
                    numbered(folder / inputs[0], number).symlink_to(image)
            else:
                inputs = [Path(write_playlist(chunks, folder).name)]
            if audio.mode is not AudioMode.NONE:
                # The concat demuxer neither cuts nor fills audio: it would drift off the frames.
                inputs.append(Path("audio.nut"))
                with writing(output):
                    join_audio(chunks, audio, folder / inputs[1])
            _run_ffmpeg(self.command(program, inputs, film, audio, chunks), folder, output)

    def command(
        self,
        program: Path,
        inputs: Sequence[Path],
        film: Path,
        audio: AudioPlan,
        chunks: Sequence[Media],
    ) -> list[str]:
        """Return the command that makes a film of a playlist, or images, and a file with audio."""
        fps = chunks[0].fps
        options: dict[str, Any] = {"c:v": self.video_codec}
        own = dict(self.output_options)
        if self.video_codec == "copy":
            # Containers with a coarse clock (Matroska: 1 ms) have rounded the times: put every
            # frame back onto the grid, first in the chunks' clock, then in the film's. Decoding
            # begins as many frames early as any chunk's B-frames need. Times count from the first
            # frame: the chunks' own audio may begin before it, with samples that prime a decoder.
            early = max(chunk.reorder for chunk in chunks)
            frame = f"round((PTS-STARTPTS)*TB*{fps})"
            setts = f"setts=pts=round({frame}/({fps})/TB):dts=round((N-{early})/({fps})/TB)"
            clock = 1 / fps
            if film.suffix.lower() in MATROSKA_ENDINGS:
                # The film ends where its last frame ends: at the tick of the next one.
                clock = Fraction(1, 1000)
                begin, end = (f"round(({frame}+{more})/({fps})/({clock}))" for more in (0, 1))
                setts += f":duration=round(({end}-{begin})*({clock})/TB)"
            options |= {"bsf:v": setts, "time_base:v": str(clock)}
            if tag := codec_tag(chunks[0], film):
                options["tag:v"] = tag
        else:
            options |= {"r": str(fps), "fps_mode": "cfr"}
            colours = colours_of_encoding(self.video_codec, chunks[0].signature, own)
            options |= colours.options
            # Pictures of some codecs do not tell their fields: the container does.
            fields = _FIELDS.get(str(chunks[0].signature.get("field order")))
            chain = [
                f"settb={1 / fps},setpts=N",
                fields,
                colours.before,
                own.get("vf"),
                colours.behind,
            ]
            if fields and not deinterlaces(own):
                options["flags:v"] = "+ilme+ildct"  # else encoders make one picture of two fields
            own["vf"] = ",".join(filter(None, chain))
        if audio.mode is AudioMode.COPY:
            options["c:a"] = "copy"
        elif audio.mode is AudioMode.ENCODE:
            options |= {"c:a": audio.codec, "b:a": audio.bitrate}
        if (name := muxer_name(film)) is not None:
            options["f"] = name
        frames = sum(chunk.frames for chunk in chunks)
        options |= muxer_options(film, chunks[0], self.faststart, frames)
        if chunks[0].images:
            # Otherwise a damaged picture would be skipped, or completed from the one before.
            reading = {"framerate": str(fps), "xerror": None}
            if not inputs[0].suffix.lower().startswith(".tif"):  # whose decoder then takes none
                reading["err_detect"] = "explode"
        else:
            reading = {"format": "concat", "safe": "0"}
        streams = [ffmpeg.input(str(inputs[0]), **(reading | self.input_options))["V:0"]]
        if audio.source is not None:
            # NUT stores the number of channels, not their layout.
            layout = {"channel_layout": audio.source.layout}
            streams += [ffmpeg.input(str(path), **layout)["a:0"] for path in inputs[1:]]
        graph = ffmpeg.output(*streams, str(film), **(options | own))
        graph = graph.global_args(*GLOBAL_ARGUMENTS).overwrite_output()
        words = [str(word) for word in ffmpeg.compile(graph, cmd=str(program))]
        labels = film_labels(chunks[0], audio, copied=self.video_codec == "copy")
        holders = {"film": "-metadata", "video": "-metadata:s:v", "audio": "-metadata:s:a"}
        # ffmpeg-python takes no option twice.
        place = words.index(str(film))
        words[place:place] = [
            word
            for holder, tags in labels.items()
            for name, value in tags.items()
            for word in (holders[holder], f"{name}={value}")
        ]
        return words


def write_playlist(chunks: Sequence[Media], folder: Path) -> Path:
    """Write a list for FFmpeg's concat demuxer into `folder`, and return its path.

    The list names links, because it cannot express a line end in a name. A `duration` line for each
    file keeps the clock exact: without it the demuxer adds up rounded lengths. The durations come
    from the sum of the frames, so that their rounding (1 µs) does not add up.
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


def _run_ffmpeg(command: Sequence[str], folder: Path, film: Path) -> None:
    """Run ffmpeg in `folder`, and report its progress."""
    log, report = run_log(), progress.get()
    done = {"frame": 0, "total_size": 0}

    def on_line(line: str) -> None:
        name, _, value = line.partition("=")
        if name in done and value.strip().isdigit():
            done[name] = int(value)
        elif name == "progress":
            report(done["frame"], done["total_size"])
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
        reason = " / ".join(stderr.splitlines()[-4:])
        raise AssemblyError(f"ffmpeg could not assemble {film.name!r} (exit code {code}): {reason}")


def _check_kind_of_pictures(chunk: Path, picture: Path, output: Path) -> None:
    """Refuse pictures that would get the name of another kind."""
    found, wanted = (
        {".jpeg": ".jpg", ".tiff": ".tif"}.get(path.suffix.lower(), path.suffix.lower())
        for path in (picture, output)
    )
    if found != wanted:
        raise StitchInputError(
            f"sequence {str(output)!r}: the pictures of chunk {str(chunk)!r} end in "
            f"{picture.suffix}, and are copied as they are: let the name end so, too"
        )


def _check_sequence_folder(output: Path) -> None:
    """Refuse a sequence's folder that contains anything else."""
    folder = output.parent
    if not folder.is_dir():
        return
    images: set[str] = set()
    with suppress(MediaFault):
        images = {path.name for path in list_images(output).values()}
    names = (path.name for path in folder.iterdir())
    others = [name for name in names if name not in images and not name.startswith(".")]
    if others:
        raise StitchInputError(
            f"sequence {str(output)!r}: its folder also contains {others[0]!r}: name a folder of "
            "its own, which is replaced as a whole"
        )


def _join_sequences(chunks: Sequence[Media], output: Path) -> int:
    """Replace the folder of `output` with the pictures of all chunks; return their size in bytes.

    Numbers start at the first chunk's first number. Pictures are linked if the disk allows it, else
    copied; the chunks stay.
    """
    number = min(list_images(chunks[0].path))
    folder, size, done, report = output.parent, 0, 0, progress.get()
    remove_leftovers(folder)
    with scratch_folder(folder) as scratch:
        new = scratch / "new"
        new.mkdir()
        for chunk in chunks:
            for image in chunk.images:
                target = numbered(new / output.name, number + done)
                try:
                    os.link(image, target)
                except OSError:
                    shutil.copy2(image, target)
                size += target.stat().st_size
                done += 1
            report(done, size)
        if folder.exists():
            exchange(new, folder)
        else:
            new.rename(folder)
    return size


@cache
def _first_fault(program: Path, _mtime_ns: int, _size: int) -> str | None:
    """Return what is wrong with the small films that a program makes; None if all are exact."""
    write, no_audio = FfmpegStitcher()._write, AudioPlan(AudioMode.NONE)
    with tempfile.TemporaryDirectory(prefix="renderfarm-ffmpeg-check-") as name:
        folder = Path(name)
        for number, (chunk_ending, film_ending) in enumerate(_PAIRS):
            film = folder / f"film{number}{film_ending}"
            try:
                paths = [folder / f"{number}-{n}{chunk_ending}" for n in range(_CHUNKS)]
                chunks = [read_media(_write_sample(path), _FPS) for path in paths]
                write(program, chunks, film, no_audio, film)
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
        video.options = {
            "preset": "ultrafast",
            "bf": "2",
            "b-adapt": "0",
            "x264-params": "scenecut=0",
        }
        for number in range(_FRAMES):
            frame: Any = av.VideoFrame(_WIDTH, _HEIGHT, "yuv420p")
            for plane in frame.planes:
                plane.update(
                    bytes(8 * (number + place) % 256 for place in range(plane.buffer_size))
                )
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
