"""One contract for all stitchers, on real media."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import (
    RATE,
    Recipe,
    frame_hashes,
    frame_times,
    samples_of,
    sweep,
    write_chunks,
    write_clip,
)

from prefect_renderfarm.blocks import (
    AssemblyError,
    FfmpegStitcher,
    RemuxStitcher,
    StitchInputError,
    VideoStitcher,
)

STITCHERS: dict[str, Callable[..., VideoStitcher]] = {
    "remux": RemuxStitcher,
    "ffmpeg": FfmpegStitcher,
}
COUNTS = [7, 1, 12, 1, 1, 20, 2]
FRAMES = sum(COUNTS)
NTSC = Fraction(30000, 1001)

MATRIX = [
    (Recipe(), ".mp4"),
    (Recipe(), ".mkv"),
    (Recipe(), ".ts"),
    (Recipe(fps=NTSC), ".mp4"),
    (Recipe(ending=".mkv"), ".mkv"),
    (Recipe(ending=".mkv"), ".mp4"),
    (Recipe(ending=".mkv", fps=NTSC), ".mkv"),
    (Recipe(ending=".mkv", fps=NTSC), ".mov"),
    (Recipe(ending=".ts"), ".ts"),
    (Recipe(ending=".ts", fps=NTSC), ".mp4"),
    (Recipe(codec="libx265"), ".mp4"),
    (Recipe(ending=".webm", codec="libvpx-vp9"), ".webm"),
    (Recipe(ending=".mkv", codec="ffv1"), ".mkv"),
    (Recipe(ending=".mov", codec="prores_ks", pixel_format="yuv422p10le"), ".mov"),
    (Recipe(ending=".mkv", codec="mjpeg", pixel_format="yuvj420p"), ".mp4"),
    (Recipe(b_frames=16), ".mp4"),
]


@pytest.fixture(params=STITCHERS)
def make(request: pytest.FixtureRequest) -> Callable[..., VideoStitcher]:
    """Each stitcher class in turn."""
    return STITCHERS[request.param]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Chunks that fit, without sound."""
    return write_chunks(tmp_path_factory.mktemp("plain"), [6, 6, 6], Recipe())


def duration_of(path: Path) -> float:
    """Return a file's duration as its header tells it, in seconds."""
    with av.open(str(path)) as container:
        assert container.duration is not None
        return container.duration / 1_000_000


@pytest.mark.parametrize(
    ("recipe", "ending"), MATRIX, ids=[f"{recipe}-{ending}" for recipe, ending in MATRIX]
)
def test_exact_film(
    make: Callable[..., VideoStitcher], recipe: Recipe, ending: str, tmp_path: Path
) -> None:
    """Every frame is the chunks' own, in order, on its time; one-frame chunks included."""
    chunks = write_chunks(tmp_path, COUNTS, recipe)
    film = tmp_path / f"film{ending}"
    report = make().stitch(chunks, film, fps=str(recipe.fps), frame_counts=COUNTS)
    assert (report.frames, report.chunks, report.size) == (FRAMES, 7, film.stat().st_size)
    assert frame_hashes(film) == [digest for chunk in chunks for digest in frame_hashes(chunk)]
    times = frame_times(film)
    worst = max(abs(time - times[0] - place / recipe.fps) for place, time in enumerate(times))
    coarse = ending in (".mkv", ".webm")
    assert worst <= (Fraction(1, 2000) if coarse else 0)
    assert duration_of(film) == pytest.approx(float(FRAMES / recipe.fps), abs=0.0011)


@pytest.mark.parametrize("fps", [Fraction(30), NTSC])
@pytest.mark.parametrize("ending", [".mov", ".mkv"])
def test_pcm_is_kept_sample_for_sample(
    make: Callable[..., VideoStitcher], fps: Fraction, ending: str, tmp_path: Path
) -> None:
    """PCM chunks join without a gap or a click, as long as the frames."""
    chunks = write_chunks(tmp_path, COUNTS, Recipe(ending=ending, fps=fps, audio="pcm_s16le"))
    film = tmp_path / f"film{ending}"
    report = make().stitch(chunks, film, fps=str(fps), frame_counts=COUNTS)
    due = round(FRAMES * RATE / fps)
    samples = samples_of(film)
    assert report.audio_samples == samples.shape[1] == due
    assert np.array_equal(samples, sweep(0, due))


@pytest.mark.parametrize("codec", [None, "flac"])
def test_pcm_is_encoded_once_for_mp4(
    make: Callable[..., VideoStitcher], codec: str | None, tmp_path: Path
) -> None:
    """In mp4 PCM becomes one stream without seams: FLAC is exact, AAC has only its own noise."""
    chunks = write_chunks(tmp_path, COUNTS, Recipe(ending=".mkv", audio="pcm_s16le"))
    film = tmp_path / "film.mp4"
    make(audio_codec=codec).stitch(chunks, film, fps=30, frame_counts=COUNTS)
    due = round(FRAMES * RATE / 30)
    found = samples_of(film)[:, :due].astype(float)
    error = np.abs(found - sweep(0, due))
    with av.open(str(film)) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == (codec or "aac")
        assert sound.duration * sound.time_base * RATE == due
    if codec == "flac":
        assert not error.any()
    else:
        # The last packet is left out: AAC smears the end of the sound over it.
        assert np.sqrt((error[:, :-2048] ** 2).mean()) / 32767 < 0.01


