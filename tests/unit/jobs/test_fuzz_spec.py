"""Any job spec at all: a job that keeps its promises, or one line that says what is wrong.

200 cases of each kind in the suite; 4,000 with `python -m pytest -m long tests/unit/jobs`.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_renderfarm.blocks import JobError
from prefect_renderfarm.blocks.processes.programs import split_command
from prefect_renderfarm.flows import RenderJob
from prefect_renderfarm.flows.jobs.spec import is_key
from prefect_renderfarm.flows.runs.names import job_label

EXAMPLES = pytest.mark.parametrize("examples", [200, pytest.param(4_000, marks=pytest.mark.long)])
MOST_CHARACTERS = 700
# What could make a name look like another line of a log, or like another name.
FORGING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
DEEP: Any = None
for _ in range(400):  # as deep as a failure can be printed
    DEEP = [DEEP]

FILES = [
    *("a.mp4", "A.mp4", "./a.mp4", "a.mp4/", "a", "a/b.mp4", "a/../b", "../x", "/etc/passwd", "."),
    *("..", "", "a\0b", "a\nb", "a\x1b[31m", "\ud800", "\u202e", ".renderfarm/x", ".RENDERFARM/x"),
    *("a.", "x" * 201, "a/" * 500 + "b", "chunks/%05d.png", "\u00e9", "e\u0301", "日本語", "-rf"),
]
COMMANDS = [
    *("render", "a 'b c' \"d\"", "a\nb", "a 'b", "''", " ", "\0", "\\", "\ud800", "x" * 140_000),
    *("sh -c 'rm -rf /'", "a \\\n b", "$HOME `id`"),
]
NUMBERS = [
    *(0, 1, -1, 7, 2**31, 2**53 - 1, 2**53, 2**63, 2**64, 10**30, -(10**30), 10**4000, 0.0, -0.0),
    *(1.0, 1.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), True, False),
]
RATES = [
    *(24, 25.0, 29.97, "30000/1001", " 24 ", "24/1", "1/0", "0/1", "1e400", "-24", 1000, 1001),
    *("٢٤", "999999999/999999998", 24000 / 1001, "0.001", "0.0001"),
]
URLS = [
    *("in", "../in", "s3://b/p", "https://h/a.zip?secret", "file:///x", "http://[", "x\ny"),
    "x" * 9000,
]
NAMES = ["film", "", " ", "../Ünder /x", "a\nERROR b", "x" * 300, "\u200c", "\ud800"]
ODD = st.sampled_from([*FILES, *COMMANDS, *NUMBERS, *RATES, *URLS, *NAMES, None, [], {}, DEEP])
KINDS = {
    **dict.fromkeys(("outputFile", "audioTrack"), FILES),
    **dict.fromkeys(("command", "mergeCommand"), COMMANDS),
    **{"fps": RATES, "assetsUrl": URLS, "id": NAMES + NUMBERS},
}
ANY = st.recursive(
    ODD | st.text(max_size=20) | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
SNAKE = {
    **{"startFrame": "start_frame", "frameCount": "frame_count", "outputFile": "output_file"},
    **{"totalFrames": "total_frames", "assetsUrl": "assets_url", "audioTrack": "audio_track"},
    "mergeCommand": "merge_command",
}


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """Make a job spec that is right."""
    counts = draw(st.lists(st.integers(1, 100), min_size=1, max_size=5))
    first = draw(st.integers(-10, 10))
    ids = sorted(draw(st.sets(st.integers(0, 10**7), min_size=len(counts), max_size=len(counts))))
    chunks = []
    for place, (number, count) in enumerate(zip(ids, counts, strict=True)):
        chunk = {"id": number, "startFrame": first + sum(counts[:place]), "frameCount": count}
        file = f"{draw(st.sampled_from(['', 'chunks/', 'é/']))}{number}.mp4"
        command = draw(st.sampled_from(["render", "a 'b\nc' \"$d\"", "a \\\n b é"]))
        chunks.append(chunk | {"outputFile": file, "command": command})
    spec = {
        "metadata": {"totalFrames": sum(counts), "fps": draw(st.sampled_from(RATES[:6]))},
        "chunks": draw(st.permutations(chunks)),
    }
    spec["metadata"] |= draw(st.fixed_dictionaries({}, optional={"width": st.integers(1, 9999)}))
    more = {"id": NAMES[0], "assetsUrl": URLS[0], "audioTrack": "s.wav", "mergeCommand": "glue x"}
    return spec | {name: value for name, value in more.items() if draw(st.booleans())}


@st.composite
def altered(draw: st.DrawFn) -> Any:
    """Make a job spec in which up to four values or keys have been replaced, removed or added."""
    spec: Any = draw(specs())
    for _ in range(draw(st.integers(0, 4))):
        owner, key = draw(st.sampled_from(list(places(spec)) or [(spec, None)]))
        what = draw(st.sampled_from(["replace", "other", "remove", "rename", "again"]))
        if key is None or what == "replace":
            value = draw(st.sampled_from(KINDS.get(key, NUMBERS)) | ODD | ANY)
            if key is None:
                return value
            owner[key] = value
        elif what == "other":
            owner[key] = copy.deepcopy(draw(st.sampled_from(values(spec)))[2])
        elif what == "remove":
            del owner[key]
        elif isinstance(owner, dict):
            owner[SNAKE.get(key, draw(st.text(max_size=5)))] = copy.deepcopy(owner[key])
            if what == "rename":
                owner.pop(key, None)
        else:
            owner.append(copy.deepcopy(owner[key]))
    return spec


def values(tree: Any) -> list[tuple[Any, Any, Any]]:
    """Return all values in a spec, each with what holds it and by which key."""
    found, ahead = [], [tree]
    while ahead:
        owner = ahead.pop()
        pairs = owner.items() if isinstance(owner, dict) else enumerate(owner)
        for key, value in pairs:
            found.append((owner, key, value))
            if isinstance(value, dict | list) and value is not DEEP:
                ahead.append(value)
    return found


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Return where values are in a spec."""
    return [(owner, key) for owner, key, _ in values(tree)] if isinstance(tree, dict | list) else []


