"""HTTP workers at one address that render nothing, and a clock that waits for their coordinator.

    python virtual_workers.py CHUNKS WIDTH     prints its port

POST /     a chunk to render: answered when its time has come, not at all, or with 429
GET /stats what became of it all

The clock goes on when as many chunks are under way as there are workers, or as are left.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from virtual_chunks import Times, manifest

# So many workers may be free for a moment, so that not each answer is waited for.
_SLACK = 8
_BURST_EVERY, _BURST = 1_000, 50  # requests


class Workers:
    """All the workers."""

    def __init__(self, chunks: int, width: int, times: Times) -> None:
        self._left, self._width, self._times = chunks, width, times
        self._now = 0.0
        self._due: list[tuple[float, int, asyncio.Future[None]]] = []
        self._begun: Counter[int] = Counter()
        self._attempts: list[float] = []
        self._lost = self._busy = self._burst = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(size or 0))
                status, answer = 200, self._stats()
                if head.startswith(b"POST"):
                    status, answer = await self._work(json.loads(body)["order"])
                data = json.dumps(answer).encode()
                writer.write(
                    b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nRetry-After: 0\r\n\r\n%b"
                    % (status, len(data), data)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _work(self, order: dict[str, Any]) -> tuple[int, Any]:
        number = order["chunk_id"]
        if self._burst:
            self._burst -= 1
            self._busy += 1
            return 429, {}
        attempt, self._begun[number] = self._begun[number], self._begun[number] + 1
        seconds, lost = self._times.of(number, attempt), self._times.is_lost(number, attempt)
        seconds /= 1 + lost
        self._attempts.append(seconds)
        if len(self._attempts) % _BURST_EVERY == 0:
            self._burst = _BURST
        over = asyncio.get_running_loop().create_future()
        heapq.heappush(self._due, (self._now + seconds, len(self._attempts), over))
        self._go_on()
        await over
        if lost:
            self._lost += 1
            raise ConnectionError("this worker is lost")
        self._left -= 1
        self._go_on()
        done = manifest(
            order, seconds, "worker", f"renderfarm/{order['key']}/chunks/{number:06d}/0"
        )
        return 200, {"exit_code": 0, "worker": "worker", "manifest": done.decode()}

    def _go_on(self) -> None:
        """Let time pass until a worker is free, if enough of them are busy."""
        while self._due and len(self._due) > min(self._width, self._left) - _SLACK:
            self._now, _, over = heapq.heappop(self._due)
            over.set_result(None)

    def _stats(self) -> dict[str, Any]:
        return {
            "seconds": self._now, "attempts": self._attempts, "lost": self._lost,
            "busy": self._busy, "rendered": len(self._begun),
        }  # fmt: skip


@contextmanager
def serving_virtually(chunks: int, width: int) -> Iterator[str]:
    """Run the workers in a process of their own; give their address."""
    command = [sys.executable, __file__, str(chunks), str(width)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


async def main() -> None:
    """Serve until the process is ended."""
    workers = Workers(int(sys.argv[1]), int(sys.argv[2]), Times())
    server = await asyncio.start_server(workers.serve, "127.0.0.1", 0, backlog=2_000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
