"""Job specs of strangers: whatever they hold, a job or one line that says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_samples import HELIOS, all_ways, changed, refusal, set_chunk

from prefect_renderfarm.blocks import LocalAdapter
from prefect_renderfarm.flows import RenderJob
from prefect_renderfarm.flows.jobs.load import load_earlier_job, load_job
from prefect_renderfarm.flows.jobs.spec import MOST_BYTES, MOST_PARTS
from prefect_renderfarm.flows.render_job import check_job
from prefect_renderfarm.flows.runs.names import job_label

DEEP = 100_000
NESTED: list[Any] = []
for _ in range(DEEP):
    NESTED = [NESTED]


MEASURE = """
import resource, sys, time
from prefect_renderfarm.flows.jobs.load import load_job
from prefect_renderfarm.flows.jobs.spec import parse_spec
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
if sys.argv[2] == "job":
    assert len(load_job(sys.argv[1])[0].chunks) == 100_000
else:
    parse_spec(open(sys.argv[1], "rb").read())
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(time.process_time() - started, used * (1 if sys.platform == "darwin" else 1024))
"""


def measure(path: Path, what: str) -> tuple[float, float]:
    """Return how many seconds and MB it takes to read a file, in a process of its own."""
    words = [sys.executable, "-c", MEASURE, str(path), what]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    seconds, size = map(float, done.stdout.split())
    print(f"{what}: {path.stat().st_size / 1e6:.0f} MB, {seconds:.1f} s, {size / 1e6:.0f} MB")
    return seconds, size / 1e6


@pytest.mark.long
def test_many_chunks_are_no_burden(tmp_path: Path) -> None:
    """100,000 chunks are read and checked in seconds, in memory in proportion to their text."""
    chunks = [
        {
            "id": number,
            "startFrame": number * 24,
            "frameCount": 24,
            "outputFile": f"chunks/{number:06d}.mp4",
            "command": f"render 'scene {number}.blend' --start {number * 24} {'x' * 400}",
        }
        for number in range(100_000)
    ]
    path = tmp_path / "job.json"
    metadata = {"totalFrames": 2_400_000, "fps": 24}
    path.write_text(json.dumps({"metadata": metadata, "chunks": chunks}))
    assert path.stat().st_size > 50_000_000
    seconds, megabytes = measure(path, "job")
    assert seconds < 20
    assert megabytes < 600


@pytest.mark.long
@pytest.mark.parametrize("item", ['{"a":1},', "[],", '{"a":[1]},', '"abcd",', "1234567,"])
def test_small_values_do_not_fill_the_memory(tmp_path: Path, item: str) -> None:
    """The largest text that is parsed takes less than 1 GB, though small values take most room."""
    count = MOST_PARTS // sum(item.count(mark) for mark in ",[{") - 2
    filling = "x" * (MOST_BYTES - count * len(item) - 20)
    path = tmp_path / "job.json"
    path.write_text(f'[{item * count}"\U0001f600{filling}"]')
    assert path.stat().st_size <= MOST_BYTES
    assert measure(path, "values")[1] < 1_000


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    """A file of 1 GB, text, lists and endless devices are refused at once, by every flow."""
    large = tmp_path / "job.json"
    with large.open("wb") as file:
        file.write(b'{"job_dir": "/tmp", "chunks": [')
        file.truncate(1_000_000_000)
    os.mkfifo(tmp_path / "pipe")
    many = [HELIOS["chunks"][0]] * 600_000  # type: ignore[index]
    started = time.monotonic()
    for source, word in [
        (str(large), "100,000,000 bytes"),
        ("{" + " " * MOST_BYTES, "100,000,000 bytes"),
        (" " * MOST_BYTES + "{", "100,000,000 bytes"),
        ("x" * 1_000_000, "(1,000,000 characters)"),
        ({"metadata": {"totalFrames": 1, "fps": 1}, "chunks": many}, "600,000 chunks"),
        ('{"a": [' + "1," * MOST_PARTS + "1]}", "is it a job spec?"),
        ("/dev/zero", "it is no file"),
        (str(tmp_path / "pipe"), "it is no file"),
        (str(tmp_path), "it is no file"),
    ]:
        assert word in refusal(lambda: load_job(source))  # noqa: B023
    assert "100,000,000 bytes" in refusal(lambda: load_earlier_job(str(large), None))
    assert time.monotonic() - started < 5


@pytest.mark.long
def test_larger_than_its_text() -> None:
    """A spec that others could not read any more, once it is written, is refused as data, too."""
    plain = {"frameCount": 1, "command": "x" * 5_000}
    chunks = [{"id": n, "startFrame": n, "outputFile": f"{n}.mp4"} | plain for n in range(20_000)]
    data = {"metadata": {"totalFrames": 20_000, "fps": 24}, "chunks": chunks}
    assert "100,000,000 bytes" in refusal(lambda: RenderJob.model_validate(data))


@pytest.mark.parametrize(
    "text", ["[" * DEEP, '{"a":' * DEEP, '{"chunks":' + "[" * DEEP + "]" * DEEP + "}"]
)
def test_deep_text_is_refused(text: str, tmp_path: Path) -> None:
    """Text that is nested to any depth is refused, and not by running out of stack."""
    (tmp_path / "job.json").write_text(text)
    for call in (
        lambda: RenderJob.model_validate_json(text),
        lambda: load_job(str(tmp_path / "job.json")),
    ):
        assert "nested too deeply" in refusal(call)
    assert len(job_label(text)) <= 100


@pytest.mark.parametrize("field", ["id", "assetsUrl", "metadata", "chunks", "mergeCommand", "x"])
def test_deep_values_are_refused(field: str) -> None:
    """Values that are nested to any depth are refused without a look into them, or dropped."""
    data = changed(lambda data: data.update({field: NESTED}))
    if field == "x":
        assert RenderJob.model_validate(data).to_json()
    else:
        words = "chunk at place 0" if field == "chunks" else field
        assert words in refusal(lambda: RenderJob.model_validate(data))
    for change in (set_chunk(1, id=NESTED), set_chunk(1, command={"a": NESTED})):
        message = refusal(lambda: RenderJob.model_validate(changed(change)))  # noqa: B023
        assert message.startswith("chunk ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (json.dumps(HELIOS).encode("utf-16"), "not in UTF-8"),
        (json.dumps(HELIOS).encode("utf-32-le"), "NUL bytes"),
        (b'{"id": "\xff"}', "not in UTF-8"),
        (b'{"id": "\xed\xa0\x80"}', "not in UTF-8"),  # half a character, as CESU-8 has it
        (b'{"id": 1, "id": 2}', "key 'id' is there twice"),
        (b'{"metadata": {"fps": 1, "fps": 2}}', "key 'fps' is there twice"),
        (b'{"a\\n\\u001b[31m": 1, "a\\n\\u001b[31m": 2}', r"key 'a\n\x1b[31m' is there twice"),
        (b'{"id": ' + b"9" * 5000 + b"}", "a number has 5,000 digits"),
        (b'{"id": "a\nb"}', "not JSON"),
        (b"{'id': 1}", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"", "not JSON"),
        (b"null", "valid dictionary"),
        (b"[]", "valid dictionary"),
        (b'"x"', "valid dictionary"),
    ],
)
def test_odd_text(data: bytes, words: str, tmp_path: Path) -> None:
    """What is no JSON of one meaning is refused with the reason."""
    (tmp_path / "job.json").write_bytes(data)
    assert words in refusal(lambda: load_job(str(tmp_path / "job.json")))
    assert words in refusal(lambda: RenderJob.model_validate_json(data))


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """A file that an editor of Windows has saved as UTF-8 is a job."""
    (tmp_path / "job.json").write_text(json.dumps(HELIOS), encoding="utf-8-sig")
    assert load_job(str(tmp_path / "job.json"))[0] == RenderJob.model_validate(HELIOS)
    assert load_job("\ufeff" + json.dumps(HELIOS))[0] == RenderJob.model_validate(HELIOS)


WHOLE = "give a whole number"
LARGEST = "the largest number is 9,007,199,254,740,991"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_chunk(1, startFrame=True), ["chunk 1: startFrame is True", WHOLE]),
        (set_chunk(1, id="1"), ["chunk '1': id is '1'", WHOLE]),
        (set_chunk(1, id=1.5), ["chunk 1.5: id is 1.5", WHOLE]),
        (set_chunk(1, id=None), ["chunk None: id is None", WHOLE]),
        (set_chunk(1, id=-1), ["chunk -1 has a negative id"]),
        (set_chunk(1, id=2**64), ["chunk 18446744073709551616: id is", LARGEST]),
        (set_chunk(1, id=10**99), ["a number of some 98 digits", LARGEST]),
        (set_chunk(1, frameCount=float("inf")), ["frameCount is inf", WHOLE]),
        (set_chunk(1, frameCount=float("nan")), ["frameCount is nan", WHOLE]),
        (set_chunk(1, frameCount=1e300), ["frameCount is 1e+300", LARGEST]),
        (set_chunk(1, frameCount=2**53 - 1), ["chunk 2 overlaps chunk 1"]),
        (lambda data: data["metadata"].update(totalFrames=-1), ["totalFrames is -1"]),
        (lambda data: data["metadata"].update(totalFrames=2**63), ["totalFrames", LARGEST]),
        (lambda data: data["metadata"].update(totalFrames=False), ["totalFrames is False", WHOLE]),
        (lambda data: data["metadata"].update(width=0), ["width is 0"]),
        (lambda data: data["metadata"].update(height="tall"), ["height is 'tall'", WHOLE]),
        (lambda data: data["metadata"].update(duration=float("nan")), ["duration is nan"]),
        (lambda data: data["metadata"].update(duration=True), ["duration is True"]),
        (lambda data: data["metadata"].update(duration=-1), ["duration is -1"]),
        (lambda data: data["metadata"].update(total_frames=90), ["totalFrames is there as total_"]),
        (set_chunk(1, start_frame=30), ["chunk 1: startFrame is there as start_frame, too"]),
        *(
            (lambda data, fps=fps: data["metadata"].update(fps=fps), ["metadata.fps is", "fps"])
            for fps in ("1/0", "0/1", "1e400", 1e400, -1e400, 0, -24, 10**98, -(10**98), 1e-9, True,
                        None, [24], {"a": 1}, "٢٤", "1/999999999", "999999999/999999998",
                        "30000/1001/1", "0x18", "nan", "x" * 10_000, 24000 / 1001)
        ),
    ],
)  # fmt: skip
def test_odd_numbers(change: Callable[[dict[str, Any]], None], words: list[str]) -> None:
    """Numbers that are none, too large or of no use are refused, and named in short."""
    for message in all_ways(changed(change)):
        for word in words:
            assert word in message


def test_numbers_too_long_to_write_out() -> None:
    """Whole numbers of 5,000 digits, which Python does not write out, are refused like others."""
    huge = 10**5000
    for change in (
        set_chunk(1, id=huge),
        set_chunk(1, frameCount=-huge),
        lambda data: data["metadata"].update(totalFrames=huge),
        lambda data: data["metadata"].update(fps=huge),
        lambda data: data["metadata"].update(width=huge),
    ):
        data = changed(change)
        assert "digits" in refusal(lambda: RenderJob.model_validate(data))  # noqa: B023


def test_nothing_is_written_for_a_refused_job(tmp_path: Path) -> None:
    """A spec that is no job leaves no trace, and its run has a plain name."""
    folder = tmp_path / "job"
    data = changed(set_chunk(2, outputFile="../out.mp4")) | {"id": "a\nERROR forged\x1b[31m"}
    for job in (data, json.dumps(data)):
        message = refusal(lambda: check_job(job=job, adapter=LocalAdapter(), job_dir=folder))  # noqa: B023
        assert r"id is 'a\nERROR forged\x1b[31m': it has a control character, U+000A" in message
        assert job_label(job) == r"a ERROR forged\x1b[31m"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "job",
    ["https://[x", "s3://[", "{" * DEEP, "\ud800", "/a\nb.json", "x" * 1_000_000, "a\0b",
     "https://u:s3cret@h/f.json?s3cret#s3cret", {"id": ["x"]}, {"id": "x" * 1_000_000}, {}],
)  # fmt: skip
def test_names_of_runs_are_plain(job: Any) -> None:
    """A run is named before its job is read; whatever that is, the name is one short line."""
    name = job_label(job)
    assert name.isprintable()
    assert 0 < len(name) <= 100
    assert "s3cret" not in name
    message = refusal(lambda: load_job(job))
    assert "s3cret" not in message
