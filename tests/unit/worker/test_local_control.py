"""Local commands over the socket: what is kept, who is ordered, what is answered, and what is refused."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.control import socket as wire
from qctl.control.host_answer import ProcessLook, ProcessState
from qctl.errors import Exit, QctlError, UsageError
from qctl.ops.local import Given, NoSupervisor, give
from qctl.worker import local_control, pending
from qctl.worker.child import Child
from qctl.worker.local_control import MAX_CLIENTS, LocalControl
from qctl.worker.pending import Pending
from tests.fleet import wait_until


def event(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "v": 1,
        "id": secrets.token_hex(16),
        "at": "2026-11-22T21:00:00.123Z",
        "verb": "pause",
        "target": {"host": "web-1"},
        "args": {"local": True},
    }
    return json.dumps({**fields, **changes}).encode()


class Process:
    """A worker process, as far as it is given orders."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process = SimpleNamespace(pid=100 + index)
        self.alive = True
        self.is_deaf = False
        self.orders: list[bytes] = []

    def order(self, words: bytes) -> None:
        self.orders.append(words)

    def look(self) -> ProcessLook:
        state = ProcessState.CONNECTED if self.alive else ProcessState.ENDED
        return ProcessLook(self.index, self.process.pid, state, "2026")


class Host:
    """A supervisor's local control with processes that do what the test says."""

    def __init__(self, directory: Path, processes: int = 2) -> None:
        self.directory = directory
        self.processes = [Process(index) for index in range(processes)]
        self.pending = Pending(directory, "web-1")
        self.control = LocalControl(
            directory,
            "web-1",
            self.pending,
            lambda: cast("list[Child]", self.processes),
            lambda: tuple(one.look() for one in self.processes),
        )

    async def give(self, body: bytes, timeout_s: float = 5.0) -> Given:
        return await asyncio.to_thread(give, self.directory, body, timeout_s=timeout_s)

    async def ordered(self, count: int = 1) -> None:
        """Wait until each process has so many orders."""
        await until(lambda: all(len(one.orders) >= count for one in self.processes))

    def answer(self, index: int, body: bytes) -> None:
        answer = {"v": 1, "id": json.loads(body)["id"], "index": index}
        self.control.on_answer(cast("Child", self.processes[index]), answer)

    def end(self, index: int) -> None:
        self.processes[index].alive = False
        self.control.on_end(cast("Child", self.processes[index]))


async def until(condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(wait_until, "it", condition, 5.0)


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Host]:
    host = Host(directory)
    await host.control.open()
    try:
        yield host
    finally:
        host.control.close()


def on_host(directory: Path, act: Callable[[Host], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(directory) as host:
            await act(host)

    asyncio.run(main())


def test_given_a_command_then_it_is_on_disk_before_it_is_ordered_and_every_process_answers(tmp_path: Path) -> None:
    async def act(host: Host) -> None:
        # When a command is given
        body = event()
        kept: list[bool] = []
        host.processes[0].order = lambda words: kept.append(  # type: ignore[method-assign]
            json.loads(body)["id"] in (tmp_path / pending.FILE).read_text() and words.startswith(b"local {")
        )
        giving = asyncio.create_task(host.give(body))
        await until(lambda: kept)

        # Then it was on disk before it was an order, and what the processes answer comes back
        assert kept == [True]
        host.answer(1, event())  # of another command
        host.answer(1, body)
        host.answer(0, body)
        given = await giving
        assert [look.state for look in given.before] == ["connected", "connected"]
        identity = json.loads(body)["id"]
        answers = [json.loads(answer) for answer in given.answers]
        assert [(one["id"], one["index"]) for one in answers] == [(identity, 1), (identity, 0)]
        assert given.after is not None
        # and it is repeated to a process that starts later, until it is in the log
        later = Process(2)
        host.control.repeat_to(cast("Child", later))
        assert [json.loads(order.removeprefix(b"local "))["id"] for order in later.orders] == [json.loads(body)["id"]]

    on_host(tmp_path, act)


def test_given_a_process_that_ends_then_its_answer_is_not_waited_for(tmp_path: Path) -> None:
    async def act(host: Host) -> None:
        body = event()
        giving = asyncio.create_task(host.give(body, 30.0))
        await host.ordered()

        host.answer(0, body)
        host.end(1)

        given = await asyncio.wait_for(giving, 5)
        assert [json.loads(answer)["index"] for answer in given.answers] == [0]
        assert given.after is not None
        assert [look.state for look in given.after] == ["connected", "ended"]

    on_host(tmp_path, act)


def test_given_a_process_that_does_not_answer_then_it_is_not_taken_for_done_and_nobody_waits_on(tmp_path: Path) -> None:
    async def act(host: Host) -> None:
        body = event()
        giving = asyncio.create_task(host.give(body, 0.3))
        await host.ordered()
        host.answer(0, body)

        given = await giving
        assert len(given.answers) == 1
        assert given.after is None
        # and the place of who hung up is free
        await until(lambda: not host.control._clients and not host.control._asking)

    on_host(tmp_path, act)


def test_given_no_process_then_the_command_is_kept_for_those_that_come(tmp_path: Path) -> None:
    async def act(host: Host) -> None:
        host.processes.clear()

        given = await host.give(event(verb="resume"))

        assert given == Given((), (), ())
        assert len(host.pending.commands) == 1

    on_host(tmp_path, act)


def refused_by(directory: Path, act: Callable[[Host], Awaitable[object]]) -> QctlError:
    """What a command is refused with; nothing was ordered and nothing kept."""
    found: list[QctlError] = []

    async def main(host: Host) -> None:
        with pytest.raises(QctlError) as refused:
            await act(host)
        found.append(refused.value)
        assert not any(one.orders for one in host.processes)
        assert host.pending.commands == ()

    on_host(directory, main)
    return found[0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"x", "not JSON"),
        (event(id="0" * 32, target={"host": "web-2"}), "only for host web-1"),
        (event(id="0" * 32, verb="quota.clear"), "cannot be obeyed"),
    ],
)
def test_given_what_cannot_be_obeyed_then_it_is_refused(tmp_path: Path, body: bytes, words: str) -> None:
    refused = refused_by(tmp_path, lambda host: host.give(body))

    assert words in refused.message
    assert refused.exit_code is Exit.USAGE


