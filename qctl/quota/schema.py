"""The ledger's file: its tables, how it is opened, and how SQLite's errors become ours."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from qctl.errors import LedgerError, StateError

FILE = "ledger.sqlite"
WORDS_FILE = "ledger.epochs"
PROCESSES = "processes"
SCHEMA_VERSION = 1
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
    swept_ns INTEGER NOT NULL, limits_version INTEGER NOT NULL, next_seq INTEGER NOT NULL,
    assume_spent INTEGER NOT NULL);
CREATE TABLE quotas(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, created_ns INTEGER NOT NULL,
    blocked_until_ns INTEGER NOT NULL DEFAULT 0);
CREATE TABLE limits(
    quota INTEGER NOT NULL REFERENCES quotas, period_ns INTEGER NOT NULL, units INTEGER NOT NULL CHECK (units >= 0),
    peak_units INTEGER NOT NULL, since_ns INTEGER NOT NULL, PRIMARY KEY(quota, period_ns)) WITHOUT ROWID;
CREATE TABLE processes(id TEXT PRIMARY KEY) WITHOUT ROWID;
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

T = TypeVar("T")


def prepare(directory: Path) -> None:
    """Make the state directory, readable to its owner alone. Raises StateError."""
    try:
        (directory / PROCESSES).mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        if found.st_uid != os.geteuid():
            raise StateError(
                f"the state directory {directory} belongs to another user",
                hint="Run the worker as its owner, or choose another with --state-dir.",
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            directory.chmod(0o700)
    except OSError as error:
        raise StateError(
            f"cannot use the state directory {directory}: {error.strerror}",
            hint="Choose a directory of a local disk that the worker may write to, with --state-dir.",
        ) from error


def connect(path: Path, *, patience_s: float) -> sqlite3.Connection:
    """Open the file, with a rollback journal (WAL can corrupt it before SQLite 3.51.3) and every commit synced."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
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


def is_busy(error: sqlite3.Error) -> bool:
    """Whether the file was locked by another, which is no fault of the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def patiently(attempt: Callable[[], T], *, patience_s: float) -> T:
    """Do `attempt` again while the file is locked by another. SQLite's own waiting sleeps up to 100 ms at a time."""
    deadline_s = time.monotonic() + patience_s
    pause_s = 0.0002
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline_s:
                raise
        time.sleep(pause_s * (0.5 + random.random()))  # noqa: S311 (spreads processes, hides nothing)
        pause_s = min(2 * pause_s, _PAUSE_S)


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system say into LedgerError with the next step."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            what, hint = "is locked by another process", "See who holds it with `fuser`; it is never broken open."
        elif code == sqlite3.SQLITE_FULL:
            what, hint = "cannot grow: the disk is full", "Free some space; no call is made until then."
        elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            what, hint = (
                "is corrupt",
                "Stop the host's worker for one window, move the file away, and start it again.",
            )
        elif code == sqlite3.SQLITE_READONLY:
            what, hint = "was moved or is read-only", "Make the state directory writable to the worker."
        else:
            what, hint = f"cannot be used: {error}", "Check the disk and the rights of the state directory."
        raise LedgerError(f"the ledger {path} {what}", hint=hint) from error
    except OSError as error:
        raise LedgerError(
            f"the ledger {path} cannot be used: {error.strerror or error}",
            hint="Check the disk and the rights of the state directory.",
        ) from error
