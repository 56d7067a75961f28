"""The flows' parameters: what a person picks in the UI, types on the command line, or passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from prefect.blocks.abstract import ObjectStorageBlock
from prefect.blocks.core import Block
from prefect_aws.s3 import S3Bucket
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from prefect_renderfarm.blocks.adapters.aws_lambda import AwsLambdaAdapter
from prefect_renderfarm.blocks.adapters.base import WorkerAdapter
from prefect_renderfarm.blocks.adapters.http import HttpAdapter
from prefect_renderfarm.blocks.adapters.local import LocalAdapter
from prefect_renderfarm.blocks.adapters.work_pool import WorkPoolAdapter
from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.runtime.prefect_api import call_sync
from prefect_renderfarm.blocks.runtime.text import excerpt, one_line
from prefect_renderfarm.blocks.stitchers.base import VideoStitcher
from prefect_renderfarm.blocks.stitchers.ffmpeg import FfmpegStitcher
from prefect_renderfarm.blocks.stitchers.remux import RemuxStitcher
from prefect_renderfarm.flows.jobs.spec import RenderJob
from prefect_renderfarm.flows.results import RenderReport

BlockType = TypeVar("BlockType", bound=Block)
_Adapters = LocalAdapter | AwsLambdaAdapter | HttpAdapter | WorkPoolAdapter
_Stitchers = RemuxStitcher | FfmpegStitcher


def _as_given(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Take blocks, names and jobs as they are: the flow checks them, with plain errors.

    The annotated union is what the server and the UI see: a form with a dropdown of saved blocks,
    or a name. Prefect resolves references to saved blocks before.
    """
    given = isinstance(value, Block | RenderJob | RenderReport | str | dict)
    return value if given else handler(value)


# The UI's form opens at the first choice that takes the default, null. So only the choice of a name
# takes null: the dropdown of blocks comes first, and not a choice "None" without a dropdown.
_Name = Annotated[str | None, Field(title="name")]

if TYPE_CHECKING:  # Python may pass a block of the user's own class
    JobParameter = RenderJob | RenderReport | str | dict[str, Any]
    AdapterParameter = WorkerAdapter | str
    OptionalAdapterParameter = WorkerAdapter | str | None
    StitcherParameter = VideoStitcher | str | None
    StorageParameter = ObjectStorageBlock | str | None
else:
    _given = WrapValidator(_as_given)
    JobParameter = Annotated[str | dict[str, Any], _given]
    AdapterParameter = Annotated[_Adapters | str, _given]
    OptionalAdapterParameter = Annotated[_Adapters | _Name, _given]
    StitcherParameter = Annotated[_Stitchers | _Name, _given]
    StorageParameter = Annotated[S3Bucket | _Name, _given]
_empty_is_none = BeforeValidator(lambda value: None if value == "" else value)
OptionalPath = Annotated[Path | None, _empty_is_none]
OptionalText = Annotated[str | None, _empty_is_none]
Concurrency = Annotated[int | None, Field(ge=1)]
Retries = Annotated[int, Field(ge=0)]
Count = Annotated[int | None, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
OptionalSeconds = Annotated[float | None, Field(gt=0)]
OptionalFactor = Annotated[float | None, Field(gt=1)]

# `Block.load` finds a class by any slug, but imports every installed collection to do so.
_KNOWN: dict[str, type[Block]] = {
    block.get_block_type_slug(): block
    for block in (*get_args(_Adapters), *get_args(_Stitchers), S3Bucket)
}


def load_adapter(given: Any, parameter: str = "adapter") -> WorkerAdapter:
    """Return the adapter that a parameter names. Raises: SetupError."""
    return _load(given, WorkerAdapter, parameter, "local-adapter/default")  # type: ignore[type-abstract]


def load_stitcher(given: Any) -> VideoStitcher | None:
    """Return the stitcher that a parameter names, if it names one. Raises: SetupError."""
    if given is None:
        return None
    return _load(given, VideoStitcher, "stitcher", "remux-stitcher/default")  # type: ignore[type-abstract]


def load_storage(given: Any) -> ObjectStorageBlock | None:
    """Return the storage that a parameter names, if it names one. Raises: SetupError."""
    if given is None:
        return None
    return _load(given, ObjectStorageBlock, "storage", "s3-bucket/renders")  # type: ignore[type-abstract]


def _load(given: Any, kind: type[BlockType], parameter: str, example: str) -> BlockType:
    block, shown = given, f"a {type(given).__name__}"
    if isinstance(given, str):
        shown = excerpt(given)
        slug, _, document = given.partition("/")
        if not slug or not document:
            raise SetupError(
                f"{parameter} {shown} is no block: name it type-slug/name, like {example!r}"
            )
        try:
            known = _KNOWN.get(slug)
            block = call_sync(known.load, document) if known else call_sync(Block.load, given)
        except (ValueError, RuntimeError) as error:
            if isinstance(fault := error.__cause__ or error, ValidationError):
                raise SetupError(f"{parameter} {shown}: {_invalid(fault)}") from None
            raise SetupError(
                f"{parameter} {shown}: no such block is saved on the server ({one_line(error)}); "
                "see `prefect block ls`"
            ) from None
    if not isinstance(block, kind):
        raise SetupError(
            f"{parameter}: {shown} is no {kind.__name__}: name one, such as {example!r}"
        )
    return block


def _invalid(fault: ValidationError) -> str:
    """Say which fields of a saved block are wrong; without their values, which may be secret."""
    faults = [
        f"{'.'.join(map(str, each['loc'])) or 'the block'}: {each['msg']}"
        for each in fault.errors(include_input=False, include_url=False)
    ]
    return f"the saved block does not fit this version: {'; '.join(faults)}; edit the block"


def reference(block: Block | None, parameter: str) -> str | None:
    """Return the name by which another process can load a saved block. Raises: SetupError."""
    if block is None:
        return None
    if block._block_document_name is None:
        raise SetupError(
            f"{parameter}: a {type(block).__name__} that is not saved cannot be sent to another "
            "work pool: save it under a name, or do without that pool"
        )
    return f"{block.get_block_type_slug()}/{block._block_document_name}"
