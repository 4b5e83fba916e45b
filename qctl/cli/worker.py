"""`qctl worker start`: run one host's tasks in the foreground."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qctl.cli import completion
from qctl.cli.options import Duration, Settings, pass_settings

if TYPE_CHECKING:
    from qctl.inventory.model import Host, Inventory

#: Beyond this a host is better served by more hosts; every process has two connections and its own leases.
MAX_PROCESSES = 256
DEFAULT_DRAIN_TIMEOUT_S = 30.0


@click.group()
def worker() -> None:
    """Run the tasks of this host."""


@worker.command()
@click.option(
    "--host",
    metavar="H",
    envvar="QCTL_HOST",
    shell_complete=completion.host,
    help="The host of the inventory to run as. Default: $QCTL_HOST, this machine's name, its first label.",
)
@click.option(
    "--processes",
    metavar="N",
    type=click.IntRange(1, MAX_PROCESSES),
    default=1,
    show_default=True,
    help="Worker processes; all share the host's quotas.",
)
@click.option(
    "--only",
    metavar="CONSUMER",
    multiple=True,
    shell_complete=completion.consumer,
    help="Run only this consumer of the host; may be repeated.",
)
@click.option(
    "--drain-timeout",
    metavar="DURATION",
    type=Duration(),
    default=DEFAULT_DRAIN_TIMEOUT_S,
    help="How long running tasks may take to finish after SIGTERM. Default: 30s.",
)
@click.option(
    "--state-dir",
    metavar="D",
    type=click.Path(path_type=Path),
    help="Where the ledger lies; a local disk. Default: $QCTL_STATE_DIR, $STATE_DIRECTORY, /var/lib/qctl as root, "
    "else $XDG_STATE_HOME/qctl or ~/.local/state/qctl.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@pass_settings
def start(
    settings: Settings,
    host: str | None,
    processes: int,
    only: tuple[str, ...],
    drain_timeout: float,
    state_dir: Path | None,
    log_format: str,
) -> int:
    """Take tasks, spend this host's quota and never more, until SIGTERM or Ctrl-C.

    The first signal drains: what runs is finished, the rest goes back to the queues, exit 0. The second one ends at
    once, exit 1. SIGHUP reads the inventory anew and, if it is good, replaces the processes one by one. While the
    broker is unreachable it is tried for ever; a refusal of the first connection exits 5.
    """
    import signal

    # Until the supervisor takes signals itself there is nothing to tidy up, and a KeyboardInterrupt can be lost: native
    # code that is being imported swallows it now and then.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from qctl.worker import logs, supervisor
    from qctl.worker.hostlock import state_directory
    from qctl.worker.plan import Plan

    verbosity = -1 if settings.quiet else settings.verbose

    def plan() -> Plan:
        inventory = settings.load()
        return Plan(
            inventory=inventory,
            host=_only(_host(inventory, host), only),
            ladder_s=inventory.ladder_s,
            state_directory=state_directory(state_dir),
            drain_timeout_s=drain_timeout,
            log_format=log_format,
            verbosity=verbosity,
        )

    first = plan()
    logs.configure(first.host.name, log_format=log_format, verbosity=verbosity)
    return supervisor.run(first, processes, plan)


def _host(inventory: Inventory, name: str | None) -> Host:
    """The host to run as. Raises UnknownName, UsageError."""
    import socket

    from qctl.errors import UsageError

    if name is not None:
        return inventory.host(name)
    machine = socket.gethostname()
    for candidate in (machine, machine.partition(".")[0]):
        if candidate in inventory.hosts:
            return inventory.hosts[candidate]
    raise UsageError(
        f"{inventory.path} has no host {machine!r}, which is this machine's name",
        hint=f"Name the host with --host or $QCTL_HOST; it has: {', '.join(list(inventory.hosts)[:8])}.",
    )


def _only(host: Host, names: tuple[str, ...]) -> Host:
    """The host with only these consumers. Raises UnknownName."""
    from qctl.errors import UnknownName
    from qctl.inventory.nearest import did_you_mean

    for name in names:
        if name not in host.consumers:
            known = ", ".join(host.consumers)
            raise UnknownName(
                f"host {host.name} runs no consumer {name!r}",
                hint=did_you_mean(name, list(host.consumers)) or f"It runs: {known}.",
            )
    return replace(host, consumers={name: host.consumers[name] for name in names}) if names else host
