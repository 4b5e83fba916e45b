"""`qctl pause` and `resume` before they contact anybody: bad input, questions, dry runs; all without a broker."""

from __future__ import annotations

import array
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qctl.control import socket as wire
from qctl.control.host_answer import ProcessLook, ProcessState
from tests.fleet import wait_until
from tests.unit.cli.conftest import QCTL, TWO_HOSTS, Run

#: There is no broker: whatever is tried there ends with this.
UNREACHABLE = 4


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "nothing named to pause or resume", "Name HOST/CONSUMER"),
        (["wbe-2"], "has no host 'wbe-2'", "Did you mean web-2?"),
        (["web-1/timelime"], "has no consumer 'timelime'", "Did you mean timeline?"),
        (["web-2/mails"], "host web-2 runs no consumer 'mails'", "It runs: timeline."),
        (["--consumer", "mail"], "has no consumer 'mail'", "Did you mean mails?"),
        (["--queue", "outbx"], "has no queue 'outbx'", "Did you mean outbox?"),
        (["--group", "lage"], "has no group 'lage'", "Did you mean large?"),
        (["--tag", "qctl/web-7/timeline/0"], "has no host 'web-7'", "Did you mean web-"),
        (["--tag", "nonsense"], "a consumer tag is qctl/HOST/CONSUMER/INDEX", ""),
        (["web-2", "--queue", "outbox"], "nothing matches web-2 --queue outbox", "qctl inventory check"),
        (["web-1\x1b[2J"], "must be 1 to 255 of the characters of names", ""),
        (["*/timeline"], "2 consumers: there is no terminal to ask on", "--yes answers"),
        (["web-1"], "2 consumers: there is no terminal to ask on", "--yes answers"),
        (["web-1/mails", "--timeout", "soon"], "expected a duration", ""),
        (["web-1/mails", "--reason", "x" * 501], "--reason is at most 500 characters", ""),
        (["web-1/mails", "--state-dir", "d"], "--state-dir goes with --local", ""),
        (["*/mails", "--local"], "--local needs one TARGET that names its host", ""),
        (["web-1/mails", "web-2", "--local"], "--local needs one TARGET that names its host", ""),
    ],
    ids=str,
)
def test_bad_input_ends_with_2_and_the_next_step(
    run: Run, inventory: Path, arguments: list[str], message: str, hint: str
) -> None:
    done = run("pause", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert hint in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "0s"], "--for needs a duration above 0"),
        (["--for", "ten minutes"], "expected a duration"),
        (["--for", "10m", "--until", "14:00"], "give --for or --until, not both"),
        (["--until", "25:00"], "expected a time such as 14:00"),
        (["--until", "1999-01-01T00:00Z"], "has passed"),
        (["--until", "9999-01-01T00:00Z"], "more than a year ahead"),
        (["--wait", "--local"], "--wait needs the broker"),
    ],
    ids=str,
)
def test_an_end_that_makes_no_sense_is_refused(run: Run, inventory: Path, arguments: list[str], message: str) -> None:
    done = run("pause", "web-1/mails", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_resume_has_the_same_targets_and_no_end(run: Run, inventory: Path) -> None:
    assert "Did you mean web-2?" in run("resume", "wbe-2").stderr
    assert run("resume", "web-1/mails", "--for", "10m").returncode == 2


def test_a_single_consumer_is_not_asked_about(run: Run, inventory: Path) -> None:
    done = run("pause", "web-1/mails")
    assert done.returncode == UNREACHABLE
    assert "the private broker is not running" in done.stderr


def test_yes_answers(run: Run, inventory: Path) -> None:
    assert run("pause", "web-1", "--yes").returncode == UNREACHABLE


def test_a_dry_run_shows_what_it_concerns_and_contacts_nobody(run: Run, inventory: Path) -> None:
    done = run("pause", "*/timeline", "--dry-run")
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["HOST", "CONSUMER", "QUEUE", "TAG"],
        ["web-1", "timeline", "timeline", "qctl/web-1/timeline/*"],
        ["web-2", "timeline", "timeline", "qctl/web-2/timeline/*"],
    ]
    assert "would pause */timeline, 2 consumers" in done.stderr
    assert "nothing was given" in done.stderr


def test_a_dry_run_as_json(run: Run, inventory: Path) -> None:
    document = json.loads(run("resume", "--group", "large", "--dry-run", "-o", "json").stdout)
    assert (document["v"], document["verb"], document["dry_run"]) == (1, "resume", True)
    assert document["targets"] == [{"host": "web-2"}]
    assert [item["tag"] for item in document["items"]] == ["qctl/web-2/timeline/*"]


def test_an_end_is_echoed_with_its_day_and_zone(run: Run, inventory: Path) -> None:
    done = run("pause", "web-1/mails", "--for", "1h", "--dry-run", env={"TZ": "EST5"})
    assert done.returncode == 0
    assert " until 20" in done.stderr
    assert " EST" in done.stderr


def test_local_without_a_worker_says_so(run: Run, inventory: Path, work: Path) -> None:
    done = run("pause", "web-1/mails", "--local", "--state-dir", str(work / "state"))
    assert done.returncode == 1
    assert "no worker takes commands at" in done.stderr


