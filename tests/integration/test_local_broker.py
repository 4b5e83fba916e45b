"""The private node: one at a time, found again, never left behind."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qctl.broker import local
from qctl.broker import node as node_files
from qctl.broker.local import LocalNode, NodeInfo, NodeState, local_directory, private_node, running_node
from qctl.errors import BrokerUnreachable, QctlError, UsageError

_STEP_TIMEOUT_S = 60.0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder whose name needs quoting, with no inventory; whatever a test leaves running in it is ended."""
    folder = tmp_path / "the team broker ü"
    folder.mkdir()
    yield folder
    LocalNode(local_directory(folder / "inventory.yaml")).stop(timeout_s=0.0)


def qctl(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), cwd=home, env=environment(home), capture_output=True, text=True, timeout=120, check=False
    )


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "qctl", *args]


def environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}


def processes_of(directory: Path) -> list[int]:
    """Every process that was started with the node's own HOME, however it is related to it."""
    wanted = b"HOME=" + os.fsencode(directory / "home")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                pass  # gone in the meantime, or not ours to look at
    return found


def listeners_of(pid: int) -> set[str]:
    """The addresses, in hexadecimal, on which a process listens."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        inode = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
        if inode:
            sockets.add(inode[1])
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in sockets:
                addresses.add(columns[1].partition(":")[0])
    return addresses


def await_pid(directory: Path) -> NodeInfo:
    """Wait until a node is written down as started."""
    deadline = time.monotonic() + _STEP_TIMEOUT_S
    while True:
        info = node_files.read_info(directory) if directory.exists() else None
        if info is not None and info.pid is not None:
            return info
        assert time.monotonic() < deadline
        time.sleep(0.02)


def await_none_left(directory: Path) -> None:
    """The node's small helpers end by themselves, once they see it gone."""
    deadline = time.monotonic() + 10.0
    while processes_of(directory):
        assert time.monotonic() < deadline, processes_of(directory)
        time.sleep(0.02)


