"""A stitcher that checks every chunk before assembly, and the film before it is published."""

from __future__ import annotations

import errno
import io
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
from pydantic import Field

from prefect_renderfarm.blocks.errors import AssemblyError, MediaFault, StitchInputError
from prefect_renderfarm.blocks.media.frame_grid import parse_fps
from prefect_renderfarm.blocks.media.model import Labels, Media, Signature, Verify, difference
from prefect_renderfarm.blocks.media.mp4_index import MP4_ENDINGS
from prefect_renderfarm.blocks.media.reader import open_media, read_media
from prefect_renderfarm.blocks.media.reader_process import prepare, read_apart
from prefect_renderfarm.blocks.runtime.prefect_api import run_log
from prefect_renderfarm.blocks.stitchers.audio import (
    NO_TRACK,
    AudioMode,
    AudioPlan,
    audio_fault,
    check_codec,
    check_track,
    find_encoder,
    plan_audio,
)
from prefect_renderfarm.blocks.stitchers.base import ChunkRules, StitchReport, VideoStitcher
from prefect_renderfarm.blocks.stitchers.film_check import (
    MATROSKA_ENDINGS,
    FilmFigures,
    refusing_faults,
)
from prefect_renderfarm.blocks.stitchers.film_content import (
    Beginning,
    check_content,
    check_encoded,
    read_beginnings,
    sample_of,
)
from prefect_renderfarm.blocks.storage.atomic_file import publishing

FILM_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts")
# Video with a stream type in ISO/IEC 13818-1, table 2-34, or in use for one of the private ones.
_IN_TS = frozenset(
    {"mpeg1video", "mpeg2video", "mpeg4", "h264", "hevc", "vvc", "cavs", "avs2", "avs3", "vc1"}
    | {"dirac", "jpegxs"}
)
# What libav writes there cannot be decoded, or is written by itself only: the bindings of VP8, VP9
# and AV1 are those to ISO/IEC 14496-12.
_NOT_IN = {".mov": ("vp8", "vp9", "av1"), ".mkv": ("gif",)}
# Those of H.264, H.265, VP9, AV1 and Dolby Vision that mp4 and QuickTime share: ISO/IEC 14496-15,
# and the registry of codecs at mp4ra.org.
_TAGS_OF_MP4 = frozenset(
    {"avc1", "avc3", "hvc1", "hev1", "vp09", "av01", "dva1", "dvav", "dvh1", "dvhe", "dav1"}
)
# What libav lists for these is all that they take.
_CLOSED = (".webm", ".mp4", ".m4v")
# What is no part of the standard of mp4, and written only if that is allowed.
_UNOFFICIAL = ("Dolby Vision record", "stereo mode", "projection")
# ISO/IEC 13818-1, 2.4.3.7: 33 bits at 90 kHz. libav begins at 1.4 s.
_LONGEST_TS = 2**33 / 90_000 - 2


