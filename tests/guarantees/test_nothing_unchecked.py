"""Every fault that a plain concat swallows is refused before a byte of film is written.

The names of files are here, too: none is misread, by any part of any stitcher.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from farm_client import FarmClient
from fault_table import TABLE, Fault
from faulty_media import COUNT, Shop, flip_in_frames
from jobs import save_job, small_job
from media_samples import frame_hashes

from prefect_renderfarm.blocks import (
    AssemblyError,
    FfmpegStitcher,
    LocalAdapter,
    RemuxStitcher,
    StitchInputError,
    VideoStitcher,
)
from prefect_renderfarm.flows import merge_job, render_job

STITCHERS: dict[str, Callable[..., VideoStitcher]] = {
    "remux": RemuxStitcher,
    "ffmpeg": FfmpegStitcher,
}
LEVELS = ["header", "packets", "decode"]
HOSTILE = [
    "it's", 'a"b', "a'\\''b", "new\nline", "carriage\rreturn", "tab\tstop", "k\u00e4se \u2603",
    "ka\u0308se", "-dash", "%d", "%05d", "a:b", "concat:a", "file:a", "pipe:1", "http:a", "#hash",
    " leading", "trailing ", "back\\slash", "[0]*?{a,b}", "$(touch x)", "a;b", "a|b", "n" * 196,
    "\u540d" * 80,
]  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Chunks for all tests here."""
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(params=STITCHERS)
def make(request: pytest.FixtureRequest) -> Callable[..., VideoStitcher]:
    """Each stitcher class in turn."""
    return STITCHERS[request.param]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault.name)
def test_fault(
    make: Callable[..., VideoStitcher], shop: Shop, tmp_path: Path, fault: Fault, level: str
) -> None:
    """A fault is refused before the film is begun, and both sides of it are told."""
    first, second, third = shop.good(fault.kind)
    bad = shop.bad(fault.name, fault.kind, fault.spoil)
    film = tmp_path / "out" / f"film{first.suffix}"

    def stitch() -> None:
        make(verify=level).stitch([first, bad, third], film, fps=30, frame_counts=[COUNT] * 3)

    if LEVELS.index(level) < LEVELS.index(fault.level):
        if fault.below == "checked":
            with pytest.raises(AssemblyError, match=r"other frames|not published"):
                stitch()
            assert list(film.parent.iterdir()) == []
        else:
            stitch()
            wanted = [digest for path in (first, second, third) for digest in frame_hashes(path)]
            assert (frame_hashes(film) == wanted) is (fault.below == "mended")
        return
    with pytest.raises(StitchInputError) as caught:
        stitch()
    for word in (repr(str(bad)), "number 2 of 3", *fault.words):
        assert word in str(caught.value)
    assert not film.parent.exists()


@pytest.mark.parametrize(
    "fault", [fault for fault in TABLE if fault.alone], ids=lambda fault: fault.name
)
def test_fault_of_the_first_chunk(
    make: Callable[..., VideoStitcher], shop: Shop, tmp_path: Path, fault: Fault
) -> None:
    """What is wrong with a chunk by itself is found in the first one, too, and it is named."""
    bad = shop.bad(fault.name, fault.kind, fault.spoil)
    film = tmp_path / "out" / f"film{bad.suffix}"
    with pytest.raises(StitchInputError) as caught:
        make().stitch([bad, *shop.good(fault.kind)[:2]], film, fps=30, frame_counts=[COUNT] * 3)
    for word in (repr(str(bad)), "number 1 of 3", *fault.words):
        assert word in str(caught.value)
    assert not film.parent.exists()


def test_chunk_named_twice(make: Callable[..., VideoStitcher], shop: Shop, tmp_path: Path) -> None:
    """A path that is named twice is refused."""
    first, second, _ = shop.good("mp4")
    film = tmp_path / "out" / "film.mp4"
    with pytest.raises(StitchInputError) as caught:
        make().stitch([first, second, first], film, fps=30, frame_counts=[COUNT] * 3)
    assert f"{str(first)!r} is named 2 times, not once" in str(caught.value)
    assert not film.parent.exists()


