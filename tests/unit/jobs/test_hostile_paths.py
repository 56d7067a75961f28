"""Files and commands of strangers' jobs: inside the job folder, apart from each other, no shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_samples import all_ways, changed, refusal, set_chunk
from jobs import small_job

from prefect_renderfarm.blocks import JobError, LocalAdapter, SetupError, WorkerJob
from prefect_renderfarm.blocks.processes.programs import MAX_COMMAND_BYTES, split_command
from prefect_renderfarm.blocks.storage.atomic_file import write_atomic
from prefect_renderfarm.flows import RenderJob
from prefect_renderfarm.flows.jobs.checks import require_inside
from prefect_renderfarm.flows.state.job_state import JobState

NAME = "x" * 201


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("/etc/passwd", "outside the job folder"),
        ("//etc/passwd", "outside the job folder"),
        ("a/../b", "outside the job folder"),
        ("..", "outside the job folder"),
        ("./../x", "outside the job folder"),
        (".", "name a file"),
        ("./", "name a file"),
        ("/", "name a file"),
        ("", "name a file"),
        ("a\0b", "name a file"),
        (NAME, "has 200 bytes"),
        (f"a/{NAME}/b", "has 200 bytes"),
        ("ü" * 101, "has 200 bytes"),
        ("a/" * 450 + "b", "has 900 bytes"),
        ("a/" * 3000 + "b", "has 900 bytes"),
        ("a\nb", "a control character, U+000A"),
        ("a\x1b[2Kb", "a control character, U+001B"),
        ("a\x7f", "a control character, U+007F"),
        ("a\u2028b", "LINE SEPARATOR, U+2028"),
        ("4pm.\u202emoc", "RIGHT-TO-LEFT OVERRIDE, U+202E"),
        ("a\ufeff.mp4", "ZERO WIDTH NO-BREAK SPACE, U+FEFF"),
        ("a\ud800b", "U+D800"),
        (".renderfarm/x", "where the job's records are"),
        ("./.renderfarm//x", "where the job's records are"),
        (".renderfarm", "where the job's records are"),
        (".RenderFarm/job.json", "where the job's records are"),
        (".renderfarm./x", "where the job's records are"),
        (".renderfarm /x", "where the job's records are"),
        (".render\u200dfarm/x", "where the job's records are"),
        ("OUTPUT_part_0.mp4", "take for the same"),
        ("output_part_0.mp4.", "take for the same"),
        ("output_part_0.mp4 ", "take for the same"),
        ("output_part_0.mp4/", "write the same outputFile"),
        ("output_part_0.mp4/.", "write the same outputFile"),
        (".//output_part_0.mp4", "write the same outputFile"),
        ("output_part_0.mp4/x", "a file cannot be in another one"),
        ("Output_Part_0.MP4/x/y", "a file cannot be in another one"),
    ],
)
def test_odd_files(file: str, words: str) -> None:
    """A file that is outside, cannot be written everywhere, or is another's is refused by name."""
    for message in all_ways(changed(set_chunk(1, outputFile=file))):
        assert words in message
        assert "chunk 1" in message
    if "the same" not in words and "another one" not in words:
        for message in all_ways(changed(lambda data: data.update(audioTrack=file or "."))):
            assert "the job has audioTrack" in message


def with_files(*names: str) -> dict[str, Any]:
    """Return the Helios job with other files, for the first chunks."""
    data = changed(lambda data: None)
    for chunk, name in zip(data["chunks"], names, strict=False):
        chunk["outputFile"] = name
    return data


