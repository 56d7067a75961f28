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
_CHUNKS = 3
_PICTURES = f"testsrc2=size=64x48:rate={_FPS},scroll=horizontal=0.1,trim=end_frame=7,format=yuv420p"
_X264 = {"preset": "ultrafast", "bf": "2", "b-adapt": "0", "x264-params": "scenecut=0"}
_SILENT = AudioPlan(AudioMode.NONE)
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
            for path in filter(has_number, inputs):  # of folders the kind is not known yet
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
        copied, signature = self.video_codec == "copy", chunks[0].signature
        if copied:
            guessed = signature["codec"] in NAL_CODECS or any(chunk.reorder for chunk in chunks)
            if signature["container"] == "avi" and guessed:
                raise StitchInputError(
                    f"chunk file {str(chunks[0].path)!r} may have B-frames in AVI, which has no "
                    "display times: choose a remux-stitcher, or render chunks into Matroska or mp4"
                )
            check.begin_comparing()
        self._write(self._exact_program(), chunks, film, check.audio, check.output)
        figures = _read_checked(film, chunks, check.audio)
        check.check_film(film, encoded=not copied)
        return figures

    def _exact_program(self) -> Path:
        """Return the ffmpeg program; SetupError if it does not write exact films."""
        program = find_ffmpeg(self.ffmpeg)
        status = program.stat()  # tested once, until it is replaced
        known = (program, status.st_mtime_ns, status.st_size)
        if not is_carried(program) and (fault := _first_fault(*known)):
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
        first, fps, copied = chunks[0], chunks[0].fps, self.video_codec == "copy"
        frames = sum(chunk.frames for chunk in chunks)
        own = dict(self.output_options)
        options: dict[str, Any] = {"c:v": self.video_codec, "f": muxer_name(film)}
        options |= muxer_options(film, first, self.faststart, frames)
        if copied:
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
            options |= {"bsf:v": setts, "time_base:v": clock, "tag:v": codec_tag(first, film)}
        else:
            colours = colours_of_encoding(self.video_codec, first.signature, own)
            options |= {"r": fps, "fps_mode": "cfr", **colours.options}
            # Pictures of some codecs do not tell their fields: the container does.
            fields = _FIELDS.get(str(first.signature.get("field order")))
            if fields and not deinterlaces(own):
                options["flags:v"] = "+ilme+ildct"  # else encoders make one picture of two fields
            filters = [f"settb={1 / fps},setpts=N", fields, colours.before, own.get("vf")]
            own["vf"] = ",".join(filter(None, [*filters, colours.behind]))
        if audio.mode is AudioMode.COPY:
            options["c:a"] = "copy"
        elif audio.mode is AudioMode.ENCODE:
            options |= {"c:a": audio.codec, "b:a": audio.bitrate}
        reading: dict[str, Any] = {"format": "concat", "safe": "0"}
        if first.images:
            # Otherwise a damaged picture would be skipped, or completed from the one before.
            reading = {"framerate": fps, "xerror": None}
            if not inputs[0].suffix.lower().startswith(".tif"):  # whose decoder then takes none
                reading["err_detect"] = "explode"
        streams = [ffmpeg.input(str(inputs[0]), **(reading | self.input_options))["V:0"]]
        if audio.source is not None:
            # NUT stores the number of channels, not their layout.
            layout = {"channel_layout": audio.source.layout}
            streams += [ffmpeg.input(str(path), **layout)["a:0"] for path in inputs[1:]]
        options = {name: value for name, value in options.items() if value is not None}
        graph = ffmpeg.output(*streams, str(film), **(options | own))
        graph = graph.global_args(*GLOBAL_ARGUMENTS).overwrite_output()
        words = [str(word) for word in ffmpeg.compile(graph, cmd=str(program))]
        holders = {"film": "-metadata", "video": "-metadata:s:v", "audio": "-metadata:s:a"}
        place = words.index(str(film))  # before it: ffmpeg-python takes no option twice
        for holder, tags in film_labels(first, audio, copied=copied).items():
            for name, value in tags.items():
                words[place:place] = [holders[holder], f"{name}={value}"]
        return words