class ChunkCheck:
    """Reads the chunk files of one film, in order, and refuses those that do not fit.

    Without `fps` the first chunk's rate counts; without `frame_counts` any number of frames fits.
    `plan` tells the audio of a film by its first chunk.
    """

    def __init__(
        self,
        inputs: Sequence[Path],
        output: Path,
        fps: float | str | Fraction | None,
        frame_counts: Sequence[int] | None,
        verify: Verify = Verify.PACKETS,
        plan: Callable[[Media, Path], AudioPlan] = lambda *_: AudioPlan(AudioMode.NONE),
    ) -> None:
        self.paths = [Path(path).absolute() for path in inputs]
        self.output = output
        self.audio = AudioPlan(AudioMode.NONE)  # until the first chunk is there
        self._started = time.monotonic()
        self.total_frames = sum(frame_counts or ())  # planned; 0 without a plan
        self._planned: Sequence[int | None] = frame_counts or [None] * len(self.paths)
        self._verify, self._plan = verify, plan
        self.first: Media | None = None
        film = f"film {str(output)!r}"
        if not self.paths:
            raise StitchInputError(f"{film}: there are no chunk files to assemble")
        if frame_counts is not None and len(frame_counts) != len(self.paths):
            raise StitchInputError(
                f"{film}: {len(self.paths)} chunk files, but {len(frame_counts)} frame counts"
            )
        try:
            self._fps = None if fps is None else parse_fps(fps)
        except ValueError as error:
            raise StitchInputError(f"{film}: {error}") from None
        if same := [path for path in self.paths if path.resolve() == output.resolve()]:
            raise StitchInputError(f"{film} is also chunk file {str(same[0])!r}: name another film")
        [(path, times)] = Counter(self.paths).most_common(1)
        if times > 1:
            raise StitchInputError(f"chunk file {str(path)!r} is named {times} times, not once")
        prepare()
        self.missing = len(self.paths)  # files that were not taken yet
        self._starts: list[tuple[Path, int]] = []  # each with its first frame's number in the film
        self._beginnings: Future[list[Beginning]] | None = None
        self._frames = 0
        self._dropped: dict[str, None] = {}  # in the order in which they were found

    def take(self) -> Media:
        """Read and check the next chunk file; StitchInputError names one that does not fit."""
        number = len(self.paths) - self.missing
        path, planned = self.paths[number], self._planned[number]
        try:
            chunk = self._read(path, planned)
        except MediaFault as fault:
            place = f"number {number + 1} of {len(self.paths)}"
            if planned is not None:
                place += f", {planned} frames planned"
            raise StitchInputError(f"chunk file {str(path)!r} ({place}) {fault}") from None
        self._fps = chunk.fps
        self.first = self.first or chunk
        self.missing -= 1
        self._starts.append((path, self._frames))
        self._frames += chunk.frames
        self._dropped |= dict.fromkeys(chunk.extras)
        return chunk

    def _read(self, path: Path, planned: int | None) -> Media:
        """Read a chunk file; MediaFault if it does not fit the plan, or the first one."""
        first = self.first
        chunk = read_media(path, self._fps, first=first, verify=self._verify, planned=planned)
        if planned is not None and chunk.frames != planned:
            raise MediaFault(f"has {chunk.frames} frames, not the planned {planned}")
        if first is None:
            self.audio = self._plan(chunk, self.output)
            check_track(self.audio, self.total_frames, chunk.fps)
        elif found := difference(first.signature, chunk.signature):
            raise MediaFault(
                f"differs from the first chunk file: {found}; render all with the same settings"
            )
        mode = self.audio.mode
        heard = chunk.audio if mode is not AudioMode.NONE and not self.audio.track else None
        if heard and (fault := audio_fault(heard, mode, chunk.frames, chunk.fps)):
            raise MediaFault(f"{fault}, or set the stitcher's 'audio' to 'none'")
        return chunk

    def begin_comparing(self) -> None:
        """Begin to decode chunks' first frames, which would take longest behind the last chunk."""
        if self._beginnings is not None or self.first is None:
            return
        codec = str(self.first.signature["codec"])
        if starts := sample_of(self._starts, codec, complete=not self.missing):
            pool = ThreadPoolExecutor(1, thread_name_prefix="decode")
            self._beginnings = pool.submit(read_apart, read_beginnings, starts, codec)
            pool.shutdown(wait=False)

    def check_film(self, film: Path, *, encoded: bool = False) -> None:
        """Compare a film with its chunks; AssemblyError if it differs by more than its encoding."""
        if self.first is not None:
            first = replace(self.first, mp4_track=None, labels=labels_of(self.first, self.audio))
            source = self.audio.source if self.audio.mode is not AudioMode.NONE else None
            layout = source and source.layout
            with refusing_faults():
                if encoded:
                    lost = read_apart(check_encoded, film, first, layout)
                else:
                    self.begin_comparing()
                    assert self._beginnings is not None  # noqa: S101 -- all chunks were taken
                    beginnings = self._beginnings.result()
                    lost = read_apart(check_content, film, first, beginnings, layout)
            self._dropped |= dict.fromkeys(lost)
        if self._dropped:
            run_log().warning("the film lacks what chunks have: %s", ", ".join(self._dropped))

    def report(self, found: FilmFigures, size: int) -> StitchReport:
        """Return the report on the published film, which has so many bytes."""
        return StitchReport(
            output=self.output,
            frames=found.frames,
            fps=str(found.fps),
            duration=float(found.frames / found.fps),
            clock_error=float(found.clock_error),
            audio_samples=found.audio.audible if found.audio else None,
            audio_rate=found.audio.rate if found.audio else None,
            dropped=tuple(self._dropped),
            chunks=len(self.paths),
            size=size,
            seconds=time.monotonic() - self._started,
        )