@pytest.mark.parametrize(
    ("names", "track", "words"),
    [
        (("a/b/c/d.mp4", "a/B"), None, "a file cannot be in another one"),
        (("a/B", "a/b/c/d.mp4"), None, "a file cannot be in another one"),
        (("a/", "a/%05d.png"), None, "a file cannot be in another one"),
        (("\u00e9.mp4", "e\u0301.mp4"), None, "take for the same"),
        (("a.mp4",), "a.mp4", "the job has audioTrack 'a.mp4', and chunk 0"),
        (("a.mp4",), "./A.MP4", "take for the same"),
        (("a.mp4",), "a.mp4/x", "a file cannot be in another one"),
        (("a/b.mp4",), "a", "a file cannot be in another one"),
    ],
)
def test_files_in_each_others_way(names: tuple[str, ...], track: str | None, words: str) -> None:
    """The order of chunks makes no difference, and the sound is a file like others."""
    for message in all_ways(with_files(*names) | {"audioTrack": track}):
        assert words in message


@pytest.mark.parametrize(
    "names",
    [
        ("a/1.mp4", "a/2.mp4", "b/1.mp4"),
        ("frames/1/", "frames/2/", "frames/3/%05d.png"),
        ("...", "..a", "a..b"),
        ("日本語 é.mp4", "क्\u200dष.mp4", "👩\u200d🎨.mp4"),
        ('it\'s "quoted" $HOME.mp4', "-rf", "back\\slash"),
        ("x" * 200, "a/" * 440 + "b", "renderfarm/x"),
        ("a/.renderfarm/x", ".renderfarms", "b.renderfarm"),
    ],
)
def test_unusual_files_are_files(names: tuple[str, ...]) -> None:
    """Names that are only unusual are taken, and come back as they are."""
    job = RenderJob.model_validate(with_files(*names))
    assert tuple(chunk.output_file for chunk in job.chunks) == names
    assert RenderJob.model_validate_json(job.to_json()) == job


@pytest.mark.parametrize("name", ["x" * 200, "x." + "y" * 198, "x" * 100 + "." + "y" * 99])
def test_longest_name_can_be_written(tmp_path: Path, name: str) -> None:
    """What the limit lets through has room for the temporary name beside it, too."""
    write_atomic(tmp_path / name, b"")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["chunks", ".renderfarm", "chunks/0001.mp4"])
def test_links_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    """A link in the job folder, of chunks or of records, leads nothing out; nothing is written."""
    folder, outside = tmp_path / "job", tmp_path / "outside"
    outside.mkdir()
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(outside)
    before = sorted(folder.rglob("*"))
    job = small_job(output_template="chunks/{id:04d}.mp4")
    message = refusal(lambda: JobState(folder, job).prepare())
    assert "a symbolic link leads out of the job folder" in message
    assert sorted(folder.rglob("*")) == before
    assert list(outside.iterdir()) == []


def test_every_look_at_a_chunk_is_inside(tmp_path: Path) -> None:
    """A link that a command put there later is found, too; one that stays inside leads there."""
    job = small_job(output_template="chunks/{id}.mp4")
    folder, outside = tmp_path / "job", tmp_path / "job-2"
    state, chunk = JobState(folder, job), job.chunks[0]
    for path in (folder / "inside", outside):
        path.mkdir(parents=True)
    assert state.chunk_file(chunk) == folder / "chunks" / "0.mp4"
    (folder / "chunks").symlink_to("inside")
    assert state.chunk_file(chunk) == folder / "chunks" / "0.mp4"
    (folder / "chunks").unlink()
    (folder / "chunks").symlink_to(outside)  # its path begins like the job folder's
    message = refusal(lambda: state.chunk_file(chunk))
    assert "chunk 0 has outputFile 'chunks/0.mp4', which a symbolic link leads out" in message
    require_inside(folder, "it has", "inside")
    require_inside(folder, "it has", "none")
    message = refusal(lambda: require_inside(folder, "the job folder has", "chunks"))
    assert "the job folder has 'chunks'" in message
    for name in ("inside/../../job-2", str(outside), "/etc"):
        assert "leads out" in refusal(lambda: require_inside(folder, "it has", name))  # noqa: B023


