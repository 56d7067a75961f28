"""The command `renderfarm`: a farm, jobs and films, from a terminal.

A command uses the server of PREFECT_API_URL; without it the farm that `renderfarm up` started in
this folder, or in one above it; without that, the server of Prefect's current profile.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import yaml
from cyclopts import App, Parameter

from prefect_renderfarm.deployments.farm import POOLS, Farm, no_answer

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

STATE = Path(".farm")
# Between two looks at a run: a twentieth of how long they have been going on.
_LEAST_SECONDS, _MOST_SECONDS = 0.5, 10.0
_PLAIN_SECONDS = 5.0  # between two lines, where there is no terminal
# What Prefect writes in front of an error's text.
_PREFIX = re.compile(r"^Flow run encountered an exception: (\w+: )?")
_PAGE = 200  # the server returns at most this many items
# Words of a command that a shell takes as they are; the braces are the template's.
_PLAIN_WORD = re.compile(r"[\w@%+=:,./{}\[\]-]+")

app = App(
    name="renderfarm", help=__doc__.partition("\n")[0], default_parameter=Parameter(negative="")
)
StateFolder = Annotated[Path, Parameter(help="The folder of the farm's state.")]


class Refused(SystemExit):
    """What a command cannot do, in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"renderfarm: {reason}")


@app.command
def up(*, port: int | None = None, api_url: str | None = None, state: StateFolder = STATE) -> None:
    """Start a farm on this machine: a server, the pools `cloud` and `local`, their workers.

    Args:
        port: The server's port. Default: 4200, else any that is free.
        api_url: Use this Prefect server instead of starting one.
        state: The folder of the farm's state.
    """
    farm = Farm(state)
    farm.up(port=port, api_url=api_url)
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
    output: Annotated[Path, Parameter(alias="-o")],
    frames: int | None = None,
    fps: str | None = None,
    chunks: int | None = None,
    chunk_frames: int | None = None,
    start_frame: int | None = None,
    chunk_file: str | None = None,
    id: str | None = None,  # noqa: A002 -- the job's id
    from_: Path | None = None,
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
    """What a run is given beside its job; blocks by `type/name`, or by a short name.

    Attributes:
        output: The film.
        adapter: Where chunks run: local-adapter/default, or `local`.
        stitcher: What assembles: remux-stitcher/default, or `remux`.
        storage: What carries chunks between machines: s3-bucket/farm.
        merge_adapter: Where the merge command runs.
        set_: Another parameter: --set retries=2.
    """

    output: Annotated[str | None, Parameter(alias="-o")] = None
    adapter: str | None = None
    stitcher: str | None = None
    storage: str | None = None
    merge_adapter: str | None = None
    set_: list[str] | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Following:
    """How a run is followed.

    Attributes:
        detach: Return once the run is submitted.
        json_: Print JSON lines.
    """

    detach: bool = False
    json_: bool = False


@app.command
def check(job: str, *, choices: Choices = Choices()) -> None:
    """Check a job as a run does before it renders, without a run.

    Args:
        job: A job file, or an https:// or s3:// URL.
        choices: Blocks, film and other parameters.
    """
    with _server() as client:
        parameters = _parameters(client, job, choices)
        # Behind the choice of the server, which Prefect reads when it is imported.
        from prefect_renderfarm.flows.render_job import check_job

        found = check_job(**parameters)
    print(f"right: {len(found.chunks)} chunks, {found.metadata.total_frames} frames")


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
    type_: str = "process",
    variable: list[str] | None = None,
    notify: str | None = None,
) -> None:
    """Deploy to a server: blocks, work pools, deployments, automations. Again without harm.

    Args:
        pool: The work pool where chunks render. Default: as deployed before, at first cloud.
        type_: Its type: process, docker, ecs, kubernetes, or another that the server knows.
        variable: A job variable of the runs that render chunks, such as image=farm:1.
        notify: A notification block, such as slack-webhook/ops: it is told of films that are
            ready, of jobs that failed, and of slow chunks.
    """
    with _server():
        import prefect_renderfarm.deployments.deploy as deploying

        target = deploying.Target(pool, type_, _pairs("--variable", variable), notify)
        pools = deploying.deploy(target)
    print("Start the workers, where they are to run:")
    for name, kind in pools.items():
        print(f"  prefect worker start --pool {name} --type {kind}")


@app.command
def jobs(*, limit: int = 20, json_: bool = False) -> None:
    """List the latest runs of jobs: state, start, and what they came to.

    Args:
        limit: Number of runs, 200 at most.
        json_: Print JSON lines.
    """
    with _server() as client:
        _list_runs(client, json_, limit, flow={"name": {"any_": ["render-job"]}}, run={})


