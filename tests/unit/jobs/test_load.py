"""Where a job comes from: objects, texts, files, URLs, earlier runs; none of it needs a server."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from job_samples import HELIOS, refusal

from prefect_renderfarm.blocks.http.url_rules import HOSTS_VARIABLE
from prefect_renderfarm.flows import RenderJob, RenderReport
from prefect_renderfarm.flows.jobs import load
from prefect_renderfarm.flows.jobs.checks import relative_path_message
from prefect_renderfarm.flows.jobs.load import file_of, find_in_storage, load_earlier_job, load_job
from prefect_renderfarm.flows.jobs.spec import MOST_BYTES
from prefect_renderfarm.flows.results import Assembly

JOB = RenderJob.model_validate(HELIOS)
TEXT = json.dumps(HELIOS)


def recorded(folder: Path, job: RenderJob, age: float = 0) -> Path:
    """Write a job's record into a job folder, as a run does."""
    path = folder / ".renderfarm" / job.key / "job.json"
    path.parent.mkdir(parents=True)
    path.write_text(job.to_json())
    os.utime(path, (time.time() - age,) * 2)
    return path


def report_on(folder: Path, **values: Any) -> RenderReport:
    """Return a report on the job, rendered in a folder."""
    given: dict[str, Any] = {"job": "film", "key": JOB.key, "job_dir": folder, "frames": 90}
    given |= {"fps": "30", "chunks": (), "assembly": Assembly.OFF, "render_seconds": 1.0}
    return RenderReport(**(given | values))


@pytest.mark.parametrize(
    "source",
    [JOB, HELIOS, TEXT, f"\n {TEXT} \n", f"\ufeff{TEXT}", f" \ufeff{TEXT}"],
    ids=["job", "values", "text", "spaces", "mark", "space and mark"],
)
@pytest.mark.parametrize("deployed", [False, True])
def test_job_by_value(source: Any, deployed: bool, tmp_path: Path) -> None:
    """A job is taken as an object, parsed or as text, and has no folder then."""
    assert load_job(source, deployed=deployed) == (JOB, None)
    assert load_earlier_job(source, tmp_path, deployed=deployed) == (JOB, None)
    assert file_of(source) is None


def test_a_job_is_not_made_anew() -> None:
    """A job that was checked is the same object."""
    assert load_job(JOB)[0] is JOB
    assert load_earlier_job(JOB, None)[0] is JOB


def test_job_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's file gives its folder; a relative path is that of the current folder."""
    path = tmp_path / "film" / "job.json"
    path.parent.mkdir()
    path.write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    for source in (str(path), "film/job.json", f" {path}\n"):
        assert load_job(source) == (JOB, path.parent)
        assert load_earlier_job(source, None) == (JOB, path.parent)
        assert file_of(source) == path
    assert load_job(str(path), deployed=True) == (JOB, path.parent)
    message = refusal(lambda: load_job("film/job.json", deployed=True))
    assert message == relative_path_message("job", "film/job.json")
    assert "relative path" in refusal(
        lambda: load_earlier_job("film/job.json", tmp_path, deployed=True)
    )


@pytest.mark.parametrize("source", ["https://h/job.json", "s3://b/job.json", "x://y", "{"])
def test_what_is_no_file(source: str) -> None:
    """A URL and a text have no file."""
    assert file_of(source) is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/no/such/job.json", ["job '/no/such/job.json'", "cannot be read", "No such file"]),
        ("/a\0b", ["cannot be read", "null"]),
        ("/\ud800", ["cannot be read"]),
        ("http://h/job.json", ["only https:// and s3:// URLs are read"]),
        ("file:///job.json", ["only https:// and s3:// URLs are read"]),
        ("https://h/a\nb.json", ["a control character, U+000A"]),
        ("s3://b/a\u202eb.json", ["U+202E"]),
        ("{not json", ["job is not JSON"]),
        ('{"chunks": []}', ["job: job spec: metadata is missing"]),
    ],
)
def test_unreadable_jobs(source: str, words: list[str]) -> None:
    """What cannot be read is refused by its name, with the reason."""
    for call in (load_job, lambda source: load_earlier_job(source, None)):
        message = refusal(lambda: call(source))  # noqa: B023
        for word in words:
            assert word in message


def test_the_fault_of_a_file_has_its_name(tmp_path: Path) -> None:
    """What is wrong in a file is told with the file's path, once; in values, without a name."""
    path = tmp_path / "job.json"
    path.write_text('{"chunks": []}')
    start = f"job {str(path)!r}: job spec: metadata is missing"
    assert refusal(lambda: load_job(str(path))).startswith(start)
    assert refusal(lambda: load_job({"chunks": []})).startswith("job spec: ")


