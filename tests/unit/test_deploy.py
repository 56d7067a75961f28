"""What `renderfarm deploy` refuses before it asks a server."""

from __future__ import annotations

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_renderfarm.blocks import SetupError
from prefect_renderfarm.deployments.deploy import Target, deploy


@pytest.mark.parametrize("name", ["GPU", "gpu_2", "gpu 2"])
def test_pool_whose_name_no_block_can_have(name: str) -> None:
    """Nothing is made: its `WorkPoolAdapter` would be missing, and nobody told."""
    nowhere = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"})
    with nowhere, pytest.raises(SetupError, match=f"--pool {name}: .* lowercase letters, digits"):
        deploy(Target(pool=name, kind="docker"))
