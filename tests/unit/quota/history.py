"""Random histories of a host in simulated time: the real ledger on real files, judged by an API with its own log.

`play(seed)` plays one and raises what went wrong. Several processes take, call, settle, stop, wake up much later, die
in the middle of a transaction and come back; limits change; the machine restarts; the disk is full, commits fail or
only seem to, the file is lost or damaged or locked; the wall clock jumps. The limits are of every kind and change from
one to the other: the API's fixed windows begin when they like, and some of its answers say when they end, within a
second; a paced one is a leaky bucket, counted in fractions; some answers say what remains. Four things are asserted:

never over       The API may count a unit at any instant from its reservation to its settlement, or a linger later. At
                 every step, in whichever window or bucket, the most it can count is at most the limit.
never forgotten  Whenever the ledger is whole, it counts at least as much.
nobody accused   Where nobody else spends, what the API says remains never looks as if somebody did.
no waste         It counts no more than the law says: what is in hand, what was spent within a window (stretched,
                 rounded up to a bucket, and a linger for what may be counted later), what the dead had from when they
                 were noticed, and a whole window after a reboot or with a new ledger. A window and a linger after the
                 last fault, all of the limit can be spent, to the last unit.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from qctl.errors import LedgerError
from qctl.quota import Grant, Hold, Leases, Limit, Policy, Window, books, directory, faults, renewal, schema
from qctl.quota.policy import enforced
from qctl.quota.renewal import Renewal
from qctl.quota.upstream import Heard, Span, Told
from tests.unit.quota.model import FakeClock, S, Unit, Upstream

PERIODS_NS = (2 * S, 10 * S, 25 * S)
#: Small ones are gone at once; of a large one more than a single unit is leased ahead.
UNITS = (4, 9, 30, 150)
#: A bucket of 4 out of 20 in 10 s has the period of another limit.
COLLIDING = ((Limit(20, 10 * S), Limit(9, 2 * S)), (Limit(20, 10 * S),), (Limit(30, 10 * S), Limit(9, 2 * S)))
LONGEST_NS = max(PERIODS_NS)
STEPS = 24
MOST_PROCESSES = 4
MOST_TASKS = 12
MOST_WAITING = 3
#: A quota that nobody configures any more.
FORMER = Policy("former", (Limit(5, 10 * S),))
#: Files that live as short as these belong in memory.
_MEMORY = Path("/dev/shm")
_real_connect = sqlite3.connect


class Killed(BaseException):
    """What unwinds a process that is killed in the middle of a transaction."""


class Disk:
    """What goes wrong with commits, here and now. One history is played at a time."""

    full = False
    #: Commits that are to fail, and of them those that happen all the same.
    fails = 0
    happens = False
    #: A thread that stops at its next commit, until it is woken or killed.
    stops: threading.Thread | None = None
    stopped = threading.Event()
    go_on = threading.Event()
    kill = False
    committed: Callable[[], None] = staticmethod(lambda: None)


class Connection(sqlite3.Connection):
    """A connection whose commits can fail, or stop in the middle."""

    written = 0

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if sql == "ROLLBACK":
            self.written = self.total_changes
        if sql != "COMMIT" or self.total_changes == self.written:
            return super().execute(sql, *arguments)
        self.written = self.total_changes
        if Disk.stops is threading.current_thread():
            Disk.stopped.set()
            Disk.go_on.wait()
            if Disk.kill:
                raise Killed
        if Disk.fails:
            Disk.fails -= 1
            if Disk.happens:
                super().execute(sql)
                Disk.committed()
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        done = super().execute(sql)
        Disk.committed()
        return done


@contextmanager
def simulation() -> Iterator[None]:
    """No threads, no waiting for locks, and files in memory."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sqlite3, "connect", partial(_real_connect, factory=Connection)))
        stack.enter_context(mock.patch.object(Renewal, "start"))
        stack.enter_context(mock.patch.object(Renewal, "stop"))
        stack.enter_context(mock.patch.object(renewal, "ROUND_PATIENCE_S", 0.0))
        # Which file system it is and who holds a lock cost more than all the rest, and are tested elsewhere.
        stack.enter_context(mock.patch.object(directory, "_MOUNTS", Path("/nonexistent")))
        stack.enter_context(mock.patch.object(faults, "lock_holders", return_value=()))
        patiently = schema.patiently
        stack.enter_context(
            mock.patch.object(schema, "patiently", lambda attempt, patience_s: patiently(attempt, patience_s=0.0))
        )
        yield


