"""Image sequences as chunks: assembled into a film, or into one sequence."""

from __future__ import annotations

import hashlib
import struct
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from encoder_samples import FPS, FRAMES, pictures, run_ffmpeg
from media_samples import frame_hashes, frame_picture, frame_times
from PIL import Image
from repository import ROOT

from prefect_renderfarm.blocks import (
    AssemblyError,
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


def write_flat(folder: Path, mode: str, colour: tuple[int, ...], count: int = 3) -> Path:
    """Write pictures of one colour."""
    folder.mkdir()
    for number in range(count):
        Image.new(mode, (128, 96), colour).save(folder / f"{number:05d}.png")
    return folder


def shown(film: Path) -> tuple[int, ...]:
    """Return the colour in the middle of a film, as a player that goes by its tags shows it."""
    with av.open(str(film)) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace == 1, "a player has to guess the matrix"
        picture = frame.reformat(format="rgb24", src_colorspace="ITU709", dst_colorspace="DEFAULT")
        return tuple(int(value) for value in picture.to_ndarray()[48, 64])


@pytest.mark.parametrize(
    ("codec", "ending", "pixels"),
    [("libx264", ".mp4", "yuv420p"), ("libx265", ".mp4", "yuv420p"),
     ("libvpx-vp9", ".webm", "yuv420p"), ("libsvtav1", ".mkv", "yuv420p"),
     ("mpeg4", ".mp4", "yuv420p"), ("prores_ks", ".mov", None)],
)  # fmt: skip
def test_colours_of_pictures(tmp_path: Path, codec: str, ending: str, pixels: str | None) -> None:
    """Pictures in sRGB become BT.709, tagged, in what players decode."""
    colour = (32, 192, 64)
    chunk, film = write_flat(tmp_path / "0", "RGB", colour), tmp_path / f"film{ending}"
    report = FfmpegStitcher(video_codec=codec).stitch([chunk], film, fps=24)
    assert report.dropped == ()
    with av.open(str(film)) as container:
        next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        assert pixels in (None, context.pix_fmt)
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)
        assert context.color_range in (0, 1)
    difference = [abs(a - b) for a, b in zip(shown(film), colour, strict=True)]
    assert max(difference) <= 4


