"""Local commands on their way into the control log: on disk before they count, not lost with what cannot be read."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from qctl.control.event import Command, NotUnderstood, Verb
from qctl.errors import BrokerBlocked, QctlError, StateError
from qctl.worker import pending
from qctl.worker.pending import FILE, MAX_FILE_BYTES, MAX_PENDING, Pending, understand


def line(**changes: Any) -> bytes:
    """A command as it comes over the socket."""
    fields: dict[str, Any] = {
        "v": 1,
        "id": "0" * 32,
        "at": "2026-11-22T21:00:00.123Z",
        "verb": "pause",
        "target": {"host": "web-1", "consumer": "timeline"},
        "reason": "api is down",
        "until": None,
        "as": "ann@box",
        "args": {"local": True},
    }
    return json.dumps({**fields, **changes}).encode()


def command(**changes: Any) -> Command:
    return understand(line(id=secrets.token_hex(16), **changes), "web-1")


def run(directory: Path, act: Callable[[Pending], Awaitable[object]]) -> Pending:
    """Do something with what waits in `directory`."""

    async def main() -> Pending:
        found = Pending(directory, "web-1")
        await act(found)
        return found

    return asyncio.run(main())


async def nothing(_pending: Pending) -> None:
    """Only load."""


def test_given_a_pause_or_resume_of_this_host_then_it_is_understood() -> None:
    found = command(verb="resume", args={"local": True, "more": 1})

    assert found.verb is Verb.RESUME
    assert found.local
    assert str(found.target) == "web-1/timeline"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not UTF-8"),
        (line(v=2), "version"),
        (line(verb="shout"), "verb"),
        (
            line(verb="quota.set", target={"host": "web-1"}, args={"local": True, "quota": "a", "limit": "1/s"}),
            "only pause",
        ),
        (line(args={}), "args.local"),
        (line(args={"local": False}), "args.local"),
        (line(target={"host": "web-2"}), "only for host web-1"),
        (line(target={"host": "web-*"}), "only for host web-1"),
        (line(target={"consumer": "timeline"}), "only for host web-1"),
        (line(target={}), "."),
        (line(id="x"), "id"),
        (line(reason="x" * 70_000), "too large"),
    ],
)
def test_given_anything_else_then_it_is_not_understood(body: bytes, words: str) -> None:
    with pytest.raises(NotUnderstood, match=words):
        understand(body, "web-1")


def test_given_a_supervisor_that_was_killed_then_the_next_one_goes_on_with_what_waits(tmp_path: Path) -> None:
    # Given two commands, of which the first went into the log
    first, second = command(), command(verb="resume")

    async def act(found: Pending) -> None:
        await found.add(first)
        await found.add(second)
        await found.add(second)  # given twice
        assert found.commands == run_elsewhere(tmp_path) == (first, second)
        await found._remove(first)

    run(tmp_path, act)

    # Then the other one waits, in the file of its owner
    assert run(tmp_path, nothing).commands == (second,)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def run_elsewhere(directory: Path) -> tuple[Command, ...]:
    """What another supervisor would find."""
    return Pending(directory, "web-1").commands


def test_given_lines_that_cannot_be_understood_then_the_others_hold_and_the_file_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, other = command(), command()
    content = b"\n".join([good.body(), b'{"v":1,"id":"tor', line(target={"host": "web-2"}), other.body()])
    (tmp_path / FILE).write_bytes(content)

    found = run(tmp_path, nothing)

    assert found.commands == (good, other)
    assert "2 of 4 local commands" in caplog.text
    assert "DO NOT HOLD" in caplog.text
    assert caplog.records[0].levelno == logging.CRITICAL
    (aside,) = tmp_path.glob(f"{FILE}.corrupt-*")
    assert aside.read_bytes() == content
    # and it is said once: the next start finds good ones only
    caplog.clear()
    assert run(tmp_path, nothing).commands == (good, other)
    assert "DO NOT HOLD" not in caplog.text


def test_given_a_file_that_is_too_large_then_it_is_set_aside_and_read_as_far_as_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = command()
    (tmp_path / FILE).write_bytes(good.body() + b"\n" + b"x" * MAX_FILE_BYTES)

    assert run(tmp_path, nothing).commands == (good,)
    assert "DO NOT HOLD" in caplog.text
    assert (tmp_path / FILE).stat().st_size < 1_000


def test_given_a_file_that_cannot_be_read_then_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()

    with pytest.raises(StateError, match="not known which local commands hold"):
        run(tmp_path, nothing)


def test_given_a_disk_that_takes_no_writes_then_the_command_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = command()
    run(tmp_path, lambda found: found.add(before))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pending, "_replace", full)

    async def act(found: Pending) -> None:
        with pytest.raises(QctlError, match="No space left on device; the command is not given"):
            await found.add(command())
        assert found.commands == (before,)

        # and one that went into the log does not go there again and again
        await found._remove(before)
        assert found.commands == ()

    run(tmp_path, act)
    monkeypatch.undo()
    assert run(tmp_path, nothing).commands == (before,)


def test_given_too_many_that_wait_then_the_next_is_told_to_try_again(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"".join(command().body() + b"\n" for _ in range(MAX_PENDING)))

    async def act(found: Pending) -> None:
        assert len(found.commands) == MAX_PENDING
        with pytest.raises(BrokerBlocked, match="not given"):
            await found.add(command())

    run(tmp_path, act)


def test_given_a_process_that_is_killed_while_it_writes_then_all_of_it_is_there_or_nothing(tmp_path: Path) -> None:
    # Given a write that did not come to its end
    before = command()
    run(tmp_path, lambda found: found.add(before))
    (tmp_path / f"{FILE}.new").write_bytes(b'{"v":1,"id')

    # Then what was there is there, and the next one can be written
    after = command()
    assert run(tmp_path, lambda found: found.add(after)).commands == (before, after)
    assert run(tmp_path, nothing).commands == (before, after)