def test_given_a_command_that_is_too_large_then_neither_end_takes_it(tmp_path: Path) -> None:
    large = event(reason="x" * wire.MAX_EVENT_LINE_BYTES)
    assert isinstance(refused_by(tmp_path, lambda host: host.give(large)), UsageError)

    async def act(_host: Host) -> None:
        assert b"larger than 64 KiB" in await raw(tmp_path, large + b"\n")
        assert b"does not end" in await raw(tmp_path, event(), then_close=True)

    on_host(tmp_path, act)


async def raw(directory: Path, data: bytes, *, then_close: bool = False) -> bytes:
    """What the socket says to bytes of any kind."""
    reader, writer = await asyncio.open_unix_connection(str(directory / wire.FILE))
    writer.write(data)
    if then_close:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


def test_given_a_disk_that_takes_no_writes_then_nothing_is_ordered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pending, "_replace", full)

    refused = refused_by(tmp_path, lambda host: host.give(event()))

    assert "No space left on device; the command is not given" in refused.message
    assert refused.exit_code is Exit.FAILED


def test_given_a_process_that_reads_no_orders_then_they_do_not_pile_up(tmp_path: Path) -> None:
    async def act(host: Host) -> None:
        host.processes[1].is_deaf = True
        await host.give(event())

    refused = refused_by(tmp_path, act)

    assert "process 1 pid=101 does not read its orders" in refused.message
    assert refused.exit_code is Exit.TRY_AGAIN


def test_given_more_who_ask_than_allowed_then_the_next_is_told_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_control, "LINE_S", 0.5)

    async def act(host: Host) -> None:
        # Given as many as allowed who say nothing
        silent = [await asyncio.open_unix_connection(str(tmp_path / wire.FILE)) for _ in range(MAX_CLIENTS)]
        await until(lambda: host.control._clients == MAX_CLIENTS)

        with pytest.raises(QctlError, match="are given at this moment") as refused:
            await host.give(event())
        assert refused.value.exit_code is Exit.TRY_AGAIN

        # Then their time is up, and others have their turn
        for reader, writer in silent:
            assert b"no whole command came" in await reader.read()
            writer.close()
        host.processes.clear()
        await host.give(event())

    on_host(tmp_path, act)


# The socket


@pytest.mark.parametrize("name", ["state", "d" * 200])
def test_given_the_socket_of_a_dead_supervisor_then_it_is_replaced_and_removed_at_the_end(
    tmp_path: Path, name: str
) -> None:
    # Given what a killed supervisor leaves, in a directory that others may read
    directory = tmp_path / name
    directory.mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX) as dead, wire.address(directory) as address:
        dead.bind(address)
    with pytest.raises(NoSupervisor, match="no worker takes commands at"):
        give(directory, event(), timeout_s=1.0)

    async def act(host: Host) -> None:
        host.processes.clear()
        assert (await host.give(event())).after == ()
        assert (directory / wire.FILE).stat().st_mode & 0o777 == 0o600
        assert directory.stat().st_mode & 0o777 == 0o700

    on_host(directory, act)
    assert not (directory / wire.FILE).exists()
    with pytest.raises(NoSupervisor):
        give(directory, event(), timeout_s=1.0)


def test_given_a_socket_that_cannot_be_made_then_the_worker_runs_without_it_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / wire.FILE).mkdir()

    async def act(_host: Host) -> None:
        assert "no local commands (`--local`) can be given on this host" in caplog.text

    on_host(tmp_path, act)
    assert (tmp_path / wire.FILE).is_dir()


def test_given_a_supervisor_that_says_nothing_then_it_is_not_known_whether_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qctl.ops.local.GIVEN_WITHIN_S", 0.1)
    with socket.socket(socket.AF_UNIX) as stopped, wire.address(tmp_path) as address:
        stopped.bind(address)
        stopped.listen()

        with pytest.raises(QctlError, match="not known whether it was given"):
            give(tmp_path, event(), timeout_s=1.0)
