"""The allow-list of programs: which words pass, and where they are looked up."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from job_samples import refusal

from prefect_renderfarm.blocks import CommandNotRunnable, LocalAdapter, WorkerJob
from prefect_renderfarm.blocks.processes.programs import (
    find_program,
    listed_programs,
    require_allowed,
)
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
    """Neither an empty or relative entry of PATH nor a job's own PATH leads to its program.

    The worker's own folder is the job folder: a relative entry is looked up there.
    """
    outer = os.environ["PATH"]
    monkeypatch.chdir(job_dir)
    for path in ("", ".", "bin", f":{outer}", f".:{outer}", f"bin:{outer}:", f"./bin:{outer}"):
        monkeypatch.setenv("PATH", path)
        found = shutil.which("printf", path=outer) if outer in path else None
        assert find_program("printf", path) == found
        assert run(job_dir, "printf good", ["printf"]) == ("good" if found else "")
        monkeypatch.setenv("PATH", outer)
        assert run(job_dir, "printf good", ["printf"], PATH=f"{job_dir}:{path}") == "good"


def test_path_of_the_block_counts(job_dir: Path) -> None:
    """A PATH that the block sets is searched, unlike that of a job."""
    adapter = LocalAdapter(programs=["printf"], environment={"PATH": str(job_dir)})
    assert adapter.execute(WorkerJob(command="printf x", cwd=job_dir)).stdout == "evil"


def test_ffmpeg_is_found_as_without_a_list(
    job_dir: Path, without_ffmpeg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ffmpeg` is the block's, else the one on PATH, else the carried one; never a job's."""
    mine = job_dir.parent / "mine" / "ffmpeg"
    mine.parent.mkdir()
    mine.write_text("#!/bin/sh\necho mine\n")
    mine.chmod(0o755)
    monkeypatch.chdir(job_dir)
    for path in (without_ffmpeg, f"{without_ffmpeg}:", f".:{without_ffmpeg}"):
        monkeypatch.setenv("PATH", path)
        assert run(job_dir, "ffmpeg -version", ["ffmpeg"]).startswith("ffmpeg version")
    adapter = LocalAdapter(programs=["ffmpeg"], ffmpeg=mine)
    assert adapter.execute(WorkerJob(command="ffmpeg -version", cwd=job_dir)).stdout == "mine"
    monkeypatch.setenv("PATH", f"{mine.parent}:{without_ffmpeg}")
    assert run(job_dir, "ffmpeg -version", ["ffmpeg"]) == "mine"


def test_listed_program_that_is_missing(job_dir: Path) -> None:
    """A program that is allowed, but not there, ends with 127 as in a shell."""
    adapter = LocalAdapter(programs=["no-such-program", "/no/such"])
    for command, reason in (
        ("no-such-program", "program 'no-such-program' is not on the PATH"),
        ("/no/such", "/no/such: No such file or directory"),
    ):
        result = adapter.execute(WorkerJob(command=command, cwd=job_dir))
        assert (result.exit_code, result.stderr) == (127, reason)
    (job_dir / "data").write_text("x")
    adapter = LocalAdapter(programs=[str(job_dir / "data")])
    assert adapter.execute(WorkerJob(command=f"{job_dir}/data", cwd=job_dir)).exit_code == 126


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
    assert LocalAdapter(programs=["..x", "/opt/..x"]).programs == ["..x", "/opt/..x"]


@pytest.mark.parametrize("count", [8, 9])
def test_refusal_shows_the_list(count: int) -> None:
    """The refusal names the first eight programs that are allowed, and how many more there are."""
    names = [f"p{number}" for number in range(count)]
    with pytest.raises(CommandNotRunnable) as caught:
        require_allowed("p", names)
    assert "'p0', 'p1'" in str(caught.value)
    assert ("'p7')" in str(caught.value)) == (count == 8)
    assert ("'p7' and 1 more)" in str(caught.value)) == (count == 9)
    require_allowed(names[-1], names)
    require_allowed("p", [])
