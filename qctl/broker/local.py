"""A private RabbitMQ node in a directory, run from the machine's own `rabbitmq-server`.

What `qctl broker up`, `broker: local` and `qctl demo` mean. The node has its own ports on 127.0.0.1, its own epmd,
its own Erlang cookie and its own user; nothing of the machine's configuration reaches it and nothing of it stays
behind. Ports, password and data are kept over stop and start; DIRECTORY/node.json says where the node is.
"""

from __future__ import annotations

import base64
import fcntl
import http.client
import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path

from qctl.broker.detached import POLL_S, Process, end, is_alive, signals_held, spawn
from qctl.broker.node import (
    LOOPBACK,
    NodeInfo,
    end_of,
    environment,
    find_program,
    new_info,
    prepare,
    read_info,
    tail,
    with_free_ports,
    write_configuration,
    write_info,
)
from qctl.errors import BrokerRefused, BrokerUnreachable, QctlError, UsageError

__all__ = ["LocalNode", "NodeInfo", "NodeState", "local_directory", "private_node", "running_node"]

#: Tried with fresh ports: another program may take a free port between our look and the node's start.
START_ATTEMPTS = 3
_PORT_TAKEN_SIGNS = ("eaddrinuse", "dist_port_already_used")
_PROBE_TIMEOUT_S = 5.0
_EPMD_TIMEOUT_S = 5.0
_GIVE_UP_GRACE_S = 5.0


class NodeState(Enum):
    """What there is of a node."""

    RUNNING = "running"
    UNREADY = "not answering"
    STOPPED = "stopped"
    CRASHED = "crashed"


def local_directory(inventory_path: Path | None) -> Path:
    """The directory of the private node: beside the inventory in use, else in the current directory."""
    beside = inventory_path.absolute().parent if inventory_path is not None else Path.cwd()
    return beside / ".qctl" / "broker"


def running_node(directory: Path) -> NodeInfo:
    """The node that runs in `directory`. Raises BrokerUnreachable when none does."""
    info = read_info(directory)
    if info is None or not _node_alive(info):
        raise BrokerUnreachable("the private broker is not running", hint="Start it with `qctl broker up`.")
    return info


@contextmanager
def private_node(directory: Path, *, progress: Callable[[str], None] | None = None) -> Iterator[NodeInfo]:
    """A running node for the time of a block, its data unwanted; one that ran before goes on running afterwards."""
    node = LocalNode(directory)
    ran_before = node.status()[0] in (NodeState.RUNNING, NodeState.UNREADY)
    try:
        yield node.start(progress=progress)
    finally:
        if not ran_before:
            node.stop(timeout_s=0.0)  # a graceful end takes RabbitMQ 3.10 five seconds


