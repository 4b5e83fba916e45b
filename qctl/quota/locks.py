"""Locks on the ledger's file: who holds them, for how long, and how the whole file is kept to oneself.

SQLite locks bytes of the file for each transaction. Such a lock belongs to a process and is dropped when the process
closes *any* descriptor of the file, so nothing here opens the ledger while a transaction of this process may be open.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qctl.quota import schema

#: Beside the ledger; whoever replaces the file holds it.
LOCK_FILE = "ledger.lock"
#: A transaction takes milliseconds, on a slow disk a second.
LOCK_HELD_TOO_LONG_S = 5.0
_PROC_LOCKS = Path("/proc/locks")
#: Where SQLite locks: PENDING, RESERVED and 510 bytes of SHARED.
_FIRST_BYTE, _BYTES = 0x40000000, 512


@dataclass(frozen=True, slots=True)
class Holding:
    """Who held a lock of the ledger when last looked, since which look, and when the file was last written."""

    written_ns: int
    since_s: Mapping[int, float]

    def overdue(self, now_s: float) -> tuple[int, ...]:
        """The processes that held a lock at every look for LOCK_HELD_TOO_LONG_S, while nobody could commit."""
        return tuple(pid for pid, since_s in self.since_s.items() if now_s - since_s >= LOCK_HELD_TOO_LONG_S)


def watch_locks(directory: Path, before: Holding | None, *, now_s: float) -> Holding:
    """Look who holds the ledger in `directory` now. To be called about once a second, with the result of the last look.

    Whoever happens to hold it at each look of a busy ledger does no harm: with every commit all is counted anew.
    """
    try:
        written_ns = (directory / schema.FILE).stat().st_mtime_ns
    except OSError:
        written_ns = 0
    still = before.since_s if before is not None and before.written_ns == written_ns else {}
    return Holding(written_ns, {pid: still.get(pid, now_s) for pid in lock_holders(directory)})


def lock_holders(directory: Path) -> tuple[int, ...]:
    """The processes that hold a lock on the ledger in `directory` or are replacing it; () where nobody can say."""
    files = []
    for name in (schema.FILE, LOCK_FILE):
        try:
            files.append((directory / name).stat())
        except OSError:
            continue
    try:
        text = _PROC_LOCKS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    return holders_of(files, text)


def holders_of(files: list[os.stat_result], proc_locks: str) -> tuple[int, ...]:
    """The processes with a lock on one of `files`, by the text of /proc/locks; those that wait for one hold none."""
    inodes = {status.st_ino: status for status in files}
    found: dict[int, None] = {}
    for line in proc_locks.splitlines():
        fields = line.split()
        # The line of who waits has an arrow more, and no number here.
        if len(fields) < 6 or not fields[4].isdigit() or fields[4] == "0":
            continue
        major, minor, inode = fields[5].split(":")
        status = inodes.get(int(inode))
        if status is not None:
            pid = int(fields[4])
            # Where a file system shows its files under another device than it locks them, the process has it open.
            if os.makedev(int(major, 16), int(minor, 16)) == status.st_dev or _has_open(pid, status):
                found[pid] = None
    return tuple(found)


@contextmanager
def replacing(directory: Path, *, patience_s: float) -> Iterator[None]:
    """Be the only one who replaces the ledger in `directory`. Raises BlockingIOError, OSError."""
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        schema.patiently(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), patience_s=patience_s)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def idle(path: Path, *, patience_s: float) -> Iterator[None]:
    """Keep every transaction out of the file at `path`, whatever is in it. Raises BlockingIOError if one is open.

    The lock is of the open file, not of the process, so it conflicts with SQLite's in this process too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _FIRST_BYTE, _BYTES, 0)
        schema.patiently(lambda: fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock), patience_s=patience_s)
        yield
    finally:
        os.close(descriptor)


def _has_open(pid: int, status: os.stat_result) -> bool:
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found = entry.stat()
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
                return True
    except OSError:
        return False
    return False
