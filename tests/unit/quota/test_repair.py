"""A ledger that is lost, damaged or locked: set aside once, never by mistake, and never forgetting what was spent."""

from __future__ import annotations

import json
import logging
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qctl.errors import LedgerError
from qctl.quota import Ledger, Limit, Policy, lock_holders, repair, watch_locks
from qctl.quota.exchange import Exchange, Response, Want
from qctl.quota.locks import LOCK_HELD_TOO_LONG_S, holders_of, idle, replacing
from tests.unit.quota.model import FakeClock, S

API = Policy("api", (Limit(100, 10 * S),))
ROOT = Path(__file__).parents[3]
Open = Callable[..., Ledger]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "web-1"


@pytest.fixture
def join(directory: Path, clock: FakeClock) -> Iterator[Open]:
    """Processes of one ledger; closed at the end without leaving, which is to die."""
    opened: list[Ledger] = []

    def open_one(*policies: Policy) -> Ledger:
        ledger = Ledger.open(directory, clock=clock.clock())
        opened.append(ledger)
        ledger.configure(policies or [API])
        ledger.join()
        return ledger

    yield open_one
    for ledger in opened:
        ledger.close()


def lease(ledger: Ledger, units: int, *, held: int = 0) -> bool:
    want = Want("timeline", {"api": units}, claim=False)
    return ledger.exchange(Exchange(held={"api": held}, wants=(want,))).granted == (True,)


def used(ledger: Ledger) -> int:
    return ledger.readings()["api"].used(ledger.clock.now_ns())[0]


def set_aside(directory: Path) -> list[Path]:
    return sorted(directory.glob("ledger.sqlite.corrupt-*"))


def file(directory: Path) -> Path:
    return directory / "ledger.sqlite"


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def empty(path: Path) -> None:
    os.truncate(path, 0)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_program(path: Path) -> None:
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE birds(name)")
    other.close()


def _execute(path: Path, statement: str) -> None:
    raw = sqlite3.connect(path)
    with raw:
        raw.execute("PRAGMA writable_schema = ON")
        raw.execute(statement)
    raw.close()


def no_head(path: Path) -> None:
    _execute(path, "DELETE FROM meta")


def another_column(path: Path) -> None:
    _execute(path, "ALTER TABLE spent ADD COLUMN colour TEXT")


def an_older_version(path: Path) -> None:
    _execute(path, "UPDATE meta SET schema_version = 1")


def words_for_numbers(path: Path) -> None:
    _execute(path, "UPDATE limits SET since_ns = 'yesterday'")


def a_row_of_nobodys(path: Path) -> None:
    _execute(path, "INSERT INTO leases VALUES ('nobody', 99, 1)")


def for_newer_programs_alone(path: Path) -> None:
    # The header's write version: SQLite then opens the file for reading only.
    with path.open("r+b") as raw:
        raw.seek(18)
        raw.write(b"\x07")


