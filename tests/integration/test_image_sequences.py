"""Image sequences as chunks: assembled into a film, or into one sequence."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import av
import pytest
from media_samples import frame_hashes, frame_picture, frame_times
from PIL import Image
from repository import ROOT

from prefect_renderfarm.blocks import (
    FfmpegStitcher,
    LocalAdapter,
    RemuxStitcher,
    StitchInputError,
)
from prefect_renderfarm.flows import plan_job, render_job

COUNTS = [3, 1, 4]
SIZE = (64, 48)
# A renderer that writes one numbered picture a frame, as Blender does.
RENDERER = """
import sys, numpy, pathlib
sys.path.insert(0, {tests!r})
from media_samples import frame_picture
from PIL import Image
start, count, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for number in range(start, start + count):
    path = output % number if "%" in output else f"{{output}}{{number:04d}}.png"
    Image.fromarray(frame_picture(number, 64, 48)).save(path)
"""


def write_images(folder: Path, start: int, count: int, name: str = "%05d.png") -> None:
    """Write frames `start` … as PNG, numbered by their frame."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        Image.fromarray(frame_picture(number, *SIZE)).save(folder / (name % number))


def sequences(folder: Path, pattern: bool, first: int = 1) -> list[Path]:
    """Write the chunks, each into a folder; return the folders, or names with a number."""
    paths = []
    for chunk, count in enumerate(COUNTS):
        place = folder / f"chunk {chunk}%d"
        write_images(place, first + sum(COUNTS[:chunk]), count)
        paths.append(place / "%05d.png" if pattern else place)
    return paths


def picture_hashes(first: int, count: int) -> list[str]:
    """Return the MD5 of the pixels of frames, as `frame_hashes` does."""
    return [
        hashlib.md5(frame_picture(number, *SIZE).tobytes()).hexdigest()  # noqa: S324
        for number in range(first, first + count)
    ]


def lossless() -> FfmpegStitcher:
    """Return a stitcher whose films have the pictures' own pixels."""
    return FfmpegStitcher(video_codec="png")


@pytest.mark.parametrize("pattern", [True, False], ids=["name with a number", "folder"])
@pytest.mark.parametrize("fps", ["24", "30000/1001"])
def test_film_of_images(tmp_path: Path, pattern: bool, fps: str) -> None:
    """Every picture is a frame of the film, in order, on its time."""
    film = tmp_path / "film.mov"
    report = lossless().stitch(sequences(tmp_path, pattern), film, fps=fps, frame_counts=COUNTS)
    assert (report.frames, report.clock_error) == (8, 0.0)
    assert frame_hashes(film) == picture_hashes(1, 8)
    assert len(frame_times(film)) == 8
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


def test_film_of_open_exr(tmp_path: Path) -> None:
    """OpenEXR works, and options for reading it are passed on."""
    chunks = []
    for chunk in range(2):
        place = tmp_path / str(chunk)
        place.mkdir()
        for number in range(3):
            with av.open(str(place / f"{number}.exr"), "w", format="image2") as output:
                stream = output.add_stream("exr", rate=24)
                stream.width, stream.height, stream.pix_fmt = *SIZE, "gbrpf32le"
                frame = av.VideoFrame.from_ndarray(frame_picture(number, *SIZE), format="rgb24")
                output.mux(stream.encode(frame.reformat(format="gbrpf32le")))
                output.mux(stream.encode(None))
        chunks.append(place)
    stitcher = FfmpegStitcher(
        video_codec="libx264",
        input_options={"part": "0"},
        output_options={"pix_fmt": "yuv420p"},
    )
    assert stitcher.stitch(chunks, tmp_path / "film.mp4", fps=24).frames == 6


def test_one_sequence_of_many(tmp_path: Path) -> None:
    """The chunks' pictures get consecutive numbers; an older sequence is replaced as a whole."""
    output = tmp_path / "film" / "shot.%04d.png"
    write_images(output.parent, 90, 20, "shot.%04d.png")
    chunks = sequences(tmp_path, pattern=True)
    report = FfmpegStitcher().stitch(chunks, output, fps=24, frame_counts=COUNTS)
    names = sorted(path.name for path in output.parent.iterdir())
    assert names == [f"shot.{number:04d}.png" for number in range(1, 9)]
    assert report.frames == 8
    assert report.size == sum(path.stat().st_size for path in output.parent.iterdir())
    pixels = [Image.open(output.parent / name).tobytes() for name in names]
    assert pixels == [frame_picture(number, *SIZE).tobytes() for number in range(1, 9)]
    assert [len(list(chunk.parent.iterdir())) for chunk in chunks] == COUNTS
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


