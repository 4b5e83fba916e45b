"""`--local`: commands that come over the supervisor's socket, for when the broker takes none.

A command is on disk before anything obeys it; then every process has it as an order, and whoever gave it hears what
each of them answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qctl.broker.message import short, text
from qctl.control import socket as wire
from qctl.control.event import Command, NotUnderstood
from qctl.control.host_answer import ProcessLook
from qctl.errors import BrokerBlocked, QctlError, UsageError
from qctl.worker.child import Child
from qctl.worker.pending import Pending, understand

log = logging.getLogger(__name__)

#: Who asks at the same time; one operator does.
MAX_CLIENTS = 8
#: A client writes its line at once, and reads what it is told.
LINE_S = 5.0
#: Answers are waited for so long; who asks may hang up before.
GATHER_S = 60.0
#: pid, uid and gid of the other end.
_PEER = struct.Struct("3i")


class _Asking:
    """One command whose answers somebody waits for. `bodies`: of those that came; b"": a process has ended."""

    def __init__(self, command: Command, children: Collection[Child]) -> None:
        self.id = command.id
        self.silent = set(children)
        self.bodies: asyncio.Queue[bytes] = asyncio.Queue(2 * len(children) + 1)

    def take(self, child: Child, body: bytes) -> None:
        """The answer of a process, or its end."""
        if child in self.silent:
            self.silent.discard(child)
            self.bodies.put_nowait(body)


class LocalControl:
    """The socket of one host. For the loop's thread."""

    def __init__(
        self,
        directory: Path,
        host: str,
        pending: Pending,
        children: Callable[[], Collection[Child]],
        looks: Callable[[], tuple[ProcessLook, ...]],
    ) -> None:
        """directory: STATE/HOST, whose lock is held. children: those that run now; looks: how all processes are."""
        self._directory = directory
        self._host = host
        self._pending = pending
        self._children = children
        self._looks = looks
        self._server: asyncio.Server | None = None
        self._asking: set[_Asking] = set()
        self._clients = 0

    async def open(self) -> None:
        """Listen. Where that is not possible the worker runs all the same, and says so."""
        try:
            listening = _bind(self._directory)
        except OSError as error:
            log.error(
                "no local commands (`--local`) can be given on this host: %s: %s",
                self._directory / wire.FILE,
                error.strerror or error,
            )
            return
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=wire.MAX_EVENT_LINE_BYTES)

    def close(self) -> None:
        """Stop listening, and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with suppress(OSError):
                (self._directory / wire.FILE).unlink()

    def on_answer(self, child: Child, answer: Mapping[str, Any]) -> None:
        """A process has answered a command that was ordered to it."""
        for asking in self._asking:
            if asking.id == answer.get("id"):
                asking.take(child, _compact(answer))

    def on_end(self, child: Child) -> None:
        """A process has ended, and answers nothing any more."""
        for asking in self._asking:
            asking.take(child, b"")

    def repeat_to(self, child: Child) -> None:
        """Order what is not in the control log yet to a process that has just been started."""
        for command in self._pending.commands:
            child.order(_order(command))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > MAX_CLIENTS:
                raise BrokerBlocked(f"{MAX_CLIENTS} local commands are given at this moment", hint="Try again.")
            await self._obey(await _line_of(reader), reader, writer)
        except QctlError as error:
            with suppress(OSError, TimeoutError):
                await _say(writer, wire.Refused(error.message, error.hint, error.exit_code))
        except (OSError, TimeoutError) as error:
            log.debug("who gave a local command has hung up: %s", error)
        finally:
            self._clients -= 1
            writer.close()

    async def _obey(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            command = understand(line, self._host)
        except NotUnderstood as why:
            raise UsageError(
                f"the command cannot be obeyed: {why}", hint="Is this qctl of the worker's version?"
            ) from None
        children = tuple(child for child in self._children() if child.alive)
        deaf = next((child for child in children if child.is_deaf), None)
        if deaf is not None:
            # Nothing is kept from it by this: it does not read what it was told before either.
            raise BrokerBlocked(
                f"process {deaf.index} pid={deaf.process.pid} does not read its orders; the command is not given",
                hint="Is it stopped? It may be killed: it is started anew, with all orders.",
            )
        await self._pending.add(command)
        children = tuple(child for child in self._children() if child.alive)
        asking = _Asking(command, children)
        self._asking.add(asking)
        try:
            for child in children:
                child.order(_order(command))
            _note(command, writer)
            await _say(writer, wire.Given(self._looks()))
            telling = asyncio.ensure_future(self._tell_answers(asking, writer))
            gone = asyncio.ensure_future(reader.read(1))  # nothing more is to come but the end
            await asyncio.wait([telling, gone], timeout=GATHER_S, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if telling.done():
                telling.result()
            telling.cancel()
        finally:
            self._asking.discard(asking)

    async def _tell_answers(self, asking: _Asking, writer: asyncio.StreamWriter) -> None:
        while asking.silent or not asking.bodies.empty():
            if body := await asking.bodies.get():
                await _say(writer, wire.Answered(body))
        await _say(writer, wire.Ended(self._looks()))


def _bind(directory: Path) -> socket.socket:
    """A listening socket that its owner alone may use. Raises OSError."""
    if stat.S_IMODE(directory.stat().st_mode) & 0o077:
        directory.chmod(0o700)
    # A dead supervisor's: the host's lock is ours.
    (directory / wire.FILE).unlink(missing_ok=True)
    found = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(found.fileno(), 0o600)  # what it is bound to gets this mode, less the umask
        with wire.address(directory) as address:
            found.bind(address)
        found.listen(MAX_CLIENTS)
    except OSError:
        found.close()
        raise
    return found


async def _line_of(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await asyncio.wait_for(reader.readline(), LINE_S)
    except ValueError:
        raise UsageError(f"the command is larger than {wire.MAX_EVENT_LINE_BYTES >> 10} KiB") from None
    except TimeoutError:
        raise UsageError(f"no whole command came within {LINE_S:g} s") from None
    if not line.endswith(b"\n"):
        raise UsageError("the command is not whole: its line does not end")
    return line[:-1]


async def _say(writer: asyncio.StreamWriter, line: wire.Line) -> None:
    writer.write(wire.write(line))
    await asyncio.wait_for(writer.drain(), LINE_S)


def _order(command: Command) -> bytes:
    return b"local " + command.body() + b"\n"


def _compact(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode()


def _note(command: Command, writer: asyncio.StreamWriter) -> None:
    """Who it was, as far as the system knows; in the control log it will be the worker's user."""
    peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _gid = _PEER.unpack(peer)
    log.warning(
        "%s %s was given on this host: uid=%d pid=%d as=%s reason=%s id=%s",
        command.verb,
        command.target,
        uid,
        pid,
        command.claimed_by or "-",
        short(text(command.reason)) or "-",
        command.id,
    )
