"""Hooks of MkDocs: included files, tables of fields, links to files outside of `docs/`.

`<!-- include README.md#pitch -->` stands for what is between `<!-- start pitch -->` and its end;
`<!-- fields of LocalAdapter -->` for the block's fields, with the texts of the UI's form.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

import prefect_renderfarm.blocks

ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Fill in a page's includes and tables, and mend its links."""
    folder = Path(page.file.abs_src_path).parent

    def link(target: Path) -> str:
        if target.is_relative_to(ROOT / "docs"):
            return os.path.relpath(target, folder)
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {target}: no such file")
        return f"{config.repo_url}/blob/main/{target.relative_to(ROOT)}"

    def include(match: re.Match[str]) -> str:
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        if match[2]:
            text = text.partition(f"<!-- start {match[2]} -->")[2]
            text, end, _ = text.partition(f"<!-- end {match[2]} -->")
            if not end:
                raise ValueError(f"{match[1]} has no section {match[2]}")
        return relink(text, (ROOT / match[1]).parent)

    def relink(text: str, base: Path) -> str:
        def absolute(match: re.Match[str]) -> str:
            return f"]({link((base / match[1]).resolve())}"

        return re.sub(r"\]\((?![a-z]+:|#)([^)#]+)", absolute, text)

    markdown = relink(markdown, folder)
    markdown = re.sub(r"<!-- fields of (\w+) -->", lambda match: fields(match[1]), markdown)
    markdown = re.sub(
        r"^::: prefect_renderfarm\.blocks\.(\w+)$", without_fields, markdown, flags=re.M
    )
    return re.sub(r"<!-- include ([\w./]+)(?:#([\w-]+))? -->", include, markdown)


def without_fields(match: re.Match[str]) -> str:
    """Leave a block's fields out of its reference: they are in the table."""
    names = getattr(getattr(prefect_renderfarm.blocks, match[1]), "model_fields", {})
    filters = ["!^_", "!^model_", *(f"!^{name}$" for name in names)]
    return f"{match[0]}\n    options:\n      filters: {filters}"


def fields(block: str) -> str:
    """Return a table of a block's fields."""
    lines = ["| Field | In the form | Default | |", "|---|---|---|---|"]
    for name, field in getattr(prefect_renderfarm.blocks, block).model_fields.items():
        default = "" if field.default_factory else "required"
        if field.default is not PydanticUndefined:
            empty = field.default in (None, [], {})
            default = "" if empty else f"`{getattr(field.default, 'value', field.default)}`"
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {field.title} | {default} | {description} |")
    return "\n".join(lines)
