"""`--for` and `--until`: when what is commanded ends by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def nothing_given() -> Iterator[None]:
    """What somebody interrupts in this block has not been given yet, and is told to be so."""
    from qctl.errors import Interrupted

    try:
        yield
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error, click.Abort) and error.__context__ is None:
            raise  # a question that was answered with no
        raise Interrupted("interrupted; not given") from None


def ends_at_s(duration: float | None, until: str | None) -> float | None:
    """When it ends, wall clock; None: never. Raises UsageError, BadParameter."""
    if duration is not None and until is not None:
        raise click.UsageError("give --for or --until, not both")
    if duration is not None:
        if duration <= 0:
            raise click.UsageError("--for needs a duration above 0")
        return time.time() + duration
    if until is None:
        return None
    from qctl.ops.until import parse_until

    try:
        return parse_until(until, time.time()).timestamp()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--until") from None
