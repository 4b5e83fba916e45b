"""Does `qctl plan` tell the truth? `python -m tests.bench.plan [NAME...]`.

Ten fleets of 2 to 5 hosts, real workers on a real broker, with windows of 10 to 20 seconds. A plan is asked for when
they have begun, and again about midway; then it is waited for what happens. A handler writes the instant at which it
ends, and the last of those is when a queue was empty. The error is that of the time to empty, in per cent of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qctl.ops.when import instant
from tests import brokers
from tests.fleet import Fleet, wait_until

GOAL = 0.03
#: Fleets at once: their tasks sleep, so two cores carry them.
AT_ONCE = 2
#: From the first task to the first plan: a worker tells of itself once a second.
BEGUN_S = 2.5
GIVE_UP_S = 240.0
HANDLERS = """
    def task(name, seconds):
        def run(task):
            time.sleep(seconds)
            note(name, time.time(), task.host)
        return run
    first = task("first", {first})
    second = task("second", {second})
"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fleet. tasks: by consumer, `first` and `second`; seconds: how long a task of each sleeps. before: tasks that
    are done first, so that it begins held. pause: a target that the plan is asked about, and that is then paused."""

    name: str
    quotas: Mapping[str, Any]
    hosts: Mapping[str, Any]
    tasks: Mapping[str, int]
    costs: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: {"first": {"api": 1}})
    seconds: tuple[float, float] = (0.05, 0.05)
    concurrency: int = 8
    processes: int = 1
    before: int = 0
    pause: str | None = None


@dataclass(frozen=True, slots=True)
class Error:
    """What a plan said of a queue, and how far off that was, as a part of the time to go."""

    queue: str
    when: str
    said_s: float | None
    true_s: float

    @property
    def part(self) -> float:
        """Negative: it said too early."""
        return 1.0 if self.said_s is None else (self.said_s - self.true_s) / self.true_s


SCENARIOS = (
    Scenario(
        "two hosts, sliding",
        {"api": "100/20s"},
        {"web-1": None, "web-2": {"quotas": {"api": "300/20s"}}},
        {"first": 1_700},
    ),
    Scenario(
        "five hosts, sliding",
        {"api": "60/15s"},
        {f"web-{n}": {"quotas": {"api": f"{30 * n}/15s"}} for n in range(1, 6)},
        {"first": 2_400},
        seconds=(0.1, 0.1),
        concurrency=4,
    ),
    Scenario(
        "two hosts, fixed without a word of the API",
        {"api": {"limit": "100/10s", "window": "fixed"}},
        {"web-1": None, "web-2": {"quotas": {"api": {"limit": "200/10s", "window": "fixed"}}}},
        {"first": 2_300},
    ),
    Scenario(
        "two hosts, paced",
        {"api": {"limit": "100/10s", "window": "paced", "burst": 4}},
        {"web-1": None, "web-2": {"quotas": {"api": {"limit": "200/10s", "window": "paced", "burst": 4}}}},
        {"first": 1_900},
    ),
    Scenario(
        "three hosts, held at the start",
        {"api": "100/20s"},
        {"web-1": None, "web-2": None, "web-3": {"quotas": {"api": "200/20s"}}},
        {"first": 1_500},
        before=400,
    ),
    Scenario(
        "three hosts, one is paused",
        {"api": "150/15s"},
        {"web-1": None, "web-2": None, "web-3": None},
        {"first": 1_700},
        pause="web-3",
    ),
    Scenario(
        "two hosts, several quotas a task",
        {"api": "200/20s", "db": {"limit": "300/15s", "urls": ["http://127.0.0.1:1/"]}},
        {"web-1": None, "web-2": {"quotas": {"api": "400/20s"}}},
        {"first": 1_500},
        costs={"first": {"api": 1, "db": 2}},
    ),
    Scenario(
        "two hosts, long tasks",
        {"api": "60/15s"},
        {"web-1": None, "web-2": {"quotas": {"api": "30/15s"}}},
        {"first": 480},
        seconds=(1.0, 1.0),
        concurrency=6,
    ),
    Scenario(
        "two hosts, two limits a quota",
        {"api": ["30/2s", "150/20s"]},
        {"web-1": None, "web-2": {"quotas": {"api": ["50/2s", "250/20s"]}}},
        {"first": 1_500},
    ),
    Scenario(
        "three hosts, two queues on one quota, two processes",
        {"api": "200/20s"},
        {"web-1": None, "web-2": None, "web-3": {"quotas": {"api": "100/20s"}}},
        {"first": 1_000, "second": 500},
        costs={"first": {"api": 1}, "second": {"api": 2}},
        processes=2,
        concurrency=4,
    ),
)


class Run:
    """A scenario under way."""

    def __init__(self, scenario: Scenario, fleet: Fleet) -> None:
        self.scenario, self.fleet = scenario, fleet
        self.plans: list[tuple[str, dict[str, Any]]] = []

    def done(self, name: str) -> list[float]:
        """The instants at which tasks of a consumer ended."""
        return [float(line.split()[0]) for line in self.fleet.history(name)]

    def ask(self, when: str, *options: str) -> dict[str, Any]:
        """A plan, kept to be judged."""
        ran = subprocess.run(
            [*self.fleet.command, "-o", "json", "plan", *options],
            cwd=self.fleet.directory,
            env=self.fleet.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        self.plans.append((when, found))
        return found

    def go(self) -> list[Error]:
        """From the start to the last task."""
        scenario, fleet = self.scenario, self.fleet
        for host in scenario.hosts:
            fleet.start(host, "--processes", str(scenario.processes))
        if scenario.before:
            fleet.enqueue("first", range(scenario.before))
            wait_until("the quotas are gone", lambda: len(self.done("first")) >= scenario.before, GIVE_UP_S)
        for name, tasks in scenario.tasks.items():
            fleet.enqueue(name, range(tasks))
        totals = {name: tasks + (scenario.before if name == "first" else 0) for name, tasks in scenario.tasks.items()}
        time.sleep(BEGUN_S)
        options = ("--pause", scenario.pause) if scenario.pause else ()
        if scenario.pause:
            # It is paused while the plan is made, as near to the moment that it speaks of as can be.
            with ThreadPoolExecutor(1) as beside:
                plan = beside.submit(self.ask, "at the start", *options)
                time.sleep(2.0)
                self._pause(scenario.pause)
                first = plan.result()
        else:
            first = self.ask("at the start")
        ends = [one["empty_in_s"] for one in first["queues"] if one["empty_in_s"] is not None]
        time.sleep(max(0.0, max(ends, default=0.0) / 2 - 3.0))
        self.ask("midway")
        for name, total in totals.items():
            wait_until(f"all of {name}", lambda name=name, total=total: len(self.done(name)) >= total, GIVE_UP_S)
        return self.errors()

    def _pause(self, target: str) -> None:
        subprocess.run(
            [*self.fleet.command, "--quiet", "pause", target, "--yes"],
            cwd=self.fleet.directory,
            env=self.fleet.environment,
            check=True,
            capture_output=True,
        )

    def errors(self) -> list[Error]:
        """What each plan said of each queue, beside what was."""
        found = []
        for when, plan in self.plans:
            at_s = instant(plan["at"])
            assert at_s is not None
            for one in plan["queues"]:
                if one["queue"] in self.scenario.tasks:
                    true_s = max(self.done(one["queue"])) - at_s
                    found.append(Error(one["queue"], when, one["empty_in_s"], true_s))
        return found


def run(broker: brokers.Broker, scenario: Scenario) -> list[Error]:
    """One scenario, from nothing to its errors."""
    handlers = HANDLERS.format(first=scenario.seconds[0], second=scenario.seconds[1])
    consumers = {
        name: {"handler": {"python": f"handlers:{name}"}, "quota": cost, "concurrency": scenario.concurrency}
        for name, cost in scenario.costs.items()
    }
    with (
        tempfile.TemporaryDirectory() as scratch,
        brokers.fresh_vhost(broker) as vhost,
        Fleet(
            vhost, Path(scratch), handlers, quotas=scenario.quotas, consumers=consumers, hosts=dict(scenario.hosts)
        ) as fleet,
    ):
        return Run(scenario, fleet).go()


def show(scenario: Scenario, errors: Sequence[Error]) -> None:
    """Print them as they come."""
    for one in errors:
        said = "never" if one.said_s is None else f"{one.said_s:6.1f}"
        mark = "" if abs(one.part) <= GOAL else "  over the goal"
        was = f"said {said}, was {one.true_s:6.1f} s: {one.part:+7.2%}{mark}"
        print(f"{scenario.name:52} {one.queue:7} {one.when:13} {was}", flush=True)


def main(names: Sequence[str]) -> None:
    """Print everything."""
    chosen = [one for one in SCENARIOS if not names or any(name in one.name for name in names)]
    with (
        tempfile.TemporaryDirectory() as scratch,
        brokers.throwaway_node(Path(scratch)) as node,
        ThreadPoolExecutor(AT_ONCE) as at_once,
    ):
        broker = brokers.local_broker(node)
        print(f"RabbitMQ {broker.version}, {AT_ONCE} fleets at once")
        worst = 0.0
        for scenario, errors in zip(chosen, at_once.map(lambda one: run(broker, one), chosen), strict=True):
            show(scenario, errors)
            worst = max([worst, *(abs(one.part) for one in errors)])
    print(f"worst {worst:.2%}; the goal is {GOAL:.0%}")


if __name__ == "__main__":
    main(sys.argv[1:])
