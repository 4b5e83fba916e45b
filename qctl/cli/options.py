"""The options that every command has, and the types of arguments that several share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qctl.units import parse_duration

if TYPE_CHECKING:
    from qctl.inventory.model import Inventory

#: Key in click's `meta`, which all contexts of one call share, of the number of -v.
VERBOSE = "qctl.verbose"
DEFAULT_CONNECT_TIMEOUT_S = 10.0


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options of one call, in click's `ctx.obj`; commands take them with `@pass_settings`."""

    inventory: Path | None = None
    output: Output = Output.TABLE
    verbose: int = 0
    quiet: bool = False
    colour: bool = True
    connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S

    def load(self) -> Inventory:
        """The inventory: found, read and checked. Raises InventoryError."""
        from qctl.inventory.load import find, load

        return load(find(self.inventory))


pass_settings = click.make_pass_decorator(Settings)


class Duration(click.ParamType[float]):
    """`250ms`, `30s`, `15m`, `1h`, `1d`; seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


Change = Callable[[Settings, Any], Settings]


def _option(*names: str, change: Change, help: str, **attributes: Any) -> click.Option:  # noqa: A002 - click's word
    """A global option: instead of a parameter of the command, a change of the settings."""

    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            settings = change(ctx.obj if isinstance(ctx.obj, Settings) else Settings(), value)
            ctx.obj = settings
            ctx.meta[VERBOSE] = settings.verbose

    # The name is our own, so that a command may have an option of the same name without a clash of parameters.
    own = f"global_{names[-1].lstrip('-').replace('-', '_')}"
    return click.Option([own, *names], expose_value=False, callback=callback, help=help, **attributes)


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from qctl.cli import render

        render.line(f"qctl {sys.modules['qctl'].__version__}")
        ctx.exit()


def global_options(*, hidden: bool = False) -> list[click.Option]:
    """The global options, made anew; hidden on commands, whose help would drown in them."""
    return [
        _option(
            "-i",
            "--inventory",
            change=lambda settings, value: replace(settings, inventory=Path(value)),
            help="The inventory. Default: $QCTL_INVENTORY, ./inventory.yaml, ~/.config/qctl/, /etc/qctl/.",
            metavar="FILE",
            type=click.Path(),
            hidden=hidden,
        ),
        _option(
            "-o",
            "--output",
            change=lambda settings, value: replace(settings, output=Output(value)),
            help="How results are printed. Default: table.",
            type=click.Choice([str(output) for output in Output]),
            hidden=hidden,
        ),
        _option(
            "-v",
            "--verbose",
            change=lambda settings, value: replace(settings, verbose=settings.verbose + value),
            help="Say more; -vv also shows tracebacks.",
            count=True,
            hidden=hidden,
        ),
        _option(
            "-q",
            "--quiet",
            change=lambda settings, _: replace(settings, quiet=True),
            help="Say only what went wrong.",
            is_flag=True,
            hidden=hidden,
        ),
        _option(
            "--no-color",
            change=lambda settings, _: replace(settings, colour=False),
            help="No colour; so does NO_COLOR in the environment.",
            is_flag=True,
            hidden=hidden,
        ),
        _option(
            "--connect-timeout",
            change=lambda settings, value: replace(settings, connect_timeout_s=value),
            help="How long the broker is tried. Default: 10s.",
            metavar="DURATION",
            type=Duration(),
            hidden=hidden,
        ),
        click.Option(
            ["global_version", "--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Print the version.",
            hidden=hidden,
        ),
    ]


def add_global_options(command: click.Command) -> click.Command:
    """Let `command` and all commands in it take the global options too, except where it has its own of that name."""
    taken = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    if "global_version" in {param.name for param in command.params}:
        return command
    for option in global_options(hidden=True):
        option.opts = [name for name in option.opts if name not in taken]
        if option.opts:
            command.params.append(option)
    if command.epilog is None:
        command.epilog = "Global options (see qctl --help) may also stand here."
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        add_global_options(inner)
    return command
