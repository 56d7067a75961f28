"""Chunks of differing encoder settings: refused, joined by ffmpeg, or encoded anew, as asked."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from faulty_media import ffmpeg
from media_samples import Recipe, frame_hashes, frame_times, samples_of, write_clip

from prefect_renderfarm.blocks import AssemblyError, RemuxStitcher, StitchInputError


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Chunks of one codec with differing parameter sets."""
    return [
        write_clip(tmp_path / "0.mp4", 0, 6, Recipe()),
        write_clip(tmp_path / "1.mp4", 6, 6, Recipe(b_frames=0)),
        write_clip(tmp_path / "2.mp4", 12, 6, Recipe()),
    ]


def test_refused_unless_asked(mixed: list[Path], tmp_path: Path) -> None:
    """By default the chunk is named, and what differs."""
    with pytest.raises(StitchInputError, match=r"1\.mp4.*codec header|1\.mp4.*profile"):
        RemuxStitcher().stitch(mixed, tmp_path / "film.mp4", fps=30)


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_joined_by_ffmpeg(mixed: list[Path], tmp_path: Path, ending: str) -> None:
    """Ffmpeg's concat demuxer keeps every frame and its time, though the headers differ."""
    film = tmp_path / f"film{ending}"
    report = RemuxStitcher(on_mismatch="ffmpeg").stitch(mixed, film, fps=30, frame_counts=[6, 6, 6])
    assert report.frames == 18
    assert frame_hashes(film) == [digest for path in mixed for digest in frame_hashes(path)]
    times = frame_times(film)
    worst = max(abs(time - times[0] - Fraction(n, 30)) for n, time in enumerate(times))
    assert worst <= (Fraction(1, 2000) if ending == ".mkv" else 0)


def test_encoded_anew(mixed: list[Path], tmp_path: Path) -> None:
    """With the name of an encoder even another codec fits; frames and clock are right."""
    mixed[1] = write_clip(tmp_path / "1.mkv", 6, 6, Recipe(ending=".mkv", codec="mpeg4"))
    film = tmp_path / "film.mp4"
    with pytest.raises(StitchInputError, match=r"1\.mkv.*container"):
        RemuxStitcher(on_mismatch="ffmpeg").stitch(mixed, film, fps=30)
    report = RemuxStitcher(on_mismatch="libx264").stitch(mixed, film, fps=30)
    assert (report.frames, report.clock_error) == (18, 0.0)
    with av.open(str(film)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert_looks_like(film, mixed)


def assert_looks_like(film: Path, chunks: list[Path]) -> None:
    """Hold each picture of a film to that of its chunk, but for what encoding it again loses."""
    for number, (made, given) in enumerate(
        zip(pictures([film]), pictures(chunks), strict=True), start=1
    ):
        assert abs(made - given).mean() < 8, f"picture {number}"


def pictures(files: list[Path]) -> Iterator[np.ndarray]:
    """Give the brightness of each pixel, picture by picture."""
    for file in files:
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="gray").astype(int)


def test_other_clock_and_sound_encoded_anew(tmp_path: Path) -> None:
    """Chunks of other containers, clocks and codecs, with sound: all of it is in its place."""
    sound = {"audio": "pcm_s16le"}
    chunks = [
        write_clip(tmp_path / "0.mov", 0, 6, Recipe(ending=".mov", **sound)),
        write_clip(tmp_path / "1.mkv", 6, 6, Recipe(ending=".mkv", b_frames=0, **sound)),
        write_clip(tmp_path / "2.mov", 12, 6, Recipe(ending=".mov", codec="mpeg4", **sound)),
    ]
    film = tmp_path / "film.mov"
    RemuxStitcher(on_mismatch="libx264").stitch(chunks, film, fps=30, frame_counts=[6] * 3)
    assert_looks_like(film, chunks)
    heard = np.concatenate([samples_of(chunk) for chunk in chunks], axis=1)
    assert np.array_equal(samples_of(film), heard)


