"""What a wire has brought so far, as `picture` wants it, and how each of its sources is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qctl.control.host_quotas import SAME_MOMENT_S
from qctl.control.reading import Goodbye, HostReading
from qctl.control.telemetry import Heard as HeardLive
from qctl.control.telemetry import Hearing
from qctl.errors import QctlError
from qctl.ops.found import Found, Heard
from qctl.tui.snapshot import Health, SourceState
from qctl.tui.wire import Wire

#: Every process says something each second: who is silent for longer than this is not live.
FRESH_S = 3.0
#: Who has just begun to listen cannot say of anybody that nothing is heard.
SETTLE_S = 1.5
#: A broker that has nothing to say sends a heartbeat each five seconds.
SILENT_S = 6.5

NOT_YET = "not heard yet"
CUT_OFF = "the broker cannot be reached"
MUTE = "the broker says nothing"


def found_of(wire: Wire, *, at_s: float, now_s: float) -> Found:
    """All that is known at the wall-clock second `at_s`, which is `now_s` by the monotonic clock."""
    hearing = wire.hearing
    live: list[Heard] = []
    quiet: dict[str, list[HeardLive]] = {}
    for (host, index), heard in hearing.heard.items():
        if now_s - heard.heard_s < FRESH_S and hearing.said_goodbye(host, index) is None:
            live.append(Heard(heard.reading, at_s - (now_s - heard.heard_s)))
        else:
            quiet.setdefault(host, []).append(heard)
    live.sort(key=lambda heard: (heard.reading.host, heard.reading.index))
    speaking = {heard.reading.host for heard in live}
    last = dict(wire.last)
    before = {host: one for host, one in last.items() if isinstance(one, HostReading)}
    for host, its in quiet.items():
        if host not in speaking:
            before[host] = last[host] = _remembered(host, its, at_s - now_s)
    for host in {host for host, _ in hearing.goodbyes} - speaking:
        goodbye = _parted(hearing, host, quiet.get(host, ()))
        if goodbye is not None:
            last[host] = goodbye
    return Found(
        at_s=at_s,
        blocked=wire.blocked,
        deaf=deaf(wire, now_s),
        live=tuple(live),
        last=last,
        looked_back_s=wire.looked_back_s,
        before=before,
        known=tuple(hearing.hosts),
        supervisors=wire.supervisors,
        desired=wire.desired,
        depths=wire.depths,
    )


def fallen_silent(wire: Wire, now_s: float, since_s: float) -> bool:
    """Whether a process fell silent after the monotonic second `since_s`, and said no goodbye."""
    return any(
        since_s <= heard.heard_s + FRESH_S <= now_s and wire.hearing.said_goodbye(host, index) is None
        for (host, index), heard in wire.hearing.heard.items()
    )


def _remembered(host: str, its: Iterable[HeardLive], clocks_apart_s: float) -> HostReading:
    """What a host said last: the processes that spoke until about the same moment."""
    ordered = sorted(its, key=lambda heard: heard.heard_s)
    newest = ordered[-1]
    same = [heard.reading for heard in ordered if heard.heard_s > newest.heard_s - SAME_MOMENT_S]
    same.sort(key=lambda reading: reading.index)
    reading = newest.reading
    said_s = newest.heard_s + clocks_apart_s
    return HostReading(said_s, host, reading.machine, reading.pid, tuple(same), newest.user)


def _parted(hearing: Hearing, host: str, its: Iterable[HeardLive]) -> Goodbye | None:
    """The goodbye of a host: its own, or the last of its processes' when each of them said one."""
    goodbyes = [hearing.said_goodbye(host, heard.reading.index) for heard in its]
    said = [one for one in goodbyes if one is not None]
    if not said or len(said) != len(goodbyes):
        return hearing.goodbyes.get((host, None))
    return max(said, key=lambda one: one.at_s)


def deaf(wire: Wire, now_s: float) -> str:
    """Why nobody can be heard at present, "" when who speaks is heard."""
    if not wire.is_open:
        return CUT_OFF if wire.connected_once or wire.last_error is not None else NOT_YET
    if wire.silent_s() > SILENT_S:
        return MUTE
    if wire.listening_s is None:
        return wire.workers.failed or NOT_YET
    return NOT_YET if now_s - wire.listening_s < SETTLE_S else ""


def sources_of(wire: Wire, *, at_s: float, now_s: float) -> Iterator[SourceState]:
    """How the broker, the workers' readings and the control log are."""
    yield _broker(wire, at_s)
    yield _workers(wire, at_s, now_s)
    yield _control_log(wire, at_s)


def _broker(wire: Wire, at_s: float) -> SourceState:
    part = wire.broker
    if not wire.is_open:
        if wire.last_error is None and not wire.connected_once:
            return SourceState("broker", Health.CONNECTING)
        return SourceState("broker", Health.FAILED, part.at_s, in_a_sentence(wire.last_error) or part.failed)
    part.at_s = at_s - wire.silent_s()
    if wire.blocked:
        words = "it takes nothing at present (memory or disk alarm), so the workers cannot be heard"
        return SourceState("broker", Health.STALE, part.at_s, words)
    if wire.silent_s() > SILENT_S:
        return SourceState("broker", Health.STALE, part.at_s, "nothing is heard of it, and it is waited for")
    return SourceState("broker", Health.OK, part.at_s)


def _workers(wire: Wire, at_s: float, now_s: float) -> SourceState:
    part, hearing = wire.workers, wire.hearing
    newest_s = max((heard.heard_s for heard in hearing.heard.values()), default=None)
    if newest_s is not None:
        part.at_s = at_s - (now_s - newest_s)
    if not wire.is_open:
        return _out_of_reach(wire, "workers", part.at_s)
    if part.failed:
        return SourceState("workers", Health.FAILED, part.at_s, part.failed)
    words = []
    if hearing.ignored:
        words.append(f"ignored {sum(hearing.ignored.values())} readings: {next(iter(hearing.ignored))}")
    if wire.supervision.failed:
        words.append(f"supervisors cannot be asked: {wire.supervision.failed}")
    if wire.listening_s is None or newest_s is None:
        is_early = wire.listening_s is None or now_s - wire.listening_s < SETTLE_S
        words = words if is_early else ["no worker is heard", *words]
        return SourceState("workers", Health.CONNECTING if is_early else Health.OK, part.at_s, "; ".join(words))
    stale = wire.blocked or wire.silent_s() > SILENT_S
    return SourceState("workers", Health.STALE if stale else Health.OK, part.at_s, "; ".join(words))


def _control_log(wire: Wire, at_s: float) -> SourceState:
    part = wire.control_log
    if not wire.is_open:
        return _out_of_reach(wire, "control log", part.at_s)
    if part.failed:
        return SourceState("control log", Health.FAILED, part.at_s, part.failed)
    if not wire.caught_up:
        return SourceState("control log", Health.CONNECTING, part.at_s, "it is being read")
    part.at_s = at_s - wire.silent_s()
    return SourceState("control log", Health.OK, part.at_s)


def _out_of_reach(wire: Wire, name: str, at_s: float | None) -> SourceState:
    """What comes over a connection that there is not."""
    if not wire.connected_once and wire.last_error is None:
        return SourceState(name, Health.CONNECTING)
    return SourceState(name, Health.FAILED if at_s is None else Health.STALE, at_s, CUT_OFF)


def in_a_sentence(error: QctlError | None) -> str:
    """What is wrong, and what to do."""
    return "" if error is None else f"{error.message}. {error.hint}" if error.hint else error.message
