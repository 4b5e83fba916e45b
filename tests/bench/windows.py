"""Every kind of window against an API that judges: `python -m tests.bench.windows [--kind NAME ...]`, --list for names.

A scenario is an API process with a log of its own (`tests/judge`), and one host of qctl: a real broker, a real worker
of two processes, restarted by SIGTERM in the second window and by SIGHUP in the fourth, and more tasks than it can pay
for. The API takes 0 to 500 ms for an answer, counts somewhere within that, and its clock is 37 s off. The log alone
says how much was used, how many calls were over, how many were refused. Exit status 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qctl.units import parse_duration
from tests import brokers
from tests.fleet import Fleet, Worker
from tests.integration.worker_harness import start_consuming, wire
from tests.judge.config import Config, Foreign, Spends
from tests.judge.rule import Kind, Rule
from tests.judge.said import Style
from tests.judge.server import Judge
from tests.judge.verdict import NS_PER_S, Verdict, judge

UNITS_PER_S = 20
SKEW_S = 37.0
DRIFT_PPM = 50
#: Somebody else's part of the limit, in per cent.
FOREIGN_PERCENT = 30
MOST_CALLS = 12
#: A first call comes within this.
START_S = 60.0
#: So often the log is looked at.
LOOK_S = 0.25
HOST = "web-1"
HANDLERS = """
    def call(task):
        for _ in range(task.payload["calls"]):
            task.http.get({url!r}).raise_for_status()
    async def call_async(task):
        for _ in range(task.payload["calls"]):
            async with task.http_async.get({url!r}) as answer:
                await answer.read()
