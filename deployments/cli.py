"""The command `renderfarm`: a farm, jobs and films, from a terminal.

A command uses the server of PREFECT_API_URL; without it the farm that `renderfarm up` started in
this folder, or in one above it; without that, the server of Prefect's current profile.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import yaml
from cyclopts import App, Parameter

from prefect_renderfarm.deployments.farm import POOLS, Farm, no_answer

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

STATE = Path(".farm")
# Between two looks at a run: a twentieth of how long they have been going on.
_LEAST_SECONDS, _MOST_SECONDS = 0.5, 10.0
_PLAIN_SECONDS = 5.0  # between two lines, where there is no terminal
# What Prefect writes in front of an error's text.
_PREFIX = re.compile(r"^Flow run encountered an exception: (\w+: )?")
_PAGE = 200  # the server returns at most this many items
# Words of a command that a shell takes as they are; the braces are the template's.
_PLAIN_WORD = re.compile(r"[\w@%+=:,./{}\[\]-]+")

app = App(name="renderfarm", help=__doc__.partition("\n")[0])
StateFolder = Annotated[Path, Parameter(help="The folder of the farm's state.")]
JsonLines = Annotated[bool, Parameter(name="--json", negative="")]


class Refused(Exception):
    """What a command cannot do, in one line."""


@app.command
def up(*, port: int | None = None, api_url: str | None = None, state: StateFolder = STATE) -> None:
    """Start a farm on this machine: a server, the pools `cloud` and `local`, their workers.

    Args:
        port: The server's port. Default: 4200, else any that is free.
        api_url: Use this Prefect server instead of starting one.
        state: The folder of the farm's state.
    """
    farm = Farm(state)
    farm.up(port=port, api_url=api_url, tell=partial(print, flush=True))
    print(f"UI:  {farm.api_url.removesuffix('/api')}")
    print("`renderfarm` finds this farm from here. For `prefect`:")
    print(f"  export PREFECT_API_URL={farm.api_url}")


@app.command
def down(*, state: StateFolder = STATE) -> None:
    """Stop the farm that `renderfarm up` started."""
    print("stopped:", ", ".join(Farm(state).down()) or "nothing was running")


@app.command
def status(*, state: StateFolder = STATE) -> int:
    """Say whether the farm runs, and where."""
    farm = Farm(state)
    if not farm.running():
        print(f"not running: start it with `renderfarm up` (its state is in {farm.state})")
        return 1
    print(f"running: {farm.api_url.removesuffix('/api')}, with workers for {' and '.join(POOLS)}")
    return 0


@app.command
def plan(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    frames: int | None = None,
    fps: str | None = None,
    chunks: int | None = None,
    chunk_frames: int | None = None,
    start_frame: int | None = None,
    chunk_file: str | None = None,
    id: str | None = None,  # noqa: A002 -- the job's id
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
) -> None:
    """Write a job file: cut a film into chunks that one command template renders.

    Args:
        command: The command of a chunk, behind `--`, with {start}, {end} (the frame after the
            last), {last}, {count}, {id} and {output}.
        output: The job file.
        frames: Number of frames of the film.
        fps: Frames a second: a number, or a fraction such as 30000/1001.
        chunks: Number of chunks. This, or chunk_frames.
        chunk_frames: Frames in a chunk.
        start_frame: Number of the film's first frame. Default: 0.
        chunk_file: The file of a chunk, relative to the job file's folder. Default:
            chunks/{id:05d}.mp4.
        id: Name of the job. Default: that of the job file.
        from_: A YAML file with parameters of `plan_job`, such as total_frames and
            command_template; options count more.
    """
    from prefect_renderfarm.blocks.errors import JobError
    from prefect_renderfarm.flows.jobs.plan import plan_job

    given = {
        "total_frames": frames, "fps": fps, "chunks": chunks, "chunk_frames": chunk_frames,
        "start_frame": start_frame, "output_template": chunk_file, "id": id,
        "command_template": " ".join(map(_word, command)) or None,
    }  # fmt: skip
    found = {"id": output.stem} | (_read_yaml(from_) if from_ else {})
    found |= {name: value for name, value in given.items() if value is not None}
    if not found.get("command_template"):
        raise Refused("no command: write it behind `--`, with {start}, {last} and {output} in it")
    for name, option in (("total_frames", "--frames"), ("fps", "--fps")):
        if name not in found:
            raise Refused(f"the plan has no {name}: give {option}")
    try:
        inspect.signature(plan_job).bind(**found)
        job = plan_job(**found)
    except (JobError, TypeError) as error:
        raise Refused(str(error)) from None
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(job.to_json() + "\n", encoding="utf-8")
    print(
        f"{output}: {len(job.chunks)} chunks, {job.metadata.total_frames} frames at "
        f"{job.metadata.rate} a second"
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Refused(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise Refused(f"{path}: write lines such as `total_frames: 240`")
    return data


def _word(word: str) -> str:
    return word if _PLAIN_WORD.fullmatch(word) else shlex.quote(word)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a run is given beside its job; blocks by `type/name`, or by a short name."""

    output: Annotated[str | None, Parameter(name=["--output", "-o"], help="The film.")] = None
    adapter: Annotated[
        str | None, Parameter(help="Where chunks run: local-adapter/default, or `local`.")
    ] = None
    stitcher: Annotated[
        str | None, Parameter(help="What assembles: remux-stitcher/default, or `remux`.")
    ] = None
    storage: Annotated[
        str | None, Parameter(help="What carries chunks between machines: s3-bucket/farm.")
    ] = None
    merge_adapter: Annotated[str | None, Parameter(help="Where the merge command runs.")] = None
    set_: Annotated[
        list[str] | None,
        Parameter(name="--set", negative="", help="Another parameter: --set retries=2."),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Following:
    """How a run is followed."""

    detach: Annotated[bool, Parameter(negative="", help="Return once the run is submitted.")] = (
        False
    )
    json_: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON lines.")] = False


@app.command
def check(job: str, *, choices: Choices = Choices()) -> int:
    """Check a job as a run does before it renders, without a run.

    Args:
        job: A job file, or an https:// or s3:// URL.
        choices: Blocks, film and other parameters.
    """
    with _server() as client:
        parameters = _parameters(client, job, choices)
        # Behind the choice of the server, which Prefect reads when it is imported.
        from prefect_renderfarm.blocks.errors import RenderFarmError
        from prefect_renderfarm.flows.render_job import check_job

        try:
            found = check_job(**parameters)
        except RenderFarmError as error:
            raise Refused(str(error)) from None
    print(f"right: {len(found.chunks)} chunks, {found.metadata.total_frames} frames")
    return 0


@app.command
def render(
    job: str,
    *,
    choices: Choices = Choices(),
    deployment: str = "render-job/cloud",
    following: Following = Following(),
) -> int:
    """Render a job and assemble its film; show how far it is. Ctrl-C cancels the run.

    Args:
        job: A job file, or an https:// or s3:// URL.
        choices: Blocks, film and other parameters.
        deployment: The deployment to run.
        following: How the run is followed.
    """
    with _server() as client:
        return _run(client, deployment, _parameters(client, job, choices), following)


@app.command
def assemble(
    job: str,
    *,
    choices: Choices = Choices(),
    deployment: str = "merge-job/local",
    following: Following = Following(),
) -> int:
    """Assemble the chunks of a job that were rendered before.

    Args:
        job: The job file, or the job's key in the storage.
        choices: Blocks, film and other parameters.
        deployment: The deployment to run.
        following: How the run is followed.
    """
    if choices.output is None:
        raise Refused("no film: name it with -o")
    with _server() as client:
        return _run(client, deployment, _parameters(client, job, choices), following)


@app.command
def deploy(
    *,
    pool: str | None = None,
    type_: Annotated[str, Parameter(name="--type")] = "process",
    variable: Annotated[list[str] | None, Parameter(negative="")] = None,
    notify: str | None = None,
) -> int:
    """Deploy to a server: blocks, work pools, deployments, automations. Again without harm.

    Args:
        pool: The work pool where chunks render. Default: as deployed before, at first cloud.
        type_: Its type: process, docker, ecs, kubernetes, or another that the server knows.
        variable: A job variable of the runs that render chunks, such as image=farm:1.
        notify: A notification block, such as slack-webhook/ops: it is told of films that are
            ready, of jobs that failed, and of slow chunks.
    """
    with _server():
        from prefect_renderfarm.blocks.errors import SetupError
        from prefect_renderfarm.deployments.deploy import Target
        from prefect_renderfarm.deployments.deploy import deploy as deploy_to

        try:
            pools = deploy_to(Target(pool, type_, _pairs("--variable", variable), notify), print)
        except SetupError as error:
            raise Refused(str(error)) from None
    print("Start the workers, where they are to run:")
    for name, kind in pools.items():
        print(f"  prefect worker start --pool {name} --type {kind}")
    return 0


@app.command
def jobs(*, limit: int = 20, json_: JsonLines = False) -> int:
    """List the latest runs of jobs: state, start, and what they came to.

    Args:
        limit: Number of runs, 200 at most.
        json_: Print JSON lines.
    """
    with _server() as client:
        for run in _runs_of(client, limit, flow_name="render-job"):
            _tell_run(run, as_json=json_)
    return 0


@app.command
def show(job: str, *, storage: str | None = None, json_: JsonLines = False) -> int:
    """Show what is there of a job: chunks, films, runs.

    Args:
        job: The job file; the job's id, to see its runs only; or, with a storage, its key.
        storage: What carries its chunks between machines.
        json_: Print JSON lines.
    """
    with _server() as client:
        name = job
        if Path(job).exists() or storage is not None:
            from prefect_renderfarm.blocks.errors import RenderFarmError
            from prefect_renderfarm.flows.state.job_state import open_job

            place = None if storage is None else _block(client, "storage", storage)
            try:
                state = open_job(_place(job) if place is None else job, place, None,
                                 rendered_before=True)  # fmt: skip
                done = state.objects.manifests(chunk.id for chunk in state.job.chunks)
                films = state.films()
            except RenderFarmError as error:
                raise Refused(str(error)) from None
            name = state.job.title
            frames = sum(result.frame_count for result in done.values())
            size = sum(result.size for result in done.values())
            lines = {
                "key": state.job.key,
                "chunks": f"{len(done)} of {len(state.job.chunks)} done, "
                f"{frames} of {state.job.metadata.total_frames} frames, {size:,} bytes",
                "films": ", ".join(map(str, films)) or "none",
            }
            print(json.dumps(lines) if json_ else "\n".join(f"{k}: {v}" for k, v in lines.items()))
        for run in _runs_of(client, 20, tag=f"job:{name}"):
            _tell_run(run, as_json=json_)
    return 0


@app.command
def clean(
    storage: str,
    *,
    job: str | None = None,
    older_than_days: float = 30.0,
    delete: Annotated[bool, Parameter(negative="")] = False,
    deployment: str = "clean-storage/local",
    following: Following = Following(),
) -> int:
    """Show what jobs left in a storage; delete what is old.

    Args:
        storage: The storage, such as s3-bucket/farm.
        job: The key of one job. Default: all jobs.
        older_than_days: The limit of age, in days.
        delete: Delete what is old; without it, nothing is deleted.
        deployment: The deployment to run.
        following: How the run is followed.
    """
    with _server() as client:
        parameters = {
            "storage": _block(client, "storage", storage), "job": job,
            "older_than_days": older_than_days, "dry_run": not delete,
        }  # fmt: skip
        return _run(client, deployment, parameters, following)


def _runs_of(
    client: SyncPrefectClient, limit: int, *, flow_name: str | None = None, tag: str | None = None
) -> list[FlowRun]:
    """Return the latest runs of a flow, or those with a tag, the last one first."""
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    by_flow = {"name": {"any_": [flow_name]}} if flow_name else {}
    by_run = {"tags": {"all_": [tag]}} if tag else {}
    return client.read_flow_runs(
        flow_filter=FlowFilter.model_validate(by_flow),
        flow_run_filter=FlowRunFilter.model_validate(by_run),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=limit,
    )  # fmt: skip


def _tell_run(run: FlowRun, *, as_json: bool) -> None:
    began = run.start_time or run.expected_start_time
    state, message = str(run.state_name), _message(run)
    if as_json:
        print(json.dumps({"run": run.name, "id": str(run.id), "state": state,
                          "began": str(began), "message": message}))  # fmt: skip
        return
    when = f"{began:%Y-%m-%d %H:%M:%S}" if began else ""
    print(f"{state:<10} {when:<19} {run.name}  {' '.join(message.split())}".rstrip())


def _message(run: FlowRun) -> str:
    return _PREFIX.sub("", (run.state.message if run.state else None) or "")


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    """Give a client of the server to use."""
    if "PREFECT_API_URL" not in os.environ:
        folders = [Path.cwd(), *Path.cwd().parents]
        known = (folder / STATE for folder in folders)
        state = next((each for each in known if (each / "address.json").exists()), None)
        if state is not None and (farm := Farm(state)).running():
            os.environ.update(farm.environment())
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    # At its end Prefect waits for events of blocks that were loaded, and says so.
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)
    if not (url := PREFECT_API_URL.value()):
        raise Refused("no server: start a farm with `renderfarm up`, or set PREFECT_API_URL")
    with get_client(sync_client=True) as client:
        try:
            client.count_flow_runs()  # which asks for the user, as a health check does not
        except (httpx.HTTPError, OSError) as error:
            raise Refused(no_answer(url, error)) from None
        yield client