def _read_checked(film: Path, chunks: Sequence[Media], audio: AudioPlan) -> FilmFigures:
    """Read a film back, and refuse one that has not the chunks' frames, or no such audio."""
    frames = sum(chunk.frames for chunk in chunks)
    return check_figures(read_figures(film, chunks[0].fps), frames, len(chunks), audio.mode)


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
    images: set[Path] = set()
    with suppress(MediaFault):
        images.update(list_images(output).values())
    for path in output.parent.iterdir() if output.parent.is_dir() else ():
        if path not in images and not path.name.startswith("."):
            raise StitchInputError(
                f"sequence {str(output)!r}: its folder also contains {path.name!r}: name a folder "
                "of its own, which is replaced as a whole"
            )


def _join_sequences(chunks: Sequence[Media], output: Path) -> int:
    """Replace the folder of `output` with the pictures of all chunks; return their size in bytes.

    Numbers start at the first chunk's first number. Pictures are linked if the disk allows it, else
    copied; the chunks stay.
    """
    first = min(list_images(chunks[0].path))
    folder, size, report = output.parent, 0, progress.get()
    remove_leftovers(folder)
    with scratch_folder(folder) as new:
        for done, image in enumerate(chain.from_iterable(chunk.images for chunk in chunks)):
            target = numbered(new / output.name, first + done)
            try:
                os.link(image, target)
            except OSError:
                shutil.copy2(image, target)
            size += target.stat().st_size
            report(done + 1, size)
        if folder.exists():
            exchange(new, folder)
        else:
            new.rename(folder)
    return size


@cache
def _first_fault(program: Path, _mtime_ns: int, _size: int) -> str | None:
    """Return what is wrong with the small films that a program makes; None if all are exact."""
    with tempfile.TemporaryDirectory(prefix="renderfarm-ffmpeg-check-") as folder:
        for chunk_ending, film_ending in _PAIRS:
            sample = Path(folder, f"chunk{chunk_ending}")
            film = sample.with_name(f"{sample.name}{film_ending}")
            try:
                _write_sample(sample)
                chunks = [read_media(sample, _FPS)] * _CHUNKS
                FfmpegStitcher()._write(program, chunks, film, _SILENT, film)
                _check_exact(film, chunks)
            except RenderFarmError as error:
                fault = str(error).removesuffix("; it is not published")
                return f"of {chunk_ending} chunks, a {film_ending} film: {fault}"
    return None


def _write_sample(path: Path) -> None:
    """Write a chunk of H.264 with B-frames."""
    with av.open(_PICTURES, format="lavfi") as source, av.open(str(path), "w") as output:
        video: Any = output.add_stream("libx264", _FPS, _X264)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for frame in source.decode(video=0):
            frame.pict_type = 0  # which in the source is that of a key frame
            output.mux(video.encode(frame))
        output.mux(video.encode(None))


def _check_exact(film: Path, chunks: Sequence[Media]) -> None:
    """Refuse a film that has not the rate, the clock and the pictures of its chunks."""
    with open_media(film) as container:
        rate = exact(container.streams.video[0].average_rate)
    frames = _read_checked(film, chunks, _SILENT).frames
    if film.suffix in MP4_ENDINGS and rate != _FPS:
        raise AssemblyError(f"{rate} frames a second, not {_FPS}")
    wanted = chain.from_iterable(decoded_frames(chunk.path, chunk.frames) for chunk in chunks)
    for pair in zip(decoded_frames(film, frames), wanted, strict=True):
        made, expected = ([bytes(plane) for plane in frame.planes] for frame in pair)
        if made != expected:
            raise AssemblyError("other pictures than its chunks")
