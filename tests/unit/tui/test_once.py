"""One screen as text: whole, aligned, without a byte that a terminal would obey."""

from __future__ import annotations

import pytest

from qctl.tui import once
from qctl.tui.snapshot import Snapshot, View
from tests.tui import troubled


def render(view: View, *, shown: Snapshot | None = None, width: int = 100, colour: bool = False) -> list[str]:
    """Its lines."""
    text = once.render(
        shown or troubled.troubled(), view, width=width, environment="production", broker="amqp://x/", colour=colour
    )
    assert text.endswith("\n")
    return text.splitlines()


@pytest.mark.parametrize("view", list(View))
def test_a_screen_has_the_lines_that_matter_and_every_row(view: View) -> None:
    lines = render(view)

    assert "PRODUCTION" in lines[0]
    assert lines[1].strip().startswith("runs out")
    assert "it answers 401" in lines[2]
    head = next(number for number, line in enumerate(lines) if number > 2 and line)
    sizes = {View.HOSTS: 6, View.QUEUES: 4, View.CONSUMERS: 7, View.QUOTAS: 7, View.DEAD: 2, View.EVENTS: 2}
    assert len(lines) - head - 1 == sizes[view]
    assert all(len(line) <= 100 and line == line.rstrip() for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_columns_stand_below_their_titles() -> None:
    lines = render(View.QUEUES, width=200)

    head = next(line for line in lines if "QUEUE" in line)
    timeline = next(line for line in lines if " timeline" in line and "7312" in line)
    assert timeline.index("timeline") == head.index("QUEUE")
    assert timeline.index("7312") + 4 == head.index("READY") + 5  # numbers to the right


def test_colour_is_only_what_is_asked_for_and_hostile_text_never() -> None:
    coloured = "\n".join(render(View.HOSTS, shown=troubled.hostile(), colour=True))
    assert "\x1b[" in coloured
    assert "\x1b]" not in coloured
    for view in View:
        for line in render(view, shown=troubled.hostile(), width=20):
            assert line.isprintable()


def test_a_fleet_without_rows_says_so() -> None:
    empty = Snapshot(troubled.NOW_S, troubled.Status(troubled.NOW_S, False))

    assert render(View.EVENTS, shown=empty)[-1].strip() == "Nobody has commanded anything yet."