def test_rgb_video_is_encoded_like_pictures(tmp_path: Path) -> None:
    """Chunks of video in RGB get the same colours; who gives options of his own decides himself."""
    colour, pictures = (32, 192, 64), write_flat(tmp_path / "0", "RGB", (32, 192, 64))
    chunk = tmp_path / "0.mov"
    lossless().stitch([pictures], chunk, fps=24)
    film = tmp_path / "film.mp4"
    FfmpegStitcher(video_codec="libx264").stitch([chunk], film, fps=24)
    assert max(abs(a - b) for a, b in zip(shown(film), colour, strict=True)) <= 4
    own = FfmpegStitcher(video_codec="libx264", output_options={"pix_fmt": "yuv444p"})
    own.stitch([chunk], film, fps=24)
    with av.open(str(film)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv444p"
    FfmpegStitcher(video_codec="ffv1").stitch([pictures], tmp_path / "film.mkv", fps=24)
    with av.open(str(tmp_path / "film.mkv")) as container:
        assert next(container.decode(video=0)).format.is_rgb


def test_transparency_is_kept_or_its_loss_told(tmp_path: Path) -> None:
    """A film that cannot be transparent says so in its report."""
    chunk = write_flat(tmp_path / "0", "RGBA", (32, 192, 64, 128))
    report = FfmpegStitcher(video_codec="libx264").stitch([chunk], tmp_path / "f.mp4", fps=24)
    assert report.dropped == ("the alpha channel",)
    stitcher = FfmpegStitcher(video_codec="prores_ks", output_options={"profile:v": "4444"})
    assert stitcher.stitch([chunk], tmp_path / "f.mov", fps=24).dropped == ()


@pytest.mark.long
def test_linear_pictures(tmp_path: Path) -> None:
    """OpenEXR is linear: the film has the curve of sRGB."""
    folder = tmp_path / "0"
    folder.mkdir()
    with av.open(str(folder / "0.exr"), "w", format="image2") as output:
        stream = output.add_stream("exr", rate=24)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "gbrpf32le"
        frame = av.VideoFrame(128, 96, "gbrpf32le")
        for plane in frame.planes:
            plane.update(struct.pack("<f", 0.2140) * (plane.buffer_size // 4))
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    for codec, name in (("libx264", "f.mp4"), ("ffv1", "f.mkv"), ("png", "f.mov")):
        FfmpegStitcher(video_codec=codec).stitch([folder], tmp_path / name, fps=24)
        with av.open(str(tmp_path / name)) as container:
            picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert np.abs(picture.astype(int) - 127).max() <= 3, codec  # IEC 61966-2-1: 0.2140 is half


@pytest.mark.parametrize(
    "ending",
    [".tif", *(pytest.param(each, marks=pytest.mark.long) for each in
               (".tiff", ".dpx", ".bmp", ".tga", ".webp"))],
)  # fmt: skip
def test_other_kinds_of_pictures(ending: str, tmp_path: Path) -> None:
    """They become a film, each as it is; a damaged one is refused."""
    chunks = []
    for number in range(2):
        chunk = tmp_path / f"{number}"
        chunk.mkdir()
        lossless_webp = ("-c:v", "libwebp", "-lossless", "1") if ending == ".webp" else ()
        run_ffmpeg(*pictures(number * FRAMES), "-pix_fmt", "bgra" if ending == ".webp" else "rgb24",
                   *lossless_webp, chunk / f"%03d{ending}")  # fmt: skip
        chunks.append(chunk)
    film = tmp_path / "film.mkv"
    FfmpegStitcher(video_codec="ffv1").stitch(chunks, film, fps=FPS)
    made = [path for chunk in chunks for path in sorted(chunk.iterdir())]
    with av.open(str(film)) as container:
        for frame, path in zip(container.decode(video=0), made, strict=True):
            with av.open(str(path)) as picture:
                expected = next(picture.decode(video=0)).to_ndarray(format="rgb24")
            assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - expected).max() <= 1
    made[1].write_bytes(made[1].read_bytes()[: made[1].stat().st_size // 2])
    with pytest.raises(AssemblyError):
        FfmpegStitcher(video_codec="ffv1").stitch(chunks, film, fps=FPS)


def test_sequence_with_the_name_of_another_kind(tmp_path: Path) -> None:
    """PNGs are not called EXR, whether their kind is known before or after they are rendered."""
    for pattern in (True, False):
        (tmp_path / str(pattern)).mkdir()
        chunks = sequences(tmp_path / str(pattern), pattern=pattern)
        output = tmp_path / "out" / "%05d.exr"
        with pytest.raises(StitchInputError, match=r"end in \.png, and are copied as they are"):
            FfmpegStitcher().stitch(chunks, output, fps=24)
        assert not output.parent.exists()
    with pytest.raises(StitchInputError, match=r"end in \.png"):
        FfmpegStitcher().check_output(output, [tmp_path / "0" / "%05d.png"])
    FfmpegStitcher().check_output(tmp_path / "out" / "%05d.jpeg", [tmp_path / "0" / "%05d.jpg"])
    (tmp_path / "shot.v2").mkdir()  # a folder, whatever its name ends in
    FfmpegStitcher().check_output(tmp_path / "out" / "%05d.jpeg", [tmp_path / "shot.v2"])


def test_other_files_among_pictures(tmp_path: Path) -> None:
    """Hidden files are no pictures; a second sequence is named."""
    chunks = sequences(tmp_path, pattern=False)
    for chunk in chunks:
        (chunk / "._00002.png").write_bytes(b"\0\5\x16\7")
        (chunk / ".DS_Store").touch()
    lossless().stitch(chunks, tmp_path / "film.mov", fps=24, frame_counts=COUNTS)
    assert frame_hashes(tmp_path / "film.mov") == picture_hashes(1, 8)
    (chunks[1] / "matte.00004.png").write_bytes(b"")
    with pytest.raises(StitchInputError, match=r"with '00004\.png' and 'matte\.00004\.png'"):
        lossless().stitch(chunks, tmp_path / "film.mov", fps=24)


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


@pytest.mark.usefixtures("api")
def test_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    """What can be assembled of folders of pictures is decided before one is rendered."""
    job = plan_job(2, 24, chunks=2, output_template="exr/{id}/", command_template="touch begun")
    here: Any = {"job_dir": tmp_path, "adapter": LocalAdapter()}
    with pytest.raises(StitchInputError, match="image sequence, which has to be encoded"):
        render_job(job, stitcher=RemuxStitcher(), output_file=tmp_path / "film.mp4", **here)
    assert not list(tmp_path.rglob("begun"))
    script = tmp_path / "renderer.py"
    script.write_text(RENDERER.format(tests=str(ROOT / "tests" / "support")))
    command = f"'{sys.executable}' '{script}' {{start}} {{count}} {{output}}"
    job = plan_job(2, 24, chunks=2, output_template="exr/{id}/", command_template=command)
    sequence = tmp_path / "final" / "%05d.png"
    report = render_job(job, stitcher=FfmpegStitcher(), output_file=sequence, **here)
    assert len(list(sequence.parent.iterdir())) == report.frames == 2


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