def test_pixel_formats_when_encoded_anew(tmp_path: Path) -> None:
    """What the encoder takes is chosen; another range is refused, not converted."""
    plain = write_clip(tmp_path / "0.mp4", 0, 6, Recipe())
    full = write_clip(tmp_path / "1.mp4", 6, 6, Recipe(codec="mjpeg", pixel_format="yuvj420p"))
    film = tmp_path / "film.mov"
    with pytest.raises(StitchInputError, match=r"1\.mp4.*colour range full, not limited"):
        RemuxStitcher(on_mismatch="libx264").stitch([plain, full], film, fps=30)
    other = write_clip(tmp_path / "2.mp4", 6, 6, Recipe(pixel_format="yuv444p"))
    RemuxStitcher(on_mismatch="prores_ks").stitch([plain, other], film, fps=30)
    assert_looks_like(film, [plain, other])
    with av.open(str(film)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv422p10le"


def test_rgb_is_not_converted(tmp_path: Path) -> None:
    """RGB beside YUV is refused, though an encoder could take both."""
    chunks = [
        write_clip(
            tmp_path / f"{number}.mkv", 6 * number, 6, Recipe(".mkv", "ffv1", pixel_format=name)
        )
        for number, name in enumerate(["yuv444p", "bgr0"])
    ]
    with pytest.raises(StitchInputError, match=r"1\.mkv.*bgr0, not yuv444p: RGB"):
        RemuxStitcher(on_mismatch="libx264").stitch(chunks, tmp_path / "film.mkv", fps=30)
    assert not (tmp_path / "film.mkv").exists()


def copies(chunks: list[Path], *options: str, before: tuple[str, ...] = ()) -> list[Path]:
    """Copy chunks with options of ffmpeg; `before` are those for reading them."""
    made = [path.with_name(f"copy-{path.name}") for path in chunks]
    return [
        ffmpeg(path, copy, "-c", "copy", *options, before=before)
        for path, copy in zip(chunks, made, strict=True)
    ]


def test_pixel_aspect_is_kept_when_encoded_anew(mixed: list[Path], tmp_path: Path) -> None:
    """A film of oblong pixels is as wide as its chunks."""
    film = tmp_path / "film.mp4"
    wide = copies(mixed, "-aspect", "2")
    RemuxStitcher(on_mismatch="libx264").stitch(wide, film, fps=30)
    for path in (wide[0], film):
        with av.open(str(path)) as container:
            assert container.streams.video[0].sample_aspect_ratio == Fraction(6, 5)


def test_film_that_would_lie_on_its_side_is_not_published(
    mixed: list[Path], tmp_path: Path
) -> None:
    """Chunks that players turn are not encoded anew without the turn."""
    film = tmp_path / "film.mp4"
    turned = copies(mixed, before=("-display_rotation", "90"))
    with pytest.raises(AssemblyError, match="loses the chunks' rotation, 270 degrees"):
        RemuxStitcher(on_mismatch="libx264").stitch(turned, film, fps=30)
    assert not film.exists()


def test_headers_that_no_copy_can_carry(tmp_path: Path) -> None:
    """Ffmpeg's concat demuxer joins differing headers of H.264 alone: others are refused, too."""
    codec = "libx265"
    chunks = [
        write_clip(tmp_path / "0.mkv", 0, 6, Recipe(ending=".mkv", codec=codec)),
        write_clip(tmp_path / "1.mkv", 6, 6, Recipe(ending=".mkv", codec=codec, b_frames=0)),
    ]
    film = tmp_path / "film.mkv"
    with pytest.raises(StitchInputError, match=r"1\.mkv.*codec header|1\.mkv.*profile"):
        RemuxStitcher(on_mismatch="ffmpeg").stitch(chunks, film, fps=30)
    RemuxStitcher(on_mismatch="libx264").stitch(chunks, film, fps=30)
    assert_looks_like(film, chunks)
    with pytest.raises(StitchInputError, match="'aac' is no video encoder"):
        RemuxStitcher(on_mismatch="aac").check_output(film)


def test_size_always_counts(mixed: list[Path], tmp_path: Path) -> None:
    """Nothing is scaled unasked, whatever is done about other differences."""
    write_clip(mixed[1], 6, 6, Recipe(width=192))
    for choice in ("ffmpeg", "libx264"):
        with pytest.raises(StitchInputError, match=r"1\.mp4.*frame size 192x96, not 160x96"):
            RemuxStitcher(on_mismatch=choice).stitch(mixed, tmp_path / "film.mp4", fps=30)


def test_chunks_that_fit_are_copied(tmp_path: Path) -> None:
    """Where nothing differs, packets are copied, whatever is chosen for the other case."""
    chunks = [write_clip(tmp_path / f"{n}.mp4", 6 * n, 6, Recipe()) for n in range(2)]
    films = [tmp_path / "refuse.mp4", tmp_path / "libx264.mp4"]
    for film in films:
        RemuxStitcher(on_mismatch=film.stem).stitch(chunks, film, fps=30)
    assert films[0].read_bytes() == films[1].read_bytes()


def grow(stitcher: RemuxStitcher, chunks: list[Path], film: Path) -> None:
    """Make a film chunk by chunk."""
    with stitcher.grow(chunks, film, fps=30, frame_counts=[6] * len(chunks)) as growing:
        for _ in chunks:
            growing.append()


def test_growing_film_falls_back(mixed: list[Path], tmp_path: Path) -> None:
    """A film that grows chunk by chunk cannot take a differing one: the caller stitches then."""
    film = tmp_path / "film.mp4"
    stitcher = RemuxStitcher(on_mismatch="ffmpeg")
    with pytest.raises(AssemblyError, match="all chunks at once"):
        grow(stitcher, mixed, film)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]


def test_container_that_cannot_hold_the_codec(tmp_path: Path) -> None:
    """A codec that the film's container refuses is named, with the fix."""
    chunks = [write_clip(tmp_path / f"{n}.mkv", 6 * n, 6, Recipe(ending=".mkv")) for n in range(2)]
    with pytest.raises(AssemblyError, match=r"\.webm film cannot hold h264.*\.mkv"):
        RemuxStitcher().stitch(chunks, tmp_path / "film.webm", fps=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mkv", "1.mkv"]
