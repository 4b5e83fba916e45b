"""What there is to know of one row, in lines: beside the list on Enter. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from qctl.broker import topology
from qctl.control.quota_reading import SLIDING
from qctl.ops import costs, why
from qctl.ops.spending import window_words
from qctl.ops.status import ConsumerRow, QuotaRow
from qctl.ops.when import local
from qctl.tui import words
from qctl.tui.bars import Spark
from qctl.tui.cells import EMPTY, Cell, one
from qctl.tui.history import STEP_S, Kind
from qctl.tui.scene import Scene
from qctl.tui.snapshot import View
from qctl.tui.views import consumers, dead, events, hosts, queues, quotas
from qctl.tui.views.listing import Detail, Line, Sentence

#: Consumers that are listed.
MAX_CONSUMERS = 100


def detail(scene: Scene, view: View, key: str) -> Detail | None:
    """All about one row; None where there is none of that key any more."""
    return _DETAILS[view](scene, key)


def _host(scene: Scene, key: str) -> Detail | None:
    row = scene.snapshot.status.host(key)
    if row is None:
        return None
    mine = scene.consumers.get(key, [])
    lines: list[Line] = [hosts.state(row, mine, scene)]
    if said := hosts.cause(row, mine):
        lines.append(Sentence(said))
    if row.machine:
        lines.append(_named("machine", one(row.machine)))
    if row.processes is not None:
        lines.append(_named("processes heard", words.share(row.heard, row.processes)))
    if row.seen is not None:
        heard = (*one(words.moment(row.seen.at_s, scene)), ("  ", ""), *words.age(row.seen, scene))
        lines.append(_named("heard", heard))
    if its := hosts.by_pressure(scene.quotas.get(key, []), scene):
        lines += [EMPTY, one("QUOTAS", "head"), *_gauges(its, scene)]
    if mine:
        lines += [EMPTY, one("CONSUMERS", "head"), *_consumers(mine, scene)]
    return Detail(one(row.host, "strong"), tuple(lines))


def _gauges(rows: Sequence[QuotaRow], scene: Scene) -> Iterable[Line]:
    name_width = words.widest((row.quota for row in rows), least=4, most=16)
    digits_width = words.digits(rows)
    for row in rows:
        yield words.gauge(row, name_width=name_width, digits_width=digits_width)
        if said := words.somebody_else(row, scene):
            yield Sentence(said, "warn")
        spent = ("   units/s ", "dim"), *words.per_s(row.spend_per_s, estimated=row.spend_estimated), ("  ", "")
        points = scene.past.of(Kind.BURN, row.address)
        yield words.Beside((*words.runs_out(row, scene), *spent), Spark(points, top=_top(points)))


def _consumers(rows: Sequence[ConsumerRow], scene: Scene) -> Iterable[Line]:
    for row in sorted(rows, key=lambda row: (words.NEED.get(row.state, 9), words.natural(row.consumer)))[
        :MAX_CONSUMERS
    ]:
        yield ((f"{row.consumer}  ", "strong"), *words.consumer_state(row, scene))
        running = ("  running ", "dim"), *words.share(row.running, row.concurrency)
        yield (*running, ("   tasks/s ", "dim"), *words.per_s(row.rate_per_s))
        if row.why:
            yield Sentence(row.why, "dim")
    if len(rows) > MAX_CONSUMERS:
        yield one(f"and {len(rows) - MAX_CONSUMERS} more", "dim")


def _tag(scene: Scene, key: str) -> Detail | None:
    row = next((row for row in scene.snapshot.tags if row.tag == key), None)
    if row is None:
        return None
    lines: list[Line] = [consumers.state(row, scene)]
    consumer = scene.takers.get(row.address)
    if consumer is None:
        lines += [Sentence(row.why)] if row.why else []
        lines.append(_named("queue", one(row.queue)))
        return Detail(consumers.tag(row), tuple(lines))
    lines += _sentences(why.consumer(scene.snapshot.status, consumer, zone=scene.zone)[1:])
    lines.append(EMPTY)
    running = (
        *words.share(consumer.running, consumer.concurrency),
        ("   waiting ", "dim"),
        *words.count(consumer.waiting),
    )
    lines.append(_named("running", running))
    lines.append(_named("tasks/s", words.per_s(consumer.rate_per_s)))
    if consumer.settled is not None:
        done = "  ".join(f"{number} {what.replace('_', ' ')}" for what, number in consumer.settled.items() if number)
        lines.append(_named("since it started", one(done or "nothing yet")))
    its = [each for each in scene.quotas.get(row.host, ()) if each.quota in consumer.costs]
    if its:
        lines += [EMPTY, one("QUOTAS", "head"), *_gauges(its, scene)]
    lines += _depth(row.queue, scene)
    return Detail(consumers.tag(row), tuple(lines))


def _queue(scene: Scene, key: str) -> Detail | None:
    row = scene.snapshot.status.queue(key)
    if row is None:
        return None
    lines: list[Line] = [(*words.count(row.ready), (" ready  ", "dim"), *words.count(row.unacked), (" unacked", "dim"))]
    rates = (*words.per_s(row.in_per_s), ("   out/s ", "dim"), *words.per_s(row.out_per_s, estimated=row.out_estimated))
    lines.append(_named("in/s", rates))
    lines.append(_named("grows/s", queues.trend(row, scene)))
    lines += _depth(key, scene)
    lines.append(EMPTY)
    if row.work:
        lines += _sentences(why.queue(scene.snapshot.status, row, zone=scene.zone))
    if row.why:
        lines.append(Sentence(row.why, "dim"))
    return Detail(one(row.queue, "strong"), tuple(lines))


def _quota(scene: Scene, key: str) -> Detail | None:
    row = next((row for row in scene.snapshot.status.quotas if row.address == key), None)
    if row is None:
        return None
    lines = [*_gauges([row], scene), EMPTY, _named("limits", one(", ".join(row.rates)))]
    if row.estimated:
        lines.append(one("an estimate, by the broker's own counters: its worker is not heard", "estimate"))
    if row.window != SLIDING:
        lines.append(_named("window", one(window_words(row, lambda at_s: words.moment(at_s, scene)))))
    if row.back_at_s is not None:
        lines.append(_named("units return", one(words.moment(row.back_at_s, scene))))
    if row.override is not None:
        lines.append(_named("set by", quotas.override(row, scene)))
        lines.append(_named("the inventory says", one(", ".join(row.inventory_rates) or None)))
    if row.fault:
        lines.append(Sentence(f"the ledger: {row.fault}", "bad"))
    if row.costs:
        lines += [EMPTY, one("WHAT TASKS COST", "head"), *(_cost(cost) for cost in costs.judged([row]))]
    spenders = [each for each in scene.consumers.get(row.host, ()) if row.quota in each.costs]
    if spenders:
        lines += [EMPTY, one("SPENT BY", "head"), *_consumers(spenders, scene)]
    return Detail(quotas.name(row), tuple(lines))


def _cost(cost: costs.Judged) -> Line:
    """`timeline refresh: declared 1; half of 180 tasks need at most 3, 95 % at most 7; too low: ...; declare 7`."""
    named = f"{cost.consumer} {cost.type}".rstrip()
    parts = [
        f"{named}: declared {cost.declared}",
        f"half of {cost.tasks} tasks need at most {cost.p50}, 95 % at most {cost.p95}",
        costs.words(cost),
        f"declare {cost.advised}" if cost.advised is not None else "",
    ]
    return Sentence("; ".join(part for part in parts if part), "warn" if cost.wrong else "")


def _letters(scene: Scene, key: str) -> Detail | None:
    row = next((row for row in dead.found(scene) if row.queue == key), None)
    if row is None:
        return None
    queue = key.removesuffix(topology.dead_queue(""))
    lines: list[Line] = [
        (*words.count(row.ready), (f" of {queue} were given up on", "dim")),
        _named("grows/s", queues.trend(row, scene)),
        *_depth(key, scene),
    ]
    return Detail(one(key, "strong"), tuple(lines))


def _event(scene: Scene, key: str) -> Detail | None:
    row = next((row for row in scene.snapshot.events if str(row.offset) == key), None)
    if row is None:
        return None
    lines: list[Line] = [_named("by", one(row.user or None)), _named("says it is", one(row.claimed_by or None))]
    lines += [_named("to", one(row.target or None)), _named("at", one(row.at or None))]
    if row.notice:
        lines.append(one(row.found_out, "warn"))
    if row.since_s is not None:
        lines.append(_named("since", one(local(row.since_s, zone=scene.zone))))
    if row.rates:
        lines.append(_named("limits", one(", ".join(row.rates))))
    if row.until_s is not None:
        lines.append(_named("until", one(local(row.until_s, zone=scene.zone))))
    lines.append(_named("why", one(row.reason or None)))
    if row.local:
        lines.append(one("given on the host, and entered in the log when the broker took it", "dim"))
    if row.ignored:
        lines.append(Sentence(f"ignored: {row.ignored}", "warn"))
    lines.append(_named("id", one(row.id, "dim")))
    return Detail(events.title(row), tuple(lines))


def _depth(queue: str, scene: Scene) -> list[Line]:
    points = scene.past.of(Kind.DEPTH, queue)
    known = [point for point in points if point is not None]
    if len(known) < 2:
        return []
    since = next(steps for steps, point in enumerate(reversed(points)) if point is not None)
    # The present step has no point yet while the next answer is waited for.
    ago = f" {words.brief(since * STEP_S)} ago" if since > 1 else ""
    title = (f"{known[-1]:.0f} ready", ""), (f"{ago}, at most {max(known):.0f} lately", "dim")
    return [EMPTY, one(queue, "head"), title, Spark(points, top=_top(points))]


def _top(points: Sequence[float | None]) -> float:
    """What a sparkline has as its top: with air above the highest, so that a steady rate is no wall."""
    return 1.5 * max((point for point in points if point is not None), default=0.0)


def _sentences(facts: Iterable[why.Fact]) -> list[Line]:
    return [Sentence(fact.sentence) for fact in facts]


def _named(name: str, cell: Cell) -> Cell:
    return ((f"{name} ", "dim"), *cell)


_DETAILS: Mapping[View, Callable[[Scene, str], Detail | None]] = {
    View.HOSTS: _host,
    View.QUEUES: _queue,
    View.CONSUMERS: _tag,
    View.QUOTAS: _quota,
    View.DEAD: _letters,
    View.EVENTS: _event,
}
