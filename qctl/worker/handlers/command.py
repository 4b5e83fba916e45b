"""The `exec` handler: a program gets the payload on stdin, its exit code says how the task ends.

The program runs in a process group of its own, which is killed when the time is up. It may announce calls it is about
to make as lines `QUOTA N` on the file descriptor `$QCTL_SPEND_FD`; what the host cannot pay for ends the program, and
so does what is no such line, for good.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from qctl.broker.message import DeadReason, Malformed, short
from qctl.errors import HandlerError
from qctl.inventory.model import ExecHandler
from qctl.worker.exceptions import RateLimited, Reject, Retry, TimedOut
from qctl.worker.handlers import Handler
from qctl.worker.task import Task

#: sysexits.h: EX_UNAVAILABLE defers, EX_DATAERR is dead.
EX_DATAERR, EX_UNAVAILABLE = 65, 69
#: Bytes of stderr kept for the error; output beyond it, and all of stdout, is read and thrown away.
MAX_KEPT_BYTES = 8 << 10
MAX_SPEND_LINE_BYTES = 256
READ_BYTES = 64 << 10
#: What a program wrote before it ended is read for at most this long; a child that left its group may write for ever.
LAST_WORDS_S = 0.5


def load(spec: ExecHandler, consumer: str, timeout_s: float, base: Path) -> Handler:
    """Check that the program is there. Raises HandlerError."""
    program = spec.argv[0]
    if os.sep in program:
        program = str((base / program).resolve())
        found = os.access(program, os.X_OK)
    else:
        found = any(os.access(Path(folder) / program, os.X_OK) for folder in os.get_exec_path())
    if not found:
        raise HandlerError(
            f"consumer {consumer}: program {spec.argv[0]} is not there or not executable",
            hint="A path is relative to the inventory's folder; a bare name is looked up in $PATH.",
        )
    argv = (program, *spec.argv[1:])

    def run(task: Task) -> None:
        code, error = _run(argv, task, timeout_s, base)
        if code == 0:
            return
        said = f"{spec.argv[0]} ended with {code}" + (f": {error}" if error else "")
        if code == EX_UNAVAILABLE:
            raise RateLimited(None, said)
        if code == EX_DATAERR:
            raise Reject(said)
        raise Retry(None, said)

    return Handler(run=run)


def _environment(task: Task, spend_fd: int) -> dict[str, str]:
    return {
        **os.environ,
        "QCTL_SPEND_FD": str(spend_fd),
        "QCTL_HOST": task.host,
        "QCTL_CONSUMER": task.consumer,
        "QCTL_TASK_ID": task.id.replace("\0", ""),
        "QCTL_TASK_TYPE": task.type.replace("\0", ""),
        "QCTL_TASK_ATTEMPT": str(task.attempt),
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _run(argv: tuple[str, ...], task: Task, timeout_s: float, base: Path) -> tuple[int, str]:
    """Run the program to its end; its exit code and the last line it wrote to stderr."""
    spend_read, spend_write = os.pipe()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=base,
            env=_environment(task, spend_write),
            pass_fds=(spend_write,),
            process_group=0,
        )
    except OSError as error:
        os.close(spend_read)
        raise Retry(None, f"{argv[0]} cannot be started: {error.strerror}") from error
    finally:
        os.close(spend_write)
    try:
        errors = _converse(process, spend_read, task, time.monotonic() + timeout_s, timeout_s)
        code = process.wait()
    finally:
        _kill(process)
        process.wait()
        os.close(spend_read)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return code, short(lines[-1]) if lines else ""


class _Feeder:
    """Writes a body to a pipe as the pipe takes it."""

    def __init__(self, pipe: IO[bytes], body: bytes, selector: selectors.BaseSelector) -> None:
        self.fd = pipe.fileno()
        self._pipe = pipe
        self._left = memoryview(body)
        self._selector = selector
        os.set_blocking(self.fd, False)
        selector.register(self.fd, selectors.EVENT_WRITE)

    def write(self) -> None:
        """Write what fits; close the pipe after the last byte, or when the program no longer reads."""
        try:
            self._left = self._left[os.write(self.fd, self._left[:READ_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:  # the program does not read its input; its exit code is what counts
            self._left = self._left[:0]
        if not self._left:
            self._selector.unregister(self.fd)
            with suppress(OSError):
                self._pipe.close()


def _spend_lines(task: Task) -> Callable[[bytes], None]:
    """Takes what comes on the spend pipe, and pays for each line; nothing (b"") ends the last one."""
    pending = bytearray()

    def take(chunk: bytes) -> None:
        pending.extend(chunk or (b"\n" if pending else b""))
        while (end := pending.find(b"\n")) >= 0:
            words = bytes(pending[:end]).decode("utf-8", "replace").split()
            del pending[: end + 1]
            if len(words) != 2 or not words[1].isdecimal() or len(words[1]) > 12:
                found = short(" ".join(words))
                raise Malformed(f"$QCTL_SPEND_FD takes lines `QUOTA N`, found {found!r}", DeadReason.COST)
            task.spend(int(words[1]), words[0])
        if len(pending) > MAX_SPEND_LINE_BYTES:
            raise Malformed("$QCTL_SPEND_FD takes short lines `QUOTA N`", DeadReason.COST)

    return take


def _converse(
    process: subprocess.Popen[bytes], spend_read: int, task: Task, deadline: float, timeout_s: float
) -> bytes:
    """Feed stdin and read the rest until the program has ended or is over time. Returns the end of stderr.

    The end is the program's, not that of its output: a child it leaves behind may hold stdout open for ever.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    kept, spend = bytearray(), _spend_lines(task)
    readers: dict[int, Callable[[bytes], object]] = {
        process.stdout.fileno(): len,  # nobody wants it
        process.stderr.fileno(): kept.extend,
        spend_read: spend,
    }
    with selectors.DefaultSelector() as selector:
        ended = os.pidfd_open(process.pid)
        try:
            selector.register(ended, selectors.EVENT_READ)
            for fd in readers:
                os.set_blocking(fd, False)
                selector.register(fd, selectors.EVENT_READ)
            feed = _Feeder(process.stdin, task.body, selector)
            over = False
            while True:
                patience_s = 0.0 if over else max(0.0, deadline - time.monotonic())
                ready = {key.fd for key, _ in selector.select(patience_s)}
                if feed.fd in ready:
                    feed.write()
                for fd in ready & readers.keys():
                    if not (chunk := os.read(fd, READ_BYTES)):
                        selector.unregister(fd)
                    readers[fd](chunk)
                    del kept[:-MAX_KEPT_BYTES]
                if ended in ready:
                    _kill(process)  # and with it the children that it leaves behind
                    selector.unregister(ended)
                    over, deadline = True, time.monotonic() + LAST_WORDS_S
                elif over and (not ready & readers.keys() or time.monotonic() >= deadline):
                    spend(b"")
                    return bytes(kept)
                elif not over and time.monotonic() >= deadline:
                    raise TimedOut(f"the program ran longer than {timeout_s:g} s")
        finally:
            os.close(ended)
