"""Who assembles a job: the five rules, with real renders and a real server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from farm_client import FarmClient
from jobs import save_job, small_job
from media_samples import frame_hashes

from prefect_renderfarm.blocks import (
    AssemblyError,
    JobError,
    LocalAdapter,
    RemuxStitcher,
    RenderFarmError,
    SetupError,
    StitchReport,
    VideoStitcher,
    WorkerAdapter,
    WorkerJob,
    WorkerResult,
)
from prefect_renderfarm.flows import merge_job, render_job
from prefect_renderfarm.flows.results import Assembly

MERGE = f"'{sys.executable}' -c \"import pathlib; pathlib.Path('merged.txt').write_text('merged')\""


class NotingAdapter(WorkerAdapter):
    """An adapter of a third party: it notes what it is given and runs it here."""

    ran: ClassVar[list[tuple[str, str]]] = []
    label: str = "main"

    def execute(self, job: WorkerJob) -> WorkerResult:
        self.ran.append((self.label, job.name))
        return LocalAdapter().execute(job)


class NotingStitcher(VideoStitcher):
    """A stitcher of a third party: it notes what it is given, and stitches."""

    calls: ClassVar[list[tuple[list[Path], Path, dict[str, Any]]]] = []
    works: bool = True

    def stitch(self, inputs: Sequence[Path], output: Path, **plan: Any) -> StitchReport:
        self.calls.append((list(inputs), output, plan))
        if not self.works:
            raise AssemblyError("the glue is out")
        return RemuxStitcher().stitch(inputs, output, **plan)


@pytest.fixture(autouse=True)
def fresh(api: FarmClient) -> FarmClient:
    """Forget what was noted; let the flows find the server."""
    NotingAdapter.ran.clear()
    NotingStitcher.calls.clear()
    return api


def chunks_rendered(folder: Path) -> list[Path]:
    """Return the chunk files of `small_job`."""
    return sorted((folder / "chunks").glob("*.mp4"))


def test_stitcher_gets_absolute_paths_in_order(tmp_path: Path) -> None:
    """With a stitcher and an output file, the stitcher gets all chunks, absolute, by id."""
    job = small_job()
    report = render_job(
        job.model_copy(update={"merge_command": MERGE}),
        adapter=NotingAdapter(),
        stitcher=NotingStitcher(),
        output_file="film.mp4",  # type: ignore[arg-type]
        job_dir=tmp_path,
    )
    [(inputs, output, plan)] = NotingStitcher.calls
    assert inputs == [tmp_path / chunk.output_file for chunk in job.chunks]
    assert all(path.is_absolute() for path in inputs)
    assert output == tmp_path / "film.mp4"
    assert plan == {"fps": "24", "frame_counts": [6, 6, 6]}
    assert report.assembly is Assembly.STITCHED
    assert report.film == output
    assert report.stitch is not None
    assert report.stitch.frames == 18
    assert not (tmp_path / "merged.txt").exists()
    hashes = [digest for chunk in inputs for digest in frame_hashes(chunk)]
    assert frame_hashes(output) == hashes


def test_merge_adapter_runs_the_merge_command(tmp_path: Path) -> None:
    """The merge command runs on the merge adapter, the chunks on the main one."""
    report = render_job(
        small_job(merge_command=MERGE),
        adapter=NotingAdapter(),
        merge_adapter=NotingAdapter(label="merge"),
        job_dir=tmp_path,
    )
    assert report.assembly is Assembly.MERGED
    assert NotingAdapter.ran[-1] == ("merge", "merge")
    assert sorted(NotingAdapter.ran[:-1]) == [("main", f"chunk {n}") for n in range(3)]
    assert (tmp_path / "merged.txt").read_text() == "merged"


def test_main_adapter_runs_the_merge_command(tmp_path: Path) -> None:
    """With nothing new given, the merge command runs on the main adapter."""
    report = render_job(small_job(merge_command=MERGE), adapter=NotingAdapter(), job_dir=tmp_path)
    assert report.assembly is Assembly.MERGED
    assert NotingAdapter.ran[-1] == ("main", "merge")
    assert (tmp_path / "merged.txt").exists()


def test_stitcher_without_output_file_warns_and_merges(tmp_path: Path) -> None:
    """A stitcher without an output file is a warning if there is a merge command."""
    report = render_job(
        small_job(merge_command=MERGE),
        adapter=NotingAdapter(),
        stitcher=NotingStitcher(),
        job_dir=tmp_path,
    )
    assert report.assembly is Assembly.MERGED
    assert not NotingStitcher.calls


def test_stitcher_without_output_file_or_merge_command(tmp_path: Path) -> None:
    """Without a merge command it is an error, before any chunk runs."""
    with pytest.raises(JobError, match="output_file"):
        render_job(
            small_job(), adapter=NotingAdapter(), stitcher=NotingStitcher(), job_dir=tmp_path
        )
    assert not NotingAdapter.ran


def test_output_file_that_nobody_would_write(tmp_path: Path) -> None:
    """An output file with neither stitcher nor merge command is an error, before any chunk runs."""
    with pytest.raises(JobError, match=r"output_file .*film.mp4.*: choose a stitcher"):
        render_job(
            small_job(), adapter=NotingAdapter(), output_file=Path("film.mp4"), job_dir=tmp_path
        )
    assert not NotingAdapter.ran


def test_merge_alone_keeps_the_rules(tmp_path: Path) -> None:
    """`merge-job` by itself refuses a stitcher without an output file, too."""
    job_file = save_job(tmp_path, small_job())
    with pytest.raises(JobError, match="output_file"):
        merge_job(str(job_file), adapter=LocalAdapter(), stitcher=RemuxStitcher())


@pytest.mark.parametrize("merge_command", [MERGE, None])
def test_merge_off(tmp_path: Path, merge_command: str | None) -> None:
    """With `merge=False` nobody assembles, whatever else is given."""
    report = render_job(
        small_job(merge_command=merge_command),
        adapter=NotingAdapter(),
        stitcher=NotingStitcher(),
        job_dir=tmp_path,
        merge=False,
    )
    assert report.assembly is Assembly.OFF
    assert len(chunks_rendered(tmp_path)) == 3
    assert not NotingStitcher.calls
    assert "merge" not in [name for _, name in NotingAdapter.ran]


def test_skip(tmp_path: Path) -> None:
    """With neither stitcher nor merge command, assembly is skipped, and the report says so."""
    report = render_job(small_job(), adapter=NotingAdapter(), job_dir=tmp_path)
    assert report.assembly is Assembly.SKIPPED
    assert report.film is None
    assert [chunk.frame_count for chunk in report.chunks] == [6, 6, 6]


def test_failure_of_the_stitcher_reaches_the_caller(tmp_path: Path) -> None:
    """The stitcher's error is the job's; the chunks stay, and assembly alone runs again."""
    job_file = save_job(tmp_path, small_job())
    broken = NotingStitcher(works=False)
    with pytest.raises(AssemblyError, match="the glue is out"):
        render_job(
            str(job_file), adapter=LocalAdapter(), stitcher=broken, output_file=Path("film.mp4")
        )
    assert len(chunks_rendered(tmp_path)) == 3
    again = merge_job(
        str(job_file),
        adapter=LocalAdapter(),
        stitcher=RemuxStitcher(),
        output_file=Path("film.mp4"),
    )
    assert again.film == tmp_path / "film.mp4"


def test_failure_of_the_merge_command_reaches_the_caller(tmp_path: Path) -> None:
    """A merge command that fails fails the job with its last words."""
    bad = f"'{sys.executable}' -c \"raise SystemExit('no codec')\""
    with pytest.raises(AssemblyError, match=r"merge.*exit code 1.*no codec"):
        render_job(small_job(merge_command=bad), adapter=LocalAdapter(), job_dir=tmp_path)


def test_altered_chunk_is_not_assembled(tmp_path: Path) -> None:
    """A chunk that changed after it was rendered is refused by `merge-job`, by its number."""
    job_file = save_job(tmp_path, small_job())
    render_job(str(job_file), adapter=LocalAdapter(), merge=False)
    chunk = chunks_rendered(tmp_path)[1]
    data = bytearray(chunk.read_bytes())
    data[-50] ^= 1
    chunk.write_bytes(data)
    options: dict[str, Any] = {
        "adapter": LocalAdapter(),
        "stitcher": RemuxStitcher(),
        "output_file": Path("film.mp4"),
    }
    with pytest.raises(AssemblyError, match=r"chunk 1.*has changed"):
        merge_job(str(job_file), **options)
    chunk.unlink()
    with pytest.raises(AssemblyError, match=r"chunk 1.*is missing"):
        merge_job(str(job_file), **options)
    assert not (tmp_path / "film.mp4").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"adapter": "local-adapter/nobody"},
            ["adapter 'local-adapter/nobody'", "prefect block ls"],
        ),
        ({"adapter": "nonsense"}, ["adapter 'nonsense'", "local-adapter/default"]),
        ({"adapter": "remux-stitcher/default"}, ["adapter", "no WorkerAdapter"]),
        ({"adapter": RemuxStitcher()}, ["adapter", "RemuxStitcher", "no WorkerAdapter"]),
        ({"merge_adapter": "local-adapter/nobody"}, ["merge_adapter"]),
        ({"stitcher": "local-adapter/default", "output_file": "f.mp4"}, ["stitcher"]),
        ({"merge_deployment": "merge-job/nowhere"}, ["merge-job/nowhere", "prefect deployment ls"]),
        ({"merge_deployment": "nonsense"}, ["'nonsense'", "merge-job/local"]),
        ({"merge_deployment": "render-job/cloud"}, ["'render-job/cloud'", "merge-job/local"]),
        ({"storage": "s3-bucket/nowhere"}, ["storage 's3-bucket/nowhere'"]),
        ({"storage": LocalAdapter()}, ["storage", "no ObjectStorageBlock"]),
        (
            {"merge_deployment": "merge-job/local", "adapter": LocalAdapter()},
            ["adapter", "not saved"],
        ),
        ({"stitcher": RemuxStitcher(), "output_file": "film.gif"}, ["film.gif", "ending"]),
        (
            {"stitcher": RemuxStitcher(), "output_file": "chunks/00001.mp4"},
            ["file of chunk 1"],
        ),
    ],
)
def test_bad_choices_are_refused_before_any_chunk(
    tmp_path: Path, options: dict[str, Any], words: list[str]
) -> None:
    """What is wrong with blocks, output and deployment is said before a chunk runs."""
    with pytest.raises(RenderFarmError) as caught:
        render_job(small_job(merge_command=MERGE), job_dir=tmp_path, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not chunks_rendered(tmp_path)
    assert isinstance(caught.value, SetupError | JobError | AssemblyError)


def test_third_party_adapter_by_name(tmp_path: Path) -> None:
    """An adapter class of somebody else's works by its saved name, too."""
    NotingAdapter(label="saved").save("mine", overwrite=True)
    render_job(small_job(), adapter="notingadapter/mine", job_dir=tmp_path)
    assert ("saved", "chunk 0") in NotingAdapter.ran