def call(info: NodeInfo, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(f"{info.management_url}/api{path}", method=method)
    request.add_header("Authorization", "Basic " + base64.b64encode(f"qctl:{info.password}".encode()).decode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, None if body is None else json.dumps(body).encode(), timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def test_up_status_and_down_may_all_be_said_twice(home: Path) -> None:
    directory = local_directory(home / "inventory.yaml")

    # given two operators who say `up` at once
    with ThreadPoolExecutor(2) as operators:
        both = list(operators.map(lambda _: qctl(home, "broker", "up", "-o", "json"), range(2)))
    documents = [json.loads(up.stdout) for up in both]

    # then both find the same node
    assert [up.returncode for up in both] == [0, 0]
    assert documents[0] == documents[1]
    again = qctl(home, "broker", "up", "-o", "json")
    assert json.loads(again.stdout) == documents[0]
    assert "already running" in again.stderr

    # and it listens on this machine alone, and its secret is its owner's alone
    info = running_node(directory)
    assert info.pid is not None
    assert info.epmd_pid is not None
    assert listeners_of(info.pid) == {"0100007F"}
    assert listeners_of(info.epmd_pid) <= {"0100007F", "00000000000000000000000001000000"}
    assert stat.S_IMODE(info.password_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert info.password not in again.stdout + again.stderr + repr(info)

    # and it says that it runs
    status = qctl(home, "broker", "status")
    assert status.returncode == 0
    assert "running" in status.stdout
    assert info.amqp_url in status.stdout

    # when it is stopped, twice
    downs = [qctl(home, "broker", "down") for _ in range(2)]

    # then both are content, nothing is left, and the status says so
    assert [down.returncode for down in downs] == [0, 0]
    assert "not running" in downs[1].stderr
    await_none_left(directory)
    stopped = qctl(home, "broker", "status", "-o", "json")
    assert stopped.returncode == 1
    assert json.loads(stopped.stdout)["state"] == "stopped"
    with pytest.raises(BrokerUnreachable) as refused:
        running_node(directory)
    assert "qctl broker up" in refused.value.hint


def test_a_node_that_crashed_is_noticed_and_comes_back_with_its_data(home: Path) -> None:
    # given a node with a queue, killed without warning
    node = LocalNode(local_directory(home / "inventory.yaml"))
    before = node.start()
    call(before, "PUT", "/queues/%2F/kept", {"durable": True, "arguments": {"x-queue-type": "quorum"}})
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)

    # when it is asked for
    deadline = time.monotonic() + _STEP_TIMEOUT_S
    while node.status()[0] is not NodeState.CRASHED:
        assert time.monotonic() < deadline

    # then nobody takes it for running
    with pytest.raises(BrokerUnreachable):
        node.info()

    # when it is started again
    after = node.start()

    # then it is another process with the same addresses, password and data
    assert after.pid != before.pid
    assert (after.amqp_url, after.management_url, after.password) == (
        before.amqp_url,
        before.management_url,
        before.password,
    )
    assert call(after, "GET", "/queues/%2F/kept")["name"] == "kept"
    assert node.rabbitmqctl("eval", "1 + 1.").strip() == "2"

    # and nothing of the crashed one is left when it is stopped
    node.stop(timeout_s=0.0)
    await_none_left(node.directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_up_that_is_cut_short_leaves_nothing_that_down_does_not_end(home: Path, number: signal.Signals) -> None:
    # given an `up` that has started the node and waits for it
    directory = local_directory(home / "inventory.yaml")
    with subprocess.Popen(command("broker", "up"), cwd=home, env=environment(home), stderr=subprocess.PIPE) as starting:
        await_pid(directory)

        # when it is interrupted, or killed
        starting.send_signal(number)
        _, words = starting.communicate(timeout=60)

    # then Ctrl-C leaves nothing running, and of a kill nothing remains after `down`
    if number == signal.SIGINT:
        assert starting.returncode == 130
        assert b"Traceback" not in words
    else:
        assert qctl(home, "broker", "down").returncode == 0
    await_none_left(directory)

    # and the next start works
    with private_node(directory) as info:
        assert call(info, "GET", "/overview")["node"] == info.nodename
    assert LocalNode(directory).status()[0] is NodeState.STOPPED


def test_a_port_that_somebody_takes_in_between_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given another program that takes the first port chosen before the node can
    with socket.socket() as another:
        another.bind(("127.0.0.1", 0))
        another.listen()
        taken_port = another.getsockname()[1]
        choices = []

        def first_choice_is_taken(info: NodeInfo) -> NodeInfo:
            chosen = node_files.with_free_ports(info)
            choices.append(chosen)
            return chosen if len(choices) > 1 else replace(chosen, amqp_port=taken_port)

        monkeypatch.setattr(local, "with_free_ports", first_choice_is_taken)

        # when the node is started
        info = LocalNode(local_directory(home / "inventory.yaml")).start()

    # then it is on another port, at the second try
    assert len(choices) == 2
    assert info.amqp_port != taken_port


def test_a_node_that_does_not_start_says_why_and_leaves_nothing(home: Path) -> None:
    # given a configuration that RabbitMQ refuses
    directory = local_directory(home / "inventory.yaml")
    node_files.prepare(directory)
    (directory / "conf.d" / "mistake.conf").write_text("no.such.setting = 1\n", encoding="utf-8")

    # when the node is started
    with pytest.raises(QctlError) as failed:
        LocalNode(directory).start()

    # then the reason is in the hint, and nothing runs
    assert "no.such.setting" in failed.value.hint
    await_none_left(directory)


@pytest.mark.parametrize("mark", ["'", '"'])
def test_a_folder_that_rabbitmq_cannot_live_in_is_refused_at_once(home: Path, mark: str) -> None:
    with pytest.raises(UsageError) as refused:
        LocalNode(home / f"bob{mark}s").start()

    assert "quotation mark" in refused.value.message
    assert not (home / f"bob{mark}s").exists()


def test_without_rabbitmq_on_the_machine_the_next_step_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a machine that has no rabbitmq-server
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.setattr(node_files, "_MORE_PATH", str(home))

    # when the node is started
    with pytest.raises(QctlError) as failed:
        LocalNode(home).start()

    # then the message names what is missing, and the hint how to get it
    assert "rabbitmq-server" in failed.value.message
    assert "apt-get install rabbitmq-server" in failed.value.hint
