"""Commands that were given on the host itself and are not in the control log yet: kept on disk until they are.

They hold on this host from the moment they are on disk. Each goes into the log as the event that it is, under its own
id, so that it makes no difference if it was in there already when the supervisor, or its connection, was lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qctl.broker import topology
from qctl.broker.connect import backoff
from qctl.broker.message import Outgoing, decode_json
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost, Connection
from qctl.control import giving
from qctl.control.event import MAX_EVENT_BYTES, Command, NotUnderstood, Record, Verb, read
from qctl.errors import BrokerBlocked, QctlError, StateError

log = logging.getLogger(__name__)

#: In STATE/HOST.
FILE = "pending.jsonl"
#: An operator gives a few in an outage.
MAX_PENDING = 100
MAX_FILE_BYTES = MAX_PENDING * (MAX_EVENT_BYTES + 1)
#: How often it is looked whether the broker takes events again.
LOOK_S = 0.5
#: An event that is neither confirmed nor refused for this long, without an alarm, is worth a line.
SLOW_S = 15.0
#: Who gave it is known when the broker has verified it; the format wants somebody.
_NOBODY_YET = "local"


def understand(body: bytes, host: str) -> Command:
    """The command of a line, if it may be given on `host` itself. Raises NotUnderstood with the reason."""
    try:
        fields = decode_json(body)
    except ValueError as error:
        raise NotUnderstood(str(error)) from None
    identity = fields.get("id") if isinstance(fields, dict) else None
    found = read(Record(0, topology.CONTROL, str(identity), _NOBODY_YET, body))
    if not isinstance(found, Command) or found.verb not in (Verb.PAUSE, Verb.RESUME) or not found.local:
        raise NotUnderstood("only pause and resume can be given on the host itself, with args.local")
    if found.target.host != host:
        raise NotUnderstood(f"only for host {host} itself, and its target is {found.target}")
    return found


class Pending:
    """The commands in order. For the loop's thread; what blocks runs in another."""

    def __init__(self, directory: Path, host: str) -> None:
        """directory: STATE/HOST. What is there is taken up. Raises StateError when it cannot be read."""
        self.commands: tuple[Command, ...] = ()
        self._path = directory / FILE
        self._host = host
        self._changing = asyncio.Lock()
        self._added = asyncio.Event()
        self._said = ""
        self._load()

    async def add(self, command: Command) -> None:
        """Keep one more; it is on disk when this returns. Raises BrokerBlocked when there are too many, QctlError."""
        async with self._changing:
            if any(one.id == command.id for one in self.commands):
                return
            if len(self.commands) >= MAX_PENDING:
                raise BrokerBlocked(
                    f"{MAX_PENDING} commands wait for the control log already; this one is not given",
                    hint="Give it again when the broker takes events.",
                )
            commands = (*self.commands, command)
            try:
                await self._write(commands)
            except OSError as error:
                raise QctlError(
                    f"{self._path} cannot be written: {error.strerror}; the command is not given",
                    hint="Is the disk full, or read-only?",
                ) from error
            self.commands = commands
        self._added.set()

    async def enter(self, connection: Connection) -> None:
        """Publish what there is and what comes to the control log, until cancelled or the connection is lost."""
        pauses = backoff()
        while connection.is_open:
            if not self.commands:
                self._added.clear()
                added: asyncio.Future[Any] = asyncio.ensure_future(self._added.wait())
                await asyncio.wait([added, connection.closed], return_when=asyncio.FIRST_COMPLETED)
                added.cancel()
            elif connection.blocked:
                await asyncio.sleep(LOOK_S)
            else:
                try:
                    await self._enter_all(connection)
                    pauses, self._said = backoff(), ""
                except (ChannelLost, QctlError) as error:
                    self._say(str(error))
                    await asyncio.sleep(next(pauses))

    def _say(self, why: str) -> None:
        """Once until it is another reason: it is tried again every few seconds."""
        level = logging.DEBUG if why == self._said else logging.WARNING
        self._said = why
        log.log(level, "%d local command(s) are not in the control log yet, trying again: %s", len(self.commands), why)

    async def _enter_all(self, connection: Connection) -> None:
        await topology.ensure(connection, topology.control_log())
        publisher = await Publisher.open(connection)
        try:
            while self.commands and not connection.blocked:
                command = self.commands[0]
                fate = await _fate(publisher, giving.outgoing(command, connection.username))
                if fate is Published.LOST:
                    raise publisher.why_lost or ChannelLost(0, fate.value)
                if fate is not Published.CONFIRMED:
                    raise QctlError(f"{topology.CONTROL_LOG}: {fate.value}")
                await self._remove(command)
                log.info("%s %s is in the control log now id=%s", command.verb, command.target, command.id)
        finally:
            await publisher.channel.close()

    async def _remove(self, command: Command) -> None:
        async with self._changing:
            # Gone from here first: what stays on a disk that takes no writes costs one more entry at the next start,
            # what stays here would cost one every few seconds.
            self.commands = tuple(one for one in self.commands if one.id != command.id)
            try:
                await self._write(self.commands)
            except OSError as error:
                log.warning("%s cannot be written: %s", self._path, error.strerror)

    async def _write(self, commands: Iterable[Command]) -> None:
        await asyncio.to_thread(_replace, self._path, b"".join(one.body() + b"\n" for one in commands))

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                found = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(
                f"{self._path} cannot be read: {error.strerror}, so it is not known which local commands hold",
                hint="Make it readable to the worker's user, or remove it and give the commands again.",
            ) from error
        good, bad = _sorted(filter(None, found.split(b"\n")), lambda line: understand(line, self._host))
        if bad or len(found) > MAX_FILE_BYTES:
            self._set_aside(good, bad)
        self.commands = tuple(good)
        for one in self.commands:
            log.warning("%s %s waits for the control log and holds here id=%s", one.verb, one.target, one.id)

    def _set_aside(self, good: Sequence[Command], bad: Sequence[tuple[bytes, NotUnderstood]]) -> None:
        aside = self._path.with_name(f"{FILE}.corrupt-{secrets.token_hex(4)}")
        try:
            os.link(self._path, aside)
            _replace(self._path, b"".join(one.body() + b"\n" for one in good))
        except OSError as error:
            log.error("%s cannot be written: %s", aside, error.strerror)
        log.critical(
            "%d of %d local commands that wait for the control log cannot be understood and DO NOT HOLD; the file is "
            "kept as %s: give them again (%s)",
            len(bad),
            len(bad) + len(good),
            aside,
            bad[0][1] if bad else f"over {MAX_FILE_BYTES} bytes",
        )


def _sorted(
    lines: Iterable[bytes], understood: Callable[[bytes], Command]
) -> tuple[list[Command], list[tuple[bytes, NotUnderstood]]]:
    good: dict[str, Command] = {}
    bad = []
    for line in lines:
        try:
            command = understood(line)
            good.setdefault(command.id, command)
        except NotUnderstood as why:
            bad.append((line, why))
    return list(good.values()), bad


def _replace(path: Path, content: bytes) -> None:
    """The file as a whole, or as it was; on disk when this returns. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


async def _fate(publisher: Publisher, outgoing: Outgoing) -> Published:
    """What becomes of an event, for as long as it takes: while it is not known, the next may not overtake it."""
    publishing = asyncio.ensure_future(publisher.publish(outgoing))
    try:
        while not (await asyncio.wait({publishing}, timeout=SLOW_S))[0]:
            if not publisher.channel.connection.blocked:
                log.warning("the control log has not taken a local command for %g s, and no alarm is known", SLOW_S)
        return publishing.result()
    finally:
        publishing.cancel()
