"""Shell completion: the scripts, and the names that an inventory knows.

`host`, `consumer`, `quota` and `queue` are for `shell_complete=` of any command's argument or option.
"""

from __future__ import annotations

from collections.abc import Iterable

import click

from qctl.cli import render
from qctl.cli.options import Settings
from qctl.errors import QctlError

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


def _offered(ctx: click.Context, kind: str, incomplete: str) -> list[str]:
    settings = ctx.find_object(Settings) or Settings()
    try:
        inventory = settings.load()
    except QctlError:
        return []  # a completion has nowhere to say what is wrong
    names: Iterable[str]
    if kind == "queues":
        names = dict.fromkeys(consumer.queue for consumer in inventory.consumers.values())
    else:
        names = {"hosts": inventory.hosts, "consumers": inventory.consumers, "quotas": inventory.quotas}[kind]
    return [name for name in names if name.startswith(incomplete)][:MAX_OFFERED]
