"""A page of memory that all processes of a host share: what must be seen at once, without asking the disk.

Word 0 is a mark that every change of the ledger replaces; word N is the epoch of the quota with id N. The ledger file
is the truth: words only say "look again", and every exchange sets right what a crash left wrong.
"""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path

#: Bytes of the page; a word has eight.
PAGE_BYTES = 8192
#: Quotas that one ledger can hold, hence.
MAX_QUOTAS = PAGE_BYTES // 8 - 1
_MARK = 0


#: Which file something is, whatever its name; None: there is none.
FileId = tuple[int, int] | None


def file_id(file: Path | int) -> FileId:
    """Of the file at a path, or of an open one."""
    try:
        status = os.fstat(file) if isinstance(file, int) else file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Words:
    """The shared page at `path`. To be opened by whoever holds the ledger's write lock. Raises OSError."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            missing = PAGE_BYTES - os.fstat(descriptor).st_size
            if missing > 0:
                # Real bytes, not a hole: a write to a mapped hole on a full disk kills the process.
                os.lseek(descriptor, 0, os.SEEK_END)
                os.write(descriptor, bytes(missing))
            if os.fstat(descriptor).st_size < PAGE_BYTES:
                raise OSError(f"cannot allocate {PAGE_BYTES} bytes in {path.name}")
            self._page = mmap.mmap(descriptor, PAGE_BYTES)
            self._file_id = file_id(descriptor)
        finally:
            os.close(descriptor)
        #: All words, for reading on every spend.
        self.view = memoryview(self._page).cast("Q")

    @property
    def mark(self) -> int:
        """Left by the last change of the ledger. Another mark than last time: look again."""
        return self.view[_MARK]

    def changed(self) -> int:
        """Tell the others to look again, after a commit. Returns the mark, which is unlike any other before.

        Not a count: two who count at once would write the same number, and one change would go unseen.
        """
        self.view[_MARK] = mark = secrets.randbits(63)
        return mark

    def void_all(self) -> None:
        """Void every lease that was made, of any quota."""
        self.view[:] = memoryview(bytes(PAGE_BYTES)).cast("Q")
        self.changed()

    def is_at(self, path: Path) -> bool:
        """Whether the page is still the file at `path`: others would look at another."""
        return file_id(path) == self._file_id

    def set_epoch(self, quota_id: int, epoch: int) -> None:
        """Void all leases of the quota that were made under another epoch."""
        if self.view[quota_id] != epoch:
            self.view[quota_id] = epoch

    def close(self) -> None:
        """Unmap the page."""
        self.view.release()
        self._page.close()