@pytest.mark.parametrize("linked", ["neither", "film", "chunk"])
def test_film_may_not_be_a_chunk(
    make: Callable[..., VideoStitcher], shop: Shop, tmp_path: Path, linked: str
) -> None:
    """The film never overwrites a chunk, not even through a link."""
    first, second, _ = shop.good("mp4")
    file = Path(shutil.copy(second, tmp_path / "file.mp4"))
    link = tmp_path / "link.mp4"
    link.symlink_to(file)
    film, chunk = {"neither": (file, file), "film": (link, file), "chunk": (file, link)}[linked]
    with pytest.raises(StitchInputError) as caught:
        make().stitch([first, chunk], film, fps=30, frame_counts=[COUNT] * 2)
    assert f"film {str(film)!r} is also chunk file {str(chunk)!r}" in str(caught.value)
    assert file.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.mp4", "link.mp4"]


@pytest.fixture(scope="module")
def rendered(api: FarmClient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the chunks of a job, and return its folder."""
    folder = tmp_path_factory.mktemp("rendered")
    render_job(str(save_job(folder, small_job())), adapter=LocalAdapter(), merge=False)
    return folder


@pytest.mark.parametrize("fault", ["swapped", "copied", "flipped"])
def test_manifest_catches(
    make: Callable[..., VideoStitcher], rendered: Path, tmp_path: Path, fault: str
) -> None:
    """Chunks that only their manifests tell apart are refused by the flow, by name."""
    folder = tmp_path / "job"
    shutil.copytree(rendered, folder)
    first, second, _ = sorted((folder / "chunks").iterdir())
    number, bad = (0, first) if fault == "swapped" else (1, second)
    if fault == "swapped":
        data = second.read_bytes()
        second.write_bytes(first.read_bytes())
        first.write_bytes(data)
    elif fault == "copied":
        shutil.copy(first, second)
    else:
        second.write_bytes(flip_in_frames(second.read_bytes()))
    with pytest.raises(AssemblyError) as caught:
        merge_job(
            str(folder / "job.json"),
            adapter=LocalAdapter(),
            stitcher=make(),
            output_file=Path("out/film.mp4"),
        )
    words = f"chunk {number}: its file {str(bad)!r} has changed since it was rendered"
    assert words in str(caught.value)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name(
    make: Callable[..., VideoStitcher],
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """A chunk, a film and their folders of any name come through, and nothing else is touched."""
    first, second, _ = shop.good("mp4")
    here, chunk, film = (tmp_path / part for part in ("here", f"in/{name}/{name}.mp4", "out"))
    film = film / name / f"{name}.mp4"
    here.mkdir()
    chunk.parent.mkdir(parents=True)
    shutil.copy(first, chunk)
    monkeypatch.chdir(here)
    assert make().stitch([chunk, second], film, fps=30, frame_counts=[COUNT] * 2).output == film
    assert frame_hashes(film) == frame_hashes(first) + frame_hashes(second)
    assert list(film.parent.iterdir()) == [film]
    assert list(chunk.parent.iterdir()) == [chunk]
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["none", "end.mp4 ", "end.mp4\n", "end.m'p4", "end.%d", "end.a b"])
def test_hostile_ending(
    make: Callable[..., VideoStitcher], shop: Shop, tmp_path: Path, name: str
) -> None:
    """A chunk's name may end in anything, or have no ending."""
    first, second, _ = shop.good("mp4")
    chunk = Path(shutil.copy(first, tmp_path / name))
    film = tmp_path / "out" / "film.mp4"
    make().stitch([chunk, second], film, fps=30, frame_counts=[COUNT] * 2)
    assert frame_hashes(film) == frame_hashes(first) + frame_hashes(second)
    assert list(film.parent.iterdir()) == [film]
