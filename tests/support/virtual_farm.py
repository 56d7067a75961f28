"""A farm that renders nothing: a storage, machines of a work pool, and a clock that never waits.

The coordinator is the real one. What it asks of the storage goes through boto3 and is answered at
the level of HTTP; of Prefect's server only the runs of `render-chunks` are played. `uncounted` has
the CPU time that the farm itself takes of the process.
"""

from __future__ import annotations

import functools
import heapq
import io
import itertools
import sys
import time
from bisect import bisect_right, insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid4
from xml.sax.saxutils import escape

import httpx
from botocore.awsrequest import AWSResponse
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Pending, Running
from prefect_aws import AwsCredentials
from prefect_aws.s3 import S3Bucket
from pydantic import SecretStr
from virtual_chunks import Times, manifest

from prefect_renderfarm.blocks import WorkPoolAdapter
from prefect_renderfarm.blocks.stitchers.base import ChunkRules
from prefect_renderfarm.blocks.storage.manifest import ChunkResult
from prefect_renderfarm.flows import RenderJob, plan_job
from prefect_renderfarm.flows.rendering import pool
from prefect_renderfarm.flows.rendering.attempts import Attempts, SlowChunks
from prefect_renderfarm.flows.state.job_state import JobState

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_LISTED = (
    "<Contents><Key>{}</Key><Size>{}</Size><LastModified>2026-12-01T00:00:00.000Z</LastModified>"
    "</Contents>"
)
_FOLDER = "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>"
_LIST = "<ListBucketResult><IsTruncated>{}</IsTruncated>{}</ListBucketResult>"
_NOTICED_SECONDS = 30.0  # until the server knows that a machine is gone
_END_SECONDS = 5.0  # until a run that is cancelled has ended


