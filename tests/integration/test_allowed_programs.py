"""The allow-list of programs in jobs and on workers: a job is refused before its first chunk."""

from __future__ import annotations

from pathlib import Path

import pytest
from http_samples import TOKEN, working
from job_samples import refusal
from jobs import clip_command, small_job, with_commands
from lambda_server import LambdaServer
from storage_samples import S3Server

from prefect_renderfarm.blocks import CommandNotRunnable, JobError, LocalAdapter, WorkerJob
from prefect_renderfarm.blocks.processes.programs import split_command
from prefect_renderfarm.flows import merge_job, render_chunks, render_job


@pytest.mark.usefixtures("api")
def test_job_is_refused_before_its_first_chunk(tmp_path: Path) -> None:
    """With one forbidden command among three, no chunk is rendered and nothing is written."""
    job = with_commands(small_job(), {1: f"sh -c 'touch {tmp_path / 'made'}'"})
    python = job.chunks[0].command.split("'")[1]
    adapter = LocalAdapter(programs=[python])
    for start in (render_job, render_chunks):
        message = refusal(lambda: start(job, adapter=adapter, job_dir=tmp_path / "job"))  # type: ignore[operator]  # noqa: B023
        assert message.startswith("chunk 1: program 'sh' is none of those")
    assert list(tmp_path.iterdir()) == []
    report = render_job(small_job(), adapter=adapter, job_dir=tmp_path / "job", merge=False)
    assert len(report.chunks) == 3  # type: ignore[union-attr]


@pytest.mark.long
@pytest.mark.usefixtures("api")
def test_merge_command_is_refused_before_the_first_chunk(tmp_path: Path) -> None:
    """A merge command is held to the list when the job begins, and when it is merged alone."""
    job = small_job(f"--note '{tmp_path / 'note'}'", merge_command="sh -c 'exit 0'")
    adapter = LocalAdapter(programs=[split_command(job.chunks[0].command)[0]])
    with pytest.raises(JobError, match="the merge command: program 'sh' is none"):
        render_job(job, adapter=adapter, job_dir=tmp_path)
    assert not (tmp_path / "note").exists()
    render_job(job, adapter=adapter, job_dir=tmp_path, merge=False)
    with pytest.raises(JobError, match="the merge command: program 'sh' is none"):
        merge_job(job, adapter=adapter, job_dir=tmp_path)


@pytest.mark.long
def test_worker_holds_to_its_own_list(s3: S3Server, tmp_path: Path) -> None:
    """An HTTP worker refuses what its variable does not list, whoever asks with the token."""
    assert TOKEN
    with working(s3.environment() | {"RENDERFARM_PROGRAMS": "printf,/usr/bin/env"}) as worker:
        adapter = worker.wait_until_ready().adapter()
        assert adapter.execute(WorkerJob(command="printf good")).stdout == "good"
        assert adapter.execute(WorkerJob(command="/usr/bin/env printf ok")).stdout == "ok"
        for command in (f"touch {tmp_path / 'made'}", "./printf x", clip_command()):
            with pytest.raises(CommandNotRunnable, match="none of those that are allowed here"):
                adapter.execute(WorkerJob(command=command, environment={"PATH": str(tmp_path)}))
    assert not (tmp_path / "made").exists()


@pytest.mark.long
def test_function_holds_to_its_own_list(functions: LambdaServer, s3: S3Server) -> None:
    """The Lambda function does so, too."""
    functions.proxy.fail()
    role = s3.environment() | {"RENDERFARM_PROGRAMS": "printf"}
    adapter = functions.adapter(functions.function("renderfarm-list", role=role))
    assert adapter.execute(WorkerJob(command="printf good")).stdout == "good"
    with pytest.raises(CommandNotRunnable, match="program 'id' is none of those"):
        adapter.execute(WorkerJob(command="id"))