def test_seam_has_no_click(make: Callable[..., VideoStitcher], tmp_path: Path) -> None:
    """At the seams of an encoded film the error is no larger than elsewhere."""
    counts = [47] * 5
    chunks = write_chunks(tmp_path, counts, Recipe(ending=".mkv", audio="pcm_s16le"))
    film = tmp_path / "film.mp4"
    make().stitch(chunks, film, fps=30, frame_counts=counts)
    due = round(sum(counts) * RATE / 30)
    error = np.abs(samples_of(film)[:, :due].astype(float) - sweep(0, due)).max(axis=0)
    seams = [round(47 * number * RATE / 30) for number in range(1, 5)]
    near = np.zeros(due, dtype=bool)
    for seam in seams:
        near[seam - 1024 : seam + 1024] = True
    inner = error[4096:-4096], near[4096:-4096]
    assert inner[0][inner[1]].max() <= 2 * inner[0][~inner[1]].max()


def test_aac_chunks_are_refused_with_the_fix(
    make: Callable[..., VideoStitcher], tmp_path: Path
) -> None:
    """Sound that cannot be joined by copy is refused; `none` and `encode` both help."""
    chunks = write_chunks(tmp_path, [24, 24], Recipe(audio="aac", fps=Fraction(24)))
    film = tmp_path / "film.mp4"
    with pytest.raises(StitchInputError, match=r"aac.*'encode' or 'none'"):
        make().stitch(chunks, film, fps=24)
    assert not film.exists()
    assert make(audio="none").stitch(chunks, film, fps=24).audio_samples is None
    assert make(audio="encode").stitch(chunks, film, fps=24).audio_samples is not None


def test_sound_that_is_too_short_is_refused(
    make: Callable[..., VideoStitcher], tmp_path: Path
) -> None:
    """A chunk whose sound ends before its frames do is named."""
    recipe = Recipe(ending=".mkv", audio="pcm_s16le")
    chunks = write_chunks(tmp_path, [30, 30], recipe)
    short = tmp_path / "short.mkv"
    with av.open(str(chunks[1])) as source, av.open(str(short), "w") as target:
        streams = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            late = packet.stream.type == "audio" and (packet.pts or 0) * packet.time_base > 0.5
            if packet.size and not late:
                packet.stream = streams[packet.stream]
                target.mux(packet)
    with pytest.raises(StitchInputError, match=r"short\.mkv.*audio samples"):
        make().stitch([chunks[0], short], tmp_path / "film.mkv", fps=30)


def test_plan_is_optional(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path
) -> None:
    """Without fps and frame counts the chunks are held to each other."""
    report = make().stitch(plain, tmp_path / "film.mp4")
    assert (report.frames, report.fps) == (18, "30")


def test_one_chunk(make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path) -> None:
    """A film of one chunk is a film."""
    assert make().stitch(plain[:1], tmp_path / "film.mp4", fps=30).frames == 6


def test_old_film_is_replaced_whole(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path
) -> None:
    """An older film stays through a failure, and goes with success; no other file is left."""
    film = tmp_path / "film.mp4"
    film.write_bytes(b"old")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(plain[1].read_bytes()[:800])
    with pytest.raises(StitchInputError):
        make().stitch([plain[0], broken], film, fps=30)
    assert film.read_bytes() == b"old"
    make().stitch(plain, film, fps=30)
    assert len(frame_hashes(film)) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mp4", "film.mp4"]


def test_folder_of_the_film_is_made(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path
) -> None:
    """The film's folder need not exist."""
    assert make().stitch(plain, tmp_path / "a" / "b" / "film.mp4").output.is_file()


@pytest.mark.parametrize(
    "name",
    ["it's.mp4", 'a"b.mp4', "new\nline.mp4", "käse ☃.mp4", "-dash.mp4", "%05d.mp4", "a:b.mp4",
     "concat:x.mp4", "#hash.mp4", " space .mp4", "back\\slash.mp4", "[0]*.mp4"],
)  # fmt: skip
def test_hostile_names(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path, name: str
) -> None:
    """Chunks and films of any name come through."""
    chunk = tmp_path / name
    chunk.write_bytes(plain[0].read_bytes())
    film = tmp_path / f"film {name}"
    assert make().stitch([chunk, plain[1]], film, fps=30).frames == 12
    assert frame_hashes(film)[:6] == frame_hashes(plain[0])


