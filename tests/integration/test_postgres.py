"""A farm whose server keeps its records in PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from farm_client import FarmClient, free_port
from jobs import save_job, small_job, with_commands
from pool_samples import job_of, rendered, two_runs
from postgres import Postgres, find_program, postgres
from prefect.settings import PREFECT_API_URL, temporary_settings
from processes_here import python, wait_for
from run_checks import STITCH, assert_failed, assert_film, is_final

from prefect_renderfarm.deployments.farm import Farm

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_program("initdb") is None, reason="PostgreSQL is not installed"),
]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    """Start a PostgreSQL server; stop it after the tests."""
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def api(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarmClient]:
    """Start a farm on it, as `make up` does when it is named in the environment."""
    farm = Farm(tmp_path_factory.mktemp("farm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", database.url)
        try:
            farm.up(port=free_port())
            yield FarmClient(farm)
        finally:
            farm.down()


def query(database: Postgres, words: str) -> Any:
    """Return what the database answers: one value."""

    async def ask() -> Any:
        connection = await asyncpg.connect(database.url.replace("+asyncpg", ""))
        try:
            return await connection.fetchval(words)
        finally:
            await connection.close()

    return asyncio.run(ask())


def test_job_on_two_pools(api: FarmClient, database: Postgres, tmp_path: Path) -> None:
    """A job is rendered in batches on one pool and assembled on another; all records are in it."""
    with temporary_settings({PREFECT_API_URL: api.farm.api_url}):
        two_runs(chunks_per_run=4).save("fours", overwrite=True, _sync=True)
    job = job_of(8, tmp_path, id="recorded")
    run = api.submit(
        "render-job/cloud", job=save_job(tmp_path, job), adapter="work-pool-adapter/fours", **STITCH
    )
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert_film(tmp_path, job)
    assert rendered(tmp_path) == dict.fromkeys(range(8), 1)
    names = {child.name for child in api.children(run)}
    assert names == {"merge recorded", "chunks 0-3 of recorded", "chunks 4-7 of recorded"}
    assert query(database, "SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED'") == 4
    assert list(api.farm.state.rglob("*.db")) == []


def test_database_restarts_during_a_job(
    api: FarmClient, database: Postgres, tmp_path: Path
) -> None:
    """A job outlives a crash of the database; its film is whole, and no chunk is paid for twice."""
    job = job_of(8, tmp_path, "--sleep 0.5", id="outlives")
    run = api.submit("render-job/cloud", job=save_job(tmp_path, job), watch=False, **STITCH)
    wait_for(lambda: rendered(tmp_path).total() >= 3, 90)
    database.stop()
    time.sleep(3)
    database.start()
    wait_for(lambda: is_final(api, run), 120)
    run = api.flow_run(run.id)
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert_film(tmp_path, job)
    assert rendered(tmp_path) == dict.fromkeys(range(8), 1)


def test_any_output_is_recorded(api: FarmClient, tmp_path: Path) -> None:
    """PostgreSQL refuses a text that holds a NUL: it comes to the log as an escape."""
    code = "import sys; print('before' + chr(0) + 'after'); sys.exit(1)"
    job = with_commands(small_job(id="nul"), {1: python(code)})
    run = api.submit("render-job/cloud", job=save_job(tmp_path, job), retries=0)
    assert_failed(run, "chunk 1", "exit code 1")
    wait_for(lambda: any(r"before\x00after" in line for line in api.logs(run)), 30)


def test_password_stays_with_the_server(api: FarmClient, database: Postgres) -> None:
    """Neither the workers nor any log or file of the farm knows the database's password."""
    assert database.password in str(api.farm.process("server").environ())
    for pool in ("cloud", "local"):
        worker = api.farm.process(f"worker-{pool}")
        family = [worker, *worker.children(recursive=True)]
        assert all(database.password not in str(process.environ()) for process in family)
    files = [path for path in api.farm.state.rglob("*") if path.is_file()]
    assert api.farm.state / "server.log" in files
    assert [path for path in files if database.password.encode() in path.read_bytes()] == []
