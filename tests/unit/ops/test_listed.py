"""Queues as they are listed, as rows."""

from __future__ import annotations

from dataclasses import replace

from qctl.broker.listing import QueueLook
from qctl.ops.listed import queue_row
from qctl.ops.status import Seen, Source

TAKEN = {"timeline": ("web-1/timeline",)}
LOOK = QueueLook("timeline", messages=12, ready=10, unacked=2, consumers=1, in_per_s=1.0, out_per_s=3.0)


def test_a_queue_is_empty_when_what_is_taken_out_has_caught_up() -> None:
    row = queue_row(LOOK, TAKEN, 100.0)
    assert (row.ready, row.in_per_s, row.out_per_s, row.empty_at_s) == (10, 1.0, 3.0, 105.0)
    assert (row.work, row.consumers, row.seen) == (True, ("web-1/timeline",), Seen(Source.BROKER, 100.0))
    assert queue_row(replace(LOOK, name="theirs"), TAKEN, 100.0).work is False


def test_where_nobody_is_subscribed_a_queue_does_not_get_empty_whatever_left_it_until_lately() -> None:
    assert queue_row(replace(LOOK, consumers=0), TAKEN, 100.0).empty_at_s is None
    assert queue_row(replace(LOOK, consumers=None), TAKEN, 100.0).empty_at_s == 105.0


def test_how_long_a_queue_lasts_of_which_nothing_leaves_is_not_known() -> None:
    row = queue_row(replace(LOOK, out_per_s=None), TAKEN, 100.0)
    assert (row.out_per_s, row.empty_at_s) == (None, None)