def _parameters(client: SyncPrefectClient, job: str, choices: Choices) -> dict[str, Any]:
    """Return the parameters of a flow that were given."""
    is_key = choices.storage is not None and not Path(job).exists()
    if not (is_key or Path(job).is_absolute() or "://" in job or Path(job).exists()):
        raise Refused(f"job {job!r}: there is no such file in {str(Path.cwd())!r}")
    found: dict[str, Any] = {"job": job if is_key else _place(job)}
    stitcher = choices.stitcher
    if choices.output is not None:
        found["output_file"] = _place(choices.output)
        if stitcher is None and not _has_merge_command(job):
            stitcher = "remux"
    found["stitcher"] = None  # and not the deployment's
    blocks = {"adapter": choices.adapter, "stitcher": stitcher, "storage": choices.storage,
              "merge_adapter": choices.merge_adapter}  # fmt: skip
    for name, value in blocks.items():
        if value is not None:
            found[name] = _block(client, name, value)
    more = _pairs("--set", choices.set_)
    return found | {name.replace("-", "_"): value for name, value in more.items()}


def _pairs(option: str, given: list[str] | None) -> dict[str, Any]:
    """Return what an option's `name=value` words say; a value may be JSON."""
    found: dict[str, Any] = {}
    for word in given or []:
        name, equals, value = word.partition("=")
        if not equals:
            raise Refused(f"{option} {word}: write it as name=value")
        found[name] = value
        with suppress(ValueError):
            found[name] = json.loads(value)
    return found


