"""`qctl init`: write a starter inventory, commented, that works as it is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click

from qctl.cli import render
from qctl.cli.options import Settings, pass_settings
from qctl.errors import QctlError, UsageError

#: The host in the starter, replaced by the name of this machine so that a worker finds itself.
PLACEHOLDER = "this-host"


@click.command()
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@pass_settings
def init(settings: Settings, force: bool) -> None:
    """Write a starter inventory to ./inventory.yaml, or to the file of -i.

    It is commented, passes the check as it is and runs on a private broker.
    """
    path = settings.inventory or Path("inventory.yaml")
    write(path, starter(socket.gethostname()), force=force)
    render.line(path)
    render.say(settings, "Next: qctl broker up, then qctl worker start, and elsewhere: qctl enqueue hello '{}'")


def starter(hostname: str) -> str:
    """The starter's text for the machine of that name; its first label, as `worker start` looks for it."""
    from qctl.inventory.leaves import NAME

    text = (Path(__file__).parents[1] / "inventory" / "starter.yaml").read_text(encoding="utf-8")
    label = hostname.partition(".")[0]
    return text.replace(PLACEHOLDER, label) if NAME.fullmatch(label) else text


def write(path: Path, text: str, *, force: bool) -> None:
    """Write the file. Raises QctlError when it is there and `force` is not given, UsageError when it cannot be made."""
    try:
        if force:
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        else:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        raise QctlError(
            f"{path} exists already", hint="Name another file with -i FILE, or replace it with --force."
        ) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror or "error").lower() if isinstance(error, OSError) else "not a path"
        raise UsageError(f"cannot write {path}: {reason}", hint="Name another file with -i FILE.") from None