def fault(name: str, plain: list[Path], folder: Path) -> tuple[list[Path], str]:
    """Return chunks of which one is wrong in a way, and what the message must say."""
    first, second, third = plain
    bad = folder / "bad.mp4"
    data = second.read_bytes()
    recipes = {
        "frame size": Recipe(width=192),
        "codec": Recipe(codec="mpeg4"),
        "pixel format": Recipe(pixel_format="yuv444p"),
        "b-frames off": Recipe(b_frames=0),
        "frame rate": Recipe(fps=Fraction(25)),
        "sound of its own": Recipe(audio="aac"),
    }
    if name in recipes:
        write_clip(bad, 6, 6, recipes[name])
    elif name == "one frame short":
        write_clip(bad, 6, 5, Recipe())
    elif name == "one frame long":
        write_clip(bad, 6, 7, Recipe())
    elif name == "container":
        bad = write_clip(folder / "bad.ts", 6, 6, Recipe(ending=".ts"))
    elif name == "empty":
        bad.write_bytes(b"")
    elif name == "no header":
        bad.write_bytes(data[:600])
    elif name == "garbage":
        bad.write_bytes(b"\x00garbage" * 500)
    elif name == "twice":
        bad = first
    words = {"missing": "does not exist", "empty": "is empty", "twice": "more than once",
             "one frame short": "5 frames, not the planned 6",
             "one frame long": "7 frames, not the planned 6"}  # fmt: skip
    return [first, bad, third], words.get(name, "")


@pytest.mark.parametrize(
    "name",
    ["missing", "empty", "no header", "garbage", "twice", "one frame short", "one frame long",
     "frame size", "codec", "pixel format", "b-frames off", "frame rate", "sound of its own",
     "container"],
)  # fmt: skip
def test_faults_are_refused_before_assembly(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path, name: str
) -> None:
    """Each fault is refused, the chunk is named, and nothing is written."""
    chunks, words = fault(name, plain, tmp_path)
    film = tmp_path / "out" / "film.mp4"
    with pytest.raises(StitchInputError) as caught:
        make().stitch(chunks, film, fps=30, frame_counts=[6, 6, 6])
    assert chunks[1].name in str(caught.value)
    assert words in str(caught.value)
    assert not film.parent.exists()


def test_film_may_not_be_a_chunk(
    make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path
) -> None:
    """The film never overwrites a chunk, not even through a link."""
    link = tmp_path / "film.mp4"
    link.symlink_to(plain[0])
    before = plain[0].read_bytes()
    with pytest.raises(StitchInputError, match="also a chunk file"):
        make().stitch(plain, link, fps=30)
    assert plain[0].read_bytes() == before


@pytest.mark.parametrize(
    ("inputs", "output", "options", "words"),
    [
        ([], "film.mp4", {}, "no chunk files"),
        (None, "film.gif", {}, "ending must be one of"),
        (None, "film.mp4", {"frame_counts": [6]}, "3 chunk files, but 1 frame counts"),
        (None, "film.mp4", {"fps": "x"}, "fps 'x'"),
    ],
)
def test_bad_calls(
    make: Callable[..., VideoStitcher],
    plain: list[Path],
    tmp_path: Path,
    inputs: list[Path] | None,
    output: str,
    options: dict[str, object],
    words: str,
) -> None:
    """Calls that make no sense are refused in words."""
    with pytest.raises(StitchInputError, match=words):
        make().stitch(
            plain if inputs is None else inputs,
            tmp_path / output,
            **options,  # type: ignore[arg-type]
        )


def test_full_disk(make: Callable[..., VideoStitcher], plain: list[Path]) -> None:
    """A device without space is an error that says so, and no file is left."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", folder],
            capture_output=True,
            check=False,
        )
        if mounted.returncode != 0:
            pytest.skip("a small disk can only be mounted by root")
        try:
            with pytest.raises(AssemblyError, match=r"film"):
                make().stitch(plain, Path(folder) / "film.mp4", fps=30)
            assert list(Path(folder).iterdir()) == []
        finally:
            subprocess.run(["umount", folder], check=True)


def test_faststart(make: Callable[..., VideoStitcher], plain: list[Path], tmp_path: Path) -> None:
    """With fast start the index comes before the frames."""
    for wanted in (False, True):
        film = tmp_path / f"{wanted}.mp4"
        make(faststart=wanted).stitch(plain, film, fps=30)
        data = film.read_bytes()
        assert (data.index(b"moov") < data.index(b"mdat")) is wanted


def test_ffmpeg_stitcher_encodes_anew(plain: list[Path], tmp_path: Path) -> None:
    """Another codec can be asked for; frames and clock stay."""
    film = tmp_path / "film.mp4"
    stitcher = FfmpegStitcher(video_codec="mpeg4", output_options={"q:v": "3"})
    assert stitcher.stitch(plain, film, fps=30).frames == 18
    with av.open(str(film)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_ffmpeg_stitcher_tells_what_ffmpeg_said(plain: list[Path], tmp_path: Path) -> None:
    """A failure of ffmpeg is an error with its last words."""
    with pytest.raises(AssemblyError, match=r"no-such-codec"):
        FfmpegStitcher(video_codec="no-such-codec").stitch(plain, tmp_path / "film.mp4", fps=30)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_ffmpeg")
def test_ffmpeg_stitcher_brings_its_own_ffmpeg(plain: list[Path], tmp_path: Path) -> None:
    """On a machine without ffmpeg the stitcher uses imageio-ffmpeg's."""
    assert FfmpegStitcher().stitch(plain, tmp_path / "film.mp4", fps=30).frames == 18