def _place(text: str) -> str:
    """Return an absolute path for a relative one; URLs and keys of a storage as they are."""
    return text if re.match(r"\w+:", text) else str(Path(text).absolute())


def _has_merge_command(job: str) -> bool:
    """Return whether a job file has a merge command; what cannot be read, the run will say."""
    with suppress(OSError, ValueError):
        data = json.loads(Path(job).read_text(encoding="utf-8"))
        return isinstance(data, dict) and bool(data.get("mergeCommand", data.get("merge_command")))
    return "://" in job


def _block(client: SyncPrefectClient, parameter: str, name: str) -> str:
    """Return a saved block as `type/name`, by that, or by a short name that is clear."""
    kind = parameter.rpartition("_")[2]
    known: set[tuple[str, str]] = set()
    offset = 0
    while page := client.read_block_documents(limit=_PAGE, offset=offset):
        offset += len(page)
        known |= {(one.block_type.slug, one.name) for one in page if one.block_type and one.name}
    usable = sorted(each for each in known if kind == "storage" or each[0].endswith(f"-{kind}"))
    if tuple(name.split("/", 1)) in known:
        return name
    by_type = [each for each in usable if each[0] in (name, f"{name}-{kind}")]
    matches = [each for each in by_type if each[1] == "default"] or by_type
    matches = matches or [each for each in usable if each[1] == name]
    if len(matches) == 1:
        return "/".join(matches[0])
    shown = ", ".join("/".join(each) for each in matches or usable) or "none"
    what = "more than one block" if matches else "no block"
    raise Refused(f"{parameter} {name!r}: {what} has this name; saved are: {shown}")


