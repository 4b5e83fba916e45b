"""The ledger's file: its tables, how it is opened, and how SQLite's errors become ours."""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

FILE = "ledger.sqlite"
WORDS_FILE = "ledger.epochs"
SCHEMA_VERSION = 3
#: How long who starts or commands waits for the others' transactions.
PATIENCE_S = 10.0
#: How long the ledger's thread does: many commits fit in, and those who wait for it must hear their no in time.
ROUND_PATIENCE_S = 2.0
#: While a transaction is open, other threads hand the interpreter over this soon: each of its statements gives it away,
#: and with eight busy threads a transaction took ten times as long, the file locked for all processes meanwhile.
_HURRY_S = 0.0001
_UNHURRIED_S = sys.getswitchinterval()
#: Longest pause between two tries: a waiting process should not miss the gap between two others' commits.
_PAUSE_S = 0.004

TABLES = """
CREATE TABLE meta(
    ledger_id TEXT NOT NULL, schema_version INTEGER NOT NULL, boot_id TEXT NOT NULL, seen_ns INTEGER NOT NULL,
    swept_ns INTEGER NOT NULL, limits_version INTEGER NOT NULL, next_seq INTEGER NOT NULL, unknown_ns INTEGER);
CREATE TABLE counted(evidence TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE quotas(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, created_ns INTEGER NOT NULL,
    blocked_until_ns INTEGER NOT NULL DEFAULT 0, refusals INTEGER NOT NULL DEFAULT 0);
CREATE TABLE limits(
    quota INTEGER NOT NULL REFERENCES quotas, period_ns INTEGER NOT NULL, window TEXT NOT NULL,
    units INTEGER NOT NULL CHECK (units >= 0), peak_units INTEGER NOT NULL, since_ns INTEGER NOT NULL,
    empty_ns INTEGER NOT NULL DEFAULT 0, reset_since_ns INTEGER, reset_lo_ns INTEGER, reset_hi_ns INTEGER,
    reset_reported INTEGER, reset_spread_ns INTEGER, reset_doubt_ns INTEGER,
    PRIMARY KEY(quota, period_ns, window)) WITHOUT ROWID;
CREATE TABLE others(
    quota INTEGER NOT NULL REFERENCES quotas, period_ns INTEGER NOT NULL, window TEXT NOT NULL,
    lo_units INTEGER NOT NULL, hi_units INTEGER NOT NULL, until_ns INTEGER NOT NULL, doubt_ns INTEGER NOT NULL,
    sent_ns INTEGER NOT NULL, received_ns INTEGER NOT NULL, remaining_units INTEGER NOT NULL, limit_units INTEGER,
    our_units INTEGER NOT NULL, growth_per_s REAL NOT NULL, since_ns INTEGER, answers INTEGER NOT NULL,
    last_ns INTEGER, proven_ns INTEGER NOT NULL, PRIMARY KEY(quota, period_ns, window)) WITHOUT ROWID;
CREATE TABLE processes(id TEXT PRIMARY KEY, stated INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE leases(
    process TEXT NOT NULL REFERENCES processes, quota INTEGER NOT NULL REFERENCES quotas,
    units INTEGER NOT NULL CHECK (units >= 0), PRIMARY KEY(process, quota)) WITHOUT ROWID;
CREATE TABLE spent(
    quota INTEGER NOT NULL REFERENCES quotas, period_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL,
    units INTEGER NOT NULL CHECK (units > 0), PRIMARY KEY(quota, period_ns, expires_ns)) WITHOUT ROWID;
CREATE TABLE claims(
    process TEXT NOT NULL REFERENCES processes, consumer TEXT NOT NULL, quota INTEGER NOT NULL REFERENCES quotas,
    units INTEGER NOT NULL CHECK (units > 0), seq INTEGER NOT NULL, expires_ns INTEGER NOT NULL,
    PRIMARY KEY(process, consumer, quota)) WITHOUT ROWID;
"""

STATEMENTS = tuple(statement.strip() for statement in TABLES.split(";") if statement.strip())

T = TypeVar("T")


def connect(path: Path, *, patience_s: float) -> sqlite3.Connection:
    """Open the file, which must exist, with a rollback journal (WAL can corrupt it before SQLite 3.51.3) and every
    commit synced."""
    where = f"file:{quote(str(path))}?mode=rw"
    connection = sqlite3.connect(where, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        patiently(lambda: connection.execute("PRAGMA journal_mode=TRUNCATE").fetchone(), patience_s=patience_s)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def hurry() -> Iterator[None]:
    """Be done soon, however busy the other threads of this process are."""
    sys.setswitchinterval(_HURRY_S)
    try:
        yield
    finally:
        sys.setswitchinterval(_UNHURRIED_S)


def is_busy(error: BaseException) -> bool:
    """Whether the file was locked by another, which is no fault of the file."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return isinstance(error, BlockingIOError)


def patiently(attempt: Callable[[], T], *, patience_s: float) -> T:
    """Do `attempt` again while the file is locked by another. SQLite's own waiting sleeps up to 100 ms at a time."""
    deadline_s = time.monotonic() + patience_s
    pause_s = 0.0002
    while True:
        try:
            return attempt()
        except (sqlite3.OperationalError, BlockingIOError) as error:
            if not is_busy(error) or time.monotonic() >= deadline_s:
                raise
        time.sleep(pause_s * (0.5 + random.random()))  # noqa: S311 (spreads processes, hides nothing)
        pause_s = min(2 * pause_s, _PAUSE_S)