def answer(work: Path, environ: dict[str, str], typed: str, *arguments: str) -> tuple[int, str]:
    """The command on a terminal on which somebody types; the exit code and what it says."""
    main, secondary = pty.openpty()
    try:
        process = subprocess.Popen(
            [*QCTL, *arguments],
            cwd=work,
            env={"TERM": "xterm", **environ},
            stdin=secondary,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.close(secondary)
        os.write(main, typed.encode() + b"\n")
        _, said = process.communicate(timeout=60)
        return process.returncode, said.decode()
    finally:
        os.close(main)


@pytest.mark.parametrize("typed", ["", "n", "no", "web-1"])
def test_enter_alone_confirms_nothing(work: Path, environ: dict[str, str], inventory: Path, typed: str) -> None:
    code, said = answer(work, environ, typed + "\nn", "pause", "web-1")
    assert code == 1
    assert "not confirmed, nothing was done" in said
    assert "  web-1/timeline\n  web-1/mails\n" in said


def test_yes_typed_goes_on(work: Path, environ: dict[str, str], inventory: Path) -> None:
    code, _ = answer(work, environ, "y", "pause", "web-1")
    assert code == UNREACHABLE


@pytest.mark.parametrize(("typed", "code"), [("y", 1), ("", 1), ("web-2", 1), ("web-1", UNREACHABLE)])
def test_in_production_the_target_is_typed(
    work: Path, environ: dict[str, str], inventory: Path, typed: str, code: int
) -> None:
    inventory.write_text(TWO_HOSTS.replace("version: 1", "version: 1\nenvironment: production"))
    found, said = answer(work, environ, typed, "pause", "web-1")
    assert found == code
    assert "This is production. Type web-1 to go on" in said


@contextmanager
def supervising(state: Path) -> Iterator[socket.socket]:
    """Somebody who listens where web-1's supervisor would."""
    directory = state / "web-1"
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener, wire.address(directory) as address:
        listener.bind(address)
        listener.listen()
        listener.settimeout(60)
        yield listener


@pytest.mark.parametrize("is_taken", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_on_the_host_says_whether_the_command_holds(
    work: Path, environ: dict[str, str], inventory: Path, is_taken: bool, number: int
) -> None:
    command = [*QCTL, "pause", "web-1/mails", "--local", "--state-dir", "state", "--timeout", "1h", "-o", "json"]
    with (
        supervising(work / "state") as listener,
        subprocess.Popen(command, cwd=work, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        # Given a command that a supervisor has been handed, and has taken or not
        supervisor, _ = listener.accept()
        with supervisor:
            supervisor.settimeout(60)
            assert supervisor.recv(1 << 16).endswith(b"\n")
            if is_taken:
                look = ProcessLook(0, 17, ProcessState.CONNECTED, "2026")
                supervisor.sendall(wire.write(wire.Given((look,))))
            wait_until("it waits for more", lambda: _waits(process.pid, supervisor))

            # When it is interrupted
            process.send_signal(number)
            out, err = process.communicate(timeout=60)

    # Then it says what is true
    assert process.returncode == 130
    if is_taken:
        assert b"interrupted; the command is kept on this host and holds" in err
        document = json.loads(out)
        assert (document["exit_code"], document["items"][0]["proof"]) == (130, "unproven")
    else:
        assert b"interrupted; it is not known whether it was given" in err
        assert out == b""


def _waits(pid: int, supervisor: socket.socket) -> bool:
    """Whether a process has read all that it was sent, and sleeps."""
    unread = array.array("i", [0])
    fcntl.ioctl(supervisor, termios.TIOCOUTQ, unread)
    return unread[0] == 0 and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_terminal_that_ends_at_the_question_gives_nothing(
    work: Path, environ: dict[str, str], inventory: Path
) -> None:
    code, said = answer(work, environ, "\x04", "pause", "web-1")
    assert code == 130
    assert "interrupted; not given" in said


def test_an_interrupt_before_anything_was_sent_says_that_it_is_not_given(
    work: Path, environ: dict[str, str], inventory: Path
) -> None:
    # Given a broker that takes connections and never speaks
    with socket.create_server(("127.0.0.1", 0)) as broker:
        broker.settimeout(60)
        url = f"amqp://127.0.0.1:{broker.getsockname()[1]}"
        reference = {"amqp": url, "username": "a", "password": {"env": "PASSWORD"}}
        inventory.write_text(TWO_HOSTS.replace("broker: local", f"broker: {json.dumps(reference)}"))
        command, environment = [*QCTL, "pause", "web-1/mails"], {**environ, "PASSWORD": "secret"}
        with subprocess.Popen(command, cwd=work, env=environment, stderr=subprocess.PIPE) as process:
            connected, _ = broker.accept()
            with connected:
                connected.settimeout(60)
                connected.recv(8)
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted; not given" in said


def test_a_duration_is_counted_from_the_answer_and_the_question_says_how_long(
    work: Path, environ: dict[str, str], inventory: Path
) -> None:
    _, said = answer(work, environ, "n", "pause", "web-1", "--for", "10m")
    assert "pause web-1, 2 consumers for 10m:" in said