"""


@dataclass(frozen=True, slots=True)
class Goal:
    """What must be: least share of what a client can be sure of; most refusals in a window; never a call over."""

    used: float = 0.99
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """An API, a client, a goal. costs: tasks of 1 to 12 calls, declared as their real number or all as 1."""

    name: str
    kind: Kind
    goal: Goal = Goal()
    style: Style = Style.EPOCH
    #: of a paced one, in seconds of its rate; 0: a burst of one
    burst_s: float = 0.0
    #: windows that begin at no multiple of the period
    odd: bool = True
    floor: bool = False
    #: None: its Date is never old
    date_phase_ms: int | None = None
    retry_after: bool = True
    spends: Spends = Spends.NEVER
    concurrency: int = 16
    latency_ms: tuple[int, int] = (0, 500)
    restarts: bool = True
    costs: str = ""
    handler: str = "call"

    def rule(self, window_s: float) -> Rule:
        """What the API enforces."""
        units, period_ns = round(UNITS_PER_S * window_s), round(window_s * NS_PER_S)
        phase_ns = round(0.3 * period_ns) // NS_PER_S * NS_PER_S if self.odd and self.kind is Kind.FIXED else 0
        burst = max(1, round(self.burst_s * UNITS_PER_S))
        return Rule(self.kind, units, period_ns, burst=burst, phase_ns=phase_ns)

    def config(self, window_s: float) -> Config:
        """All that the API is told."""
        rule = self.rule(window_s)
        return Config(
            rule=rule,
            latency_ms=self.latency_ms,
            skew_s=SKEW_S,
            drift_ppm=DRIFT_PPM,
            style=self.style,
            floor=self.floor,
            date_phase_ms=self.date_phase_ms,
            retry_after=self.retry_after,
            foreign=Foreign(self.spends, rule.units * FOREIGN_PERCENT // 100),
        )

    def inventory(self, url: str, window_s: float) -> dict[str, Any]:
        """One host, one consumer."""
        rule = self.rule(window_s)
        quota: dict[str, Any] = {"limit": f"{rule.units}/{window_s:g}s", "window": str(self.kind)}
        if self.kind is Kind.PACED:
            quota["burst"] = rule.burst
        handler = {"python": f"handlers:{self.handler}"} if self.costs else {"http": {"base_url": url}}
        calls = {"handler": handler, "quota": {"api": 1}, "concurrency": self.concurrency, "timeout": "60s"}
        return {"quotas": {"api": quota}, "consumers": {"calls": calls}, "hosts": {HOST: None}}


#: That much of what is left to it a client must use all the same.
_FOREIGN = Goal(used=0.9, refused=1)
SCENARIOS = (
    Scenario("sliding", Kind.SLIDING),
    Scenario("sliding-none", Kind.SLIDING, style=Style.NONE),
    Scenario("sliding-ietf", Kind.SLIDING, style=Style.IETF),
    Scenario("fixed", Kind.FIXED),
    Scenario("fixed-delta", Kind.FIXED, style=Style.DELTA, floor=True),
    Scenario("fixed-ietf", Kind.FIXED, style=Style.IETF),
    Scenario("fixed-date", Kind.FIXED, style=Style.NONE, odd=False),
    Scenario("fixed-stale", Kind.FIXED, style=Style.NONE, odd=False, date_phase_ms=600),
    Scenario("paced", Kind.PACED, burst_s=5.0),
    Scenario("paced-8", Kind.PACED, burst_s=0.4, latency_ms=(0, 100), restarts=False),
    Scenario("paced-1", Kind.PACED, restarts=False),
    Scenario("sliding-steady", Kind.SLIDING, _FOREIGN, spends=Spends.STEADY, concurrency=4, restarts=False),
    Scenario("sliding-bite", Kind.SLIDING, _FOREIGN, spends=Spends.BITE, concurrency=4, restarts=False),
    Scenario("sliding-before", Kind.SLIDING, _FOREIGN, spends=Spends.BEFORE),
    Scenario("fixed-steady", Kind.FIXED, _FOREIGN, spends=Spends.STEADY, concurrency=4, restarts=False),
    Scenario("fixed-bite", Kind.FIXED, _FOREIGN, spends=Spends.BITE, concurrency=4, restarts=False),
    Scenario("fixed-before", Kind.FIXED, _FOREIGN, spends=Spends.BEFORE),
    *(
        Scenario(f"before-{style}", Kind.FIXED, _FOREIGN, style=style, spends=Spends.BEFORE, floor=floor)
        for style, floor in (
            (Style.EPOCH_MS, False),
            (Style.DELTA, True),
            (Style.DURATION, False),
            (Style.DATE, True),
            (Style.IETF, False),
            (Style.GITHUB, False),
            (Style.COUNT, False),
        )
    ),
    Scenario("fixed-unsaid", Kind.FIXED, _FOREIGN, style=Style.NONE, spends=Spends.BITE, odd=False,
             retry_after=False, concurrency=4, restarts=False),
    Scenario("paced-steady", Kind.PACED, _FOREIGN, burst_s=2.0, spends=Spends.STEADY),
    Scenario("cost-1", Kind.SLIDING, Goal(used=0.0), costs="one", latency_ms=(0, 100)),
    Scenario("cost-right", Kind.SLIDING, Goal(used=0.98), costs="right", latency_ms=(0, 100)),
    Scenario("cost-async", Kind.SLIDING, Goal(used=0.98), costs="right", latency_ms=(0, 100), handler="call_async"),
)  # fmt: skip


def _enqueue(scenario: Scenario, fleet: Fleet, vhost: brokers.Vhost, calls: int) -> None:
    """Tasks that make so many calls in all, at least."""
    if not scenario.costs:
        fleet.enqueue("calls", [{"path": "x"}] * calls)
        return
    numbers = random.Random(2)
    with wire(vhost) as broker:
        while calls > 0:
            number = numbers.randint(1, MOST_CALLS)
            calls -= number
            headers = {"qctl-cost": {"api": number}} if scenario.costs == "right" else {}
            broker.task("calls", {"calls": number}, headers=headers)


class Operator:
    """Runs the host, and restarts it while it works, gracefully."""

    def __init__(self, fleet: Fleet, *, window_s: float, restarts: bool) -> None:
        self._fleet = fleet
        self.worker: Worker = start_consuming(fleet, HOST, "calls", processes=2)
        acts = ((1.5 * window_s, self._again), (3.5 * window_s, self._hang_up)) if restarts else ()
        self._acts: list[tuple[float, Callable[[], None]]] = list(acts)

    def look(self, passed_s: float) -> None:
        """Do what is due."""
        if self._acts and passed_s >= self._acts[0][0]:
            self._acts.pop(0)[1]()

    def _again(self) -> None:
        assert self.worker.stop() == 0, self.worker.log()[-2000:]
        log = len(self.worker.log())
        # Whether it consumes or is held: it has begun.
        self.worker = self._fleet.start(HOST, "--processes", "2", ready=False)
        while not any(f"{HOST}/calls {word}" in self.worker.log()[log:] for word in ("consuming", "held")):
            time.sleep(0.02)

    def _hang_up(self) -> None:
        self.worker.process.send_signal(signal.SIGHUP)


def play(scenario: Scenario, broker: brokers.Broker, directory: Path, *, window_s: float, windows: int) -> Verdict:
    """Play a scenario, and judge it."""
    rule = scenario.rule(window_s)
    directory.mkdir()
    with ExitStack() as stack:
        api = stack.enter_context(Judge(scenario.config(window_s), directory))
        vhost = stack.enter_context(brokers.fresh_vhost(broker))
        handlers = HANDLERS.format(url=api.url)
        fleet = stack.enter_context(Fleet(vhost, directory, handlers, **scenario.inventory(api.url, window_s)))
        operator = Operator(fleet, window_s=window_s, restarts=scenario.restarts)
        _enqueue(scenario, fleet, vhost, rule.units * (windows + 3))
        # A bucket is empty at first: what a client has of that is no rate.
        warm_up_s = window_s if rule.kind is Kind.PACED else 0.0
        most_s = (windows + 1) * (window_s + scenario.latency_ms[1] / 1000) + warm_up_s + LOOK_S
        started_s: float | None = None
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            own = [call for call in api.log() if call.own and call.granted]
            if own and started_s is None:
                started_s = time.monotonic() - (time.monotonic_ns() - own[0].at_ns) / NS_PER_S
                deadline_s = started_s + most_s
            operator.look(time.monotonic() - started_s if started_s is not None else 0.0)
            if rule.kind is Kind.SLIDING and len(own) >= rule.units * (windows + 1):
                break  # each call of the first window has its last counterpart
            time.sleep(LOOK_S)
        operator.worker.stop()
        return judge(api.log(), rule, windows=windows, warm_up_s=warm_up_s, silent=scenario.style is Style.NONE)


def missed(scenario: Scenario, verdict: Verdict) -> list[str]:
    """What of the goal was not reached, in words."""
    goal, found = scenario.goal, []
    if verdict.used_of_sure < goal.used:
        found.append(f"used < {goal.used:.0%}")
    if verdict.over:
        found.append(f"{verdict.over} over")
    # What nobody could foresee, with calls under way as somebody else takes the rest, is nobody's fault.
    if max(verdict.refused) > goal.refused and verdict.told:
        found.append(f"{max(verdict.refused)} refused in a window")
    return found


def line(scenario: Scenario, verdict: Verdict) -> str:
    """A row of the table."""
    refused = "/".join(map(str, verdict.refused)) if any(verdict.refused) else "0"
    pace = "-" if verdict.pace is None else f"{verdict.pace:.2%}"
    return (
        f"{scenario.name:15} {verdict.latency_s * 1000:5.0f} ms {verdict.used:6} {verdict.foreign:6} "
        f"{verdict.used_of_sure:8.2%} {pace:>7} {verdict.used_of_whole:8.2%} {verdict.over:5}  {refused:15} "
        f"{verdict.told:4}  " + ("; ".join(missed(scenario, verdict)) or "ok")
    )


HEAD = "scenario        latency   used others  of sure    pace of whole  over  429 a window    told"


@contextmanager
def _scratch(keep: str | None) -> Iterator[Path]:
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def main(arguments: Sequence[str]) -> int:
    """Play what was asked for and print a row each."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.windows")
    parser.add_argument("--kind", nargs="*", default=[], help="names of scenarios, or how they begin")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--window", type=parse_duration, default=20.0, metavar="20s")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--keep", help="keep the logs in this directory")
    chosen = parser.parse_args(arguments)
    found = [one for one in SCENARIOS if not chosen.kind or any(one.name == kind for kind in chosen.kind)]
    if chosen.list:
        print("\n".join(one.name for one in SCENARIOS))
        return 0
    print(f"{UNITS_PER_S * chosen.window:g} units in {chosen.window:g} s, {chosen.windows} windows, two processes")
    print(HEAD, flush=True)
    status = 0
    with (
        _scratch(chosen.keep) as scratch,
        tempfile.TemporaryDirectory() as node_directory,
        brokers.throwaway_node(Path(node_directory)) as node,
        ThreadPoolExecutor(chosen.at_once) as pool,
    ):
        broker = brokers.local_broker(node)

        def one(scenario: Scenario) -> tuple[Scenario, Verdict | Exception]:
            directory = scratch / f"{scenario.name}-{time.time_ns()}"
            try:
                return scenario, play(scenario, broker, directory, window_s=chosen.window, windows=chosen.windows)
            except Exception as error:  # noqa: BLE001 - it is a row of the table, and the others go on
                return scenario, error

        for scenario, verdict in pool.map(one, found):  # in order, each as soon as it is there
            if isinstance(verdict, Exception):
                print(f"{scenario.name:15} failed: {type(verdict).__name__}: {verdict}", flush=True)
                status = 1
                continue
            print(line(scenario, verdict), flush=True)
            status |= bool(missed(scenario, verdict))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