def _run(
    client: SyncPrefectClient,
    deployment: str,
    parameters: dict[str, Any],
    following: Following,
) -> int:
    """Run a deployment, show it, and return the exit code."""
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    try:
        found = client.read_deployment_by_name(deployment)
    except ObjectNotFound:
        raise Refused(
            f"deployment {deployment!r} is not on this server: deploy it with `renderfarm deploy`"
        ) from None
    try:
        run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
    except PrefectHTTPStatusError as error:
        raise Refused(f"the server takes no such run: {error.response.text}") from None
    display = _Display(client, run, as_json=following.json_)
    if following.detach:
        display.tell(f"submitted: {run.name}, {display.page}", id=str(run.id))
        return 0
    with _cancelling(run, display):
        run = display.follow()
    return display.end(run)


@contextmanager
def _cancelling(run: FlowRun, display: _Display) -> Iterator[None]:
    """Cancel the run at the first Ctrl-C; leave at once at the second."""
    from prefect_renderfarm.blocks.runtime.prefect_api import end_run

    def cancel(*_: object) -> None:
        signal.signal(signal.SIGINT, leave)
        display.tell("cancelling; Ctrl-C again leaves at once")
        end = threading.Thread(target=end_run, args=[run.id, "cancelled by Ctrl-C"], daemon=True)
        end.start()

    def leave(*_: object) -> None:
        display.tell(f"left: the server still cancels the run; see {display.page}")
        os._exit(130)

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Display:
    """Shows a run: one line that changes in a terminal, else a line now and then."""

    def __init__(self, client: SyncPrefectClient, run: FlowRun, *, as_json: bool) -> None:
        from rich.console import Console

        self._client = client
        self._run = run
        self._json = as_json
        self._console = Console(soft_wrap=True, highlight=False)
        self._live = self._console.is_terminal and not as_json
        self._seen: set[UUID] = set()
        self._children: dict[UUID, str] = {}
        self._since: Any = None  # of the last log entry
        ui = str(client.api_url).rstrip("/").removesuffix("/api")
        self.page = f"{ui}/runs/flow-run/{run.id}"

    def tell(self, line: str, **more: Any) -> None:
        """Print a line of its own."""
        if self._json:
            print(json.dumps({"message": line, **more}), flush=True)
        else:
            self._console.print(line, markup=False)

    def follow(self) -> FlowRun:
        """Show the run until it has ended, and return it."""
        from rich.live import Live
        from rich.text import Text

        from prefect_renderfarm.blocks.runtime.run_events import run_events

        shown, shown_at, began = "", 0.0, time.monotonic()
        live_line = Live(console=self._console, auto_refresh=False, transient=True)
        with live_line as live, run_events(run=self._run.id) as wait:
            while True:
                run, now = self._look()
                if self._live:
                    live.update(Text(now), refresh=True)
                elif now != shown and time.monotonic() - shown_at >= _PLAIN_SECONDS:
                    self.tell(now, state=run.state_name)
                    shown, shown_at = now, time.monotonic()
                if run.state is not None and run.state.is_final():
                    return run
                age = time.monotonic() - began
                wait(min(max(age / 20, _LEAST_SECONDS), _MOST_SECONDS))

    def _look(self) -> tuple[FlowRun, str]:
        """Return the run as it is now, and the line that says so; tell its new warnings."""
        from prefect_renderfarm.blocks.runtime.prefect_api import is_away

        try:
            self._run = self._client.read_flow_run(self._run.id)
            for line in self._warnings():
                self.tell(line)
            return self._run, self._line(self._run)
        except Exception as error:
            if not is_away(error):
                raise
            return self._run, "the server does not answer; the run goes on without it"

    def end(self, run: FlowRun) -> int:
        """Say how the run ended, and return the exit code."""
        assert run.state is not None  # noqa: S101 -- it is final
        message = _message(run)
        if run.state.is_completed():
            self.tell(message or "done", state="COMPLETED", run=str(run.id))
            return 0
        word = "cancelled" if run.state.is_cancelled() else "failed"
        self.tell(f"{word}: {message}", state=str(run.state_type), run=str(run.id))
        self.tell(f"see {self.page}")
        return 130 if run.state.is_cancelled() else 1

    def _line(self, run: FlowRun) -> str:
        """Return what a run does now, in a line."""
        from prefect_renderfarm.flows.runs.waiting import why_waiting

        seconds = run.total_run_time.total_seconds() or run.estimated_run_time.total_seconds()
        parts = [f"{run.name}: {str(run.state_name).lower()}"]
        if run.start_time is None and run.state is not None and not run.state.is_final():
            parts.append(why_waiting(self._client, run))
        if run.state is not None and run.state.is_running():
            parts += [f"{seconds:.0f} s", *self._progress()]
        return ", ".join(parts)

    def _progress(self) -> list[str]:
        """Return the progress of the run and of those it has started."""
        from prefect.client.schemas.filters import (
            ArtifactFilter,
            ArtifactFilterFlowRunId,
            ArtifactFilterType,
            FlowRunFilter,
            FlowRunFilterParentFlowRunId,
        )

        mine = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[self._run.id]))
        for child in self._client.read_flow_runs(flow_run_filter=mine):
            if child.name.startswith("merge"):
                self._children[child.id] = child.name
        artifacts = self._client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[self._run.id, *self._children]),
                type=ArtifactFilterType(any_=["progress"]),
            )
        )
        return [str(each.description) for each in reversed(artifacts) if each.description]

    def _warnings(self) -> list[str]:
        """Return the warnings that the run has logged since the last call."""
        from prefect.client.schemas.filters import (
            LogFilter,
            LogFilterFlowRunId,
            LogFilterLevel,
            LogFilterTimestamp,
        )

        logs = self._client.read_logs(
            LogFilter(
                flow_run_id=LogFilterFlowRunId(any_=[self._run.id, *self._children]),
                level=LogFilterLevel(ge_=logging.WARNING, le_=logging.WARNING),
                timestamp=LogFilterTimestamp(after_=self._since),
            )
        )
        new = [log for log in logs if log.id not in self._seen]
        self._seen.update(log.id for log in new)
        self._since = max((log.timestamp for log in new), default=self._since)
        return [f"{log.timestamp:%H:%M:%S} {log.message}" for log in new]


def main() -> None:
    """Run the command, and end with its exit code."""
    # Prefect would tell of its telemetry among the lines of each command.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        result = app(result_action="return_value")
    except Refused as error:
        print(f"renderfarm: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    main()