def damage(chunks: list[Path], what: str) -> str:
    """Spoil the last chunk in a way; return what the message must say."""
    folder = chunks[2].parent
    image = folder / "00006.png"
    if what == "missing":
        image.unlink()
        return "has no image 6"
    if what == "last missing":
        (folder / "00008.png").unlink()
        return "has 3 frames, not the planned 4"
    if what == "truncated":
        image.write_bytes(image.read_bytes()[:-200])
        return "damaged image '00006.png'"
    if what == "empty":
        image.write_bytes(b"")
        return "damaged image '00006.png'"
    if what == "size":
        Image.new("RGB", (32, 32)).save(image)
        return "'00006.png' with frame size 32x32, not 64x48"
    if what == "kind":
        for path in folder.iterdir():
            Image.new("RGBA", SIZE).save(path)
        return "differs from the first chunk file: pixel format"
    for path in folder.iterdir():
        path.unlink()
    return "holds no images"


@pytest.mark.parametrize(
    "what", ["missing", "last missing", "truncated", "empty", "size", "kind", "none"]
)
def test_faulty_sequences_are_refused(tmp_path: Path, what: str) -> None:
    """A sequence that is not whole is refused by its name, and nothing is written."""
    chunks = sequences(tmp_path, pattern=True)
    words = damage(chunks, what)
    for output in (tmp_path / "out" / "film.mov", tmp_path / "out" / "%05d.png"):
        with pytest.raises(StitchInputError) as caught:
            lossless().stitch(chunks, output, fps=24, frame_counts=COUNTS)
        assert words in str(caught.value)
        assert "chunk 2%d" in str(caught.value)
        assert not output.parent.exists()


def test_choices_that_cannot_work(tmp_path: Path) -> None:
    """What cannot become a film is refused with the fix."""
    chunks = sequences(tmp_path, pattern=True)
    film = tmp_path / "film.mp4"
    with pytest.raises(StitchInputError, match="ffmpeg-stitcher"):
        RemuxStitcher().stitch(chunks, film, fps=24)
    with pytest.raises(StitchInputError, match="video_codec"):
        FfmpegStitcher().stitch(chunks, film, fps=24)
    with pytest.raises(StitchInputError, match="give fps"):
        lossless().stitch(chunks, film)
    with pytest.raises(StitchInputError, match=r"is an image sequence, but .*is not"):
        lossless().stitch([chunks[0], tmp_path / "1.mp4"], film, fps=24)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(StitchInputError, match=r"also contains 'notes\.txt'"):
        FfmpegStitcher().stitch(chunks, tmp_path / "out" / "%d.png", fps=24)


@pytest.mark.parametrize(
    "output", ["frames/{id}/%05d.png", pytest.param("frames/{id}/", marks=pytest.mark.long)]
)
@pytest.mark.usefixtures("api")
def test_job_of_images(tmp_path: Path, output: str) -> None:
    """A job whose chunks are image sequences is rendered, checked, and assembled."""
    script = tmp_path / "renderer.py"
    script.write_text(RENDERER.format(tests=str(ROOT / "tests" / "support")))
    job = plan_job(
        8,
        24,
        chunks=3,
        start_frame=1,
        output_template=output,
        command_template=f"'{sys.executable}' '{script}' {{start}} {{count}} {{output}}",
    )
    film = tmp_path / "film.mov"
    for _ in range(2):  # the second time over the pictures of the first
        report = render_job(
            job, adapter=LocalAdapter(), stitcher=lossless(), output_file=film, job_dir=tmp_path
        )
    assert report.stitch is not None
    assert report.stitch.frames == 8
    assert frame_hashes(film) == picture_hashes(1, 8)
    assert [chunk.frame_count for chunk in report.chunks] == [2, 3, 3]
