"""Runs that follow others, or run beside them: what is there is used, and nothing is done twice."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from coordinator import start_coordinator
from farm_client import FarmClient
from jobs import save_job, with_commands
from media_samples import frame_hashes
from pool_samples import batches, job_of, process_of, rendered, two_runs
from prefect_aws.s3 import S3Bucket
from processes_here import gone, wait_for
from run_checks import STITCH, assert_failed, assert_film, is_final

from prefect_renderfarm.blocks import LocalAdapter, RemuxStitcher
from prefect_renderfarm.flows import RenderReport, render_job

CHUNKS = 50


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_resume_after_kill_at_ninety_percent(tmp_path: Path) -> None:
    """What was done when the coordinator was killed stays done; the next run does the rest."""
    job = job_of(CHUNKS, tmp_path, "--sleep 1", id="resumed")
    folder = tmp_path / "job"
    started = time.monotonic()
    coordinator = start_coordinator(job, folder)

    def published() -> int:
        # A temporary file of a manifest, which a kill may leave, begins with a dot.
        return len(list(folder.glob(".renderfarm/*/chunks/[0-9]*.json")))

    wait_for(lambda: published() >= 45, 240)
    coordinator.kill()
    coordinator.wait()
    first = time.monotonic() - started
    done = published()
    before = rendered(tmp_path)
    assert before.total() < CHUNKS
    started = time.monotonic()
    report = render_job(
        job, adapter=LocalAdapter(), job_dir=folder, concurrency=2,
        stitcher=RemuxStitcher(), output_file=tmp_path / "film.mp4",
    )  # fmt: skip
    second = time.monotonic() - started
    assert (rendered(tmp_path) - before).total() == CHUNKS - done
    assert len(report.reused) == done
    assert len(frame_hashes(tmp_path / "film.mp4")) == 4 * CHUNKS
    print(
        f"killed after {first:.1f} s with {done} chunks done; the rest took {second:.1f} s, "
        f"{second / (first * CHUNKS / done):.0%} of what a whole run takes"
    )


@pytest.mark.long
@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("stored", [False, True], ids=["folder", "storage"])
def test_two_runs_at_once_share_the_work(
    tmp_path: Path, request: pytest.FixtureRequest, stored: bool
) -> None:
    """Each chunk is rendered by one of two runs, and both have the whole film."""
    storage: S3Bucket | None = request.getfixturevalue("bucket") if stored else None
    job = job_of(6, tmp_path, "--sleep 1", id="shared")

    def render(name: str) -> RenderReport:
        # Through a storage, they work in folders of their own.
        folder = tmp_path / ("job" if storage is None else name)
        return render_job(
            job, adapter=LocalAdapter(), job_dir=folder, storage=storage, concurrency=1,
            stitcher=RemuxStitcher(), output_file=tmp_path / f"{name}.mp4",
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(render, ["one", "two"]))
    assert rendered(tmp_path) == dict.fromkeys(range(6), 1)
    films = [frame_hashes(tmp_path / f"{name}.mp4") for name in ("one", "two")]
    assert films[0] == films[1]
    assert len(films[0]) == 24
    shas = [[chunk.sha256 for chunk in report.chunks] for report in reports]
    assert shas[0] == shas[1]


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_force_takes_nothing_from_a_run(tmp_path: Path) -> None:
    """Whoever wants all chunks anew takes none away from another run, and waits for it."""
    job = job_of(4, tmp_path, id="forced")
    job = with_commands(job, {3: f"{job.chunks[3].command} --wait-for '{tmp_path / 'go'}'"})

    def render(**options: bool) -> RenderReport:
        return render_job(
            job, adapter=LocalAdapter(), job_dir=tmp_path / "job", concurrency=1,
            stitcher=RemuxStitcher(), output_file=tmp_path / f"film-{len(options)}.mp4", **options,
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(render)
        wait_for(lambda: 3 in rendered(tmp_path), 60)
        second = pool.submit(render, force=True)
        time.sleep(4)
        (tmp_path / "go").touch()
        reports = [first.result(120), second.result(120)]
    assert rendered(tmp_path) == dict.fromkeys(range(4), 2)
    assert [report.reused for report in reports] == [(), ()]
    assert frame_hashes(tmp_path / "film-0.mp4") == frame_hashes(tmp_path / "film-1.mp4")


@pytest.mark.long
def test_a_crash_hands_over_what_is_left(api: FarmClient, tmp_path: Path) -> None:
    """A run that waits for another takes over its chunks when that one is killed, and ends it."""
    job = job_of(4, tmp_path, f"--wait-for '{tmp_path / 'go'}'", id="handed-over")
    folder = tmp_path / "job"
    coordinator = start_coordinator(job, folder)
    wait_for(lambda: rendered(tmp_path).total() == 2, 60)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(
            render_job, job, adapter=LocalAdapter(), job_dir=folder, merge=False, concurrency=2
        )
        time.sleep(3)
        assert rendered(tmp_path).total() == 2
        coordinator.kill()
        coordinator.wait()
        (tmp_path / "go").touch()
        report = second.result(120)
    assert [chunk.id for chunk in report.chunks] == [0, 1, 2, 3]
    assert rendered(tmp_path) == {0: 2, 1: 2, 2: 1, 3: 1}
    body = {"flow_runs": {"tags": {"all_": ["job:handed-over"]}}}
    states = [run["state"] for run in api._post("/flow_runs/filter", body)]
    assert sorted(state["name"] for state in states) == ["Completed", "Crashed"]
    assert any("is gone" in (state["message"] or "") for state in states)


@pytest.mark.long
def test_flow_run_retry_renders_what_failed(api: FarmClient, tmp_path: Path) -> None:
    """`prefect flow-run retry` of a failed job renders the chunk that failed, and no other."""
    job = job_of(3, tmp_path, id="retried")
    job = with_commands(job, {2: f"{job.chunks[2].command} --fail-once '{tmp_path / 'flag'}'"})
    run = api.submit("render-job/cloud", job=save_job(tmp_path, job), concurrency=1, **STITCH)
    assert_failed(run, "chunk 2", "asked to fail")
    done = api.command("flow-run", "retry", str(run.id))
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(lambda: not is_final(api, run), 30)
    wait_for(lambda: is_final(api, run), 90)
    assert api.flow_run(run.id).state_name == "Completed"
    assert rendered(tmp_path) == {0: 1, 1: 1, 2: 2}
    assert_film(tmp_path, job)


@pytest.mark.long
def test_cancel_on_two_pools(api: FarmClient, tmp_path: Path) -> None:
    """A cancelled job of 20 chunks is over within 10 s: its runs on both pools, its children."""
    two_runs(chunks_per_run=10).save("halves", overwrite=True, _sync=True)
    job = job_of(20, tmp_path, "--sleep 0.2", id="called-off")
    job = with_commands(
        job,
        {
            number: f"{job.chunks[number].command} --wait-for '{tmp_path / 'never'}'"
            for number in (8, 18)
        },
    )
    # The merge run starts at once, and waits for chunks.
    run = api.submit(
        "render-job/cloud", job=save_job(tmp_path, job), adapter="work-pool-adapter/halves",
        merge_lead=600, watch=False, **STITCH,
    )  # fmt: skip
    wait_for(lambda: {8, 18} <= set(rendered(tmp_path)), 90)
    wait_for(lambda: any(".part" in path.name for path in tmp_path.iterdir()), 60)
    runs = [run, *api.children(run)]
    assert len(runs) == 4
    assert {child.work_pool_name for child in runs} == {"cloud", "local"}
    processes = [process_of(api.flow_run(child.id)) for child in runs]
    family = {child for process in processes for child in process.children(recursive=True)}
    assert len(family) >= 2
    assert len(batches(api, "called-off")) == 2
    started = time.monotonic()
    assert api.command("flow-run", "cancel", str(run.id)).returncode == 0
    cancelled = time.monotonic()
    wait_for(lambda: all(gone(child.pid) for child in {*family, *processes}), 30)
    wait_for(lambda: all(is_final(api, child) for child in runs), 30)
    print(
        f"over {time.monotonic() - cancelled:.1f} s after a command of {cancelled - started:.1f} s"
    )
    assert {api.flow_run(child.id).state_name for child in runs} == {"Cancelled"}
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []
