"""Start a run from the UI's form in a real browser, and photograph what a user sees.

Needs Debian's `chromium` and the Python package `playwright` (see CONTRIBUTING.md). The farm of
`make up` must be running. Fails unless the film that is started from the form completes; prints how
many clicks that takes.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from playwright.sync_api import Locator, Page, Route, sync_playwright
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
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
    label = page.locator("label", has_text=re.compile(f"^{name}( |$)"))
    return page.locator("div.group", has=label).last


class Person:
    """Somebody with a mouse and a keyboard, whose clicks are counted."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.clicks = 0

    def click(self, target: Locator) -> None:
        """Click on something."""
        self.clicks += 1
        target.click()

    def fill(self, target: Locator, text: str) -> None:
        """Click into a field and type."""
        self.click(target)
        target.press_sequentially(text)

    def start_a_film(self, ui: str, job_file: Path, film: str) -> None:
        """Go from the UI's first page to the form, fill in two fields, and submit them."""
        page = self._page
        page.goto(ui)
        self.click(page.get_by_role("link", name="Deployments", exact=True))
        row = page.locator("tr", has_text="render-job")
        self.click(row.get_by_role("link", name="cloud", exact=True).first)
        self.click(page.get_by_role("button", name="Run", exact=True))
        self.click(page.get_by_text("Custom run"))
        self.fill(parameter(page, "job").locator("textarea"), str(job_file))
        output = parameter(page, "output_file")
        self.click(output.get_by_role("tab", name="path", exact=True))
        self.fill(output.locator("input, textarea").last, film)
        for name in ("stitcher", "adapter", "storage", "merge_adapter"):
            if parameter(page, name).get_by_role("tab").count() < 2:
                raise SystemExit(f"parameter {name} shows no choice of blocks")


def main() -> None:
    """Start a film from the form, watch it, then one that fails; take the pictures."""
    farm = Farm(ROOT / ".farm")
    ui = farm.api_url.removesuffix("/api")
    PICTURES.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.gettempdir()) / "renders"
    shutil.rmtree(folder, ignore_errors=True)  # else nothing is left to render
    folder.mkdir(parents=True)
    job_file = folder / "demo.json"
    job = demo_job()
    job_file.write_text(job.to_json())
    with temporary_settings({PREFECT_API_URL: farm.api_url}):
        S3Bucket(bucket_name="renders").save("renders", overwrite=True)
    with SyncPrefectClient(farm.api_url) as client, sync_playwright() as playwright:
        deployment = client.read_deployment_by_name("render-job/cloud")
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.route(lambda url: not url.startswith(ui), serve_logo)

        def picture(name: str, height: int) -> None:
            page.set_viewport_size({"width": 1440, "height": height})
            page.wait_for_timeout(1500)
            page.screenshot(path=PICTURES / f"{name}.png")

        def picture_of_job(name: str, run: FlowRun, height: int) -> None:
            [shown] = [item for item in artifacts(client, run) if item["type"] == "markdown"]
            page.goto(f"{ui}/v2/artifacts/artifact/{shown['id']}")
            page.wait_for_selector("h1")
            picture(name, height)

        page.goto(f"{ui}/v2/blocks/catalog")
        page.get_by_placeholder(re.compile("search", re.IGNORECASE)).first.fill("stitcher")
        picture("block-catalog", 560)
        halfway = re.compile("[3-9] of 10 chunks done")
        before = len(runs_of(client, deployment.id))
        person = Person(page)
        person.start_a_film(ui, job_file, "demo.mp4")
        picture("run-form", 1180)
        person.click(page.get_by_role("button", name="Submit", exact=True))
        deadline = time.monotonic() + 60
        while len(runs := runs_of(client, deployment.id)) == before:
            if time.monotonic() > deadline:
                raise SystemExit("the form started no run")
            page.wait_for_timeout(200)
        run = runs[0]
        print(f"started from the form by {person.clicks} clicks:", run.id)
        while not any(halfway.search(str(item["data"])) for item in artifacts(client, run)):
            time.sleep(0.2)
        picture_of_job("run-in-progress", run, 760)
        run = wait_for_end(client, run)
        if run.state is None or not run.state.is_completed():
            raise SystemExit(f"the run ended as {run.state}")
        picture_of_job("report", run, 1000)
        page.goto(f"{ui}/v2/runs/flow-run/{run.id}")
        picture("run-completed", 900)
        chunk = job.chunks[4]
        wrong = chunk.model_copy(update={"command": chunk.command.replace("libx264", "libx265x")})
        chunks = (*job.chunks[:4], wrong, *job.chunks[5:])
        failing = job.model_copy(update={"id": "failing", "chunks": chunks}).to_json()
        given = deployment.parameters | {"job": failing, "job_dir": str(folder / "failing")}
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters=given | {"output_file": "film.mp4"}
        )
        picture_of_job("run-failed", wait_for_end(client, run), 760)
        browser.close()


def runs_of(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """Return the deployment's flow runs that have begun or were asked for, the newest first."""
    filters = FlowRunFilter.model_validate(
        {"deployment_id": {"any_": [deployment]}, "state": {"name": {"not_any_": ["Scheduled"]}}}
    )
    by_start = FlowRunSort.EXPECTED_START_TIME_DESC
    return client.read_flow_runs(flow_run_filter=filters, sort=by_start)


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
