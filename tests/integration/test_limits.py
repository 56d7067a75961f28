"""A provider's limits: requests a second, requests at once, and jobs at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from farm_client import FarmClient
from http_samples import HttpWorker
from jobs import small_job
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect_aws.s3 import S3Bucket
from processes_here import wait_for
from repeating import repeating

from prefect_renderfarm.blocks import HttpAdapter, SetupError
from prefect_renderfarm.flows import render_chunks, render_job
from prefect_renderfarm.flows.rendering import preflight
from prefect_renderfarm.flows.rendering.preflight import job_slot


@pytest.mark.usefixtures("api")
def test_remote_workers_need_a_storage(tmp_path: Path) -> None:
    """A job whose chunks could not come home is refused before any request is sent."""
    adapter = HttpAdapter(url="http://127.0.0.1:9")
    for start in (render_job, render_chunks):
        with pytest.raises(SetupError, match=r"HttpAdapter do not see the job folder.*storage"):
            start(small_job(), adapter=adapter, job_dir=tmp_path)  # type: ignore[operator]


def test_who_waits_for_a_slot_says_for_whom(
    api: FarmClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in so many seconds; the holder is the run that the server's events tell of."""
    monkeypatch.setattr(preflight, "_TELL_SECONDS", 1.0)
    with SyncPrefectClient(api.farm.api_url) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="one", limit=1))
    adapter = HttpAdapter(url="http://127.0.0.1:9", concurrency_limit="one")
    told = "waiting for a slot of limit 'one': 1 of 1 are held, by 'holder'; that of a run that was"
    taken = threading.Event()

    def wait_for_it() -> None:
        with job_slot(adapter):
            taken.set()

    @flow(flow_run_name="holder")
    def hold() -> None:
        with ThreadPoolExecutor(1) as pool:
            with job_slot(adapter):
                waiting = pool.submit(wait_for_it)
                wait_for(lambda: told in caplog.text, 60)
                assert not taken.is_set()
            waiting.result(60)

    hold()
    assert taken.is_set()


@pytest.mark.long
def test_jobs_share_a_concurrency_limit(
    api: FarmClient, http_worker: HttpWorker, bucket: S3Bucket, tmp_path: Path
) -> None:
    """A job takes one slot of the adapter's limit, and gives it back; a wrong name is refused."""
    adapter = http_worker.adapter(concurrency_limit="provider", max_in_flight=1)
    options = {"adapter": adapter, "storage": bucket, "job_dir": tmp_path, "merge": False}
    with pytest.raises(SetupError, match=r"concurrency_limit 'provider' is not on this server"):
        render_job(small_job(), **options)  # type: ignore[arg-type]
    with SyncPrefectClient(api.farm.api_url) as client:
        created = GlobalConcurrencyLimitCreate(name="provider", limit=1)
        client.create_global_concurrency_limit(created)
        seen: list[int] = []

        def watch() -> None:
            seen.append(client.read_global_concurrency_limit_by_name("provider").active_slots)

        with repeating(watch, 0.05):
            report = render_job(small_job(), **options)  # type: ignore[arg-type]
        assert len(report.chunks) == 3  # type: ignore[union-attr]
        assert max(seen) == 1
        assert client.read_global_concurrency_limit_by_name("provider").active_slots == 0
