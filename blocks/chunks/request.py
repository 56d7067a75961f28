"""A request to render a chunk: all that a worker needs, except the storage's credentials."""

from __future__ import annotations

from typing import Any, Self

from prefect.blocks.abstract import ObjectStorageBlock
from prefect.utilities.dispatch import lookup_type
from pydantic import BaseModel, ConfigDict, Field

from prefect_renderfarm.blocks.errors import SetupError
from prefect_renderfarm.blocks.media.model import Verify


class StorageAddress(BaseModel):
    """A storage block without its secrets; a worker opens it with credentials of its own."""

    model_config = ConfigDict(frozen=True)

    kind: str = Field(description="The block type's slug, such as s3-bucket.")
    fields: dict[str, str | int | bool] = Field(description="The block's plain fields.")

    @classmethod
    def of(cls, block: ObjectStorageBlock) -> Self:
        """Return the address of a block: its plain fields, no credentials."""
        fields = {name: getattr(block, name) for name in type(block).model_fields}
        plain = {name: value for name, value in fields.items() if isinstance(value, str | int)}
        return cls(kind=block.get_block_type_slug(), fields=plain)

    def open(self) -> ObjectStorageBlock:
        """Return the storage block, with this machine's own credentials.

        Raises:
            SetupError: There is no such kind of block here, or it cannot do without credentials.
        """
        # Only here: the collections take seconds to import.
        from prefect.blocks.core import Block
        from prefect.plugins import load_prefect_collections

        load_prefect_collections()
        try:
            kind: Any = lookup_type(Block, dispatch_key=self.kind)
            block = kind(**self.fields)
        except (KeyError, ValueError) as error:
            raise SetupError(f"storage {self.kind!r} cannot be opened here: {error}") from None
        if not isinstance(block, ObjectStorageBlock):
            raise SetupError(f"{self.kind!r} is no storage: use a block such as s3-bucket")
        return block


class ChunkRequest(BaseModel):
    """A chunk to render, for a worker that shares only the storage with whoever asks."""

    model_config = ConfigDict(frozen=True)

    job: str = Field(description="Name of the job, for messages.")
    key: str = Field(description="The job's key: the name of its folder in the storage.")
    chunk_id: int
    start_frame: int
    frame_count: int
    output_file: str = Field(description="The file that the command writes, in its workspace.")
    command: str = Field(description="The command line; split into words and run without a shell.")
    fps: str = Field(description="Frames a second, as a fraction.")
    verify: Verify = Verify.PACKETS
    storage: StorageAddress
    assets: str | None = Field(
        default=None, description="The key of the list of the job's input files, or their URL."
    )
    identity: str = Field(default="", description="Cache key of the chunk; see `ChunkResult`.")
    timeout: float | None = Field(
        default=None, description="Seconds after which the command is ended; None: no other limit."
    )
    index: int = Field(default=0, description="Position of the chunk in the job spec, from 0.")
