"""`qctl` commands as processes of their own that begin with everything imported: forked from one that waits.

Starting Python and importing qctl takes most of a short command's time, and a test run calls hundreds. What such
a command does, says and returns is the same; that qctl also starts as a shell starts it, and imports no more than it
needs, is proven where a test calls `sys.executable -m qctl`.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
#: Imported before the first command comes.
PRELOADED = (
    "qctl.broker.session", "qctl.broker.publisher", "qctl.control.asking", "qctl.control.telemetry_log",
    "qctl.inventory.load", "qctl.inventory.reading", "qctl.ops.enqueue", "qctl.ops.triage", "qctl.ops.pausing",
    "qctl.ops.picture", "qctl.quota.ledger",
)  # fmt: skip
_MAX_ORDER_BYTES = 1 << 20
_STREAMS = 3


def run(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str],
    cwd: Path,
    input: bytes | str | None = None,  # noqa: A002 - as subprocess.run names it
    text: bool = False,
    check: bool = False,
    timeout: float = 60.0,
) -> subprocess.CompletedProcess[Any]:
    """Run `qctl ARGUMENTS` to its end, like subprocess.run with what it prints captured."""
    given = input.encode() if isinstance(input, str) else input or b""
    words = [os.fspath(word) for word in arguments]
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(given)
        stdin.seek(0)
        code = _ordered({"arguments": words, "env": dict(env), "cwd": str(cwd)}, (stdin, stdout, stderr), timeout)
        said = []
        for stream in (stdout, stderr):
            stream.seek(0)
            said.append(stream.read())
    shown: list[Any] = [one.decode().replace("\r\n", "\n") for one in said] if text else said
    done = subprocess.CompletedProcess(["qctl", *words], code, *shown)
    if check:
        done.check_returncode()
    return done


def _ordered(order: Mapping[str, Any], streams: Sequence[IO[bytes]], timeout_s: float) -> int:
    """Give one order; the exit code of the process that carried it out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(timeout_s)
        connection.connect(_server())
        socket.send_fds(connection, [json.dumps(order).encode()], [stream.fileno() for stream in streams])
        pid = int(connection.recv(64))
        try:
            return int(connection.recv(64))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(order["arguments"]), timeout_s) from None


@cache
def _server() -> str:
    """The address of the process that waits for orders; it ends with this one."""
    address = f"\0qctl-commands-{os.getpid()}-{threading.get_ident()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    mine, its = socket.socketpair()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.commands", str(listener.fileno()), str(its.fileno())],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        pass_fds=(listener.fileno(), its.fileno()),
    )
    its.close()
    listener.close()
    atexit.register(_end, server, mine)
    return address


def _end(server: subprocess.Popen[bytes], held: socket.socket) -> None:
    """Let go of the line that holds the server; it is cut as well when this process is killed."""
    held.close()
    server.wait()


def _serve(listener: socket.socket, owner: socket.socket) -> Mapping[str, Any] | None:
    """Carry out orders until the owner is gone: None. In the process of an order: that order."""
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(owner, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is owner:
                    return None
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    data, streams, _, _ = socket.recv_fds(connection, _MAX_ORDER_BYTES, _STREAMS)
                    if not data:
                        continue
                    pid = os.fork()
                    if pid == 0:
                        for number, stream in enumerate(streams):
                            os.dup2(stream, number)
                        for descriptor in (*streams, connection.fileno(), listener.fileno(), owner.fileno(), *running):
                            os.close(descriptor)
                        for _, other in running.values():
                            other.detach()
                        return dict(json.loads(data))
                    for stream in streams:
                        os.close(stream)
                    connection.send(str(pid).encode())
                    ends = os.pidfd_open(pid)
                    running[ends] = (pid, connection)
                    selector.register(ends, selectors.EVENT_READ)
                else:
                    ends = key.fd
                    selector.unregister(ends)
                    os.close(ends)
                    pid, connection = running.pop(ends)
                    _, status = os.waitpid(pid, 0)
                    with connection, suppress(OSError):  # nobody waits for it any more
                        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _obey(order: Mapping[str, Any]) -> int:
    """Become the command."""
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["qctl", *order["arguments"]]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8")  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), encoding="utf-8", line_buffering=True)  # noqa: SIM115
    if order["env"].get("PYTHONWARNINGS") == "error":
        warnings.simplefilter("error")
    from qctl.cli.main import main

    return main()


def _main() -> None:
    from importlib import import_module

    from qctl.cli.main import COMMANDS

    for name in (*PRELOADED, *(entry.target.partition(":")[0] for entry in COMMANDS)):
        import_module(name)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a run that is interrupted ends it by letting go
    listener, owner = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    order = _serve(listener, owner)
    if order is None:
        return
    listener.detach()
    owner.detach()
    code = _obey(order)
    # Without the long goodbye of everything imported: threads that must be waited for are, and all is said.
    threading._shutdown()  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _main()
