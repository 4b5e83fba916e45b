"""`qctl broker`: a private RabbitMQ node for development, in `.qctl/` beside the inventory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qctl.cli import render
from qctl.cli.options import Duration, Output, Settings, pass_settings
from qctl.cli.render import Column
from qctl.errors import Exit, InventoryError, UsageError

if TYPE_CHECKING:
    from qctl.broker.local import LocalNode, NodeInfo, NodeState

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

COLUMNS = (
    Column("STATE", lambda item: item["state"]),
    Column("AMQP", lambda item: item["amqp"]),
    Column("MANAGEMENT", lambda item: item["management"]),
    Column("USER", lambda item: item["username"]),
    Column("VERSION", lambda item: item["version"]),
    Column("PID", lambda item: item["pid"], right=True),
    Column("NODE", lambda item: item["node"], wide=True),
    Column("DIRECTORY", lambda item: item["directory"], wide=True),
)


@click.group()
def broker() -> None:
    """Run a private RabbitMQ node for development.

    It uses this machine's rabbitmq-server, listens on 127.0.0.1 only and lives in .qctl/ beside the inventory, or in
    the current directory when there is none. In an inventory, `broker: local` means this node. Its data, ports and
    password are kept when it is stopped; remove .qctl/broker to start afresh.
    """


@broker.command()
@click.option("--timeout", type=Duration(), default=START_TIMEOUT_S, help="How long it may take.  [default: 60s]")
@pass_settings
def up(settings: Settings, timeout: float) -> None:
    """Start the node and wait until it answers.

    Says where it is, and where its password lies. A node that runs already is left as it is.
    """
    from qctl.broker.local import NodeState

    node = _node(settings)
    before, _ = node.status()
    info = node.start(timeout_s=timeout, progress=lambda words: render.say(settings, words))
    if before is NodeState.RUNNING:
        render.say(settings, "the private broker is already running")
    _show(settings, node, NodeState.RUNNING, info)
    render.say(settings, f"The password of {info.username} is in {info.password_file}.")


@broker.command()
@click.option("--timeout", type=Duration(), default=STOP_TIMEOUT_S, help="Then it is killed.  [default: 30s]")
@pass_settings
def down(settings: Settings, timeout: float) -> None:
    """Stop the node. What is in its queues is kept.

    A node that does not run is no error.
    """
    stopped = _node(settings).stop(timeout_s=timeout)
    render.say(settings, "the private broker is stopped" if stopped else "the private broker is not running")


@broker.command()
@pass_settings
def status(settings: Settings) -> int:
    """Say whether the node runs, and where.

    The exit code is 0 when it runs and answers, else 1.
    """
    from qctl.broker.local import NodeState

    node = _node(settings)
    state, info = node.status()
    _show(settings, node, state, info)
    if state is not NodeState.RUNNING:
        hint = "It can be ended with `qctl broker down`." if state is NodeState.UNREADY else ""
        render.say(settings, hint or "Start it with `qctl broker up`.")
    return Exit.DONE if state is NodeState.RUNNING else Exit.FAILED


def _node(settings: Settings) -> LocalNode:
    from qctl.broker.local import LocalNode, local_directory

    return LocalNode(local_directory(_inventory_in_use(settings)))


def _inventory_in_use(settings: Settings) -> Path | None:
    """The inventory's place, if there is one; what is in it does not matter here."""
    from qctl.inventory.load import find

    try:
        path = find(settings.inventory)
    except InventoryError:
        return None
    if not path.is_file():
        raise UsageError(f"there is no inventory {path}", hint="Name one that exists with -i FILE, or none.")
    return path


def _show(settings: Settings, node: LocalNode, state: NodeState, info: NodeInfo | None) -> None:
    item = document(node.directory, state, info)
    named = [item] if item["node"] or settings.output is not Output.NAME else []
    render.show(settings, items=named, columns=COLUMNS, name=lambda each: str(each["node"]), document=item)


def document(directory: Path, state: NodeState, info: NodeInfo | None) -> dict[str, Any]:
    """The node as JSON: never its password, only the file that holds it."""
    return {
        "v": 1,
        "state": state.value,
        "node": info and info.nodename,
        "amqp": info and info.amqp_url,
        "management": info and info.management_url,
        "username": info and info.username,
        "password_file": info and str(info.password_file),
        "version": info and (info.version or None),
        "pid": info and info.pid,
        "directory": str(directory),
    }
