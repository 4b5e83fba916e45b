"""How errors of SQLite and of the file system become ours: a sentence that reads well in a hold, and a next step."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qctl.errors import LedgerError
from qctl.quota import schema
from qctl.quota.locks import lock_holders

_CHECK = "Check the disk and the rights of the state directory."


@contextmanager
def ledger_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system say of the ledger at `path` into LedgerError."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        what, hint = _locked(path) if schema.is_busy(error) else _broken(error)
        raise LedgerError(f"the ledger {path} {what}", hint=hint) from error


def _locked(path: Path) -> tuple[str, str]:
    others = [str(pid) for pid in lock_holders(path.parent) if pid != os.getpid()]
    who = "another process" if not others else f"process {' and '.join(others)}"
    return f"is locked by {who}", "No call is made until the lock is free; it is never broken open."


def _broken(error: sqlite3.Error | OSError | UnicodeDecodeError) -> tuple[str, str]:
    if isinstance(error, OSError):
        return f"cannot be used: {error.strerror or error}", _CHECK
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "cannot grow: the disk is full", "Free some space; no call is made until then."
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return "is corrupt", "It is set aside at the next try, and the window counts as spent."
    if code == sqlite3.SQLITE_READONLY:
        return "was moved or is read-only", "Make the state directory writable to the worker."
    return f"cannot be used: {error}", _CHECK