def test_only_files_are_read(tmp_path: Path) -> None:
    """A folder, a device and a pipe are refused at once, and no descriptor stays open."""
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/dev/fd").iterdir()))
    for source in (tmp_path, tmp_path / "pipe", "/dev/zero", "/dev/null"):
        assert "it is no file" in refusal(lambda: load_job(str(source)))  # noqa: B023
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_file_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has become too large since it was opened is not read to its end."""
    path = tmp_path / "job.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(MOST_BYTES + 5)
    sizes: list[int] = []
    monkeypatch.setattr(load, "require_size", lambda size, name: sizes.append(size))
    monkeypatch.setattr(load, "parse_spec", lambda data, name: HELIOS)
    load_job(str(path))
    assert sizes[-2:] == [MOST_BYTES + 5, MOST_BYTES + 1]


def test_a_text_that_is_too_long() -> None:
    """A text is measured before it is looked at, spaces around it included."""
    text = " " * (MOST_BYTES - 1) + "{}"
    for call in (load_job, lambda text: load_earlier_job(text, None)):
        message = refusal(lambda: call(text))  # noqa: B023
        assert message.startswith("job has more than 100,000,000 bytes")


class FakeS3:
    """Boto3's client of S3, with one object."""

    def __init__(self, data: bytes, said: int | None = None, seconds: float = 0.0) -> None:
        self.data, self.said, self.seconds = data, said, seconds
        self.asked: list[dict[str, str]] = []
        self.sent = 0

    def client(self, name: str, config: Any) -> FakeS3:
        """Return the client."""
        assert name == "s3"
        assert config.connect_timeout + config.read_timeout <= 60
        return self

    def get_object(self, **words: str) -> dict[str, Any]:
        """Return the object, and as its length what it says."""
        self.asked.append(words)
        length = len(self.data) if self.said is None else self.said
        return {"ContentLength": length, "Body": self}

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        """Give the object in parts."""
        for start in range(0, len(self.data), size):
            time.sleep(self.seconds)
            self.sent += 1
            yield self.data[start : start + size]


@pytest.fixture
def s3_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeS3], FakeS3]:
    """Return a function that puts a client into boto3's place."""

    def put(fake: FakeS3) -> FakeS3:
        monkeypatch.setattr(load.boto3, "Session", lambda: fake)
        return fake

    return put


def test_job_by_s3(s3_of: Callable[[FakeS3], FakeS3]) -> None:
    """A job is read from S3 by its bucket and its key, and has no folder."""
    fake = s3_of(FakeS3(TEXT.encode()))
    for url in ("s3://farm/film/job.json", "S3://farm/film/job.json"):
        assert load_job(url, deployed=True) == (JOB, None)
    assert fake.asked == [{"Bucket": "farm", "Key": "film/job.json"}] * 2


def test_large_objects_are_not_read(s3_of: Callable[[FakeS3], FakeS3]) -> None:
    """An object that says that it is too large is not read, one that is, no further."""
    honest = s3_of(FakeS3(b"x", MOST_BYTES + 1))
    assert "100,000,000 bytes" in refusal(lambda: load_job("s3://farm/job.json"))
    assert honest.sent == 0
    liar = s3_of(FakeS3(bytes(MOST_BYTES + (8 << 20)), 1))
    assert "100,000,000 bytes" in refusal(lambda: load_job("s3://farm/job.json"))
    assert liar.sent <= MOST_BYTES // (1 << 20) + 1


