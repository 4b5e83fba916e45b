"""Laws 1 to 4 over random histories: processes take, settle, crash and return; limits change; time passes; reboots.

The judge is a list of units, each of which the upstream may count at any instant from its reservation to its settlement
(or a linger later). At every unit taken, no window may hold more than the limit.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qctl.quota import Limit, Policy, free_at
from tests.unit.quota.model import FakeClock, Process, S, Unit, Upstream, thorough

PERIODS_NS = (2 * S, 10 * S, 25 * S)
#: Small ones are gone at once; of a large one more than a single unit is leased ahead.
UNITS = (4, 9, 30, 150)
policies = st.lists(st.builds(Limit, st.sampled_from(UNITS), st.sampled_from(PERIODS_NS)), min_size=1, max_size=2).map(
    lambda limits: Policy("api", tuple(limits))
)
picks = st.integers(0, 10**6)


class History(RuleBasedStateMachine):
    """At most four processes, each with a few tasks, on one ledger."""

    @initialize(policy=policies)
    def begin(self, policy: Policy) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="qctl-history-"))
        self.clock = FakeClock()
        self.upstream = Upstream()
        self.policy = policy
        self.processes: list[Process] = []
        self.crashed: list[Unit] = []
        self.blocked_until_ns = 0
        self.start()

    def teardown(self) -> None:
        for process in getattr(self, "processes", []):
            process.ledger.close()
        shutil.rmtree(getattr(self, "directory", "/nonexistent"), ignore_errors=True)

    @precondition(lambda self: len(self.processes) < 4)
    @rule()
    def start(self) -> None:
        process = Process(self.directory, self.clock, self.upstream, {"api": self.policy})
        self.processes.append(process)
        self._noticed()

    @precondition(lambda self: self.processes)
    @rule(pick=picks, cost=st.integers(1, 5), consumer=st.sampled_from(["cheap", "costly"]))
    def take(self, pick: int, cost: int, consumer: str) -> None:
        if self._at(pick).take(consumer, {"api": cost}):
            self._judge()

    @precondition(lambda self: self.processes)
    @rule(pick=picks, most=st.sampled_from([3, 200]), settled=st.booleans(), ambiguous=st.booleans())
    def take_all_there_is(self, pick: int, most: int, settled: bool, ambiguous: bool) -> None:
        process = self._at(pick)
        for _ in range(most):
            if not process.take("cheap", {"api": 1}):
                break
            self._judge()
            if settled:
                process.settle(len(process.running) - 1, 1, ambiguous=ambiguous)

    @precondition(lambda self: self.processes)
    @rule(pick=picks, wanted=st.integers(1, 4), early_ns=st.sampled_from([0, 0, 5 * 10**6, S // 2, S]))
    def take_as_soon_as_the_ledger_says_or_earlier(self, pick: int, wanted: int, early_ns: int) -> None:
        process = self._at(pick)
        process.sync(give_back=True)
        now_ns = process.ledger.clock.now_ns()
        at_ns = free_at(process.ledger.readings()["api"], wanted, now_ns)
        if at_ns is not None:
            self.clock.pass_ns(max(0, at_ns - early_ns - now_ns))
            for _ in range(wanted):
                if process.take("cheap", {"api": 1}):
                    self._judge()
                    process.settle(len(process.running) - 1, 1)
                    process.sync()

    @precondition(lambda self: any(process.running for process in self.processes))
    @rule(pick=picks, which=picks, used=st.integers(0, 5), ambiguous=st.booleans())
    def settle(self, pick: int, which: int, used: int, ambiguous: bool) -> None:
        busy = [process for process in self.processes if process.running]
        process = busy[pick % len(busy)]
        index = which % len(process.running)
        process.settle(index, min(used, len(process.running[index][1])), ambiguous=ambiguous)

    @precondition(lambda self: self.processes)
    @rule(pick=picks, give_back=st.booleans(), top_up=st.booleans())
    def flush(self, pick: int, give_back: bool, top_up: bool) -> None:
        self._at(pick).sync(give_back=give_back, top_up=("api",) if top_up else ())

    @precondition(lambda self: self.processes)
    @rule(pick=picks)
    def crash(self, pick: int) -> None:
        process = self.processes.pop(pick % len(self.processes))
        self.crashed += process.crash()

    @precondition(lambda self: self.processes)
    @rule(pick=picks)
    def look_for_the_dead(self, pick: int) -> None:
        self._at(pick).ledger.bury_dead()
        self._noticed()

    @rule(span_ns=st.one_of(st.integers(0, S), st.sampled_from(PERIODS_NS), st.integers(0, 60 * S)))
    def wait(self, span_ns: int) -> None:
        self.clock.pass_ns(span_ns)

    @precondition(lambda self: self.processes)
    @rule(pick=picks, policy=policies)
    def change_limits(self, pick: int, policy: Policy) -> None:
        self._at(pick).ledger.configure([policy])
        self.policy = policy

    @precondition(lambda self: self.processes)
    @rule(pick=picks, span_ns=st.integers(0, 20 * S))
    def block(self, pick: int, span_ns: int) -> None:
        self._at(pick).ledger.block("api", self._at(pick).ledger.clock.now_ns() + span_ns)
        self.blocked_until_ns = max(self.blocked_until_ns, self.clock.true_ns + span_ns)

    @rule(after_ns=st.integers(0, 30 * S))
    def reboot(self, after_ns: int) -> None:
        for process in self.processes:
            self.crashed += process.crash()
        self.processes.clear()
        self.clock.reboot(after_ns=after_ns)
        self.start()

    @invariant()
    def the_ledger_has_as_leased_what_is_in_hand(self) -> None:
        for process in getattr(self, "processes", []):
            leased = process.ledger.readings()["api"].leased.get(process.ledger.process, 0)
            # Less in hand: voided by a new limit and not yet given back. Never more, or it would be spent uncounted.
            assert process.in_hand("api") <= leased
            if not process.pool("api").restate:
                assert process.in_hand("api") == leased

    def _judge(self) -> None:
        assert self.clock.true_ns >= self.blocked_until_ns
        self.upstream.judge(self.clock.true_ns, self.policy)
        self.upstream.forget(self.clock.true_ns - 3 * max(PERIODS_NS))

    def _at(self, pick: int) -> Process:
        return self.processes[pick % len(self.processes)]

    def _noticed(self) -> None:
        for unit in self.crashed:
            unit.until_ns, unit.lingers = self.clock.true_ns, True
        self.crashed.clear()


TestHistory = History.TestCase
TestHistory.settings = thorough(100, steps=40)
