"""The flows' parameters: what they take, what the form shows, how blocks are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from job_samples import HELIOS
from jobs import small_job
from prefect.blocks.abstract import ObjectStorageBlock
from prefect.blocks.core import Block
from prefect_aws.s3 import S3Bucket
from pydantic import TypeAdapter, ValidationError

from prefect_renderfarm.blocks import (
    AwsLambdaAdapter,
    FfmpegStitcher,
    HttpAdapter,
    LocalAdapter,
    RemuxStitcher,
    SetupError,
    WorkerAdapter,
    WorkerJob,
    WorkerResult,
    WorkPoolAdapter,
)
from prefect_renderfarm.flows import RenderJob, RenderReport, parameters
from prefect_renderfarm.flows.parameters import (
    load_adapter,
    load_stitcher,
    load_storage,
    reference,
)
from prefect_renderfarm.flows.results import Assembly
from prefect_renderfarm.flows.state.job_state import open_job

JOB = RenderJob.model_validate(HELIOS)
REPORT = RenderReport(
    job="a", job_dir=Path("/a"), frames=1, fps="1", chunks=(), assembly=Assembly.OFF,
    render_seconds=0,
)  # fmt: skip


class OwnAdapter(WorkerAdapter):
    """A third party's adapter."""

    _block_type_slug = "own-adapter"

    def execute(self, job: WorkerJob) -> WorkerResult:
        """Run nothing."""
        raise NotImplementedError


def parameter(name: str) -> TypeAdapter[Any]:
    """Return the type of a parameter, as Prefect checks it."""
    return TypeAdapter(getattr(parameters, name))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JobParameter", JOB),
        ("JobParameter", REPORT),
        ("JobParameter", HELIOS),
        ("JobParameter", "/a/job.json"),
        ("AdapterParameter", "local-adapter/default"),
        ("AdapterParameter", LocalAdapter()),
        ("AdapterParameter", OwnAdapter()),
        ("OptionalAdapterParameter", None),
        ("OptionalAdapterParameter", OwnAdapter()),
        ("StitcherParameter", None),
        ("StitcherParameter", RemuxStitcher()),
        ("StorageParameter", None),
        ("StorageParameter", "s3-bucket/farm"),
    ],
)
def test_what_is_given_comes_through(name: str, value: Any) -> None:
    """Jobs, reports, names and blocks, of one's own class, too, reach the flow as they are."""
    assert parameter(name).validate_python(value) is value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JobParameter", 3),
        ("JobParameter", None),
        ("AdapterParameter", None),
        ("AdapterParameter", 3),
        ("StitcherParameter", [1]),
        ("StorageParameter", 3),
    ],
)
def test_something_else_is_refused(name: str, value: Any) -> None:
    """What is none of these is refused before the flow begins."""
    with pytest.raises(ValidationError):
        parameter(name).validate_python(value)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        (
            "OptionalAdapterParameter",
            ["LocalAdapter", "AwsLambdaAdapter", "HttpAdapter", "WorkPoolAdapter"],
        ),
        ("StitcherParameter", ["RemuxStitcher", "FfmpegStitcher"]),
        ("StorageParameter", ["S3Bucket"]),
    ],
)
def test_form_opens_at_a_dropdown(name: str, blocks: list[str]) -> None:
    """An optional block's choices are the blocks first; none takes null but that of a name."""
    choices = parameter(name).json_schema()["anyOf"]
    assert [choice["$ref"].rpartition("/")[2] for choice in choices[:-1]] == blocks
    assert choices[-1]["title"] == "name"
    assert [choice["type"] for choice in choices[-1]["anyOf"]] == ["string", "null"]


@pytest.mark.parametrize("name", ["OptionalPath", "OptionalText"])
def test_an_empty_field_of_the_form_is_none(name: str) -> None:
    """The form sends an empty text for an empty field."""
    assert parameter(name).validate_python("") is None
    assert parameter(name).validate_python(None) is None
    assert str(parameter(name).validate_python("a")) == "a"


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("Concurrency", [None, 1], [0]),
        ("Retries", [0], [-1, None]),
        ("Count", [None, 0], [-1]),
        ("Seconds", [0], [-0.1, None]),
        ("OptionalSeconds", [None, 0.1], [0, -1]),
        ("OptionalFactor", [None, 1.1], [1, 0]),
    ],
)
def test_numbers(name: str, taken: list[Any], refused: list[Any]) -> None:
    """Numbers that mean nothing are refused in the form."""
    for value in taken:
        assert parameter(name).validate_python(value) == value
    for value in refused:
        with pytest.raises(ValidationError):
            parameter(name).validate_python(value)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type[Block], str]]:
    """Have the server know a block `default` of each kind; return what is loaded."""
    loaded: list[tuple[type[Block], str]] = []

    def load(cls: type[Block], name: str, _sync: bool = False) -> Block:
        assert _sync
        loaded.append((cls, name))
        if not name.endswith("default"):
            raise ValueError(f"Unable to find block document named {name}\nfor block type")
        if cls is Block:
            return OwnAdapter()
        return cls.model_construct()

    monkeypatch.setattr(Block, "load", classmethod(load))
    return loaded