class Uncounted:
    """The CPU time of this process that is not the coordinator's."""

    seconds = 0.0
    _inside = False

    def __call__(self, call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """Let what a function takes not count."""

        @functools.wraps(call)
        def uncounted(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
            if self._inside:
                return call(*arguments, **options)
            self._inside, started = True, time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds += time.thread_time() - started
                self._inside = False

        return uncounted


uncounted = Uncounted()


class _Raw(io.BytesIO):
    """A body as urllib3 gives it."""

    def stream(self, *_: Any, **__: Any) -> Iterable[bytes]:
        yield self.read()


class VirtualStorage:
    """An S3 bucket in memory, for one storage block; counts the requests that come."""

    def __init__(self) -> None:
        key = SecretStr(uuid4().hex)  # its own client: boto3's are kept by their credentials
        self.block = S3Bucket(
            bucket_name="virtual",
            credentials=AwsCredentials(
                aws_access_key_id="virtual", aws_secret_access_key=key, region_name="us-east-1",
                aws_client_parameters={"endpoint_url": "http://127.0.0.1:9"},
            ),
        )  # fmt: skip
        self.block._block_document_name = "virtual"  # a saved one can be named to runs
        client: Any = self.block.credentials.get_s3_client()
        client.meta.events.register_first("before-send.s3", self._answer)
        self.requests: Counter[str] = Counter()
        self._objects: dict[str, bytes] = {}
        self._keys: list[str] = []  # in order

    def put(self, key: str, data: bytes = b"") -> None:
        """Write an object, as another machine does."""
        if key not in self._objects:
            insort(self._keys, key)
        self._objects[key] = data

    def get(self, key: str) -> bytes | None:
        """Return the bytes of an object; None if it does not exist."""
        return self._objects.get(key)

    def size(self) -> int:
        """Return the bytes that its objects take of the memory of this process."""
        containers = sys.getsizeof(self._objects) + sys.getsizeof(self._keys)
        return containers + sum(
            sys.getsizeof(key) + sys.getsizeof(data) for key, data in self._objects.items()
        )

    @uncounted
    def _answer(self, request: Any, **_: Any) -> AWSResponse:
        url = urlsplit(request.url)
        key = unquote(url.path).removeprefix("/virtual").lstrip("/")
        self.requests["LIST" if "list-type=2" in url.query else request.method] += 1
        status, body, headers = self._do(request, key, parse_qs(url.query))
        return AWSResponse(request.url, status, headers, _Raw(body))

    def _do(
        self, request: Any, key: str, query: Mapping[str, list[str]]
    ) -> tuple[int, bytes, dict[str, str]]:
        if "list-type" in query:
            return 200, self._list(query), {}
        if request.method == "PUT":
            if request.headers.get("If-None-Match") and key in self._objects:
                return 412, b"<Error><Code>PreconditionFailed</Code></Error>", {}
            body = request.body
            self.put(key, body.read() if hasattr(body, "read") else bytes(body))
            return 200, b"", {"ETag": '"none"'}
        if request.method == "POST":  # DeleteObjects
            for part in bytes(request.body).decode().split("<Key>")[1:]:
                name = part.partition("</Key>")[0]
                if self._objects.pop(name, None) is not None:
                    self._keys.remove(name)
            return 200, b"<DeleteResult/>", {}
        if (data := self._objects.get(key)) is None:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
        headers = {"Content-Length": str(len(data))}
        return 200, b"" if request.method == "HEAD" else data, headers

    def _list(self, query: Mapping[str, list[str]]) -> bytes:
        prefix, most = query.get("prefix", [""])[0], int(query["max-keys"][0])
        after = max(query.get("start-after", [""])[0], prefix[:-1])
        listed: list[str] = []
        at = bisect_right(self._keys, after)
        while at < len(self._keys) and len(listed) <= most:
            key = self._keys[at]
            if key > prefix and not key.startswith(prefix):
                break
            at += 1
            if key < prefix:
                continue
            folder, slash, _ = key[len(prefix) :].partition("/")
            if slash and "delimiter" in query:
                folder = f"{prefix}{folder}/"
                listed.append(_FOLDER.format(escape(folder)))
                at = bisect_right(self._keys, folder + "\U0010ffff")
            else:
                listed.append(_LISTED.format(escape(key), len(self._objects[key])))
        return _LIST.format(str(len(listed) > most).lower(), "".join(listed[:most])).encode()


class Clock:
    """Time that goes on only while somebody sleeps; what is due meanwhile is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now

    def at(self, seconds: float, call: Callable[[], None]) -> None:
        """Have something done in some seconds."""
        heapq.heappush(self._due, (self.now + seconds, next(self._number), call))

    @uncounted
    def sleep(self, seconds: float) -> None:
        """Let some seconds pass."""
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, call = heapq.heappop(self._due)
            call()
        self.now = end


@dataclass
class VirtualPool:
    """The machines of a work pool, and what Prefect's server says of the runs on them.

    Attributes:
        width: Number of machines: further runs wait, as those of a pool with such a limit do.
        start_seconds: Until the machine of a run is up.
        paid: Seconds that machines have rendered, lost and superfluous attempts included.
        attempts: The seconds of each attempt, in the order in which they began.
        published: How often a machine rendered each chunk to its end.
        started: Number of runs.
        refused: Number of starts of runs that were answered with 429.
    """

    clock: Clock
    storage: VirtualStorage
    state: JobState
    times: Times
    width: int
    start_seconds: float = 10.0
    paid: float = 0.0
    attempts: list[float] = field(default_factory=list)
    published: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    started: int = 0
    refused: int = 0
    runs: dict[UUID, FlowRun] = field(default_factory=dict)
    _busy: int = 0
    _waiting: deque[tuple[UUID, Callable[[], None]]] = field(default_factory=deque)
    _machines: set[UUID] = field(default_factory=set)  # runs that have one
    _begun: Counter[int] = field(default_factory=Counter)
    _current: dict[UUID, float] = field(default_factory=dict)  # when a run's attempt has begun
    _flow: UUID = field(default_factory=uuid4)

    def stand_in(self, replace: Callable[[object, str, object], object]) -> None:
        """Put the pool and its clock in the place of Prefect's server and of time."""
        retry = functools.partial(pool.retry, sleep=self.clock.sleep)
        for name, stand_in in (
            ("start_run", self.start_run), ("read_runs", self.read_runs), ("end_run", self.end_run),
            ("declare_crashed", self.end_run), ("time", self.clock), ("retry", retry),
        ):  # fmt: skip
            replace(pool, name, stand_in)

    @uncounted
    def start_run(self, _: str, parameters: Mapping[str, Any], **__: Any) -> FlowRun:
        """Start the machine of a run. See `prefect_api`."""
        if self.started % 100 == 99 and not self._busy:
            self._busy = 4  # answers, of which the last one is a run
        if self._busy > 1:
            self._busy -= 1
            self.refused += 1
            request = httpx.Request("POST", "http://server")
            answer = httpx.Response(429, request=request)
            raise PrefectHTTPStatusError("429", request=request, response=answer)
        self._busy = 0
        self.started += 1
        number = uuid4()
        self.runs[number] = self._run(number, Pending())
        todo = iter(list(parameters["chunk_ids"]))
        self._waiting.append((number, lambda: self._begin(number, todo, parameters)))
        self._fill()
        return self.runs[number]

    @uncounted
    def read_runs(self, ids: Iterable[UUID]) -> dict[UUID, FlowRun]:
        """Return how runs are. Whoever knows that a run has ended asks no more for it."""
        found = {number: self.runs[number] for number in ids if number in self.runs}
        for number, run in found.items():
            if run.state is not None and run.state.is_final():
                del self.runs[number]
        return found

    @uncounted
    def end_run(self, number: UUID, _: str) -> None:
        """Cancel a run."""
        if number not in self.runs:
            return
        self.runs[number] = self._run(number, Cancelling())
        self.clock.at(_END_SECONDS, lambda: self._end(number, Cancelled()))

    def _run(self, number: UUID, state: State[Any]) -> FlowRun:
        return FlowRun(
            id=number, flow_id=self._flow, name="chunks", state=state, state_type=state.type
        )

    def _goes_on(self, number: UUID) -> bool:
        state = self.runs[number].state if number in self.runs else None
        return state is not None and (state.is_pending() or state.is_running())

    def _end(self, number: UUID, state: State[Any]) -> None:
        self._settle(number)
        self.runs[number] = self._run(number, state)
        self._machines.discard(number)
        self._fill()

    def _fill(self) -> None:
        """Give free machines to the runs that wait."""
        while self._waiting and len(self._machines) < self.width:
            number, begin = self._waiting.popleft()
            if self._goes_on(number):
                self._machines.add(number)
                self.clock.at(self.start_seconds, begin)

    def _settle(self, number: UUID) -> None:
        self.paid += self.clock.now - self._current.pop(number, self.clock.now)

    def _begin(self, number: UUID, todo: Iterable[int], given: Mapping[str, Any]) -> None:
        if self._goes_on(number):
            self.runs[number] = self._run(number, Running())
            self._next(number, iter(todo), given, [])

    def _next(self, number: UUID, todo: Any, given: Mapping[str, Any], done: list[bytes]) -> None:
        """Have the next chunk of a run rendered; at the end, write what it has to tell."""
        root = self.state.objects.root
        for chunk in todo:
            found = None if given["fresh"] else self.storage.get(f"{root}/chunks/{chunk:06d}.json")
            if found is None:
                break
            done.append(found)
        else:
            notes = b'{"done": [' + b",".join(done) + b"]}"
            self.storage.put(f"{root}/runs/{number}.json", notes)
            self._end(number, Completed())
            return
        attempt, self._begun[chunk] = self._begun[chunk], self._begun[chunk] + 1
        seconds = self.times.of(chunk, attempt)
        lost = self.times.is_lost(chunk, attempt)
        if lost:
            seconds /= 2
        self.attempts.append(seconds)
        self._current[number] = self.clock.now

        def publish() -> None:
            self._settle(number)
            if not self._goes_on(number):
                return
            if lost:
                self.lost += 1
                self.clock.at(_NOTICED_SECONDS, lambda: self._end(number, Crashed()))
                return
            self.published[chunk] += 1
            key, folder = f"{root}/chunks/{chunk:06d}.json", f"{root}/chunks/{chunk:06d}/{attempt}"
            if (first := self.storage.get(key)) is None:
                planned = self.state.job.chunks[chunk]
                order = dict(planned) | {
                    "chunk_id": chunk, "identity": self.state.identity(planned),
                }  # fmt: skip
                first = manifest(order, seconds, "machine", folder)
                self.storage.put(f"{folder}/{chunk:05d}.mp4")
                self.storage.put(f"{folder}/log.txt")
                self.storage.put(key, first)
            done.append(first)
            self._next(number, todo, given, done)

        self.clock.at(seconds, publish)


def virtual_spec(chunks: int, frames: int = 24) -> RenderJob:
    """Return a job of many chunks."""
    return plan_job(
        frames * chunks, 24, chunks=chunks, id="virtual",
        command_template="blender -b scene.blend -s {start} -e {last} -o {output} -a",
    )  # fmt: skip


def virtual_state(folder: Path, chunks: int, storage: VirtualStorage) -> JobState:
    """Return a job of many chunks that is ready to be rendered through a storage."""
    state = JobState(folder, virtual_spec(chunks), storage.block)
    state.inputs = "none"
    return state


def render_by_pool(
    folder: Path, chunks: int, width: int, times: Times, slow: SlowChunks,
    replace: Callable[[object, str, object], object] = setattr,
) -> tuple[VirtualPool, list[ChunkResult]]:  # fmt: skip
    """Render a job by runs on a virtual work pool, outside of any flow run."""
    storage = VirtualStorage()
    state = virtual_state(folder, chunks, storage)
    machines = VirtualPool(Clock(), storage, state, times, width)
    machines.stand_in(replace)
    attempts = Attempts(retries=5, slow_factor=5.0, slow_chunks=slow)
    runs = pool.ChunkRuns(
        state, WorkPoolAdapter(max_runs=width), ChunkRules(uniform=True), attempts,
        chunks=state.job.chunks, width=width, fresh=True,
    )  # fmt: skip
    return machines, runs.render_all()


def list_schedule(attempts: Iterable[float], width: int) -> float:
    """Return when the last of some attempts ends that free places take in their order.

    No place is ever free while an attempt waits: Graham, "Bounds on Multiprocessing Timing
    Anomalies" (1969).
    """
    ends = [0.0] * width
    for seconds in attempts:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)