DAMAGES = [
    cut_off,
    overwrite,
    empty,
    a_directory,
    another_program,
    no_head,
    another_column,
    an_older_version,
    words_for_numbers,
    a_row_of_nobodys,
    for_newer_programs_alone,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_a_ledger_is_set_aside_and_the_window_counts_as_spent(
    join: Open, directory: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    # Given a ledger that is damaged while nobody has it open
    first = join()
    before = first.ledger_id
    first.leave()
    first.close()
    damage(file(directory))

    # When a process starts
    ledger = join()

    # Then a new one takes its place, which counts all as spent, and the log says so loudly
    (aside,) = set_aside(directory)
    assert ledger.ledger_id != before
    assert not ledger.fresh
    assert used(ledger) == 100
    assert not lease(ledger, 1)
    (said,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert aside.name in said.getMessage()
    assert ledger.ledger_id in said.getMessage()
    # and all can be spent a window and a linger later, not before
    clock.pass_ns(20 * S)
    assert not lease(ledger, 1)
    clock.pass_ns(20 * 10**6)
    assert lease(ledger, 100)


@pytest.mark.parametrize("damage", [cut_off, overwrite, empty, another_program])
def test_damage_under_running_processes_voids_their_leases_and_none_is_forgotten(
    join: Open, directory: Path, clock: FakeClock, damage: Callable[[Path], None]
) -> None:
    # Given two processes with leases, one of which is stopped for long
    ledger, stopped = join(), join()
    assert lease(ledger, 10)
    assert lease(stopped, 20)
    words, slot = stopped.words, stopped.slots()["api"]
    epoch = words.view[slot]
    damage(file(directory))

    # When the first notices, its own statement counts again, and of the other nobody knows what it holds
    while True:
        try:
            if ledger.exchange(Exchange(held={"api": 10})).void:
                break
        except LedgerError as error:
            assert "corrupt" in error.message or "moved" in error.message or "cannot be used" in error.message
    ledger.exchange(Exchange(held={"api": 10}))
    assert words.view[slot] != epoch, "what the stopped one leased is not void"
    assert used(ledger) == 100 + 10 + 100

    # Then nothing is granted for as long as it may spend, however long that is
    clock.pass_ns(3600 * S)
    assert not lease(ledger, 1, held=10)

    # until it wakes up and says what it holds
    while not (response := _patiently(stopped, Exchange(held={"api": 3}))).void:
        pass
    stopped.exchange(Exchange(held={"api": 3}))
    assert response.void
    assert stopped.ledger_id == ledger.ledger_id
    assert lease(ledger, 87, held=10)
    assert not lease(ledger, 1, held=97)
    assert len(set_aside(directory)) == 1


def _patiently(ledger: Ledger, request: Exchange) -> Response:
    try:
        return ledger.exchange(request)
    except LedgerError:
        return ledger.exchange(request)


def test_who_died_with_the_old_ledger_counts_from_when_it_was_noticed(
    join: Open, directory: Path, clock: FakeClock
) -> None:
    ledger, dying = join(), join()
    assert lease(dying, 20)
    file(directory).unlink()
    assert ledger.exchange(Exchange()).void

    clock.pass_ns(100 * S)
    assert not lease(ledger, 1)
    dying.close()
    assert ledger.bury_dead() == 1

    clock.pass_ns(20 * S)
    assert not lease(ledger, 1)
    clock.pass_ns(20 * 10**6)
    assert lease(ledger, 100)


def test_a_limit_raised_in_the_window_that_counts_as_spent_frees_nothing(
    join: Open, directory: Path, clock: FakeClock
) -> None:
    join().close()
    overwrite(file(directory))
    ledger = join(Policy("api", (Limit(30, 10 * S),)))

    ledger.configure([API])

    assert not lease(ledger, 1)
    clock.pass_ns(20 * S + 20 * 10**6)
    assert lease(ledger, 100)


def test_a_quota_that_is_new_long_after_a_ledger_was_replaced_is_not_spent(
    join: Open, directory: Path, clock: FakeClock
) -> None:
    join().close()
    overwrite(file(directory))
    ledger = join()
    clock.pass_ns(25 * S)

    ledger.configure([Policy("mail", (Limit(5, 10 * S),)), Policy("slow", (Limit(7, 60 * S),))])

    now_ns = ledger.clock.now_ns()
    readings = ledger.readings()
    assert (readings["mail"].used(now_ns), readings["slow"].used(now_ns)) == ((0,), (7,))


def test_a_ledger_that_is_gone_from_where_one_was_is_no_first_start(join: Open, directory: Path) -> None:
    join().close()
    file(directory).unlink()

    ledger = join()

    assert not ledger.fresh
    assert used(ledger) == 100
    assert set_aside(directory) == []


def test_a_directory_that_is_lost_under_a_process_is_made_again(join: Open, directory: Path) -> None:
    ledger = join()
    assert lease(ledger, 10)
    directory.rename(directory.with_name("gone"))

    assert ledger.exchange(Exchange(held={"api": 10})).void
    assert not ledger.exchange(Exchange(held={"api": 10})).void

    assert used(ledger) == 110
    assert lock_of(directory, ledger).exists()


def lock_of(directory: Path, ledger: Ledger) -> Path:
    return directory / "processes" / f"{ledger.process}.lock"


def test_a_shared_page_that_is_deleted_is_no_longer_looked_at(join: Open, directory: Path) -> None:
    ledger = join()
    assert lease(ledger, 10)
    (directory / "ledger.epochs").unlink()

    # The process has to bind its pools to the new page, where others say that a limit was lowered.
    assert ledger.exchange(Exchange(held={"api": 10})).void
    other = join()

    other.block("api", 10**15)
    slot = ledger.slots()["api"]
    assert ledger.words.view[slot] == other.words.view[slot] == other.readings()["api"].epoch


def test_a_new_ledger_voids_the_leases_of_the_former_at_once(join: Open, directory: Path, clock: FakeClock) -> None:
    ledger = join()
    slot = ledger.slots()["api"]
    epoch = ledger.words.view[slot]
    overwrite(file(directory))

    # When somebody opens it who knows of no quota
    Ledger.open(directory, clock=clock.clock()).close()

    assert ledger.words.view[slot] != epoch


def test_of_what_was_set_aside_only_the_newest_are_kept(directory: Path, clock: FakeClock) -> None:
    for _ in range(repair.KEPT_ASIDE + 2):
        Ledger.open(directory, clock=clock.clock()).close()
        overwrite(file(directory))
    Ledger.open(directory, clock=clock.clock()).close()

    assert len(set_aside(directory)) == repair.KEPT_ASIDE


@pytest.mark.parametrize("lose", [overwrite, Path.unlink], ids=["damaged", "deleted"])
def test_a_journal_of_the_former_file_does_not_get_into_the_new_one(
    join: Open, directory: Path, lose: Callable[[Path], None]
) -> None:
    # Given a transaction that a crash left half done: its journal says how the pages were before
    join().close()
    journal = file(directory).with_name("ledger.sqlite-journal")
    writer = sqlite3.connect(file(directory), isolation_level=None)
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE meta SET seen_ns = seen_ns + 1")
    writer.executemany("INSERT INTO counted VALUES (?, 1)", [(f"{n:0200}",) for n in range(500)])
    hot = journal.read_bytes()
    writer.close()
    lose(file(directory))
    journal.write_bytes(hot)

    ledger = join()

    assert used(ledger) == 100
    assert journal.stat().st_size == 0 if journal.exists() else True


# -- locks and disks: no damage


def test_a_damaged_file_in_which_a_transaction_is_open_is_left_alone(join: Open, directory: Path) -> None:
    join().close()
    with _held_by_a_stopped_process(file(directory)) as pid:
        overwrite(file(directory))
        # It cannot be told apart from a write under way; nobody may take it away from under the other
        with pytest.raises(BlockingIOError):
            repair.open_sound(directory, clock=FakeClock().clock(), unknown=False, patience_s=0.1)
        assert set_aside(directory) == []
        assert lock_holders(directory) == (pid,)
    join()
    assert len(set_aside(directory)) == 1


def test_a_transaction_of_this_process_keeps_it_from_having_the_file_to_itself(join: Open, directory: Path) -> None:
    join().close()
    connection = sqlite3.connect(file(directory), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")

    with pytest.raises(BlockingIOError), idle(file(directory), patience_s=0):
        pytest.fail("had it")

    connection.close()
    with idle(file(directory), patience_s=0):
        pass


def test_a_locked_ledger_names_who_holds_it_and_is_left_alone(join: Open, directory: Path) -> None:
    ledger = join()
    before = ledger.ledger_id
    with _held_by_a_stopped_process(file(directory)) as pid:
        with pytest.raises(LedgerError, match=f"is locked by process {pid}$"):
            ledger.exchange(Exchange(), patience_s=0.05)
        with pytest.raises(LedgerError, match="is locked"):
            ledger.probe(patience_s=0.05)
        with pytest.raises(BlockingIOError), idle(file(directory), patience_s=0):
            pass

        # Held at each look, and nothing was written meanwhile: after a while that is too long
        held = watch_locks(directory, None, now_s=100.0)
        held = watch_locks(directory, held, now_s=100.0 + LOCK_HELD_TOO_LONG_S / 2)
        assert held.overdue(100.0 + LOCK_HELD_TOO_LONG_S / 2) == ()
        held = watch_locks(directory, held, now_s=100.0 + LOCK_HELD_TOO_LONG_S)
        assert held.overdue(100.0 + LOCK_HELD_TOO_LONG_S) == (pid,)

    assert lease(ledger, 1)
    assert (ledger.ledger_id, set_aside(directory)) == (before, [])
    assert watch_locks(directory, held, now_s=200.0).since_s == {}


@contextmanager
def _held_by_a_stopped_process(path: Path) -> Iterator[int]:
    program = (
        "import os, signal, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN IMMEDIATE'); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, path])
    try:
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def test_who_holds_a_lock_is_read_by_the_file_and_not_who_waits(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    file.touch()
    status = file.stat()
    where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    text = (
        f"1: POSIX  ADVISORY  WRITE 4711 {where} 1073741825 1073741825\n"
        f"1: -> POSIX  ADVISORY  WRITE 4712 {where} 1073741825 1073741825\n"
        f"2: POSIX  ADVISORY  READ 4713 00:00:{status.st_ino + 1} 0 EOF\n"
        # Of another file system, and the process has no such file open.
        f"2: POSIX  ADVISORY  WRITE {os.getpid()} ff:ffff:{status.st_ino} 0 EOF\n"
        f"3: OFDLCK ADVISORY  WRITE -1 {where} 0 EOF\n"
        f"4: FLOCK  ADVISORY  WRITE 0 {where} 0 EOF\n"
    )

    assert holders_of([status], text) == (4711,)


def test_who_replaces_the_ledger_holds_a_lock_that_is_seen(join: Open, directory: Path) -> None:
    join()

    with replacing(directory, patience_s=0):
        assert lock_holders(directory) == (os.getpid(),)
    assert lock_holders(directory) == ()


def test_a_lock_held_at_every_look_of_a_busy_ledger_is_not_held_too_long(join: Open, directory: Path) -> None:
    # Given somebody who holds a lock whenever one looks, while others commit
    ledger = join()
    held = None
    raw = sqlite3.connect(file(directory), isolation_level=None)
    for second in range(int(LOCK_HELD_TOO_LONG_S) + 2):
        lease(ledger, 1, held=second)
        raw.execute("BEGIN IMMEDIATE")
        held = watch_locks(directory, held, now_s=float(second))
        raw.execute("ROLLBACK")
        assert held.since_s == {os.getpid(): float(second)}
        assert held.overdue(float(second)) == ()
    raw.close()


# -- sixteen at once


_OPENER = """
import json, logging, sys
from pathlib import Path
from qctl.errors import LedgerError
from qctl.quota import Ledger, Limit, Policy
from qctl.quota.exchange import Exchange, Want

said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(handler)
directory, running = Path(sys.argv[1]), sys.argv[2] == "running"
policy = Policy("api", (Limit(100, 3600 * 10**9),))

def join():
    ledger = Ledger.open(directory)
    ledger.configure([policy])
    ledger.join()
    return ledger

ledger = join() if running else None
print("ready", flush=True)
sys.stdin.readline()
ledger = ledger or join()
granted, tries = False, 0
while True:
    tries += 1
    try:
        response = ledger.exchange(Exchange(wants=(Want("timeline", {"api": 1}, claim=False),)))
    except LedgerError as error:
        assert tries < 50, error
        continue
    if not response.void:
        break
granted = any(response.granted)
print(json.dumps({"id": ledger.ledger_id, "granted": granted, "said": said}), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("running", [False, True], ids=["at start", "while they run"])
def test_sixteen_processes_that_find_a_damaged_ledger_at_once_set_aside_one_file(
    join: Open, directory: Path, running: bool
) -> None:
    # Given sixteen processes, about to open the ledger or with it open
    first = join(Policy("api", (Limit(100, 3600 * S),)))
    first.leave()
    first.close()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", _OPENER, str(directory), "running" if running else "starting"]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(16)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

        # When it is damaged, and all need it at once
        overwrite(file(directory))
        answers = [_go(process) for process in processes]
        found = [json.loads(answer()) for answer in answers]

        # Then one file was set aside, all use the same new one, and nobody was granted anything by it
        assert len(set_aside(directory)) == 1
        assert len({one["id"] for one in found}) == 1
        assert not any(one["granted"] for one in found)
        assert sum(len(one["said"]) for one in found) == 1
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _go(process: subprocess.Popen[str]) -> Callable[[], str]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return process.stdout.readline


def test_whatever_is_overwritten_a_ledger_opens_or_is_set_aside(join: Open, directory: Path) -> None:
    # Given a ledger with something in every table
    ledger, other = join(), join()
    for n in range(60):
        ledger.exchange(Exchange(held={"api": 1}, settled={"api": {ledger.clock.now_ns() - n * S // 10: 1}}))
    assert lease(other, 30)
    other.exchange(Exchange(held={"api": 30}, wants=(Want("timeline", {"api": 90}),)))
    ledger.count_as_spent("a test")
    ledger.close()
    other.close()
    whole = file(directory).read_bytes()
    chance = random.Random(7)

    # When a few bytes of it are changed, anywhere; then it is used, or set aside, and nothing else happens
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 8, 200])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file(directory).write_bytes(damaged)
        opened = Ledger.open(directory, clock=FakeClock(true_ns=2 * 10**12).clock())
        opened.configure([API])
        opened.join()
        opened.exchange(Exchange(wants=(Want("timeline", {"api": 1}),), top_up={"api": 0}))
        opened.bury_dead()
        opened.leave()
        opened.close()
