"""The lines around the list: where this is, how its sources are, what needs somebody first, the views. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qctl.ops.status import ConsumerRow, QueueRow, QuotaRow, State
from qctl.tui import words
from qctl.tui.actions import Action, key_text
from qctl.tui.bars import state_mark
from qctl.tui.cells import EMPTY, Cell, Part, one
from qctl.tui.scene import STILL_PER_S, Scene
from qctl.tui.snapshot import Health, SourceState, View
from qctl.tui.text import parts, safe, width_of
from qctl.tui.views import dead
from qctl.tui.views.listing import Arrangement, Listing

PRODUCTION = "production"
TITLES = {
    View.HOSTS: "Hosts",
    View.QUEUES: "Queues",
    View.CONSUMERS: "Consumers",
    View.QUOTAS: "Quotas",
    View.DEAD: "Dead",
    View.EVENTS: "Events",
}
#: How a source is, in a shape and a style.
_HEALTH = {
    Health.OK: ("●", "ok"),
    Health.CONNECTING: ("◌", "dim"),
    Health.STALE: ("◐", "warn"),
    Health.FAILED: ("✗", "bad"),
    Health.OFF: ("○", "dim"),
}
#: In this order the sources' sentences are shown where there is no room for all.
_WORST = (Health.FAILED, Health.STALE, Health.OK, Health.CONNECTING, Health.OFF)
#: A depth that is older says nothing of the present: queues are looked at each five seconds, many of them not as fast.
RECENT_S = 30.0
_GAP = "   "
#: Cells of one name in these lines.
MAX_NAME = 32


@dataclass(frozen=True, slots=True)
class Place:
    """Which fleet this is. broker: its address, without a user."""

    environment: str
    broker: str
    read_only: bool = False


# The first line: where, how the sources are, when


def where(place: Place, scene: Scene | None, *, width: int, remarks: Sequence[Cell] = ()) -> Cell:
    """The fleet, the health of each source with its age, the time. remarks: what else is to be said, `frozen`."""
    loud = place.environment == PRODUCTION
    left: Cell = (
        (" qctl ", "strong"),
        (f" {place.environment.upper()} " if loud else place.environment, "loud" if loud else "dim"),
    )
    if place.read_only:
        left = (*left, (" read-only", "accent"))
    clock: Cell = ((f"{_GAP}{words.moment(scene.now_s, scene)} ", "dim"),) if scene else EMPTY
    states = scene.snapshot.sources if scene else ()
    each_source = [_source(each, scene) for each in states]
    well = [each for each in states if each.health is Health.OK]
    ill = [_source(each, scene) for each in states if each.health is not Health.OK]
    together = (
        [one_of(("●", "ok"), f"{len(well)} sources")] if len(well) > 1 else [_source(each, scene) for each in well]
    )
    right: Cell = clock
    for sources in (each_source, [*together, *ill], ill):
        right = (*_joined([*remarks, *sources]), *clock)
        for start in ((*left, (f"  {place.broker}", "dim")), left):
            if _length(start) + _length(right) < width:
                return spread(start, right, width)
    return spread(left, right, width)


def one_of(mark: Part, text: str) -> Cell:
    """A mark and its words."""
    return (mark, (f" {text}", "dim"))


def _source(source: SourceState, scene: Scene | None) -> Cell:
    mark, style = _HEALTH[source.health]
    if source.health in (Health.OK, Health.OFF):
        return one_of((mark, style), _named(source.name))
    since = words.brief(scene.now_s - source.at_s) if scene and source.at_s is not None else ""
    return ((f"{mark} {_named(source.name)} {source.health}{since and f' {since}'}", style),)


def trouble(scene: Scene) -> tuple[Cell, ...]:
    """What is wrong with sources, a sentence each, and what could not be learnt."""
    said: list[Cell] = []
    for each in sorted(scene.snapshot.sources, key=lambda each: _WORST.index(each.health)):
        if each.words and each.health is not Health.CONNECTING:
            mark, style = ("!", "warn") if each.health is Health.OK else _HEALTH[each.health]
            said.append(((f" {mark} {_named(each.name)}: ", style), (each.words, "")))
    if scene.snapshot.status.blocked:
        said.insert(
            0, ((" ✗ broker: ", "bad"), ("it takes no publishes (memory or disk alarm): workers cannot be heard", ""))
        )
    return tuple(said)


# The second line: what needs somebody first


def answers(scene: Scene, *, width: int) -> Cell:
    """Who is about to run out, which queue is growing, what is off; in fewer words where there is little room."""
    form: Cell = EMPTY
    for level in range(4):
        form = ((" ", ""), *_joined([_runs_out(scene, brief=level > 1), _growing(scene), _off(scene, level)]))
        if _length(form) <= width:
            break
    return clip(form, width)


def _runs_out(scene: Scene, *, brief: bool) -> Cell:
    quotas = scene.snapshot.status.quotas
    gone = [row for row in quotas if words.ends_s(row, scene.now_s) == 0.0]
    first = first_out(quotas)
    said: list[Cell] = [one("runs out", "head")]
    if gone and not (brief and first):
        back_s = min((row.back_at_s for row in gone if row.back_at_s is not None and not row.fault), default=None)
        back = f", back {words.moment(back_s, scene)}" if back_s is not None and first is None else ""
        said.append(one(f"{len(gone)} used up{back}", "held"))
    if first is not None:
        said.append(((f"{_named(first.address)} ", "strong"), *words.runs_out(first, scene)))
    elif not gone:
        known = any(row.used_units is not None for row in quotas)
        said.append(one("none" if known else "-", "dim"))
    return _joined(said, " ")


def first_out(quotas: Iterable[QuotaRow]) -> QuotaRow | None:
    """The quota that is gone first of those that are not yet."""
    ends = [(row.exhausted_at_s, row.address, row) for row in quotas if row.exhausted_at_s is not None and not row.dry]
    return min(ends, default=(0.0, "", None), key=lambda each: each[:2])[2]


def _growing(scene: Scene) -> Cell:
    known = growing(scene)
    growth_per_s, row = max(known, default=(0.0, None), key=lambda each: each[0])
    if row is None or growth_per_s < STILL_PER_S:
        return _joined([one("grows", "head"), one("none" if known else "-", "dim")], " ")
    return _joined(
        [one("grows", "head"), one(_named(row.queue), "strong"), one(f"↑ {growth_per_s:.1f}/s", "warn")], " "
    )


def growing(scene: Scene) -> list[tuple[float, QueueRow]]:
    """The work queues whose growth is known at present, with it."""
    return [
        (growth_per_s, row)
        for row in scene.snapshot.status.queues
        if row.work and _is_recent(row, scene) and (growth_per_s := scene.growth_per_s(row)) is not None
    ]


def _is_recent(row: QueueRow, scene: Scene) -> bool:
    return row.seen is not None and scene.now_s - row.seen.at_s < RECENT_S


def _off(scene: Scene, level: int) -> Cell:
    """level: the greater, the fewer words."""
    rows = scene.snapshot.status.consumers
    said = []
    counts = Counter(row.state for row in rows)
    for state in words.NEED:
        if counts[state] and state not in (State.CONSUMING, State.MIXED):
            mark, style = state_mark(state)
            word = f" {state}" if level < 3 else ""
            whose = "" if level else _whose([row for row in rows if row.state is state])
            said.append(one(f"{mark} {counts[state]}{word}{whose}", style))
    if not said:
        said.append(one("none" if rows else "-", "dim"))
    return (("off ", "head"), *_joined(said, " " if level > 1 else "  "))


def _whose(rows: Sequence[ConsumerRow]) -> str:
    """Who paused them, or where they are: ` by oncall`, ` on web-1`, ` on 4 hosts`."""
    by = dict.fromkeys(pause.by for row in rows for pause in row.pauses if row.state is State.PAUSED)
    if by:
        return f" by {_named(next(iter(by)))}" if len(by) == 1 else f" by {len(by)}"
    hosts = dict.fromkeys(row.host for row in rows)
    return f" on {_named(next(iter(hosts)))}" if len(hosts) == 1 else f" on {len(hosts)} hosts"


# The third line: the views


def tabs(scene: Scene | None, view: View, *, counts: bool, names: bool = True) -> tuple[tuple[View, Cell], ...]:
    """The views with their keys, and how much is in each; of the present view always, of others as wanted."""
    found = []
    for number, each in enumerate(View, 1):
        here = each is view
        title: Cell = ((f" {number} ", "accent" if here else "dim"),)
        if here or names:
            title = (*title, (TITLES[each], "strong" if here else "dim"))
        size = _size(scene, each, here=here) if scene and (counts or here or (names and each is View.DEAD)) else EMPTY
        found.append((each, (*title, (" ", ""), *size) if size else title))
    return tuple(found)


def _size(scene: Scene, view: View, *, here: bool) -> Cell:
    """How much is in a view; the page is that of the view on screen."""
    status, page = scene.snapshot.status, scene.snapshot.page
    match view:
        case View.HOSTS:
            return one(len(status.hosts), "dim")
        case View.QUEUES:
            return one((here and page.total) or len(status.queues), "dim")
        case View.CONSUMERS:
            return one(len(scene.snapshot.tags), "dim")
        case View.QUOTAS:
            return one(len(status.quotas), "dim")
        case View.DEAD:
            letters = sum(row.ready or 0 for row in dead.found(scene) if _is_recent(row, scene))
            return one(f"{letters}{'+' if here and page.pages > 1 else ''}", "bad") if letters else EMPTY
        case View.EVENTS:
            return EMPTY


def arrangement(
    wanted: Arrangement, listing: Listing[object] | None, *, shown: int, scene: Scene | None, view: View, marked: int
) -> Cell:
    """How the list is arranged: filter, order, page, marks."""
    said: list[Cell] = []
    if marked:
        said.append(one(f"▪ {marked} marked", "accent"))
    if wanted.match:
        paged = scene is not None and view in (View.QUEUES, View.DEAD) and scene.snapshot.page.pages > 1
        of = "" if paged or listing is None else f" {shown} of {len(listing.rows)}"
        said.append(((f"/{'!' if wanted.invert else ''}{wanted.match}", "accent"), (of, "dim")))
    titles = {column.id: column.title for column in listing.columns} if listing else {}
    if wanted.sort in titles:
        said.append(one(f"by {titles[wanted.sort].lower()}", "dim"))
    page = scene.snapshot.page if scene else None
    if page and page.pages > 1 and view in (View.QUEUES, View.DEAD):
        said.append(one(f"page {page.number} of {page.pages}", "dim"))
    return _joined(said, "  ")


def views(scene: Scene | None, view: View, right: Cell, *, width: int) -> tuple[Cell, tuple[tuple[View, int], ...]]:
    """The line of views, and where the tab of each ends; right: what stands at its right end."""
    forms = (
        tabs(scene, view, counts=True),
        tabs(scene, view, counts=False),
        tabs(scene, view, counts=False, names=False),
    )
    room = width - _length(right) - 2
    found = next((form for form in forms if sum(_length(cell) + 1 for _, cell in form) <= room), forms[-1])
    line: Cell = ()
    ends = []
    for each, cell in found:
        line = (*line, *cell, (" ", ""))
        ends.append((each, _length(line)))
    return spread(line, (*right, (" ", "")), width), tuple(ends)


# The last line: keys


def keys(actions: Sequence[Action], view: View, *, width: int) -> Cell:
    """What can be done here, from the table of actions; the last two stand at the right."""
    shown = [action for action in actions if action.footer and action.works_in(view)]
    last = [action for action in shown if action.id in ("help", "quit")]
    right = _joined([_key(action) for action in last], "  ")
    left: Cell = ()
    for action in (action for action in shown if action not in last):
        more = ((" ", ""), *_key(action), (" ", ""))
        if _length(left) + _length(more) + _length(right) + 2 > width:
            break
        left = (*left, *more)
    return spread(left, (*right, (" ", "")), width)


def _key(action: Action) -> Cell:
    return ((key_text(action.keys[0]), "accent"), (f" {action.label.lower()}", "dim"))


# Putting together


def _named(name: str) -> str:
    """A name that leaves room for others."""
    return safe(name, width=MAX_NAME)


def _joined(cells: Sequence[Cell], gap: str = _GAP) -> Cell:
    found: Cell = ()
    for cell in cells:
        found = (*found, *(((gap, ""),) if found else ()), *cell)
    return found


def _length(cell: Cell) -> int:
    return sum(width_of(safe(text)) for text, _ in cell)


def clip(cell: Cell, width: int) -> Cell:
    """A cell in at most `width` cells, cut with `…`."""
    found: Cell = ()
    room = width
    for text, style in parts(cell, width):
        shown = safe(text)
        taken = width_of(shown)
        if taken > room:
            return (*found, (safe(shown, width=room), style)) if room else found
        found, room = (*found, (shown, style)), room - taken
    return found


def spread(left: Cell, right: Cell, width: int) -> Cell:
    """One part at the left, the other at the right; the left one is cut where there is no room for both."""
    right = clip(right, width)
    room = width - _length(right)
    left = clip(left, max(0, room - 1))
    return (*left, (" " * max(0, room - _length(left)), ""), *right)
