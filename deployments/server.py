"""Prefect's server, whose transactions in SQLite wait for each other: `python -m … server start`.

Prefect takes the lock for writing not before the first write of a transaction. If another one was
committed since the first read, SQLite refuses the write at once (SQLITE_BUSY_SNAPSHOT, see
https://www.sqlite.org/rescode.html), the server answers 503, and the client waits 2, 4, 8 … 64 s
and then fails. With two workers that happens several times a minute. Here each transaction takes
the lock at its begin (BEGIN IMMEDIATE, https://www.sqlite.org/lang_transaction.html), for which
SQLite waits. PostgreSQL is not concerned.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration

_begin_transaction = AioSqliteConfiguration.begin_transaction


def _begin_immediate(
    self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
) -> AbstractAsyncContextManager[Any]:
    return _begin_transaction(self, session, with_for_update=True)


if __name__ == "__main__":
    AioSqliteConfiguration.begin_transaction = _begin_immediate  # type: ignore[method-assign, assignment]
    app()
