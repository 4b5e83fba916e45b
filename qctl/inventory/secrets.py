"""Secrets by reference: resolved when they are used, anew every time, and never part of a message."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from qctl.errors import SecretError
from qctl.inventory.model import Broker, Secret

#: How long a command may take to print its secret.
COMMAND_TIMEOUT_S = 10.0
#: Largest secret read from a file or a command.
MAX_SECRET_BYTES = 64 << 10


def resolve(secret: Secret | str, *, what: str, base: Path) -> str:
    """The secret's text. `what` names it in messages ("broker.password"), `base` is the inventory's folder.

    Raises SecretError, which names the reference, never the value. May run a command and take up to 10 s.
    """
    if isinstance(secret, str):
        return secret
    reference = secret.reference
    if isinstance(reference, tuple):
        return _from_command(reference, what=what, base=base)
    if secret.kind == "env":
        return _from_environment(reference, what=what)
    if secret.kind == "file":
        return _from_file(base / Path(reference).expanduser(), what=what)
    return reference


def credentials(broker: Broker, *, base: Path, prefer_environment: bool) -> tuple[str, str]:
    """User name and password for the broker; `guest`, `guest` when the inventory says nothing.

    prefer_environment: $QCTL_USERNAME and $QCTL_PASSWORD, each where set, win over the inventory (commands want this,
    workers do not). Raises SecretError.
    """
    username = os.environ.get("QCTL_USERNAME", "") if prefer_environment else ""
    password = os.environ.get("QCTL_PASSWORD", "") if prefer_environment else ""
    if not username:
        username = resolve(broker.username or "guest", what="broker.username", base=base)
    if not password:
        if broker.password is None and username != "guest":
            raise SecretError(
                "the inventory gives the broker's user no password",
                hint="Add broker.password to the inventory, such as {env: QCTL_PASSWORD}.",
            )
        password = resolve(broker.password or "guest", what="broker.password", base=base)
    return username, password


def _from_environment(name: str, *, what: str) -> str:
    value = os.environ.get(name, "").rstrip("\r\n")  # as a mounted secret often ends
    if not value:
        state = "is empty" if name in os.environ else "is not set"
        raise SecretError(f"{what}: the environment variable {name} {state}", hint=f"Set it: export {name}=...")
    return value


def _from_file(path: Path, *, what: str) -> str:
    try:
        # Without O_NONBLOCK, opening a pipe nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = (error.strerror or "error").lower() if isinstance(error, OSError) else "not a path"
        raise SecretError(f"{what}: cannot read {path}: {reason}", hint="Check the path and its permissions.") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SecretError(f"{what}: {path} is not a file", hint="Name a file that holds the secret alone.")
        if status.st_mode & 0o077:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            raise SecretError(
                f"{what}: others than its owner may use {path} (mode {mode})", hint=f"Run: chmod 0600 {path}"
            )
        data = os.read(descriptor, MAX_SECRET_BYTES + 1)
    finally:
        os.close(descriptor)
    return _text(data, what=what, source=str(path))


def _from_command(argv: tuple[str, ...], *, what: str, base: Path) -> str:
    program = argv[0]  # the arguments may hold a secret of their own and stay out of messages
    try:
        process = subprocess.Popen(
            argv,
            cwd=base,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = (error.strerror or "error").lower() if isinstance(error, OSError) else "not a command"
        raise SecretError(f"{what}: cannot run {program}: {reason}", hint="Correct it in the inventory.") from None
    with process:
        try:
            data = _read(process, what=what, program=program)
        except BaseException:  # Ctrl-C included: whatever it started ends with it
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        raise SecretError(
            f"{what}: {program} ended with status {process.returncode}", hint="Run the command by hand to see why."
        )
    return _text(data, what=what, source=f"the output of {program}").strip()


def _read(process: subprocess.Popen[bytes], *, what: str, program: str) -> bytes:
    """All that it prints, once it has ended: at most MAX_SECRET_BYTES, within COMMAND_TIMEOUT_S."""
    output = process.stdout.fileno() if process.stdout else -1
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    ready = select.poll()  # unlike select, it takes descriptors above 1023, which a busy worker has
    ready.register(output, select.POLLIN)
    data = b""
    while ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(output, MAX_SECRET_BYTES + 1)
        data += chunk
        if len(data) > MAX_SECRET_BYTES:
            raise _too_large(what, f"the output of {program}")
        if not chunk:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
                return data
            break
    raise SecretError(
        f"{what}: {program} did not end within {COMMAND_TIMEOUT_S:.0f} s", hint="Run the command by hand to see why."
    )


def _too_large(what: str, source: str) -> SecretError:
    return SecretError(f"{what}: {source} is larger than 64 KiB", hint="It should hold the secret alone.")


def _text(data: bytes, *, what: str, source: str) -> str:
    if len(data) > MAX_SECRET_BYTES:
        raise _too_large(what, source)
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretError(f"{what}: {source} is not UTF-8 text", hint="It should hold the secret alone.") from None
    if not text:
        raise SecretError(f"{what}: {source} is empty", hint="It should hold the secret alone.")
    return text