class LocalNode:
    """The private node of one directory, running or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()

    def start(self, *, timeout_s: float = 60.0, progress: Callable[[str], None] | None = None) -> NodeInfo:
        """Start the node, or find it running, and wait until it answers.

        Raises UsageError for a folder that RabbitMQ cannot live in, and QctlError when `rabbitmq-server` is missing, or
        when the node ends or does not answer within `timeout_s`; nothing is left running then, nor after an interrupt.
        """
        say = progress or (lambda _: None)
        deadline = time.monotonic() + timeout_s
        server = find_program("rabbitmq-server")
        if "'" in str(self.directory) or '"' in str(self.directory):
            # It asks `df` about its disk with the path between quotes, and then waits for ever.
            raise UsageError(
                f"RabbitMQ cannot run in a folder with a quotation mark in its name: {self.directory}",
                hint="Move the inventory, or the folder you work in.",
            )
        prepare(self.directory)
        with self._locked(deadline):
            known = read_info(self.directory)
            if known is not None and _node_alive(known):
                with suppress(_Ended):  # it was on its way out
                    return self._await_ready(known, deadline)
            info = known or new_info(self.directory)
            _end_processes(info, timeout_s=_GIVE_UP_GRACE_S)  # the epmd of a node that crashed
            for attempt in range(1, START_ATTEMPTS + 1):
                info = with_free_ports(info)
                say(f"starting a private RabbitMQ node in {self.directory}")
                try:
                    info = self._launch(info, server, deadline)
                except _PortTaken:
                    if attempt == START_ATTEMPTS:
                        raise
                    continue
                break
            say(f"RabbitMQ {info.version} answers at {info.amqp_url}")
            return info

    def stop(self, *, timeout_s: float = 30.0) -> bool:
        """Stop the node, gracefully for `timeout_s`. True when something was running; False is no error."""
        if not self.directory.is_dir():
            return False
        with self._locked(time.monotonic() + timeout_s):
            info = read_info(self.directory)
            if info is None:
                return False
            was_running = _end_processes(info, timeout_s=min(timeout_s, _grace_s(info)))
            write_info(_without_processes(info))
            return was_running

    def status(self) -> tuple[NodeState, NodeInfo | None]:
        """What there is, asked of the system and of the node itself."""
        info = read_info(self.directory)
        if info is None or info.pid is None:
            return NodeState.STOPPED, info
        if not _node_alive(info):
            return NodeState.CRASHED, info
        return (NodeState.RUNNING if _version_answered(info) else NodeState.UNREADY), info

    def info(self) -> NodeInfo:
        """Where the running node is. Raises BrokerUnreachable when it is not running."""
        return running_node(self.directory)

    def rabbitmqctl(self, *args: str, timeout_s: float = 60.0) -> str:
        """Run `rabbitmqctl` against this node and return what it prints. Raises QctlError with its words."""
        info = self.info()
        script = find_program("rabbitmq-server").with_name("rabbitmqctl")
        try:
            done = subprocess.run(
                [str(script), "--quiet", *args],
                env=environment(info),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise QctlError(f"rabbitmqctl {args[0]} gave no answer in {timeout_s:.0f} s") from late
        if done.returncode:
            words = (done.stderr.strip() or done.stdout.strip()).replace(info.password, "***")
            raise QctlError(f"rabbitmqctl {args[0]} failed with exit code {done.returncode}", hint=words)
        return done.stdout

    def _launch(self, info: NodeInfo, server: Path, deadline: float) -> NodeInfo:
        """Start both processes and wait for the node; whatever goes wrong, end them again."""
        if not info.version:
            # A first start that was cut short may have made its database but not yet its user.
            shutil.rmtree(self.directory / "data", ignore_errors=True)
        write_configuration(info)
        console = self.directory / "log" / "console.log"
        console.unlink(missing_ok=True)
        try:
            info = self._start_epmd(info, deadline)
            with signals_held():
                node = spawn([str(server)], directory=self.directory, environment=environment(info), output=console)
                info = replace(info, pid=node.pid, pid_mark=node.mark)
                write_info(info)
            return self._await_ready(info, deadline)
        except BaseException:
            # Interrupts too: nothing that this call started may outlive its failure, and the record knows all of it.
            started = read_info(self.directory) or info
            _end_processes(started, timeout_s=min(_GIVE_UP_GRACE_S, _grace_s(started)))
            write_info(_without_processes(started))
            raise

    def _start_epmd(self, info: NodeInfo, deadline: float) -> NodeInfo:
        # Without one of our own the node would start a daemon for the whole machine, which nobody ends.
        argv = [str(find_program("epmd")), "-port", str(info.epmd_port), "-address", LOOPBACK]
        output = self.directory / "log" / "epmd.log"
        with signals_held():
            epmd = spawn(argv, directory=self.directory, environment=environment(info), output=output)
            info = replace(info, epmd_pid=epmd.pid, epmd_mark=epmd.mark)
            write_info(info)
        deadline = min(deadline, time.monotonic() + _EPMD_TIMEOUT_S)
        while not _epmd_answers(info.epmd_port):
            if not is_alive(epmd):
                raise _PortTaken("Erlang's port mapper ended at once", hint=tail(output))
            if time.monotonic() >= deadline:
                raise QctlError("Erlang's port mapper does not answer", hint=tail(output))
            time.sleep(POLL_S)
        return info

    def _await_ready(self, info: NodeInfo, deadline: float) -> NodeInfo:
        while True:
            version = _version_answered(info)
            if version:
                info = replace(info, version=version)
                write_info(info)
                return info
            # One that has no port says so at once, and takes ten seconds more to end.
            console = end_of(self.directory / "log" / "console.log")
            is_taken = any(sign in console for sign in _PORT_TAKEN_SIGNS)
            if is_taken or not _node_alive(info):
                kind = _PortTaken if is_taken else _Ended
                raise kind("the private RabbitMQ node ended while starting", hint=self._last_words(info))
            if time.monotonic() >= deadline:
                raise QctlError("the private RabbitMQ node does not answer in time", hint=self._last_words(info))
            time.sleep(POLL_S)

    def _last_words(self, info: NodeInfo) -> str:
        console = self.directory / "log" / "console.log"
        path = console if tail(console) else info.log_file
        return f"Its last lines, from {path}:\n{tail(path)}".replace(info.password, "***")

    @contextmanager
    def _locked(self, deadline: float) -> Iterator[None]:
        """One `up` or `down` at a time in a directory."""
        with ExitStack() as stack:
            lock = stack.enter_context((self.directory / "lock").open("w"))
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise QctlError(
                            f"another command is starting or stopping the private broker in {self.directory}",
                            hint="Try again when it is done.",
                        ) from None
                    time.sleep(POLL_S)
            yield


class _Ended(QctlError):
    """The node's process is gone."""


