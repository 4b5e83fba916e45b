"""How often a login that the broker refuses is tried again: seldom, and by all connections of a host together.

Each wrong try may count towards locking the account, and fills the broker's log. So whoever was refused leaves a record
in a file that all processes of the host share. While it stands the same login is tried on a slow ladder, by one of them
at a time; another login, since a password was rotated, is tried at once.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from qctl.broker.connect import Login, connect
from qctl.broker.session import Connection
from qctl.errors import LoginRefused

log = logging.getLogger(__name__)

#: Seconds from one try of a refused login to the next; the last one repeats. Ten tries in the first five minutes, and
#: one more for each process that was refused at the same moment.
LADDER_S = (2.0, 4.0, 8.0, 10.0, 20.0, 40.0, 60.0)
#: How often the secret is read anew meanwhile.
LOOK_S = 5.0
#: The record's name in a host's state directory.
RECORD = "login-refused.json"
#: A record is tens of bytes.
MAX_RECORD_BYTES = 1_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """A login was refused `tries` times in a row, the last try began at `at_s` (seconds since the machine started)."""

    mark: str
    tries: int
    at_s: float


def wait_s(refusal: Refusal | None, mark: str, now_s: float) -> float:
    """Seconds until the login with this mark may be tried; 0 when it may be now."""
    if refusal is None or refusal.mark != mark or now_s < refusal.at_s:  # at_s ahead: the machine was started anew
        return 0.0
    step_s = LADDER_S[min(refusal.tries, len(LADDER_S)) - 1]
    return max(0.0, refusal.at_s + step_s - now_s)


def mark_of(login: Login) -> str:
    """Tells a login from another one. Sixteen bits: enough to notice a change, too few to find a password with."""
    return hashlib.sha256(f"{login.username}\0{login.password}\0{login.addresses}".encode()).hexdigest()[:4]


async def dial(
    read_login: Callable[[], Login],
    record: Path,
    *,
    name: str,
    properties: Mapping[str, str],
    patient: bool = True,
) -> Connection:
    """Connect with a login that is read anew, in its own time if it was refused before.

    record: the file that the host's processes share. patient: False tries at once whatever was refused before. Raises
    as `connect` and `read_login` do; `read_login` may block and runs in a thread.
    """
    login = await asyncio.to_thread(read_login)
    told = not patient
    while patient and (left_s := await asyncio.to_thread(ask, record, mark_of(login))) > 0:
        if not told:
            told = True
            log.warning(
                "the login of user %r is refused, trying again in %.0f s, or when it changes", login.username, left_s
            )
        await asyncio.sleep(min(left_s, LOOK_S))
        login = await asyncio.to_thread(read_login)
    try:
        connection = await connect(login, name=name, properties=properties)
    except LoginRefused:
        await asyncio.to_thread(note_refused, record, mark_of(login))
        raise
    await asyncio.to_thread(note_accepted, record, mark_of(login))
    return connection


def ask(record: Path, mark: str) -> float:
    """Seconds to wait before a try; 0.0 takes the turn, so that the others of this host wait for its outcome."""
    with _open(record) as file:
        refusal, now_s = _read(file), _now_s()
        left_s = wait_s(refusal, mark, now_s)
        if refusal is not None and refusal.mark == mark and not left_s:
            _write(file, Refusal(mark, refusal.tries + 1, now_s))
        return left_s


def note_refused(record: Path, mark: str) -> None:
    """A try was refused; of several at the same moment the first one counts."""
    with _open(record) as file:
        refusal = _read(file)
        if refusal is None or refusal.mark != mark:
            _write(file, Refusal(mark, 1, _now_s()))


def note_accepted(record: Path, mark: str) -> None:
    """This login is good."""
    if not record.exists():
        return
    with _open(record) as file:
        refusal = _read(file)
        if file is not None and refusal is not None and refusal.mark == mark:
            file.truncate(0)


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextmanager
def _open(record: Path) -> Iterator[BinaryIO | None]:
    """The record, locked for as long as it takes to read and write a line. None when it cannot be kept: the ordinary
    backoff has to do then."""
    try:
        file = record.open("a+b", buffering=0)
    except OSError as error:
        log.debug("cannot keep %s: %s", record, error.strerror)
        yield None
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _read(file: BinaryIO | None) -> Refusal | None:
    if file is None:
        return None
    file.seek(0)
    try:
        found = json.loads(file.read(MAX_RECORD_BYTES))
        return Refusal(str(found["mark"]), max(1, int(found["tries"])), float(found["at_s"]))
    except (ValueError, KeyError, TypeError):
        return None


def _write(file: BinaryIO | None, refusal: Refusal) -> None:
    if file is None:
        return
    try:
        file.truncate(0)
        file.write(json.dumps(asdict(refusal)).encode())
    except OSError as error:
        log.debug("cannot write the record of a refusal: %s", error.strerror)