class CheckedStitcher(VideoStitcher, ABC):
    """The common part of `RemuxStitcher` and `FfmpegStitcher`: checks, audio, publishing."""

    verify: Verify = Field(default=Verify.PACKETS, title="Verify")
    """How thoroughly chunks are checked. packets: the time of every frame; decode: also decode
    every frame, which takes about as long as playing it; header: trust the header of files without
    an index."""
    audio: AudioMode = Field(default=AudioMode.AUTO, title="Audio")
    """Source and treatment of the film's audio. auto: the job's track, if it has one; else the
    chunks' PCM, copied where the film's container plays it (mov, mkv) and otherwise encoded once;
    none: no audio; copy: the chunks' audio as it is, which clicks at every seam unless it is PCM;
    encode: decode it and encode it once; track: the track."""
    audio_track: Path | None = Field(default=None, title="Audio track")
    """A file with the audio of the whole film. Empty: the job's, if it has one."""
    audio_codec: str | None = Field(default=None, title="Audio codec")
    """FFmpeg's name of the codec to encode with. Empty: aac, in WebM libopus."""
    audio_bitrate: int = Field(default=192_000, gt=0, title="Audio bit rate")
    """Bits a second of encoded audio; lossless codecs ignore it."""
    faststart: bool = Field(default=False, title="Fast start")
    """Put the index of an mp4 or mov film first, so that the film plays while it loads."""

    def check_output(self, output: Path, inputs: Sequence[Path] = ()) -> None:
        """Refuse a film whose ending names no container, and one that is a folder."""
        if output.is_dir():
            raise StitchInputError(f"film {str(output)!r} is a folder: name a file")
        if self.audio is AudioMode.TRACK and self.audio_track is None:
            raise StitchInputError(NO_TRACK)
        if self.audio_codec is not None:
            find_encoder(self.audio_codec)
        if output.suffix.lower() not in FILM_ENDINGS:
            raise StitchInputError(
                f"film {str(output)!r}: the ending must be one of {', '.join(FILM_ENDINGS)}"
            )

    def check_length(self, output: Path, frames: int, fps: Fraction) -> None:
        """Refuse a transport stream beyond the end of its clock."""
        if output.suffix.lower() == ".ts" and frames / fps > _LONGEST_TS:
            raise StitchInputError(
                f"film {str(output)!r} would last {float(frames / fps / 3600):.1f} hours, and the "
                f"clock of a .ts film ends after {_LONGEST_TS / 3600:.1f}: let its name end in .mkv"
            )

    def check_first_chunk(self, output: Path, signature: Signature) -> None:
        """Refuse video that the film's container has no place for, whatever libav would write."""
        ending, codec = output.suffix.lower(), signature["codec"]
        # In ts libav writes private data, which nothing can play.
        if (
            (ending == ".ts" and codec not in _IN_TS)
            or codec in _NOT_IN.get(ending, ())
            or (ending in _CLOSED and codec not in _codecs_of(muxer_name(output) or ending[1:]))
        ):
            raise cannot_hold(output, f"{codec} video")
        if signature.get("alpha") == "yes" and ending not in MATROSKA_ENDINGS:
            raise cannot_hold(output, f"the transparency of {codec}")
        if ending in (".mov", ".ts") and signature.get("Dolby Vision record") not in (None, "none"):
            raise cannot_hold(output, "the record of Dolby Vision")

    def chunk_rules(self) -> ChunkRules:
        """Return the rules of this stitcher; a worker always counts the packets of a chunk."""
        verify = Verify.DECODE if self.verify is Verify.DECODE else Verify.PACKETS
        return ChunkRules(verify, uniform=True)

    def check_track(self, frames: int, fps: Fraction) -> None:
        """Refuse an audio track that is missing, has no audio, or is shorter than the film."""
        check_track(plan_audio(self.audio, None, Path("film.mkv"), self.audio_track), frames, fps)

    def with_track(self, track: Path) -> CheckedStitcher:
        """Return this stitcher with a job's audio track, unless it has its own."""
        return self if self.audio_track else self.model_copy(update={"audio_track": track})

    def stitch(
        self,
        inputs: Sequence[Path],
        output: Path,
        *,
        fps: float | str | Fraction | None = None,
        frame_counts: Sequence[int] | None = None,
    ) -> StitchReport:
        """Check the chunks, assemble them, check the film, publish it. See `VideoStitcher`."""
        output = Path(output).absolute()
        self.check_output(output, inputs)
        check = ChunkCheck(inputs, output, fps, frame_counts, self.verify, self._plan)
        chunks = [check.take() for _ in inputs]
        frames = sum(chunk.frames for chunk in chunks)
        self.check_length(output, frames, chunks[0].fps)
        check_track(check.audio, frames, chunks[0].fps)
        with publishing(output) as film:
            figures = self._assemble(chunks, film, check)
        return check.report(figures, output.stat().st_size)

    @abstractmethod
    def _assemble(self, chunks: Sequence[Media], film: Path, check: ChunkCheck) -> FilmFigures:
        """Write the film from checked chunks, check it, and return its figures."""

    def _plan(self, first: Media, film: Path) -> AudioPlan:
        """Refuse a first chunk whose video or audio a film cannot have; plan the film's audio."""
        self.check_first_chunk(film, first.signature)
        plan = plan_audio(self.audio, first.audio, film, self.audio_track)
        codec = self.audio_codec or ("libopus" if film.suffix.lower() == ".webm" else "aac")
        if plan.mode is AudioMode.ENCODE and plan.source is not None:
            check_codec(codec, plan.source)
        return replace(plan, codec=codec, bitrate=self.audio_bitrate)


