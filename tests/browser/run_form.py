"""Start a run from the UI's form in a real browser, and photograph what a user sees.

Needs Debian's `chromium` and the Python package `playwright` (see CONTRIBUTING.md). The farm of
`make up` must be running. Fails unless every block parameter shows a dropdown and the run that is
started from the form completes.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, Route, sync_playwright
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_aws.s3 import S3Bucket

from prefect_renderfarm.blocks.base import LOGO_URL
from prefect_renderfarm.deployments.demo.run import demo_job
from prefect_renderfarm.deployments.farm import Farm

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES = ROOT / "docs" / "pictures"
# A picture of a block type that this project does not make, instead of one from the network.
BLANK = (
    b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 1 1'><rect width='1' height='1'/></svg>"
)


def serve_logo(route: Route) -> None:
    """Answer requests that would leave this machine: our logo from the working copy."""
    if route.request.url == LOGO_URL:
        route.fulfill(path=ROOT / "docs" / "logo.png")
    else:
        route.fulfill(body=BLANK, content_type="image/svg+xml")


def parameter(page: Page, name: str) -> Locator:
    """Return the part of the form that belongs to a parameter."""
    label = page.locator(".schema-form-property__label", has_text=re.compile(f"^{name}( |$)"))
    return page.locator(".schema-form-property", has=label).first


def choose_block(page: Page, name: str, kind: str, document: str) -> None:
    """Choose a saved block from a parameter's dropdown."""
    part = parameter(page, name)
    part.get_by_role("button", name=kind, exact=True).click()
    # Prefect's dropdowns, on every page, open by keyboard but not by a mouse click in Chromium 156.
    part.locator(".p-select-button__control").press("Space")
    page.locator(".p-pop-over-content").get_by_text(document, exact=True).click()


def fill_form(page: Page, job_file: Path) -> None:
    """Fill in the form as a person would, and check that each block parameter has a dropdown."""
    parameter(page, "job").locator("textarea").fill(str(job_file))
    choose_block(page, "adapter", "LocalAdapter", "default")
    choose_block(page, "stitcher", "RemuxStitcher", "lossless-sound")
    film = parameter(page, "output_file")
    film.get_by_role("button", name="path", exact=True).click()
    film.locator("input, textarea").last.fill("demo.mp4")
    for name in ("adapter", "merge_adapter", "stitcher", "storage"):
        if parameter(page, name).locator(".p-select").count() != 1:
            raise SystemExit(f"parameter {name} shows no dropdown of saved blocks")


def main() -> None:
    """Fill in the form, start the run, wait for its end, take the pictures."""
    farm = Farm(ROOT / ".farm")
    ui = farm.api_url.removesuffix("/api")
    PICTURES.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.gettempdir()) / "renders"
    folder.mkdir(parents=True, exist_ok=True)
    job_file = folder / "demo.json"
    job_file.write_text(demo_job().to_json())
    with temporary_settings({PREFECT_API_URL: farm.api_url}):
        S3Bucket(bucket_name="renders").save("renders", overwrite=True)
    with SyncPrefectClient(farm.api_url) as client, sync_playwright() as playwright:
        deployment = client.read_deployment_by_name("render-job/cloud")
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.route(lambda url: not url.startswith(ui), serve_logo)

        def picture(name: str, height: int) -> None:
            page.set_viewport_size({"width": 1280, "height": height})
            page.wait_for_timeout(1500)
            page.screenshot(path=PICTURES / f"{name}.png")

        page.goto(f"{ui}/blocks/catalog")
        page.get_by_placeholder(re.compile("search", re.IGNORECASE)).first.fill("stitcher")
        picture("block-catalog", 560)
        page.goto(f"{ui}/deployments/deployment/{deployment.id}/run")
        page.wait_for_selector("text=merge_adapter")
        fill_form(page, job_file)
        page.locator("h3", has_text="Parameters").click()
        picture("run-form", 1180)
        before = newest_run(client, deployment)
        page.get_by_role("button", name="Submit", exact=True).click()
        deadline = time.monotonic() + 30
        while (run := newest_run(client, deployment)).id == before.id:
            if time.monotonic() > deadline:
                raise SystemExit("the form started no run")
            page.wait_for_timeout(200)
        print("started from the form:", run.id)
        page.goto(f"{ui}/runs/flow-run/{run.id}")
        time.sleep(20)
        picture("run-in-progress", 900)
        run = wait_for_end(client, run)
        if run.state is None or not run.state.is_completed():
            raise SystemExit(f"the run ended as {run.state}")
        page.reload()
        picture("run-completed", 900)
        [report] = [
            item for item in artifacts(client, run) if item["key"] and item["type"] == "markdown"
        ]
        page.goto(f"{ui}/artifacts/artifact/{report['id']}")
        picture("report", 1180)
        browser.close()


def newest_run(client: SyncPrefectClient, deployment: DeploymentResponse) -> FlowRun:
    """Return the deployment's flow run that was created last."""
    filters = FlowRunFilter(deployment_id={"any_": [deployment.id]})
    by_start = FlowRunSort.EXPECTED_START_TIME_DESC
    return client.read_flow_runs(flow_run_filter=filters, sort=by_start, limit=1)[0]


def wait_for_end(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """Wait until a run is final."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        run = client.read_flow_run(run.id)
        if run.state is not None and run.state.is_final():
            break
        time.sleep(0.5)
    return run


def artifacts(client: SyncPrefectClient, run: FlowRun) -> list[dict[str, Any]]:
    """Return the artifacts of a run."""
    body = {"artifacts": {"flow_run_id": {"any_": [str(run.id)]}}}
    found: list[dict[str, Any]] = client._client.post("/artifacts/filter", json=body).json()
    return found


if __name__ == "__main__":
    main()
