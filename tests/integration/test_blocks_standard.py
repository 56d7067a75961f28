"""Prefect's own standard tests, on every block, and how blocks behave on a server."""

from __future__ import annotations

import io
from typing import Any

import prefect.testing.standard_test_suites.blocks as standard
import pytest
from farm_client import FarmClient
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import SecretStr
from repository import ROOT

from prefect_renderfarm.blocks import (
    AwsLambdaAdapter,
    FfmpegStitcher,
    HttpAdapter,
    LocalAdapter,
    RemuxStitcher,
    WorkPoolAdapter,
)
from prefect_renderfarm.blocks.base import LOGO_URL

BLOCKS: list[type[Block]] = [
    LocalAdapter,
    AwsLambdaAdapter,
    HttpAdapter,
    WorkPoolAdapter,
    RemuxStitcher,
    FfmpegStitcher,
]
LOGO = ROOT / "docs" / "logo.png"


@pytest.mark.parametrize("block", BLOCKS)
class TestStandard(BlockStandardTestSuite):
    """Prefect's suite; the logo is read from where it is published from: this repository."""

    @pytest.fixture
    def block(self) -> type[Block]:
        raise NotImplementedError  # the parameter stands in for it

    @pytest.fixture(autouse=True)
    def logo_from_this_repository(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def open_logo(url: str) -> io.BytesIO:
            assert url == LOGO_URL
            return io.BytesIO(LOGO.read_bytes())

        monkeypatch.setattr(standard, "urlopen", open_logo)


@pytest.mark.parametrize("block", BLOCKS)
def test_fields_have_titles(block: type[Block]) -> None:
    """Every field has a title for the UI's form."""
    for name, field in block.model_fields.items():
        assert field.title, name


@pytest.mark.parametrize("block", BLOCKS)
def test_a_reference_is_no_block(block: type[Block]) -> None:
    """The schema requires the block's slug, so that a reference never passes for a block."""
    assert "block_type_slug" in block.model_json_schema()["required"]


@pytest.mark.parametrize("block", BLOCKS)
def test_secrets_are_known(block: type[Block]) -> None:
    """Prefect knows each secret field: it hides them, and saves them as they are, not as stars."""
    secrets = {
        AwsLambdaAdapter: ["credentials.aws_secret_access_key"],
        HttpAdapter: ["token", "header_value"],
        LocalAdapter: ["secret_environment.*"],
    }
    assert block.model_json_schema()["secret_fields"] == secrets.get(block, [])


@pytest.mark.long
def test_saved_secrets_come_back(api: FarmClient) -> None:
    """A token that was saved is sent by whoever loads the block."""
    adapter = HttpAdapter(url="https://worker.example.com", token=SecretStr("s3cret-token"))
    adapter.save("kept", overwrite=True)
    loaded = HttpAdapter.load("kept")
    assert loaded.token is not None
    assert loaded.token.get_secret_value() == "s3cret-token"
    assert "s3cret-token" not in api.command("block", "inspect", "http-adapter/kept").stdout


def test_saved_block_comes_back(api: FarmClient) -> None:
    """A saved block is loaded as it was, by its own class and by its slug; secrets stay secret."""
    adapter = LocalAdapter(timeout=60, secret_environment={"LICENCE": "s3cret"})
    adapter.save("kept", overwrite=True)
    for loaded in (LocalAdapter.load("kept"), Block.load("local-adapter/kept")):
        assert isinstance(loaded, LocalAdapter)
        assert loaded.timeout == 60
        assert loaded.secret_environment.get_secret_value() == {"LICENCE": "s3cret"}
    with_server = api.command("block", "inspect", "local-adapter/kept")
    assert "s3cret" not in with_server.stdout


def test_server_registers_blocks_when_it_starts(api: FarmClient) -> None:
    """The server knows the blocks before a farm makes its pools, so before anybody saves one."""
    pools = api._post("/work_pools/filter", {})
    known = {found["slug"]: found for found in api._post("/block_types/filter", {})}
    first_pool = min(pool["created"] for pool in pools)
    for block in BLOCKS:
        found = known[block.get_block_type_slug()]
        assert found["created"] < first_pool
        assert (found["name"], found["logo_url"]) == (block.get_block_type_name(), LOGO_URL)
    assert not {"farmblock", "checkedstitcher", "videostitcher", "workeradapter"} & known.keys()


@pytest.mark.long
def test_blocks_can_be_registered(api: FarmClient) -> None:
    """On a server without this package, `prefect block register` makes them known, by name."""
    done = api.command("block", "register", "-m", "prefect_renderfarm.blocks")
    assert done.returncode == 0, done.stdout + done.stderr
    for block in BLOCKS:
        assert block.get_block_type_name() in done.stdout


def test_data_of_another_block_is_refused() -> None:
    """Data that carries another block's slug is not taken for this block."""
    data: dict[str, Any] = {"block_type_slug": "ffmpeg-stitcher"}
    with pytest.raises(ValueError, match="ffmpeg-stitcher"):
        RemuxStitcher.model_validate(data)
    assert RemuxStitcher.model_validate({"block_type_slug": "remux-stitcher"}) == RemuxStitcher()