def test_slow_objects_are_given_up(
    s3_of: Callable[[FakeS3], FakeS3], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that takes longer than the limit is given up with the reason."""
    monkeypatch.setattr(load, "_FETCH_SECONDS", 0.05)
    fake = s3_of(FakeS3(bytes(20 << 20), seconds=0.03))
    assert "took longer than 0.05 s" in refusal(lambda: load_job("s3://farm/job.json?k=s3cret"))
    assert fake.sent < 5


def test_buckets_are_listed(
    s3_of: Callable[[FakeS3], FakeS3], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a list of hosts, a bucket that is not in it is not asked."""
    monkeypatch.setenv(HOSTS_VARIABLE, "s3://farm")
    fake = s3_of(FakeS3(TEXT.encode()))
    assert load_job("s3://farm/job.json")[0] == JOB
    assert "cannot be fetched" in refusal(lambda: load_job("s3://other/job.json"))
    assert len(fake.asked) == 1


def test_https_is_read_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job by https is downloaded with the limits of a spec, and its secret is not shown."""
    asked: list[Any] = []

    class Download:
        def parts(self) -> Iterator[bytes]:
            yield from (TEXT.encode()[:10], TEXT.encode()[10:])

    @contextmanager
    def download(*words: Any) -> Iterator[Download]:
        asked.append(words)
        yield Download()

    monkeypatch.setattr(load, "open_download", download)
    assert load_job("https://h/job.json?s3cret", deployed=True) == (JOB, None)
    assert asked == [("https://h/job.json?s3cret", MOST_BYTES, 100.0)]
    monkeypatch.setattr(Download, "parts", lambda self: iter([b"<html>"]))
    message = refusal(lambda: load_job("https://h/job.json?s3cret"))
    assert message.startswith("job 'https://h/job.json")
    assert "s3cret" not in message


def test_a_report_stands_for_its_job(tmp_path: Path) -> None:
    """A report, its values, its text and its file give the job that it reports on."""
    folder = tmp_path / "film"
    recorded(folder, JOB)
    report = report_on(folder)
    file = tmp_path / "report.json"
    file.write_text(report.model_dump_json())
    sources = [report, report.model_dump(mode="json"), report.model_dump_json(), str(file)]
    for source in sources:
        assert load_earlier_job(source, None) == (JOB, folder)
    moved = tmp_path / "moved"
    folder.rename(moved)
    for source in sources:
        assert load_earlier_job(source, moved) == (JOB, moved)
        assert "cannot be read" in refusal(lambda: load_earlier_job(source, None))  # noqa: B023


@pytest.mark.parametrize("key", ["", "../x", f"../{JOB.key}", "a/b-1a2b3c4d5e6f"])
def test_the_key_of_a_report_is_no_path(key: str, tmp_path: Path) -> None:
    """The key in a report is a name of a folder: nothing else is looked for."""
    message = refusal(lambda: load_earlier_job(report_on(tmp_path, key=key), None))
    assert "its report has key" in message


def test_what_is_no_report(tmp_path: Path) -> None:
    """Values that look like a report and are none are refused as one."""
    for source in ({"job_dir": "/x"}, '{"job_dir": "/x"}'):
        assert "job: no report of render-job" in refusal(lambda: load_earlier_job(source, None))  # noqa: B023


def test_a_report_from_elsewhere_is_no_job(
    s3_of: Callable[[FakeS3], FakeS3], tmp_path: Path
) -> None:
    """What a URL gives is a job spec: it cannot lead to a folder of this machine."""
    recorded(tmp_path, JOB)
    s3_of(FakeS3(report_on(tmp_path).model_dump_json().encode()))
    assert "metadata is missing" in refusal(lambda: load_earlier_job("s3://b/job.json", None))


def test_an_id_stands_for_the_last_run(tmp_path: Path) -> None:
    """The id of a job finds the spec that was run last; its key finds exactly that one."""
    old, new, other = (
        RenderJob.model_validate(HELIOS | {"id": name, "mergeCommand": command})
        for name, command in (("bars", "a"), ("bars", "b"), ("other", "a"))
    )
    for job, age in ((old, 100), (new, 50), (other, 0)):
        recorded(tmp_path, job, age)
    assert load_earlier_job("bars", tmp_path) == (new, tmp_path)
    assert load_earlier_job(" bars\n", tmp_path, deployed=True) == (new, tmp_path)
    assert load_earlier_job(old.key, tmp_path) == (old, tmp_path)
    message = refusal(lambda: load_earlier_job("bar", tmp_path))
    assert "no job with this id was rendered in" in message
    assert str(tmp_path) in message


def test_a_file_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a JSON file is a file also where a job folder is given."""
    (tmp_path / "job.json").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    assert load_earlier_job("job.json", tmp_path / "other") == (JOB, tmp_path)


class FakeStore:
    """Keeps one job's record, in the place of `JobStore`."""

    name = "bucket farm"

    def __init__(self, block: object, key: str) -> None:
        assert block == "block"
        self.key = key
        self.store = self

    def read(self, name: str) -> bytes | None:
        """Return the record of the job whose key it is."""
        assert name == "job.json"
        return JOB.to_json().encode() if self.key == JOB.key else None


def test_a_key_stands_for_a_job_in_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of a job finds it in the storage; nothing else is looked for there."""
    monkeypatch.setattr(load, "JobStore", FakeStore)
    monkeypatch.setattr(load, "BucketStore", lambda block: block)
    block: Any = "block"
    assert find_in_storage(JOB.key, block) == JOB
    assert find_in_storage(f" {JOB.key}\n", block) == JOB
    assert find_in_storage(JOB.key, None) is None
    for other in ("film", "/a/job.json", JOB, HELIOS, TEXT):
        assert find_in_storage(other, block) is None
    message = refusal(lambda: find_in_storage("film-1a2b3c4d5e6f", block))
    assert "'film-1a2b3c4d5e6f'" in message
    assert "bucket farm" in message
