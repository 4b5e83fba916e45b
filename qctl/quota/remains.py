"""What a ledger that nobody uses any more may have left spent. Nothing of it is changed: it is not ours."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from qctl.errors import QctlError
from qctl.quota import books, repair, schema
from qctl.quota.clock import Clock, boot_clock


def remains(directory: Path, *, clock: Clock | None = None) -> str | None:
    """Of the ledger that lies, or lay, in `directory`: which spending of it still counts; "" when none does.

    The same spending has always the same text. None when there never was a ledger. One that cannot be read may have
    spent anything; so has one of before a reboot, since nobody knows how long ago that was.
    """
    path = directory / schema.FILE
    try:
        connection = repair.examine(path, patience_s=schema.PATIENCE_S)
    except repair.Missing:
        return "gone" if repair.has_traces(directory) else None
    except (repair.NotALedger, QctlError, sqlite3.Error, OSError):
        return f"unreadable {_written_ns(path)}"
    try:
        return _remains(connection, clock or boot_clock())
    finally:
        connection.close()


def _remains(connection: sqlite3.Connection, clock: Clock) -> str:
    head = books.head(connection, "")
    since_ns = clock.now_ns() if head.holds(clock) else head.seen_ns
    ledger_id, counts = connection.execute(
        "SELECT ledger_id, EXISTS (SELECT 1 FROM spent WHERE expires_ns > ?)"
        " OR EXISTS (SELECT 1 FROM leases WHERE units)"
        # Made in place of another, and no limit was set since by which that one's spending could be counted.
        " OR (unknown_ns NOTNULL AND NOT EXISTS (SELECT 1 FROM limits)) FROM meta",
        (since_ns,),
    ).fetchone()
    return f"{ledger_id} {head.seen_ns}" if counts else ""


def _written_ns(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0
