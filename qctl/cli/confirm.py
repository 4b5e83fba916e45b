"""Asking before something is done: what it concerns is shown, and Enter alone never means yes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from qctl.cli import render

if TYPE_CHECKING:
    from qctl.inventory.model import Inventory

#: Names that a question lists; the others are counted.
MAX_LISTED = 20


def check_can_ask(what: str) -> None:
    """Raise UsageError where there is nobody to ask."""
    from qctl.errors import UsageError

    if not sys.stdin or not sys.stdin.isatty():
        raise UsageError(f"{what}: there is no terminal to ask on", hint="--yes answers; --dry-run shows what it does.")


def confirm(
    inventory: Inventory, *, what: str, typed: str, names: Sequence[str], more: str = "", question: str = "Do it?"
) -> None:
    """Ask on the terminal whether to do `what`, which concerns `names` and `more`.

    In production `typed` has to be typed. Raises UsageError where nobody can be asked, click.Abort for a no.
    """
    check_can_ask(what)
    render.note(f"{what}:")
    for name in names[:MAX_LISTED]:
        render.note(f"  {name}")
    if len(names) > MAX_LISTED:
        render.note(f"  and {len(names) - MAX_LISTED} more")
    if more:
        render.note(f"  {more}")
    if inventory.environment == "production":
        answer = click.prompt(f"This is production. Type {typed} to go on", default="", err=True, show_default=False)
        if answer.strip() != typed:
            raise click.Abort
    elif not click.confirm(question, default=False, err=True):
        raise click.Abort