@dataclass(eq=False)
class Task:
    """A task that runs, and its units at the API."""

    grant: Grant
    units: list[Unit]
    begun_ns: int


class Process:
    """A worker process: real leases, whose thread takes a turn when it is told to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leases = Leases.open(world.directory, [world.policy], clock=world.clock.clock())
        # As the worker does, which finds the id in the control log.
        is_another = world.ledger_id not in ("", self.leases.ledger_id)
        if is_another and self.leases.count_as_spent(world.ledger_id):
            world.charge_all()
        self.priced = {name: self.leases.register(name, {"api": cost}) for name, cost in world.costs.items()}
        self.tasks: list[Task] = []
        self.waiting = 0
        self.stopped = False
        #: Stopped in the middle of a transaction.
        self.inside: threading.Thread | None = None
        #: Does not know which of its exchanges happened.
        self.unsure = False
        self.policy = world.policy

    @property
    def id(self) -> str:
        return self.leases._ledger.process

    def turn(self) -> None:
        with self.world.disk():
            self.leases._renewal.turn()
        self.learn()

    def learn(self) -> None:
        """Whether the ledger knows what is in hand here."""
        self.unsure = self.leases.broken is not None or not self.leases._till.pools["api"].valid

    def take(self, consumer: str) -> bool:
        """Begin a task, if it can be paid for from memory; else stand in line."""
        priced = self.priced[consumer]
        grant = self.leases.take(priced)
        if grant is not None:
            self._begin(grant)
        elif self.waiting < MOST_WAITING:
            self.waiting += 1
            self.leases._request(priced, self._answered, None)
        return grant is not None

    def settle(self, index: int, used: int, *, ambiguous: bool = False) -> None:
        """End a task: of its units `used` were spent, or as many as were counted."""
        task = self.tasks.pop(index)
        task.units.sort(key=lambda unit: unit.counted_ns is None)
        used = max(used, sum(unit.counted_ns is not None for unit in task.units))
        for unit in task.units[:used]:
            unit.until_ns, unit.lingers = self.world.clock.true_ns, ambiguous
            if not ambiguous and unit.counted_ns is None:
                unit.counted_ns = self.world.clock.true_ns
        for unit in task.units[used:]:
            self.world.api.units.remove(unit)
        if used and not ambiguous:
            self.leases.tell("api", Heard(told=self.world.answer(task.begun_ns)))
        self.leases.settle(task.grant, {"api": used}, ambiguous=ambiguous)
        self.world.charge(used, lingers=ambiguous)

    def in_memory(self) -> int:
        pool = self.leases._till.pools["api"]
        return pool.left + pool.running

    def unwritten(self) -> int:
        pool = self.leases._till.pools["api"]
        return sum(pool.pending.values()) + sum(pool.doubtful.values())

    def _answered(self, answer: Grant | Hold) -> None:
        self.waiting -= 1
        if isinstance(answer, Grant):
            self._begin(answer)

    def _begin(self, grant: Grant) -> None:
        units = [Unit() for _ in range(grant.reserved("api"))]
        self.world.api.units += units
        self.world.begun = True
        self.tasks.append(Task(grant, units, self.leases.clock.now_ns()))


@dataclass(eq=False)
class Charge:
    """Units that the ledger may count, from `base_ns` on for a window.

    base_ns: true time; None: for as long as nobody has noticed the death of `process`. whole: all of the limit.
    """

    units: int
    base_ns: int | None
    lingers: bool
    process: str = ""
    whole: bool = False
    #: Of this limit alone.
    period_ns: int | None = None

    def counts(self, limit: Limit, now_ns: int) -> bool:
        if self.period_ns not in (None, limit.period_ns):
            return False
        if self.base_ns is None:
            return True
        # An instant is rounded up twice, by the process and by the ledger.
        late_ns = 2 * limit.bucket_ns + 2 * 10**6
        return now_ns < self.base_ns + (limit.linger_ns if self.lingers else 0) + limit.kept_ns + late_ns


@dataclass
class World:
    """A host, its disk, its clocks, its API."""

    chance: random.Random
    directory: Path
    clock: FakeClock = field(default_factory=FakeClock)
    api: Upstream = field(default_factory=Upstream)
    processes: list[Process] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    costs: Mapping[str, int] = field(default_factory=lambda: {"cheap": 1, "costly": 4})
    wall_s: float = 1.7e9
    ledger_id: str = ""
    committed_ns: int = 0
    rebooted: bool = False
    same_boot: bool = False
    unsure_of_limits: bool = False
    blocked_until_ns: int = 0
    #: Answers of before say what remained of another limit.
    limits_of_ns: int = 0
    #: For each period, until when its history may be filled with what was possible.
    vague_until_ns: dict[int, int] = field(default_factory=dict)
    holder: sqlite3.Connection | None = None
    #: Descriptors of a ledger may not be closed while it is in use: that would free this process's locks.
    kept_open: list[int] = field(default_factory=list)
    audits: int = 0
    #: Whether a task began since the last judgement.
    begun: bool = False
    trail: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.api.begun_ns = self.clock.true_ns - self.chance.randrange(LONGEST_NS)
        self.api.poured = (self.clock.true_ns, Fraction(0))
        self.policy = self.a_policy()
        Disk.full, Disk.fails, Disk.stops, Disk.kill = False, 0, None, False
        Disk.committed = self._committed
        Leases.open(self.directory, [FORMER], clock=self.clock.clock()).close()
        self.start()

    # -- what can happen

    def start(self) -> None:
        """A process starts, if the ledger lets it."""
        if len(self.processes) < MOST_PROCESSES:
            if self.unsure_of_limits:
                for period_ns in PERIODS_NS:
                    self._make_vague(period_ns)
            try:
                with self.disk():
                    self.processes.append(Process(self))
            except LedgerError:
                return
            self.unsure_of_limits = False

    def work(self) -> None:
        """A process takes what it can, and of some of it the calls are over at once."""
        for process in self._some(1):
            most, settled = self.chance.choice([1, 3, 40]), self.chance.random()
            consumer = self.chance.choice(list(self.costs))
            for _ in range(most):
                if len(process.tasks) >= MOST_TASKS or not process.take(consumer):
                    break
                if self.chance.random() < settled:
                    self._settle_one(process, len(process.tasks) - 1)
            self.judge()
            if self.chance.random() < 0.7:
                process.turn()
                self.judge()

    def settle(self) -> None:
        """Some tasks end."""
        for process in self._some(2):
            for _ in range(self.chance.randrange(1 + len(process.tasks))):
                self._settle_one(process, self.chance.randrange(len(process.tasks)))

    def wait(self) -> None:
        """Time passes, and who is not stopped does what its thread does."""
        span_ns = self.chance.choice(
            [self.chance.randrange(S // 3), self.chance.randrange(3 * S), self.chance.choice(PERIODS_NS), 40 * S]
        )
        pieces = 1 if span_ns < S else 2
        for _ in range(pieces):
            self.clock.pass_ns(span_ns // pieces)
            for process in self._awake():
                process.turn()
            self.judge()

    def crash(self) -> None:
        """A process is killed."""
        if self.processes:
            self._kill(self.chance.choice(self.processes))

    def leave(self) -> None:
        """A process ends in order, its tasks done."""
        for process in self._some(1):
            for index in reversed(range(len(process.tasks))):
                self._settle_one(process, index)
            try:
                with self.disk():
                    process.leases.close()
            except LedgerError:
                # It ends all the same, without having left.
                self._bereave(process)
            self.processes.remove(process)

    def stop(self) -> None:
        """A process is stopped, sometimes in the middle of a transaction, with the file locked."""
        for process in self._some(1):
            process.stopped = True
            if Disk.stops is None and self.chance.random() < 0.3:
                process.leases._till.pools["api"].restate = True
                thread = threading.Thread(target=self._turn_of_the_stopped, args=(process,))
                Disk.stopped.clear()
                Disk.go_on.clear()
                Disk.stops = process.inside = thread
                thread.start()
                while not Disk.stopped.wait(0.0005) and thread.is_alive():
                    pass
                if not thread.is_alive():
                    Disk.stops = process.inside = None

    def wake(self) -> None:
        """A stopped process goes on, however long that was."""
        stopped = [process for process in self.processes if process.stopped]
        if stopped:
            self._wake(self.chance.choice(stopped))

    def change_limits(self) -> None:
        """Other limits, told to all; who is stopped hears of it when it wakes."""
        before, policy = self.policy, self.a_policy()
        told = [self._tell(process, policy) for process in self._awake()]
        # Who could not be told may have been obeyed all the same; the next to start sets it right.
        self.unsure_of_limits = self.unsure_of_limits or not all(told)
        if not any(told):
            return
        self.limits_of_ns = self.clock.true_ns
        self._pour(before, policy)
        self.policy = policy
        known = {limit.period_ns for limit in enforced(before) if limit.window is not Window.PACED}
        for limit in enforced(self.policy):
            if limit.window is not Window.PACED and limit.period_ns not in known:
                self._make_vague(limit.period_ns)
            for charge in self.charges:
                if charge.whole and charge.period_ns in (None, limit.period_ns):
                    charge.units = max(charge.units, limit.units)

    def block(self) -> None:
        """The API says: not before."""
        for process in self._some(1):
            span_ns = self.chance.randrange(20 * S)
            try:
                with self.disk():
                    process.leases.block("api", process.leases.clock.now_ns() + span_ns)
            except LedgerError:
                continue
            self.blocked_until_ns = max(self.blocked_until_ns, self.clock.true_ns + span_ns)

    def count_as_spent(self) -> None:
        """Somebody knows that more was spent."""
        for process in self._some(1):
            try:
                with self.disk():
                    if process.leases.count_as_spent(str(self.chance.random())):
                        self.charge_all()
            except LedgerError:
                process.unsure = True
                self.charge_all()

    def restart_machine(self) -> None:
        """All die; the boot clock starts anew, and with it the boot id (or not, as when a container is moved)."""
        for process in list(self.processes):
            self._kill(process)
        self._free_lock()
        self.same_boot = self.chance.random() < 0.3
        self.clock.reboot(after_ns=self.chance.randrange(30 * S))
        self.clock.boots -= self.same_boot
        self.rebooted = True
        self.limits_of_ns = self.clock.true_ns
        self.start()

    def jump_wall_clock(self) -> None:
        """The wall clock is set."""
        self.wall_s += self.chance.choice([3600, -3600, 86400 * 365, -1e9])

    def disk_fault(self) -> None:
        """The disk is full for a while, or the next commits fail, of which some happen all the same."""
        if self.chance.random() < 0.4:
            Disk.full = True
        else:
            Disk.fails, Disk.happens = self.chance.choice([1, 1, 2, 5]), self.chance.random() < 0.5

    def disk_heals(self) -> None:
        """All can be written again."""
        Disk.full, Disk.fails = False, 0

    def lock(self) -> None:
        """Somebody else holds a lock of the file, or frees it."""
        if self.holder is not None:
            self._free_lock()
        elif (self.directory / schema.FILE).is_file():
            self.holder = _real_connect(self.directory / schema.FILE, isolation_level=None, timeout=0)
            try:
                self.holder.execute("BEGIN IMMEDIATE" if self.chance.random() < 0.7 else "BEGIN")
                self.holder.execute("SELECT count(*) FROM sqlite_master")
            except sqlite3.Error:
                self._free_lock()

    def lose(self) -> None:
        """The ledger's file is deleted, or the shared page, or, if no process is stopped, all of the directory."""
        stopped = any(process.stopped for process in self.processes)
        kind = self.chance.choice(["file", "file", "page", "all"])
        if kind == "all" and not (stopped or Disk.full or Disk.fails or self.holder):
            shutil.rmtree(self.directory, ignore_errors=True)
        elif kind in ("page", "all"):
            (self.directory / schema.WORDS_FILE).unlink(missing_ok=True)
        else:
            path = self.directory / schema.FILE
            if path.is_file():
                path.unlink()
        if kind == "all":
            # Who still lives notices when it keeps house, a second later at most, joins, and says what it holds.
            self.clock.pass_ns(S + S // 4)
            for process in 3 * self._awake():
                process.turn()

    def damage(self) -> None:
        """The file is cut off, overwritten, emptied, or something else stands in its place."""
        path = self.directory / schema.FILE
        if not path.is_file():
            return
        kind = self.chance.choice(["cut", "page", "all", "empty", "directory", "other"])
        size = path.stat().st_size
        if size < 4096:
            return
        if kind in ("directory", "other"):
            path.rename(path.with_suffix(".was"))
            if kind == "directory":
                path.mkdir()
            else:
                other = _real_connect(path)
                other.execute("CREATE TABLE birds(name)")
                other.close()
            return
        descriptor = os.open(path, os.O_RDWR)
        self.kept_open.append(descriptor)
        if kind == "cut":
            os.ftruncate(descriptor, self.chance.randrange(1, size))
        elif kind == "page":
            os.pwrite(descriptor, self.chance.randbytes(4096), 4096 * self.chance.randrange(size // 4096))
        elif kind == "all":
            os.pwrite(descriptor, self.chance.randbytes(size), 0)
        else:
            os.ftruncate(descriptor, 0)

    # -- judging

    def judge(self) -> None:
        """Never over; to be asked whenever a task began. A limit that was lowered binds those that begin from then."""
        if not self.begun:
            return
        self.begun = False
        now_ns = self.clock.true_ns
        for limit in enforced(self.policy):
            worst = self.api.worst(now_ns, limit)
            assert worst <= limit.units, f"{worst} units in a window of {limit}"
        self.api.forget(now_ns - 3 * LONGEST_NS)

    def audit(self) -> None:
        """Never forgotten, and no waste; while nothing is wrong with disk and file, and all who can have said all."""
        if Disk.full or Disk.fails or Disk.stops or self.holder:
            return
        if not self._awake():
            self.start()
        for process in self._awake():
            process.turn()
        for process in self._awake():
            if process.unsure or process.leases._till.pools["api"].restate:
                process.turn()
        self.judge()
        if any(process.unsure for process in self._awake()) or not self._awake():
            return
        self.audits += 1
        try:
            leased, stated, spent = self._observe()
            known_units = self._used()
        except sqlite3.DatabaseError:
            # Damaged, and nobody has needed it since.
            return
        now_ns = self.clock.true_ns
        self._note_burials(stated)
        for process in self._awake():
            # To the unit: what a process has in hand is what the ledger has leased to it.
            in_hand = process.in_memory() + process.unwritten()
            assert not stated.get(process.id) or leased.get(process.id, 0) == in_hand, "not what is in hand"
        own = {process.id: process for process in self.processes}
        # Should the machine restart now, what counted at the last commit counts again.
        since_ns = min(now_ns, self.committed_ns)
        self.charges = [it for it in self.charges if any(it.counts(Limit(1, p), since_ns) for p in PERIODS_NS)]
        for limit in enforced(self.policy):
            used = sum(leased.values()) + known_units.get(limit, 0)
            worst = self.api.worst(now_ns, limit)
            # A new ledger knows that all was spent, of the limit that is; not how much more under an earlier one.
            known = min(worst, *(one.units for one in enforced(self.policy)))
            assert used >= known, f"{worst} units count for {limit}, and the ledger knows of {used}"
            # What is forgotten at a reset would be counted by a sliding limit.
            used = sum(leased.values()) + spent.get(limit.period_ns, 0)
            if (
                limit.window is Window.PACED
                or now_ns < self.vague_until_ns.get(limit.period_ns, 0)
                or any(it.unsure for it in self.processes)
            ):
                continue
            in_hand = sum(
                leased.get(process.id, 0) if process.stopped or not stated.get(process.id) else process.in_memory()
                for process in own.values()
            )
            allowed = in_hand + sum(charge.units for charge in self.charges if charge.counts(limit, now_ns))
            assert used <= allowed, f"the ledger counts {used} units of {limit}, and there are {allowed}"

    def _observe(self) -> tuple[dict[str, int], dict[str, int], dict[int, int]]:
        """What is in the file: units by process, who has stated what it holds, units that count by period."""
        # Who holds a lock is of this process, so there is nothing to wait for.
        observer = _real_connect(f"file:{self.directory / schema.FILE}?mode=ro", uri=True, timeout=0)
        try:
            counting = (
                "SELECT s.period_ns, sum(s.units) FROM spent s JOIN quotas q ON q.id = s.quota"
                " WHERE q.name = 'api' AND s.expires_ns > ? GROUP BY s.period_ns"
            )
            leased = "SELECT l.process, l.units FROM leases l JOIN quotas q ON q.id = l.quota WHERE q.name = 'api'"
            return (
                dict(observer.execute(leased)),
                dict(observer.execute("SELECT id, stated FROM processes")),
                dict(observer.execute(counting, (self.clock.clock().now_ns(),))),
            )
        finally:
            observer.close()

    def _used(self) -> dict[Limit, int]:
        """Settled units that count, by limit, as whoever asks the ledger is told."""
        now_ns = self.clock.clock().now_ns()
        observer = _real_connect(f"file:{self.directory / schema.FILE}?mode=ro", uri=True, timeout=0)
        try:
            found = books.readings(observer, books.accounts(observer), now_ns).get("api")
            parts = found.limits if found else ()
        finally:
            observer.close()
        if not any(it.unsure for it in self.processes) and not self.unsure_of_limits:
            assert {part.limit for part in parts} == set(enforced(self.policy)), "not the limits that were set"
        for part in parts:
            if part.foreign and part.foreign.sent_ns + self.clock.booted_ns > self.limits_of_ns:
                assert part.foreign.lo_units == 0, f"{part.foreign} with nobody else there"
        return {part.limit: part.used(now_ns) for part in parts}

    def end(self) -> None:
        """A window and a linger after the last fault, the whole limit can be spent, and not a unit more."""
        self.disk_heals()
        self._free_lock()
        for process in list(self.processes):
            if process.stopped:
                self._wake(process)
        for process in list(self.processes):
            process.turn()
            for index in reversed(range(len(process.tasks))):
                self._settle_one(process, index)
            process.turn()
            self._kill(process)
        self.start()
        assert self.processes, "the ledger does not open with nothing wrong"
        last = self.processes[0]
        last.turn()
        self.clock.pass_ns(2 * LONGEST_NS + LONGEST_NS // 100 + S)
        self.clock.pass_ns(max(0, self.blocked_until_ns - self.clock.true_ns))
        # What was unknown of a longer period may be filled with what was possible, for one of these.
        self.clock.pass_ns(max([0, *(until_ns - self.clock.true_ns for until_ns in self.vague_until_ns.values())]))
        # After a refusal one call must be served before there is more than one at a time.
        for _ in range(20):
            if last.tasks or last.take("cheap"):
                last.settle(0, 1)
                break
            self.clock.pass_ns(S // 20)
            last.turn()
        last.turn()
        self.clock.pass_ns(2 * LONGEST_NS)
        last.turn()
        most = min(limit.units for limit in enforced(self.policy))
        taken = 0
        for _ in range(4 * most + 20):
            taken = sum(len(task.units) for task in last.tasks)
            if taken == most:
                break
            if not last.take("costly" if most - taken >= 8 else "cheap"):
                self.clock.pass_ns(S // 20)
                last.turn()
        self.judge()
        assert taken == most, f"{taken} of {most} units can be spent, with nothing wrong for long"

    # -- inside

    def a_policy(self) -> Policy:
        limits = [
            Limit(self.chance.choice(UNITS), self.chance.choice(PERIODS_NS)) for _ in range(self.chance.randint(1, 2))
        ]
        window = self.chance.choice([Window.SLIDING, Window.SLIDING, Window.FIXED, Window.PACED])
        if self.chance.random() < 0.25:
            return Policy("api", self.chance.choice(COLLIDING), self.chance.choice([Window.PACED, window]), 4)
        # A costly task must be payable.
        burst_units = self.chance.choice([4, 7]) if window is Window.PACED else 1
        return Policy("api", tuple(limits), window, burst_units)

    def answer(self, sent_ns: int) -> tuple[Told, ...]:
        """What the API says of its limits in an answer that comes now. sent_ns: of the call, by the boot clock."""
        now_ns, boot_ns = self.clock.true_ns, self.clock.clock().now_ns()
        self.api.count(now_ns, min(PERIODS_NS), self.chance)
        told = []
        for limit in enforced(self.policy):
            if limit.window is Window.PACED or self.chance.random() < 0.3:
                continue
            end_ns = self.api.window_ns(now_ns, limit) + limit.period_ns - self.clock.booted_ns
            reset = Span(end_ns - self.chance.randrange(S), end_ns + self.chance.randrange(S))
            told.append(
                Told(
                    remaining_units=self.api.remaining(now_ns, limit) if self.chance.random() < 0.7 else None,
                    limit_units=limit.units,
                    period_ns=limit.period_ns,
                    reset=reset if limit.window is Window.FIXED and self.chance.random() < 0.7 else None,
                    sent_ns=sent_ns,
                    received_ns=boot_ns,
                )
            )
        return tuple(told)

    def _pour(self, before: Policy, after: Policy) -> None:
        """A bucket is as full as the one before; full, if there was none."""
        old = next((it for it in enforced(before) if it.window is Window.PACED), None)
        new = next((it for it in enforced(after) if it.window is Window.PACED), None)
        now_ns = self.clock.true_ns
        if old:
            self.api.poured = (now_ns, self.api.level(now_ns, old, running=False))
        elif new:
            self.api.poured = (now_ns, Fraction(new.units))

    def charge(self, units: int, *, lingers: bool) -> None:
        if units:
            self.charges.append(Charge(units, self.clock.true_ns, lingers))

    def charge_all(self) -> None:
        """The whole of each limit; more, should it be raised while it counts."""
        for limit in enforced(self.policy):
            self.charges.append(
                Charge(limit.units, self.clock.true_ns, lingers=True, whole=True, period_ns=limit.period_ns)
            )

    @contextmanager
    def disk(self) -> Iterator[None]:
        """The disk as it is for whoever writes."""
        failing = Disk.fails
        unwritten = {process: process.unwritten() for process in self.processes} if failing else {}
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if Disk.full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            if Disk.full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            if Disk.fails != failing and Disk.happens:
                # What was written down and not known to be is written again.
                for units in unwritten.values():
                    self.charge(units, lingers=True)
            self._look()

    def _look(self) -> None:
        """Whether there is a new ledger."""
        found = {process.leases.ledger_id for process in self.processes if not process.stopped} - {self.ledger_id}
        if found:
            self.ledger_id = found.pop()
            self.charge_all()

    def _make_vague(self, period_ns: int) -> None:
        self.vague_until_ns[period_ns] = self.clock.true_ns + 2 * Limit(1, period_ns).kept_ns + LONGEST_NS + S

    def _committed(self) -> None:
        if self.rebooted:
            # What counted when the ledger was last written may have been spent just now. The dead are only known to
            # be dead by their locks, when the boot is the same.
            dead = [it for it in self.charges if it.base_ns is None and self.same_boot]
            self.charges = dead + [
                Charge(it.units, self.clock.true_ns, lingers=True, whole=it.whole, period_ns=period_ns)
                for it in self.charges
                for period_ns in PERIODS_NS
                if it not in dead and it.counts(Limit(1, period_ns), self.committed_ns)
            ]
            for period_ns, until_ns in self.vague_until_ns.items():
                if until_ns > self.committed_ns:
                    self._make_vague(period_ns)
            self.rebooted = False
        self.committed_ns = self.clock.true_ns

    def _some(self, most: int) -> list[Process]:
        awake = self._awake()
        return self.chance.sample(awake, min(most, len(awake)))

    def _awake(self) -> list[Process]:
        return [process for process in self.processes if not process.stopped]

    def _settle_one(self, process: Process, index: int) -> None:
        size = len(process.tasks[index].units)
        used = self.chance.choice([size, size, self.chance.randint(0, size)])
        process.settle(index, used, ambiguous=self.chance.random() < 0.15)

    def _turn_of_the_stopped(self, process: Process) -> None:
        try:
            process.leases._renewal.turn()
        except Killed:
            pass

    def _wake(self, process: Process) -> None:
        self._let_go(process, kill=False)
        process.stopped = False
        process.learn()
        self._look()
        self._tell(process, self.policy)
        # It may spend before it looks.
        process.take("cheap")
        self.judge()
        process.turn()
        self.judge()

    def _let_go(self, process: Process, *, kill: bool) -> None:
        """Out of the transaction that it stopped in."""
        if process.inside is not None:
            Disk.kill = kill
            Disk.go_on.set()
            process.inside.join()
            Disk.kill, Disk.stops, process.inside = False, None, None

    def _tell(self, process: Process, policy: Policy) -> bool:
        try:
            with self.disk():
                process.leases.configure([policy])
        except LedgerError:
            # As the worker does: it could not be told, so it works no more.
            self._kill(process)
            return False
        return True

    def _kill(self, process: Process) -> None:
        self._let_go(process, kill=True)
        self._bereave(process)
        self._end(process)
        self.processes.remove(process)
        for task in process.tasks:
            for unit in task.units:
                unit.until_ns, unit.lingers = self.clock.true_ns, True

    def _end(self, process: Process) -> None:
        self._let_go(process, kill=True)
        process.leases._ledger.close()
        process.leases._till.shut()

    def _bereave(self, process: Process) -> None:
        units, whole = process.in_memory() + process.unwritten(), process.unsure
        try:
            # What it gave back to itself and had not said yet is there too; of one that is stopped, all may be assumed.
            leased, stated, _ = self._observe()
            units, whole = max(units, leased.get(process.id, 0)), whole or not stated.get(process.id, 1)
        except sqlite3.DatabaseError:
            whole = True
        if whole:
            units = max(units, *(limit.units for limit in enforced(self.policy)))
        self.charges.append(Charge(units, None, lingers=True, process=process.id, whole=whole))

    def _note_burials(self, stated: Mapping[str, int]) -> None:
        for charge in self.charges:
            if charge.base_ns is None and charge.process not in stated:
                charge.base_ns = self.clock.true_ns

    def _free_lock(self) -> None:
        if self.holder is not None:
            self.holder.close()
            self.holder = None

    def wall(self) -> float:
        """The wall clock."""
        return self.wall_s

    def close(self) -> None:
        self.disk_heals()
        self._free_lock()
        for process in self.processes:
            self._end(process)
        for descriptor in self.kept_open:
            os.close(descriptor)


EVENTS: Mapping[Callable[[World], None], int] = {
    World.work: 30,
    World.settle: 12,
    World.wait: 22,
    World.audit: 8,
    World.start: 4,
    World.stop: 3,
    World.wake: 3,
    World.crash: 4,
    World.leave: 1,
    World.change_limits: 3,
    World.block: 1,
    World.count_as_spent: 1,
    World.restart_machine: 2,
    World.jump_wall_clock: 2,
    World.disk_fault: 2,
    World.disk_heals: 4,
    World.lock: 2,
    World.lose: 1,
    World.damage: 1,
}


def play(seed: int) -> World:
    """Play the history of this seed. Raises AssertionError that names it, with what happened."""
    chance = random.Random(seed)
    base = Path(tempfile.mkdtemp(prefix="qctl-history-", dir=_MEMORY if _MEMORY.is_dir() else None))
    random.seed(seed)
    world = World(chance, base / "web-1")
    events = chance.choices(list(EVENTS), list(EVENTS.values()), k=STEPS)
    try:
        with mock.patch.object(time, "time", world.wall):
            for event in events:
                world.trail.append(event.__name__)
                event(world)
                world.judge()
            world.audit()
            world.end()
    except Exception as error:
        raise AssertionError(f"history {seed}: {error!r} after {', '.join(world.trail)}") from error
    finally:
        world.close()
        shutil.rmtree(base, ignore_errors=True)
    return world