def outcome(call: Callable[[], RenderJob]) -> RenderJob | None:
    """Return the job that a call makes, checked, or None if it is refused as promised."""
    try:
        job = call()
    except JobError as error:
        message = str(error)
        assert message.isprintable(), message
        assert 0 < len(message) <= MOST_CHARACTERS, message
        return None
    keeps_its_promises(job)
    return job


def keeps_its_promises(job: RenderJob) -> None:
    """Check what everything else relies on."""
    ids = [chunk.id for chunk in job.chunks]
    assert ids == sorted(set(ids))
    assert ids[0] >= 0
    ends = [chunk.end_frame for chunk in job.chunks]
    assert [chunk.start_frame for chunk in job.chunks][1:] == ends[:-1]
    assert all(chunk.frame_count > 0 for chunk in job.chunks)
    assert ends[-1] - job.chunks[0].start_frame == job.metadata.total_frames
    assert max(abs(ends[-1]), ids[-1]) < 2**53
    files = [chunk.output_file for chunk in job.chunks] + (
        [job.audio_track] if job.audio_track else []
    )
    paths = [PurePosixPath(os.path.normpath(f"/job/{file}")) for file in files]
    for path in paths:
        assert path.is_relative_to("/job/")
        assert path != PurePosixPath("/job")
        assert path.parts[2].lower() != ".renderfarm"
        assert not FORGING.search(str(path))
        assert len(os.fsencode(path.name)) <= 200
        assert not any(path in other.parents for other in paths)
    assert len({str(path).lower() for path in paths}) == len(paths)
    commands = [chunk.command for chunk in job.chunks]
    assert all(split_command(text)[0] for text in [*commands, job.merge_command or "none"])
    assert re.fullmatch(r"[a-z0-9-]{14,53}", job.key)
    assert is_key(job.key)
    assert Fraction(1, 1000) <= job.metadata.rate <= 1000
    assert not FORGING.search(job.title)
    again = RenderJob.model_validate_json(job.to_json())
    assert again == job
    assert again.key == job.key
    assert RenderJob.model_validate(json.loads(job.to_json().encode())) == job


def fuzz(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Try so many cases; the same ones each time, so that a failure is not a matter of luck."""
    settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(check))()  # fmt: skip


@EXAMPLES
def test_any_values(examples: int) -> None:
    """Parsed JSON of any shape is a job or refused, and the same if it is given as text."""
    seen: Counter[bool] = Counter()

    def check(value: Any) -> None:
        job = outcome(lambda: RenderJob.model_validate(value))
        seen[job is not None] += 1
        name = job_label(value)
        assert name.isprintable()
        assert len(name) <= 100
        try:
            text = json.dumps(value)
        except (ValueError, RecursionError):  # it cannot be written, so nobody sends it
            return
        read = outcome(lambda: RenderJob.model_validate_json(text))
        # As text a number that is too long is refused even where it would be left out.
        assert read == job or (read is None and re.search(r"\d{101}", text))

    fuzz(examples, altered() | ANY, check)
    print(f"{seen[True]:,} jobs, {seen[False]:,} refused")
    assert seen[True] > examples / 20
    assert seen[False] > examples / 4


PARTS = [
    *(b"", b'"', b"\\", b"{", b"}", b"[" * 2_000, b",", b":", b"\0", b"\xff", b"\xed\xa0\x80"),
    *(b"NaN", b"1e400", b"9" * 5_000, b"\\ud800", b"\xef\xbb\xbf", b'"id":1,', b"\n", b"-"),
]


@EXAMPLES
def test_any_text(examples: int) -> None:
    """The bytes of a spec, cut and altered in any place, are a job or refused."""
    seen: Counter[bool] = Counter()
    new = st.sampled_from(PARTS) | st.binary(max_size=4)
    edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), new), max_size=3)
    codings = st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32-be"])

    def check(case: tuple[Any, list[tuple[float, int, bytes]], str]) -> None:
        spec, changes, coding = case
        data = json.dumps(spec, ensure_ascii=False).encode(coding)
        for where, cut, part in changes:
            place = int(where * len(data))
            data = data[:place] + part + data[place + cut :]
        seen[outcome(lambda: RenderJob.model_validate_json(data)) is not None] += 1

    fuzz(examples, st.tuples(specs(), edits, codings), check)
    print(f"{seen[True]:,} jobs, {seen[False]:,} refused")
    assert seen[True] > examples / 20
    assert seen[False] > examples / 4