@app.command
def show(job: str, *, storage: str | None = None, json_: bool = False) -> None:
    """Show what is there of a job: chunks, films, runs.

    Args:
        job: The job file; the job's id, to see its runs only; or, with a storage, its key.
        storage: What carries its chunks between machines.
        json_: Print JSON lines.
    """
    with _server() as client:
        name = job
        if Path(job).exists() or storage is not None:
            from prefect_renderfarm.flows.state.job_state import open_job

            place = None if storage is None else _block(client, "storage", storage)
            named = _place(job) if place is None else job
            state = open_job(named, place, None, rendered_before=True)
            done = state.objects.manifests(chunk.id for chunk in state.job.chunks)
            name = state.job.title
            frames = sum(result.frame_count for result in done.values())
            size = sum(result.size for result in done.values())
            lines = {
                "key": state.job.key,
                "chunks": f"{len(done)} of {len(state.job.chunks)} done, "
                f"{frames} of {state.job.metadata.total_frames} frames, {size:,} bytes",
                "films": ", ".join(map(str, state.films())) or "none",
            }
            print(json.dumps(lines) if json_ else "\n".join(f"{k}: {v}" for k, v in lines.items()))
        _list_runs(client, json_, 20, flow={}, run={"tags": {"all_": [f"job:{name}"]}})


