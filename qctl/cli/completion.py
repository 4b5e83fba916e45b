"""Shell completion: the scripts, and the names that an inventory knows.

The functions without an underscore are for `shell_complete=` of any command's argument or option.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import click

from qctl.cli import render
from qctl.cli.options import Settings
from qctl.errors import QctlError

if TYPE_CHECKING:
    from qctl.inventory.model import Inventory

#: Names offered at once; a shell shows no more in any useful way.
MAX_OFFERED = 1_000
SHELLS = ("bash", "zsh", "fish")

INSTALL = """Print the completion script of a shell.

\b
bash: qctl completion bash > ~/.local/share/bash-completion/completions/qctl
zsh:  qctl completion zsh > ~/.zfunc/_qctl      (with ~/.zfunc in $fpath)
fish: qctl completion fish > ~/.config/fish/completions/qctl.fish
"""


@click.command(help=INSTALL)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from qctl.cli.main import COMPLETE_VARIABLE, cli

    if script := get_completion_class(shell):
        render.raw(script(cli, {}, "qctl", COMPLETE_VARIABLE).source() + "\n")


def host(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of hosts."""
    return _offered(ctx, "hosts", incomplete)


def consumer(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of consumers."""
    return _offered(ctx, "consumers", incomplete)


def quota(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of quotas."""
    return _offered(ctx, "quotas", incomplete)


def queue(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of work queues."""
    return _offered(ctx, "queues", incomplete)


def any_queue(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of work queues, of queues of dead letters, and of qctl's own."""
    return _offered(ctx, "all queues", incomplete)


def dead_queue(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of work queues and consumers, whose dead letters are meant."""
    return list(dict.fromkeys(_offered(ctx, "queues", incomplete) + _offered(ctx, "consumers", incomplete)))


def host_consumer(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """HOST/CONSUMER of all that run."""
    return _offered(ctx, "host/consumer", incomplete)


def host_quota(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """HOST/QUOTA of all hosts."""
    return _offered(ctx, "host/quota", incomplete)


def new_host_quota(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """NAME/QUOTA of a host that is not there, once its name is written."""
    host, slash, _ = incomplete.partition("/")
    return [f"{host}/{name}" for name in _offered(ctx, "quotas", incomplete[len(host) + 1 :])] if slash else []


def consumer_or_queue(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """HOST/CONSUMER of all that run, and names of work queues."""
    return (_offered(ctx, "queues", incomplete) + _offered(ctx, "host/consumer", incomplete))[:MAX_OFFERED]


def group(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of groups."""
    return _offered(ctx, "groups", incomplete)


def target(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """What may be paused: HOST and `*/CONSUMER`, and once a host is begun with its HOST/CONSUMER."""
    return _offered(ctx, "host/consumer" if "/" in incomplete and incomplete[0] != "*" else "targets", incomplete)


def _offered(ctx: click.Context, kind: str, incomplete: str) -> list[str]:
    settings = ctx.find_object(Settings) or Settings()
    try:
        inventory = settings.load()
    except QctlError:
        return []  # a completion has nowhere to say what is wrong
    return list(islice((name for name in _names(inventory, kind) if name.startswith(incomplete)), MAX_OFFERED))


def _names(inventory: Inventory, kind: str) -> Iterable[str]:
    hosts = inventory.hosts.values()
    match kind:
        case "queues":
            return dict.fromkeys(consumer.queue for consumer in inventory.consumers.values())
        case "all queues":
            from qctl.broker.topology import UNROUTABLE, dead_queue

            work = dict.fromkeys(consumer.queue for consumer in inventory.consumers.values())
            return (*work, *(dead_queue(name) for name in work), UNROUTABLE)
        case "host/consumer":
            return (f"{host.name}/{name}" for host in hosts for name in host.consumers)
        case "host/quota":
            return (f"{host.name}/{name}" for host in hosts for name in host.quotas)
        case "targets":
            return (*inventory.hosts, *(f"*/{name}" for name in inventory.consumers))
    named = {
        "hosts": inventory.hosts,
        "consumers": inventory.consumers,
        "quotas": inventory.quotas,
        "groups": inventory.groups,
    }
    return named[kind]