@pytest.mark.parametrize(
    "kind",
    [LocalAdapter, AwsLambdaAdapter, HttpAdapter, WorkPoolAdapter, RemuxStitcher, FfmpegStitcher,
     S3Bucket],
)  # fmt: skip
def test_own_blocks_are_loaded_by_their_class(
    kind: type[Block], saved: list[tuple[type[Block], str]]
) -> None:
    """A block of a class that is known here is loaded without an import of all collections."""
    name = f"{kind.get_block_type_slug()}/default"
    if issubclass(kind, WorkerAdapter):
        assert isinstance(load_adapter(name), kind)
    elif kind is S3Bucket:
        assert isinstance(load_storage(name), S3Bucket)
    else:
        assert isinstance(load_stitcher(name), kind)
    assert saved == [(kind, "default")]


def test_other_blocks_are_loaded_by_their_slug(saved: list[tuple[type[Block], str]]) -> None:
    """A third party's block is found by Prefect, by its slug and name."""
    assert isinstance(load_adapter("own-adapter/default"), OwnAdapter)
    assert saved == [(Block, "own-adapter/default")]


def test_blocks_are_taken_as_they_are() -> None:
    """A block from Python is used itself; no storage is no storage."""
    adapter, stitcher = OwnAdapter(), RemuxStitcher()
    storage = S3Bucket(bucket_name="farm")
    assert load_adapter(adapter) is adapter
    assert load_stitcher(stitcher) is stitcher
    assert load_storage(storage) is storage
    assert isinstance(storage, ObjectStorageBlock)
    assert load_storage(None) is None


@pytest.mark.parametrize("name", ["", "local-adapter", "local-adapter/", "/default", "/"])
def test_what_is_no_name(name: str, saved: list[tuple[type[Block], str]]) -> None:
    """A name without a slug or a document is refused with an example, and nothing is loaded."""
    with pytest.raises(SetupError) as caught:
        load_adapter(name)
    assert f"adapter {name!r} is no block" in str(caught.value)
    assert "'local-adapter/default'" in str(caught.value)
    assert saved == []


@pytest.mark.parametrize("name", ["local-adapter/none", "own-adapter/none"])
@pytest.mark.usefixtures("saved")
def test_what_is_not_saved(name: str) -> None:
    """A block that is not saved is named, in one line, with how to see what is."""
    with pytest.raises(SetupError) as caught:
        load_adapter(name, "merge_adapter")
    message = str(caught.value)
    assert message.startswith(f"merge_adapter {name!r}: no such block is saved on the server")
    assert "`prefect block ls`" in message
    assert "\n" not in message


@pytest.mark.usefixtures("saved")
def test_a_block_of_another_kind() -> None:
    """A block that cannot do the work is refused with one that can."""
    for given, shown in (
        ("remux-stitcher/default", "'remux-stitcher/default' is no WorkerAdapter"),
        (RemuxStitcher(), "a RemuxStitcher is no WorkerAdapter"),
        (None, "a NoneType is no WorkerAdapter"),
    ):
        with pytest.raises(SetupError) as caught:
            load_adapter(given)
        assert shown in str(caught.value)
        assert "such as 'local-adapter/default'" in str(caught.value)
    with pytest.raises(SetupError, match="stitcher: 'local-adapter/default' is no VideoStitcher"):
        load_stitcher("local-adapter/default")
    with pytest.raises(SetupError, match="storage: a LocalAdapter is no ObjectStorageBlock"):
        load_storage(LocalAdapter())


def test_a_long_name_is_not_shown_in_full() -> None:
    """What a message shows of a name is short."""
    with pytest.raises(SetupError) as caught:
        load_adapter("x" * 100_000)
    assert len(str(caught.value)) < 300


def test_reference_of_a_saved_block() -> None:
    """Another process loads a block by its slug and name; one that is not saved cannot be sent."""
    adapter = LocalAdapter()
    adapter._block_document_name = "shots"
    assert reference(adapter, "adapter") == "local-adapter/shots"
    assert reference(None, "adapter") is None
    with pytest.raises(SetupError, match="merge_adapter: a LocalAdapter that is not saved"):
        reference(LocalAdapter(), "merge_adapter")


def test_relative_paths_of_a_deployed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is that of the caller's folder, and refused where there is no such folder."""
    monkeypatch.chdir(tmp_path)
    assert open_job(small_job(), None, Path("a")).path == tmp_path / "a"
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "some deployment")
    assert open_job(small_job(), None, tmp_path).path == tmp_path
    with pytest.raises(SetupError, match="job_dir 'a' is a relative path"):
        open_job(small_job(), None, Path("a"))
