"""Prefect's server, whose transactions in SQLite wait for each other: `python -m … server start`.

Prefect takes the lock for writing not before the first write of a transaction. If another one was
committed since the first read, SQLite refuses the write at once (SQLITE_BUSY_SNAPSHOT, see
https://www.sqlite.org/rescode.html), the server answers 503, and the client waits 2, 4, 8 … 64 s
and then fails. With two workers that happens several times a minute. Here each transaction takes
the lock at its begin (BEGIN IMMEDIATE, https://www.sqlite.org/lang_transaction.html), for which
SQLite waits. PostgreSQL is not concerned.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_begin_transaction = AioSqliteConfiguration.begin_transaction


@asynccontextmanager
async def _begin_immediate(
    self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
) -> AsyncIterator[AsyncSessionTransaction]:
    async with _begin_transaction(self, session, with_for_update=True) as transaction:
        await session.connection()  # which takes the lock
        # A session that is opened meanwhile only reads: with this mode it would wait for ever.
        token = SQLITE_BEGIN_MODE.set("DEFERRED")
        try:
            yield transaction
        finally:
            SQLITE_BEGIN_MODE.reset(token)


if __name__ == "__main__":
    AioSqliteConfiguration.begin_transaction = _begin_immediate  # type: ignore[method-assign]
    app()
