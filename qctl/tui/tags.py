"""A row for each subscription of a fleet, from what was heard of its hosts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qctl.control.reading import ConsumerReading
from qctl.control.target import Subject
from qctl.ops import burn
from qctl.ops.host_view import HostView, state_of, tags_of, why_of
from qctl.ops.status import Order, State
from qctl.tui.snapshot import TagRow


def tag_rows(hosts: Iterable[HostView]) -> tuple[TagRow, ...]:
    """The subscriptions of these hosts: those that were heard of, and one for each queue of consumers that were not."""
    return tuple(row for view in hosts for row in _of(view))


def _of(view: HostView) -> Iterator[TagRow]:
    heard: set[str] = set()
    for reading in view.readings:
        for one in reading.consumers:
            heard.add(one.name)
            for tag in one.tags:
                yield _heard(view, one, tag.tag, tag.queue, state_of(tag.state))
    for name, known in (view.host.consumers if view.host else {}).items():
        if name not in heard:
            for its, queue in tags_of(view.name, name, known, known.queue).items():
                yield _unheard(view, name, its, queue)


def _heard(view: HostView, one: ConsumerReading, tag: str, queue: str, state: State) -> TagRow:
    if view.state is not None:
        return _silent(view, one.name, tag, queue)
    pauses = _pauses(view, one, tag, queue) if state is State.PAUSED else ()
    ends = [pause.until_s for pause in pauses]
    return TagRow(
        tag=tag,
        host=view.name,
        consumer=one.name,
        queue=queue,
        state=state,
        why=why_of(state, (one,), pauses),
        since_s=one.since_s if state_of(one.state) is state else None,
        by=", ".join(dict.fromkeys(pause.by for pause in pauses)),
        until_s=_last(ends) if state is State.PAUSED else _last([hold.until_s for hold in one.holds]),
        running=one.running,
        waiting=one.waiting,
        rate_per_s=one.rate_per_s,
        seen=view.seen,
    )


def _pauses(view: HostView, one: ConsumerReading, tag: str, queue: str) -> tuple[Order, ...]:
    """By the control log; without it, what the process says itself."""
    if view.found.desired is not None:
        subject = Subject(view.name, one.name, queue, tag)
        return tuple(burn.order(pause, str(pause.target)) for pause in view.pauses_of(subject))
    if not one.by:
        return ()
    return (Order("", tag, one.by, claimed_by=one.claimed_by, reason=one.reason, until_s=one.until_s),)


def _last(ends: list[float | None]) -> float | None:
    """When all of them are over; None when that is not known of one."""
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def _unheard(view: HostView, name: str, tag: str, queue: str) -> TagRow:
    if view.state is not None:
        return _silent(view, name, tag, queue)
    state, why = view.unspoken()
    return TagRow(tag, view.name, name, queue, state, why, seen=view.seen)


def _silent(view: HostView, name: str, tag: str, queue: str) -> TagRow:
    """Of a host that is silent; who paused it is known all the same."""
    assert view.state is not None
    by = ""
    if view.is_commanded:
        pauses = view.pauses_of(Subject(view.name, name, queue, tag))
        by = ", ".join(dict.fromkeys(pause.user for pause in pauses))
    return TagRow(tag, view.name, name, queue, view.state, view.why, view.since_s, by=by, seen=view.seen)