def test_link_to_itself_is_refused(tmp_path: Path) -> None:
    """A link that leads nowhere ends no run with anything but an error of ours."""
    (tmp_path / "chunks").symlink_to(tmp_path / "chunks")
    with pytest.raises(SetupError, match="cannot be written to"):
        JobState(tmp_path, small_job(output_template="chunks/{id:04d}.mp4")).prepare()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "empty command"),
        (" \n\t ", "empty command"),
        ("''", "begin it with a program"),
        ("'' x", "begin it with a program"),
        ("\\\n", "begin it with a program"),
        ("a 'b", "No closing quotation"),
        ('a "b\\"', "No closing quotation"),
        ("a\\", "No escaped character"),
        ("a\0b", "NUL character"),
        ("a \ud800", "half a character"),
        ("x" * (MAX_COMMAND_BYTES + 1), "131,072 bytes"),
        ("ü" * 70_000, "140,000 bytes"),
        (["a"], "command is a list"),
        (None, "command is None"),
        (7, "command is 7"),
    ],
)
def test_odd_commands(command: Any, words: str) -> None:
    """A command that cannot be split or run is refused, of a chunk and for the film."""
    for message in all_ways(changed(set_chunk(1, command=command))):
        assert words in message
        assert message.startswith(("chunk 1", "job: chunk 1"))
    if command and not (isinstance(command, str) and not command.strip()):
        for message in all_ways(changed(lambda data: data.update(mergeCommand=command))):
            assert words.replace("command is", "mergeCommand is") in message


def test_no_shell_sees_a_command(tmp_path: Path) -> None:
    """Line ends, pipes, variables and patterns are plain words of one program."""
    command = "printf '%s|' \"a\nb\" $HOME `id` $(id) * ; rm -rf / && x > y\n| z & 'it''s' \\\n end"
    result = LocalAdapter().execute(WorkerJob(command=command, cwd=tmp_path))
    words = ["a\nb", "$HOME", "`id`", "$(id)", "*", ";", "rm", "-rf", "/", "&&", "x", ">", "y", "|",
             "z", "&", "its", "end"]  # fmt: skip
    assert result.stdout.split("|") == "|".join([*words, ""]).split("|")
    assert list(tmp_path.iterdir()) == []


# Where `shlex` and a shell agree: of what a shell would expand, nothing is between double quotes;
# and a backslash at the end of a line joins two lines in single quotes, too.
QUOTINGS = (
    lambda text: "'" + text.replace("'", "'\\''").replace("\\\n", "\\''\n") + "'",
    lambda text: '"' + re.sub("([$`])", r'"\\\1"', re.sub(r'(["\\])', r"\\\1", text)) + '"',
    lambda text: "".join("'\n'" if c == "\n" else f"\\{c}" for c in text),
)
PIECES = st.builds(
    lambda text, quote: quote(text),
    st.text(st.sampled_from("ab $'\"\\`\n\té;*"), max_size=8),
    st.sampled_from(QUOTINGS),
)
WORDS = st.lists(st.lists(PIECES, min_size=1, max_size=3).map("".join), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(WORDS, st.sampled_from([" ", "  ", "\t", " \\\n ", "\\\n "]))
def test_words_are_those_of_a_shell(words: list[str], between: str) -> None:
    """Quoted in the usual ways, a POSIX shell makes the same words of a command line."""
    # With no word at all, printf would write as if there were an empty one.
    line = f"printf %s\\\\0{between}{between.join(words)}{between}end"
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert [word.encode() for word in split_command(line)[2:]] == done.stdout.split(b"\0")[:-1]


@settings(max_examples=2_000, deadline=None, database=None, derandomize=True)
@given(st.text(st.sampled_from("a \n'\"\\$é\0\ud800"), max_size=40))
def test_every_text_is_words_or_refused(text: str) -> None:
    """Any text at all is split into words, or refused in one line."""
    try:
        words = split_command(text)
    except JobError as error:
        refused = str(error)
    else:
        assert words[0]
        return
    assert refused.isprintable()
