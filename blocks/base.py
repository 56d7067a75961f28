"""What all blocks of this project share."""

from __future__ import annotations

from abc import ABC
from enum import StrEnum
from typing import Any, ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict, HttpUrl, model_validator

PROJECT_URL = "https://github.com/prefect-renderfarm/prefect-renderfarm"
LOGO_URL = (
    "https://raw.githubusercontent.com/prefect-renderfarm/prefect-renderfarm/main/docs/logo.png"
)


def _complete_schema(schema: dict[str, Any], model: type[Block]) -> None:
    """Require a block's slug in Prefect's block schema, and put descriptions on one line.

    The server checks a flow run's parameter against `oneOf: [block, reference]`. A block without a
    required field would match both, and the server would refuse the run.
    """
    prefect_schema: Any = Block.model_config["json_schema_extra"]
    prefect_schema(schema, model)
    schema["required"] = [*schema.get("required", []), "block_type_slug"]
    for name, field in schema.get("properties", {}).items():
        if "description" in field:
            field["description"] = " ".join(field["description"].split())
        kind = model.model_fields[name].annotation
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            # As a reference, the form would show the name and the text of the class.
            field.pop("$ref", None)
            field |= {"type": "string", "enum": [choice.value for choice in kind]}


class FarmBlock(Block, ABC):
    """Base of the project's blocks: logo, documentation link, and no unknown fields.

    Prefect's catalogue shows every block class that does not itself derive from ABC.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=_complete_schema,
        hide_input_in_errors=True,  # input may be a secret
        use_attribute_docstrings=True,  # they are the fields' descriptions
    )

    _logo_url: ClassVar[Any] = HttpUrl(LOGO_URL)
    _documentation_url: ClassVar[Any] = HttpUrl(f"{PROJECT_URL}#blocks")

    @model_validator(mode="before")
    @classmethod
    def validate_block_type_slug(cls, values: Any) -> Any:
        """Refuse the data of another block type; drop the slug, which is not a field."""
        values = super().validate_block_type_slug(values)  # type: ignore[operator]
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key != "block_type_slug"}