@app.command
def clean(
    storage: str,
    *,
    job: str | None = None,
    older_than_days: float = 30.0,
    delete: bool = False,
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


def _list_runs(
    client: SyncPrefectClient, as_json: bool, limit: int, flow: dict[str, Any], run: dict[str, Any]
) -> None:
    """Print the latest runs that filters let through, the last one first."""
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    runs = client.read_flow_runs(
        flow_filter=FlowFilter.model_validate(flow),
        flow_run_filter=FlowRunFilter.model_validate(run),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=limit,
    )  # fmt: skip
    for each in runs:
        began = each.start_time or each.expected_start_time
        state, line = str(each.state_name), _message(each)
        if not as_json:
            when = f"{began:%Y-%m-%d %H:%M:%S}" if began else ""
            line = f"{state:<10} {when:<19} {each.name}  {' '.join(line.split())}".rstrip()
        _tell(as_json, line, run=each.name, id=str(each.id), state=state, began=str(began))


def _message(run: FlowRun) -> str:
    return _PREFIX.sub("", (run.state.message if run.state else None) or "")


def _tell(as_json: bool, line: str, **more: Any) -> None:
    """Print a line; as JSON, with what else is known."""
    print(json.dumps({"message": line, **more}) if as_json else line, flush=True)


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    """Give a client of the server to use."""
    if "PREFECT_API_URL" not in os.environ:
        farms = (Farm(folder / STATE) for folder in (Path.cwd(), *Path.cwd().parents))
        if farm := next(filter(Farm.running, farms), None):
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
        try:
            yield client
        except Exception as error:
            from prefect_renderfarm.blocks.errors import RenderFarmError

            if isinstance(error, RenderFarmError):
                raise Refused(str(error)) from None
            raise


def _parameters(client: SyncPrefectClient, job: str, choices: Choices) -> dict[str, Any]:
    """Return the parameters of a flow that were given."""
    is_key = choices.storage is not None and not Path(job).exists()
    if not (is_key or Path(job).is_absolute() or "://" in job or Path(job).exists()):
        raise Refused(f"job {job!r}: there is no such file in {str(Path.cwd())!r}")
    found: dict[str, Any] = {"job": job if is_key else _place(job)}
    found["stitcher"] = None  # and not the deployment's
    if choices.output is not None:
        found["output_file"] = _place(choices.output)
        if choices.stitcher is None and not _has_merge_command(job):
            choices = replace(choices, stitcher="remux")
    for name in ("adapter", "stitcher", "storage", "merge_adapter"):
        if (value := getattr(choices, name)) is not None:
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
    known: list[str] = []
    while page := client.read_block_documents(limit=_PAGE, offset=len(known)):
        known += [f"{one.block_type.slug if one.block_type else ''}/{one.name}" for one in page]
    if name in known:
        return name
    kind = parameter.rpartition("_")[2]
    types = (name, f"{name}-{kind}")
    usable = sorted(each for each in known if kind == "storage" or f"-{kind}/" in each)
    matches = (
        [each for each in usable if each in [f"{type_}/default" for type_ in types]]
        or [each for each in usable if each.partition("/")[0] in types]
        or [each for each in usable if each.endswith(f"/{name}")]
    )
    if len(matches) == 1:
        return matches[0]
    what = "more than one block" if matches else "no block"
    shown = ", ".join(matches or usable) or "none"
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
    page = f"{str(client.api_url).rstrip('/').removesuffix('/api')}/runs/flow-run/{run.id}"
    if following.detach:
        _tell(following.json_, f"submitted: {run.name}, {page}", id=str(run.id))
        return 0
    return _Display(client, run, page, following.json_).follow()


@dataclass
class _Display:
    """Shows a run: one line that changes in a terminal, else a line now and then."""

    client: SyncPrefectClient
    run: FlowRun
    page: str
    as_json: bool
    told: set[UUID] = field(default_factory=set)  # log entries
    since: datetime | None = None  # the last one
    merges: set[UUID] = field(default_factory=set)  # runs that the run has started

    def follow(self) -> int:
        """Show the run until it has ended, and return the exit code.

        The first Ctrl-C cancels the run, the second leaves at once.
        """
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        from prefect_renderfarm.blocks.runtime.prefect_api import end_run
        from prefect_renderfarm.blocks.runtime.run_events import run_events

        def cancel(*_: object) -> None:
            signal.signal(signal.SIGINT, leave)
            _tell(self.as_json, "cancelling; Ctrl-C again leaves at once")
            reason = "cancelled by Ctrl-C"
            threading.Thread(target=end_run, args=[self.run.id, reason], daemon=True).start()

        def leave(*_: object) -> None:
            _tell(self.as_json, f"left: the server still cancels the run; see {self.page}")
            os._exit(130)

        before = signal.signal(signal.SIGINT, cancel)
        console = Console(soft_wrap=True, highlight=False)
        shown, shown_at, began = "", 0.0, time.monotonic()
        live_line = Live(console=console, auto_refresh=False, transient=True)
        with ExitStack() as stack:
            stack.callback(signal.signal, signal.SIGINT, before)
            live = stack.enter_context(live_line)
            wait = stack.enter_context(run_events(run=self.run.id))
            while True:
                now = self._look()
                if console.is_terminal and not self.as_json:
                    live.update(Text(now), refresh=True)
                elif now != shown and time.monotonic() - shown_at >= _PLAIN_SECONDS:
                    _tell(self.as_json, now, state=self.run.state_name)
                    shown, shown_at = now, time.monotonic()
                if self.run.state is not None and self.run.state.is_final():
                    break
                age = time.monotonic() - began
                wait(min(max(age / 20, _LEAST_SECONDS), _MOST_SECONDS))
        return self._end(self.run.state)

    def _look(self) -> str:
        """Return the line that says what the run does now; tell its new warnings."""
        from prefect_renderfarm.blocks.runtime.prefect_api import is_away

        try:
            self.run = self.client.read_flow_run(self.run.id)
            self._tell_warnings()
            return self._line()
        except Exception as error:
            if not is_away(error):
                raise
            return "the server does not answer; the run goes on without it"

    def _end(self, state: State) -> int:
        """Say how the run ended, and return the exit code."""
        message, run = _message(self.run), str(self.run.id)
        if state.is_completed():
            _tell(self.as_json, message or "done", state="COMPLETED", run=run)
            return 0
        word, code = ("cancelled", 130) if state.is_cancelled() else ("failed", 1)
        _tell(self.as_json, f"{word}: {message}", state=str(state.type), run=run)
        _tell(self.as_json, f"see {self.page}")
        return code

    def _line(self) -> str:
        """Return what the run does now, in a line."""
        from prefect_renderfarm.flows.runs.waiting import why_waiting

        run = self.run
        seconds = run.total_run_time.total_seconds() or run.estimated_run_time.total_seconds()
        parts = [f"{run.name}: {str(run.state_name).lower()}"]
        if run.start_time is None and run.state is not None and not run.state.is_final():
            parts.append(why_waiting(self.client, run))
        if run.state is not None and run.state.is_running():
            parts += [f"{seconds:.0f} s", *self._progress()]
        return ", ".join(parts)

    def _progress(self) -> list[str]:
        """Return the progress of the run and of those it has started."""
        from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter

        mine = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [self.run.id]}})
        children = self.client.read_flow_runs(flow_run_filter=mine)
        self.merges.update(child.id for child in children if child.name.startswith("merge"))
        wanted = {
            "flow_run_id": {"any_": [self.run.id, *self.merges]}, "type": {"any_": ["progress"]}
        }  # fmt: skip
        found = self.client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(wanted))
        return [str(each.description) for each in reversed(found) if each.description]

    def _tell_warnings(self) -> None:
        """Tell the warnings that the run has logged since the last call."""
        from prefect.client.schemas.filters import LogFilter

        wanted = {
            "flow_run_id": {"any_": [self.run.id, *self.merges]},
            "level": {"ge_": logging.WARNING, "le_": logging.WARNING},
            "timestamp": {"after_": self.since},
        }
        for log in self.client.read_logs(LogFilter.model_validate(wanted)):
            if log.id not in self.told:
                self.told.add(log.id)
                self.since = log.timestamp
                _tell(self.as_json, f"{log.timestamp:%H:%M:%S} {log.message}")


def main() -> None:
    """Run the command, and end with its exit code."""
    # Prefect would tell of its telemetry among the lines of each command.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        app()
    except BrokenPipeError:  # nobody reads the lines any more, such as `head`
        os._exit(1)


if __name__ == "__main__":
    main()