class _PortTaken(_Ended):
    """A port that was free is not any more."""


def _node_alive(info: NodeInfo) -> bool:
    return info.pid is not None and is_alive(Process(info.pid, info.pid_mark))


def _grace_s(info: NodeInfo) -> float:
    """How long a node is given to stop by itself. One that is still booting would not hear of it."""
    if not info.version:
        return 0.0  # it never answered, so there is nothing in it to lose
    try:
        return math.inf if _version_answered(info) else _GIVE_UP_GRACE_S
    except BrokerRefused:
        return _GIVE_UP_GRACE_S


def _end_processes(info: NodeInfo, *, timeout_s: float) -> bool:
    """End the node, then the epmd it is registered with. True if the node ran."""
    was_running = info.pid is not None and end(Process(info.pid, info.pid_mark), timeout_s=timeout_s)
    if info.epmd_pid is not None:
        end(Process(info.epmd_pid, info.epmd_mark), timeout_s=_GIVE_UP_GRACE_S)
    return was_running


def _without_processes(info: NodeInfo) -> NodeInfo:
    return replace(info, pid=None, pid_mark="", epmd_pid=None, epmd_mark="")


def _epmd_answers(port: int) -> bool:
    """Whether an epmd listens there: asked for its names, it begins with the port it has."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=_PROBE_TIMEOUT_S) as connection:
            connection.sendall(b"\x00\x01n")
            return connection.recv(4, socket.MSG_WAITALL) == port.to_bytes(4, "big")
    except OSError:
        return False


def _version_answered(info: NodeInfo) -> str:
    """RabbitMQ's version when this very node says that it takes connections, else "".

    Raises BrokerRefused when it does not know our user.
    """
    credentials = base64.b64encode(f"{info.username}:{info.password}".encode()).decode("ascii")
    connection = http.client.HTTPConnection(LOOPBACK, info.management_port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/api/overview", headers={"Authorization": f"Basic {credentials}"})
        answer = connection.getresponse()
        if answer.status == http.HTTPStatus.UNAUTHORIZED:
            raise BrokerRefused(
                f"the private broker in {info.directory} does not know its own user",
                hint=f"Stop it with `qctl broker down`, remove {info.directory} and start it again.",
            )
        if answer.status != http.HTTPStatus.OK:
            return ""
        overview = json.loads(answer.read())
        # Any program may listen where we meant to; only the node knows which listeners are its own.
        ours = {(listener["protocol"], listener["port"]) for listener in overview["listeners"]}
        if overview["node"] != info.nodename or ("amqp", info.amqp_port) not in ours:
            return ""
        return str(overview["rabbitmq_version"])
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return ""
    finally:
        connection.close()