@cache
def _codecs_of(muxer: str) -> frozenset[str]:
    with av.open(io.BytesIO(), "w", muxer) as head:
        return frozenset(head.supported_codecs)


def cannot_hold(film: Path, content: str) -> StitchInputError:
    """Return the error for content that a film's container cannot hold."""
    other = "" if film.suffix.lower() == ".mkv" else "let the film's name end in .mkv, or "
    return StitchInputError(
        f"a {film.suffix} film cannot hold {content}: {other}have it encoded by an ffmpeg-stitcher "
        "with a 'video_codec'"
    )


def muxer_name(film: Path) -> str | None:
    """Return the muxer of a film: that which libav chooses for .m4v takes no H.265."""
    return "mp4" if film.suffix.lower() == ".m4v" else None


def codec_tag(first: Media, film: Path) -> str | None:
    """Return the codec tag for a film; None means the container's usual one.

    Apple's players take H.265 as `hvc1` only. The tag of ProRes tells its profile, in Matroska too.
    """
    tag, codec = first.signature.get("codec tag"), first.signature.get("codec")
    if film.suffix.lower() not in MP4_ENDINGS:
        return str(tag) if tag and codec == "prores" else None
    same = film.suffix.lower() == first.path.suffix.lower()
    if not tag or not (same or codec == "prores" or tag in _TAGS_OF_MP4):
        return "hvc1" if codec == "hevc" else None
    code, muxer = str(tag).ljust(4), muxer_name(film) or film.suffix[1:].lower()
    # libav does not write each tag that it reads. MPEG-4 in QuickTime tells its size in the
    # pictures only, and no trial is possible without.
    probe = codec == "mpeg4"
    with open_media(first.path, probe=probe) as template, suppress(av.FFmpegError, ValueError):
        empty = {"movflags": "empty_moov"}
        with av.open(io.BytesIO(), "w", muxer, container_options=empty) as head:
            track: Any = head.add_stream_from_template(template.streams.video[0], opaque=True)
            track.codec_context.codec_tag = code
            head.start_encoding()
            return code
    return None


def film_labels(
    first: Media, audio: AudioPlan, *, copied: bool = True
) -> dict[str, dict[str, str]]:
    """Return the tags of a film, of its video and of its audio track, by those of a chunk.

    Encoded video does not keep its mark of transparency, nor audio from elsewhere the language.
    """
    labels = labels_of(first, audio)
    alpha = "1" if copied and first.signature.get("alpha") == "yes" else None
    tags = {
        "film": {"title": labels.title},
        "video": {"timecode": labels.timecode, "language": labels.language, "alpha_mode": alpha},
        "audio": {"language": labels.audio_language},
    }
    return {
        holder: {name: value for name, value in each.items() if value}
        for holder, each in tags.items()
    }


def labels_of(first: Media, audio: AudioPlan) -> Labels:
    """Return the labels that a film should have."""
    own = audio.mode is not AudioMode.NONE and audio.track is None
    return first.labels if own else replace(first.labels, audio_language=None)


def muxer_options(film: Path, first: Media, faststart: bool, frames: int) -> dict[str, str]:
    """Return the options of a film's muxer that keep its clock exact, and put its index first.

    Space is reserved for the index, so that the film need not be moved afterwards: a frame or an
    audio packet takes at most a size (4 bytes), an offset (8), a run of offsets (12), of decoding
    times (8) and of display times (8), and a key frame (4); codecs have no more than 100 audio
    packets a second, FLAC and PCM included.
    """
    ending = film.suffix.lower()
    if ending in MATROSKA_ENDINGS:
        # Matroska stores display times only: negative decoding times are no reason to shift them.
        return {"avoid_negative_ts": "disabled"}
    if ending not in MP4_ENDINGS:
        return {}
    options = {"movie_timescale": str(first.fps.numerator)}
    if any(first.signature.get(name) not in (None, "none") for name in _UNOFFICIAL):
        options["strict"] = "unofficial"
    if faststart:
        options["moov_size"] = str(65_536 + 44 * (frames + round(100 * frames / first.fps)))
    return options


@contextmanager
def writing(film: Path) -> Iterator[None]:
    """Turn libav's errors into an OSError if the disk is the cause, else into our own."""
    try:
        yield
    except (av.FFmpegError, ValueError) as error:  # PyAV's ValueError: audio of another form
        if isinstance(error, OSError) and error.errno and error.errno != errno.EINVAL:
            raise OSError(error.errno, error.strerror) from error
        raise AssemblyError(f"film {film.name!r} cannot be written: {error}") from error
