"""The durable record of a host: units reserved and spent, shared by all its processes through one SQLite file.

Each public operation is one transaction. Instants are read from the clock inside it, so that they ascend with the order
of the transactions. The reservations of a process are stated as what it *holds*, not as what changed: a statement that
is repeated after a commit whose outcome was not learned is true again.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from qctl.errors import LedgerError, QctlError, StateError, UnknownName
from qctl.quota import answers, books, changes, repair, schema
from qctl.quota.books import Account, Head
from qctl.quota.clock import Clock, boot_clock
from qctl.quota.desk import Desk
from qctl.quota.directory import PROCESSES, prepare
from qctl.quota.exchange import Exchange, Response
from qctl.quota.faults import ledger_errors
from qctl.quota.liveness import Lifeline, is_dead, lives
from qctl.quota.policy import Limit, Policy, enforced
from qctl.quota.schema import PATIENCE_S
from qctl.quota.window import Reading
from qctl.quota.words import FileId, Words, file_id

#: All quotas of the ledger, by name.
Accounts = Mapping[str, Account]
#: Characters of an evidence.
EVIDENCE_MAX = 200


class Ledger:
    """An open ledger file. Any thread may call; every method raises LedgerError, after patience_s if it is locked.

    A process that joined counts as dead when it closes, or ends in any other way, without having left.
    """

    def __init__(self, directory: Path, *, clock: Clock) -> None:
        self.clock = clock
        self.process = secrets.token_hex(8)
        self.ledger_id = ""
        self.fresh = False
        #: What this process's last change wrote to the shared page.
        self.mark = 0
        self._directory = directory
        self._path = directory / schema.FILE
        self._words_path = directory / schema.WORDS_FILE
        self._mutex = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._words: Words | None = None
        self._lifeline: Lifeline | None = None
        #: What was last known of every quota: whoever makes a new file in place of a lost one enters it.
        self._limits: dict[str, tuple[Limit, ...]] = {}
        #: The quotas as of a version of the limits.
        self._known: tuple[int, Accounts] = (-1, {})
        #: The ledger, and the shared page, that this process has been told to state anew what it holds for.
        self._stated: tuple[str, Words | None] = ("", None)
        self._file_id: FileId = None
        self._closed = False

    @classmethod
    def open(cls, directory: Path, *, clock: Clock | None = None, assume_spent: bool = False) -> Ledger:
        """Open or make the ledger in `directory`. assume_spent: a ledger made now counts all windows as used up.

        Raises StateError when the directory cannot be used, LedgerError when the file cannot.
        """
        prepare(directory)
        ledger = cls(directory, clock=clock or boot_clock())
        with ledger._mutex, ledger_errors(ledger._path):
            ledger._connection = ledger._reopen(assume_spent=assume_spent)
        return ledger

    @property
    def words(self) -> Words:
        """The shared page; a new object after the file was replaced."""
        if self._words is None:
            raise LedgerError(f"the ledger {self._path} is closed")
        return self._words

    @property
    def knows_us(self) -> bool:
        """Whether this process has stated what it holds to the ledger that is there now, as far as it has looked."""
        return self._stated == (self.ledger_id, self._words)

    # -- processes

    def join(self) -> None:
        """Become a process of this ledger: from now on what is leased here is this process's, until it dies."""
        with self._writing() as (connection, _, _):
            self._enter(connection)
            known = {row[0] for row in connection.execute("SELECT id FROM processes")}
            # Left behind by a crash or a reboot. Who joins makes its file under this lock, so none of them is new.
            for path in (self._directory / PROCESSES).iterdir():
                if path.stem not in known and is_dead(path):
                    path.unlink(missing_ok=True)
            holds_nothing = (self.ledger_id, self.words)
        self._stated = holds_nothing
        self.bury_dead()

    def leave(self) -> None:
        """End orderly. What was not given back counts as spent, as if the process had died."""
        with self._writing() as (connection, _, _):
            books.bury(connection, self.process, self.clock.now_ns())
        if self._lifeline:
            self._lifeline.cut(remove=True)
            self._lifeline = None

    def bury_dead(self, *, patience_s: float = PATIENCE_S) -> int:
        """Count what dead processes had in their hands as spent: now, and the linger. Returns how many were found.

        Writes nothing when none is dead.
        """
        with self._reading(patience_s) as (connection, _):
            others = [row[0] for row in connection.execute("SELECT id FROM processes") if row[0] != self.process]
        dead = [process for process in others if is_dead(self._lock_path(process))]
        if dead:
            with self._writing(patience_s) as (connection, _, _):
                now_ns = self.clock.now_ns()
                for process in dead:
                    books.bury(connection, process, now_ns)
            for process in dead:
                self._lock_path(process).unlink(missing_ok=True)
        return len(dead)

    # -- limits

    def configure(self, policies: Iterable[Policy]) -> None:
        """Set the limits of these quotas; others stay as they are. A change voids the quota's leases at once."""
        limits = {policy.name: enforced(policy) for policy in policies}
        with self._writing() as (connection, _, _):
            self._configure(connection, limits)
            self._limits |= limits

    def block(self, quota: str, until_ns: int | None) -> None:
        """The upstream has refused a call, and said: nothing before `until_ns`; None: it did not say until when.

        Voids the quota's leases at once; never shortens a block. A little is added, so that not all hosts come back at
        one instant; then the quota is spent one task at a time, until a call is answered.
        """
        with self._writing() as (connection, _, accounts):
            account = _account(accounts, quota)
            if answers.refused(connection, account, until_ns, now_ns=self.clock.now_ns()):
                self.words.set_epoch(account.quota_id, account.epoch + 1)

    def count_as_spent(self, evidence: str) -> bool:
        """Count every window as used up and void all leases, once for each `evidence`; whether this call did it.

        evidence: what showed that units were spent which this ledger does not know of; at most EVIDENCE_MAX characters.
        """
        with self._writing() as (connection, _, accounts):
            now_ns = self.clock.now_ns()
            if not changes.count_as_spent(connection, accounts.values(), evidence[:EVIDENCE_MAX], now_ns):
                return False
            for account in accounts.values():
                self.words.set_epoch(account.quota_id, account.epoch + 1)
        return True

    def slots(self) -> dict[str, int]:
        """Where the shared page has the epoch of each quota."""
        with self._reading() as (_, accounts):
            return {name: account.quota_id for name, account in accounts.items()}

    # -- units

    def exchange(self, request: Exchange, *, patience_s: float = PATIENCE_S) -> Response:
        """Settle, give back, and lease, in one transaction. Nothing is written when nothing changes."""
        with self._writing(patience_s) as (connection, head, accounts):
            here = (self.ledger_id, self.words)
            is_void = not (head.stated and self.knows_us)
            response = self._admit(connection, head) if is_void else self._serve(connection, head, accounts, request)
        if is_void:
            # Only now: what was not committed must be said again.
            self._stated = here
        return response

    def readings(self, *, patience_s: float = PATIENCE_S) -> Mapping[str, Reading]:
        """All that is known about each quota; takes no write lock."""
        with self._reading(patience_s) as (connection, accounts):
            return books.readings(connection, accounts, self.clock.now_ns())

    def probe(self, *, patience_s: float = PATIENCE_S) -> None:
        """Whether the ledger can be written again: write nothing new, to the disk."""
        with self._writing(patience_s) as (connection, _, _):
            books.seen(connection, self.clock.now_ns())

    def close(self) -> None:
        """Close the file and free the process's lock. Whoever did not `leave` before counts as dead."""
        with self._mutex:
            self._closed = True
            self._disconnect()
            if self._words:
                self._words.close()
                self._words = None
            if self._lifeline:
                self._lifeline.cut(remove=False)
                self._lifeline = None

    # -- inside

    def _admit(self, connection: sqlite3.Connection, head: Head) -> Response:
        """Have the process as one whose statements count; what it said before was for another ledger or page."""
        if head.stated is None:
            self._enter(connection)
        elif not head.stated:
            connection.execute("UPDATE processes SET stated = 1 WHERE id = ?", (self.process,))
        return Response(void=True)

    def _serve(self, connection: sqlite3.Connection, head: Head, accounts: Accounts, request: Exchange) -> Response:
        now_ns = self.clock.now_ns()
        for account in accounts.values():
            self.words.set_epoch(account.quota_id, account.epoch)
        desk = Desk(connection, self.process, now_ns, head)
        desk.state({_account(accounts, name).quota_id: units for name, units in request.held.items()})
        for settled, lingers in ((request.settled, False), (request.doubtful, True)):
            for name, units_at in settled.items():
                books.spend(connection, _account(accounts, name), units_at, now_ns=now_ns, lingers=lingers)
        changed = [answers.served(connection, _account(accounts, name), at) for name, at in request.served.items()]
        for name, told in request.told.items():
            account = _account(accounts, name)
            ours = answers.Ours(
                elsewhere_units=desk.elsewhere(account.quota_id),
                running_units=request.running.get(name, 0),
                settled=request.settled.get(name, {}),
            )
            if answers.hear(connection, account, told, ours, now_ns=now_ns):
                self.words.set_epoch(account.quota_id, account.epoch + 1)
                changed.append(True)
        if any(changed):
            accounts = books.accounts(connection)
        for consumer in request.unclaim:
            desk.unclaim(consumer)
        involved = {name for want in request.wants for name in want.cost} | set(request.top_up)
        desk.open(_account(accounts, name) for name in sorted(involved))
        granted = tuple(
            desk.grant(
                want.consumer,
                [(accounts[name], units) for name, units in want.cost.items()],
                claim=want.claim,
            )
            for want in request.wants
        )
        leased = {name: desk.lease_ahead(accounts[name], left) for name, left in request.top_up.items()}
        desk.store()
        if request.settled or request.doubtful:
            books.sweep(connection, head, accounts.values(), now_ns)
        return Response(
            granted=granted,
            leased=leased,
            epochs={name: account.epoch for name, account in accounts.items()},
            readings=books.readings(connection, accounts, now_ns) if request.look or not all(granted) else {},
        )

    def _enter(self, connection: sqlite3.Connection) -> None:
        """Register under a new name with a lock of its own; what another name held is that name's affair."""
        process = secrets.token_hex(8)
        lifeline, before = Lifeline(self._lock_path(process)), self._lifeline
        self.process, self._lifeline = process, lifeline
        if before:
            before.cut(remove=True)
        connection.execute("INSERT INTO processes VALUES (?, 1)", (process,))

    def _configure(self, connection: sqlite3.Connection, limits: Mapping[str, tuple[Limit, ...]]) -> None:
        now_ns = self.clock.now_ns()
        for name, its in limits.items():
            changed = changes.configure(connection, name, its, now_ns)
            if changed:
                # Before the commit: whoever looks waits for the lock then, and finds the new limit.
                self.words.set_epoch(*changed)

    def _lock_path(self, process: str) -> Path:
        return self._directory / PROCESSES / f"{process}.lock"

    @contextmanager
    def _writing(self, patience_s: float = PATIENCE_S) -> Iterator[tuple[sqlite3.Connection, Head, Accounts]]:
        with self._connected(patience_s) as connection:
            schema.patiently(lambda: connection.execute("BEGIN IMMEDIATE"), patience_s=patience_s)
            before = connection.total_changes
            head = self._head(connection)
            if not self.words.is_at(self._words_path):
                self._words = Words(self._words_path)
            yield connection, head, self._accounts(connection, head)
            if connection.total_changes == before:
                connection.execute("ROLLBACK")
                return
            books.seen(connection, self.clock.now_ns())
            schema.patiently(lambda: connection.execute("COMMIT"), patience_s=patience_s)
            self.mark = self.words.changed()

    @contextmanager
    def _reading(self, patience_s: float = PATIENCE_S) -> Iterator[tuple[sqlite3.Connection, Accounts]]:
        with self._connected(patience_s) as connection:
            connection.execute("BEGIN")
            head = schema.patiently(lambda: books.head(connection, self.process), patience_s=patience_s)
            yield connection, self._accounts(connection, head)
            connection.execute("COMMIT")

    def _head(self, connection: sqlite3.Connection) -> Head:
        """The head, of this clock; in a transaction that writes."""
        head = books.head(connection, self.process)
        if not head.holds(self.clock):
            changes.begin_anew(connection, head, self.clock, lives=lambda process: lives(self._lock_path(process)))
            head = books.head(connection, self.process)
        return head

    def _accounts(self, connection: sqlite3.Connection, head: Head) -> Accounts:
        """All quotas; read again only when a limit or a block has changed."""
        version, accounts = self._known
        if version != head.limits_version:
            accounts = books.accounts(connection)
            self._known = (head.limits_version, accounts)
            self._limits |= {name: account.limits for name, account in accounts.items()}
        return accounts

    @contextmanager
    def _connected(self, patience_s: float) -> Iterator[sqlite3.Connection]:
        with self._mutex, ledger_errors(self._path), schema.hurry():
            if self._closed:
                raise LedgerError(f"the ledger {self._path} is closed")
            if self._connection is not None and file_id(self._path) != self._file_id:
                # Moved or deleted under us: reading it would still work.
                self._disconnect()
            if self._connection is None:
                try:
                    # It may have been lost as a whole.
                    prepare(self._directory)
                except StateError as error:
                    raise LedgerError(error.message, hint=error.hint) from error
                # Not a first start: a file that has vanished since is no reason to forget what was spent.
                self._connection = self._reopen(assume_spent=True, patience_s=patience_s)
            connection = self._connection
            try:
                yield connection
            except BaseException as error:
                # May be of what is now rolled back.
                self._known = (-1, {})
                if not (isinstance(error, QctlError) or schema.is_busy(error)):
                    # The file may have been moved away, or be damaged: look at it anew next time.
                    self._disconnect()
                elif connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _reopen(self, *, assume_spent: bool, patience_s: float = PATIENCE_S) -> sqlite3.Connection:
        connection, self.fresh = repair.open_sound(
            self._directory, clock=self.clock, unknown=assume_spent, patience_s=patience_s
        )
        try:
            schema.patiently(lambda: connection.execute("BEGIN IMMEDIATE"), patience_s=patience_s)
            before = connection.total_changes
            head = self._head(connection)
            # A page in use is never unmapped here: other threads read it on every spend.
            if self._words is None or not self._words.is_at(self._words_path):
                self._words = Words(self._words_path)
            self._known = (-1, {})
            known = self._accounts(connection, head)
            # Whoever made a new ledger may not have known of these, nor may anybody configure them any more.
            self._configure(connection, {name: its for name, its in self._limits.items() if name not in known})
            if connection.total_changes != before:
                books.seen(connection, self.clock.now_ns())
            self._file_id = file_id(self._path)
            (self.ledger_id,) = connection.execute("SELECT ledger_id FROM meta").fetchone()
            schema.patiently(lambda: connection.execute("COMMIT"), patience_s=patience_s)
            self.mark = self._words.changed()
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


def _account(accounts: Accounts, quota: str) -> Account:
    if quota not in accounts:
        raise UnknownName(f"the ledger has no quota {quota}", hint="Add it under `quotas:` in the inventory.")
    return accounts[quota]
