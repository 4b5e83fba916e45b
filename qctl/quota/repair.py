"""Opening a ledger that is sound, and making a new one in place of one that is missing or is not a ledger.

Whoever replaces the file does it alone, after looking again, and while no transaction is open in it: of sixteen who
find it corrupt at once the first replaces it and the others find the new one. A file that is locked, on a full disk or
not readable just now proves nothing, and is never set aside.

The new file is complete before it gets its name, so an empty file is a damaged one. It counts the window as spent. All
leases of the old one are void at once. What a living process has running it states anew when it notices; until then,
or until it dies, it counts as having all there is.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from qctl.errors import LedgerError
from qctl.quota import books, schema
from qctl.quota.clock import Clock
from qctl.quota.directory import PROCESSES
from qctl.quota.liveness import is_dead
from qctl.quota.locks import idle, replacing
from qctl.quota.words import Words

log = logging.getLogger(__name__)

#: Damaged files that are kept for whoever wants to know what happened; older ones are deleted.
KEPT_ASIDE = 5
_NEW = ".new"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)


class NotALedger(Exception):
    """What is at the ledger's place is no ledger, with the reason in words."""


class Missing(NotALedger):
    """There is nothing."""


def open_sound(directory: Path, *, clock: Clock, unknown: bool, patience_s: float) -> tuple[sqlite3.Connection, bool]:
    """Open the ledger in `directory`, or a new one if there is none; and whether it is new with nothing spent.

    unknown: what was spent before is not known, so that a new one counts the window as spent. Raises LedgerError for
    a newer version; sqlite3.Error, OSError when the file cannot be used at present.
    """
    path = directory / schema.FILE
    try:
        return examine(path, patience_s=patience_s), False
    except NotALedger:
        pass
    with ExitStack() as stack:
        stack.enter_context(replacing(directory, patience_s=patience_s))
        try:
            return examine(path, patience_s=patience_s), False
        except NotALedger as error:
            why, missing = str(error), isinstance(error, Missing)
        # After the exception, which may keep a statement alive, and with it a lock of this process.
        if path.is_file():
            stack.enter_context(idle(path, patience_s=patience_s))
        unknown = unknown or not missing or has_traces(directory)
        _replace(directory, clock=clock, unknown=unknown, why=why)
    return examine(path, patience_s=patience_s), not unknown


def examine(path: Path, *, patience_s: float) -> sqlite3.Connection:
    """Open the ledger at `path` if it is a sound one. Every statement is read to its end: half of one keeps a lock.

    Raises NotALedger if it is none or of an older version, LedgerError for one of a newer version; sqlite3.Error,
    OSError if that cannot be said at present.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise Missing("it is gone") from None
    if not stat.S_ISREG(mode):
        raise NotALedger("it is not a file")
    connection: sqlite3.Connection | None = None
    try:
        connection = schema.connect(path, patience_s=patience_s)
        schema.patiently(lambda: connection.execute("BEGIN IMMEDIATE"), patience_s=patience_s)
        _examine(connection)
        if not _can_be_written(connection, path):
            raise NotALedger("its header says that newer programs alone may write")
        connection.execute("ROLLBACK")
    except BaseException as error:
        if connection is not None:
            connection.close()
        # A name in the file that is no text comes out of SQLite's own message.
        damaged = _is_damage(error) if isinstance(error, sqlite3.Error) else isinstance(error, UnicodeDecodeError)
        if damaged:
            raise NotALedger(f"it is damaged: {error}") from error
        raise
    return connection


def _examine(connection: sqlite3.Connection) -> None:
    ((verdict,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != "ok":
        raise NotALedger(f"it is damaged: {verdict}")
    tables = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        raise NotALedger("it is empty")
    if not any(str(sql).startswith("CREATE TABLE meta(") for sql in tables):
        raise NotALedger("it is another program's file")
    ((version,),) = connection.execute("SELECT max(schema_version) FROM meta").fetchall()
    if isinstance(version, int) and 0 < version < schema.SCHEMA_VERSION:
        raise NotALedger(f"it has version {version}, of a former qctl")
    if isinstance(version, int) and version > schema.SCHEMA_VERSION:
        raise LedgerError(
            f"the ledger has version {version}, this qctl writes version {schema.SCHEMA_VERSION}",
            hint="Use the qctl that wrote it, or a newer one.",
        )
    if tables != set(schema.STATEMENTS):
        raise NotALedger("it has other tables")
    try:
        books.verify(connection)
    except (TypeError, ValueError) as error:
        raise NotALedger(f"its contents make no sense: {error}") from error


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the contents are at fault, and not a lock, a disk or rights."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGED


def _can_be_written(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether nothing in the file itself speaks against it; a full disk or missing rights do not count."""
    try:
        connection.execute("UPDATE meta SET seen_ns = seen_ns")
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode != sqlite3.SQLITE_READONLY or not os.access(path, os.W_OK, effective_ids=True)
    return True


def has_traces(directory: Path) -> bool:
    """Whether there was a ledger before."""
    return (directory / schema.WORDS_FILE).exists() or bool(_aside(directory))


def _replace(directory: Path, *, clock: Clock, unknown: bool, why: str) -> None:
    """Put a new ledger in the place of whatever is there."""
    path = directory / schema.FILE
    new = directory / (schema.FILE + _NEW)
    living = [it.stem for it in (directory / PROCESSES).iterdir() if not is_dead(it)] if unknown else []
    ledger_id = _make(new, clock=clock, unknown=unknown, living=living)
    if (directory / schema.WORDS_FILE).exists():
        words = Words(directory / schema.WORDS_FILE)
        words.void_all()
        words.close()
    aside = _set_aside(directory) if os.path.lexists(path) else None
    # Another's pages, that would be written into the new file.
    (directory / (schema.FILE + "-journal")).unlink(missing_ok=True)
    new.rename(path)
    _sync(directory)
    if unknown:
        log.critical(
            "ledger %s: %s; %s; the new ledger %s counts every window as spent, living processes=%d",
            path,
            why,
            f"set aside as {aside.name}" if aside else "nothing to set aside",
            ledger_id,
            len(living),
        )


def _make(path: Path, *, clock: Clock, unknown: bool, living: list[str]) -> str:
    """Write a whole new ledger to `path`, to the disk; its id. living: processes of the one before."""
    path.unlink(missing_ok=True)
    ledger_id = str(uuid4())
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=OFF").fetchone()
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        books.create(connection, ledger_id, clock=clock, unknown=unknown, living=living)
        connection.execute("COMMIT")
    finally:
        connection.close()
    return ledger_id


def _set_aside(directory: Path) -> Path:
    """Rename what is at the ledger's place, with its journal, and delete the oldest of such."""
    path = directory / schema.FILE
    name = f"{schema.FILE}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    aside = next(it for n in range(10**6) if not os.path.lexists(it := directory / (f"{name}-{n}" if n else name)))
    path.rename(aside)
    for old in _aside(directory)[:-KEPT_ASIDE]:
        if not old.is_dir():
            old.unlink(missing_ok=True)
    return aside


def _aside(directory: Path) -> list[Path]:
    """What was set aside, the oldest first."""
    return sorted(directory.glob(f"{schema.FILE}.corrupt-*"), key=lambda it: it.lstat().st_ctime_ns)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
