"""The allow-list of programs: which words pass, where they are looked for, and when it is known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from http_samples import TOKEN, working
from job_samples import refusal
from jobs import clip_command, small_job, with_commands
from lambda_server import LambdaServer
from storage_samples import S3Server

from prefect_renderfarm.blocks import CommandNotRunnable, JobError, LocalAdapter, WorkerJob
from prefect_renderfarm.blocks.processes.command_line import listed_programs, split_command
from prefect_renderfarm.flows import merge_job, render_chunks, render_job
from prefect_renderfarm.flows.rendering.preflight import check_commands

SCRIPT = "#!/bin/sh\necho evil\n"


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    """Make a job folder that holds programs with the names of allowed ones."""
    folder = tmp_path / "job"
    (folder / "bin").mkdir(parents=True)
    for name in ("printf", "bin/printf", "ffmpeg"):
        (folder / name).write_text(SCRIPT)
        (folder / name).chmod(0o755)
    return folder


def run(folder: Path, command: str, programs: list[str], **environment: str) -> str:
    """Run a command with a list, and return what it wrote."""
    adapter = LocalAdapter(programs=programs)
    job = WorkerJob(command=command, cwd=folder, name="chunk 3", environment=environment)
    return adapter.execute(job).stdout


@pytest.mark.parametrize(
    ("command", "programs"),
    [
        ("./printf x", ["printf"]),
        ("bin/printf x", ["printf"]),
        ("/usr/bin/printf x", ["printf"]),
        ("../job/printf x", ["printf"]),
        ("printf x", ["/usr/bin/printf"]),
        ("/usr/bin/../bin/printf x", ["/usr/bin/printf"]),
        ("//usr/bin/printf x", ["/usr/bin/printf"]),
        ("/usr/bin/./printf x", ["/usr/bin/printf"]),
        ("PRINTF x", ["printf"]),
        ("printf' ' x", ["printf"]),
        ("'printf x'", ["printf"]),
        ("env printf x", ["printf"]),
        ("PATH=. printf x", ["printf"]),
        ("sh -c 'printf x'", ["printf", "ffmpeg"]),
    ],
)
def test_only_listed_words_pass(job_dir: Path, command: str, programs: list[str]) -> None:
    """A program is allowed as it is written, and no other way of writing it is that program."""
    words = r"chunk 3: program .* is none of those that are allowed here .*RENDERFARM_PROGRAMS"
    with pytest.raises(CommandNotRunnable, match=words):
        run(job_dir, command, programs)
    message = refusal(lambda: check_commands(LocalAdapter(programs=programs), [("merge", command)]))
    assert message.startswith("merge: program ")


@pytest.mark.parametrize(
    ("command", "programs"),
    [
        ("printf good", ["printf"]),
        ("'pri'\"ntf\" good", ["ffmpeg", "printf"]),
        ("/usr/bin/printf good", ["/usr/bin/printf"]),
        ("./printf good", []),
    ],
)
def test_listed_words_run(job_dir: Path, command: str, programs: list[str]) -> None:
    """Quoting makes no difference, a path is that path, and without a list anything runs."""
    wanted = "evil" if command.startswith("./") else "good"
    assert run(job_dir, command, programs) == wanted
    check_commands(LocalAdapter(programs=programs), [("chunk 1", command)])


def test_name_is_never_found_in_the_job_folder(
    job_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an empty or relative entry of PATH nor a job's own PATH leads to its program."""
    outer = os.environ["PATH"]
    for path in ("", ".", "bin", f":{outer}", f".:{outer}", f"bin:{outer}:", f"./bin:{outer}"):
        monkeypatch.setenv("PATH", path)
        assert run(job_dir, "printf good", ["printf"]) in ("good", "")
        monkeypatch.setenv("PATH", outer)
        assert run(job_dir, "printf good", ["printf"], PATH=f"{job_dir}:{path}") == "good"


def test_ffmpeg_is_the_blocks_one(job_dir: Path, without_ffmpeg: str) -> None:
    """`ffmpeg` is found as without a list: on PATH, or the one that comes along."""
    assert run(job_dir, "ffmpeg -version", ["ffmpeg"]).startswith("ffmpeg version")


def test_listed_program_that_is_missing(job_dir: Path) -> None:
    """A program that is allowed, but not there, ends with 127 as in a shell."""
    adapter = LocalAdapter(programs=["no-such-program", "/no/such"])
    for command in ("no-such-program", "/no/such"):
        result = adapter.execute(WorkerJob(command=command, cwd=job_dir))
        assert (result.exit_code, result.stderr) == (127, f"{command}: No such file or directory")


@pytest.mark.parametrize(
    "entry", ["", " ", ".", "..", "./ffmpeg", "bin/ffmpeg", "/usr//bin/x", "/a/../b", "/a/", "a\nb"]
)
def test_entries_that_would_mislead_are_refused(entry: str) -> None:
    """An entry is a name or an absolute path in its plain form, in the block as in the variable."""
    with pytest.raises(ValueError, match="allowed program"):
        LocalAdapter(programs=[entry])
    if entry.strip():
        with pytest.raises(ValueError, match="allowed program"):
            listed_programs(f"ffmpeg,{entry}")
    with pytest.raises(ValueError, match="allowed program"):
        listed_programs("ffmpeg,,blender")
    assert listed_programs(" ") == []
    assert listed_programs("ffmpeg, /opt/blender") == ["ffmpeg", "/opt/blender"]


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


def test_function_holds_to_its_own_list(functions: LambdaServer, s3: S3Server) -> None:
    """The Lambda function does so, too."""
    functions.proxy.fail()
    role = s3.environment() | {"RENDERFARM_PROGRAMS": "printf"}
    adapter = functions.adapter(functions.function("renderfarm-list", role=role))
    assert adapter.execute(WorkerJob(command="printf good")).stdout == "good"
    with pytest.raises(CommandNotRunnable, match="program 'id' is none of those"):
        adapter.execute(WorkerJob(command="id"))
