"""`--for` and `--until`: when what is commanded ends by itself."""

from __future__ import annotations

import time

import click


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
