"""The judge of the benchmarks: it counts exactly, and condemns whoever goes over by one."""

from __future__ import annotations

import http.client
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.judge.api import dated_ns
from tests.judge.config import Config, Foreign, Spends
from tests.judge.rule import Kind, Rule
from tests.judge.said import Now, Style, headers
from tests.judge.server import Judge
from tests.judge.verdict import HEARD_NS, Call, judge, over, read, told

S = 1_000_000_000
RULES = st.builds(
    Rule,
    kind=st.sampled_from(Kind),
    units=st.integers(1, 5),
    period_ns=st.integers(1, 40),
    burst=st.integers(1, 5),
    phase_ns=st.integers(0, 40),
)
INSTANTS = st.lists(st.integers(0, 100), max_size=40).map(sorted)


def _admits(rule: Rule, before: list[int], at_ns: int) -> bool:
    """The definition, without cleverness: may a call be counted beside these?"""
    match rule.kind:
        case Kind.SLIDING:
            return sum(one > at_ns - rule.period_ns for one in before) < rule.units
        case Kind.FIXED:
            window = (at_ns - rule.phase_ns) // rule.period_ns
            return sum((one - rule.phase_ns) // rule.period_ns == window for one in before) < rule.units
        case Kind.PACED:
            level, last_ns = Fraction(0), 0
            for one in [*before, at_ns]:
                level, last_ns = max(Fraction(0), level - Fraction((one - last_ns) * rule.units, rule.period_ns)), one
                level += 1
            return level <= rule.burst


def _calls(
    instants_ns: Iterable[int], *, own: bool = True, status: int = 200, remaining: int = 1, latency_ns: int = 0
) -> list[Call]:
    return [Call(own, "/", at - latency_ns, at, at, status, remaining, at + latency_ns) for at in instants_ns]


@given(RULES, INSTANTS)
def test_a_counter_counts_exactly_what_its_definition_admits(rule: Rule, instants_ns: list[int]) -> None:
    # Given calls in order, when each is counted, then just those are refused that the definition refuses
    counter = rule.counter()
    counted: list[int] = []
    for at_ns in instants_ns:
        expected = _admits(rule, counted, at_ns)
        assert (counter.remaining(at_ns) > 0) is expected
        assert counter.count(at_ns) is expected
        if expected:
            counted.append(at_ns)


@given(RULES, INSTANTS.filter(bool))
def test_more_comes_at_the_instant_that_is_said_and_not_before(rule: Rule, instants_ns: list[int]) -> None:
    # Given a counter at work, when it says from when on there is more, then there is, and a moment before there is not
    counter = rule.counter()
    for at_ns in instants_ns:
        counter.count(at_ns)
    remaining, more_ns = counter.remaining(instants_ns[-1]), counter.more_ns(instants_ns[-1])
    if more_ns - 1 >= instants_ns[-1]:
        assert counter.remaining(more_ns - 1) == remaining
    full = rule.burst if rule.kind is Kind.PACED else rule.units
    assert counter.remaining(more_ns) > remaining or counter.remaining(more_ns) == full


@pytest.mark.parametrize(
    ("rule", "kept", "one_more"),
    [
        (Rule(Kind.SLIDING, 3, 10), [1, 2, 3, 11, 12], 12),
        (Rule(Kind.FIXED, 3, 10, phase_ns=4), [5, 6, 13, 14, 15, 16], 23),
        (Rule(Kind.PACED, 2, 10, burst=2), [1, 1, 6, 11], 11),
    ],
)
def test_who_goes_over_by_one_is_condemned(rule: Rule, kept: list[int], one_more: int) -> None:
    # Given a client that uses all of its limit and no more, it is acquitted
    assert over(_calls(kept), rule) == 0

    # When it makes one call more, refused or not, then it is one over
    assert over([*_calls(kept), *_calls([one_more])], rule) == 1
    assert over([*_calls(kept), *_calls([one_more], status=429)], rule) == 1

    # And what somebody else does is not held against it
    assert over([*_calls(kept), *_calls([one_more], own=False)], rule) == 0


def test_windows_are_judged_from_the_first_call_on_each_as_long_as_period_and_latency() -> None:
    # Given a client that spends 10 at once in each 10 s, and as soon as it can be sure again: after the latency of 2 s
    calls = _calls([round(12 * S * window) for window in range(4) for _ in range(10)], latency_ns=S)

    # When three windows are judged, then it used all that it can be sure of, and nothing counts that came later
    found = judge(calls, Rule(Kind.SLIDING, 10, 10 * S), windows=3)
    assert (found.used, found.latency_s, found.seconds, found.over) == (30, 2.0, 36.0, 0)
    assert found.used_of_sure == pytest.approx(1.0)

    # And one that begins each time a twentieth of that later is seen to, though it used as much in the time
    late = _calls([round(12.6 * S * window) for window in range(4) for _ in range(10)], latency_ns=S)
    found = judge(late, Rule(Kind.SLIDING, 10, 10 * S), windows=3)
    assert found.used_of_sure == pytest.approx(1.0)
    assert found.pace == pytest.approx(12 / 12.6)


def test_fixed_windows_are_the_apis_and_the_first_that_was_not_whole_is_left_out() -> None:
    rule = Rule(Kind.FIXED, 4, 10 * S, phase_ns=3 * S)
    calls = [*_calls([12 * S]), *_calls([13 * S, 14 * S, 22 * S, 23 * S]), *_calls([15 * S], own=False)]
    found = judge(sorted(calls, key=lambda call: call.at_ns), rule, windows=1)
    assert (found.used, found.foreign, found.whole) == (3, 1, 4.0)
    assert found.used_of_sure == pytest.approx(1.0)


def test_a_bucket_of_one_is_sure_of_a_call_an_interval_and_latency() -> None:
    calls = _calls([n * 150 * S // 1000 for n in range(200)], latency_ns=S // 40)
    found = judge(calls, Rule(Kind.PACED, 10, S, burst=1), windows=20)
    assert found.sure == pytest.approx(20 / 0.150)
    assert found.used_of_sure == pytest.approx(1.0, abs=0.01)


def test_refusals_are_counted_by_window_and_apart_where_the_client_knew_better() -> None:
    # Given a limit of two, a call, and two more under way when somebody else takes the rest: nobody's fault
    rule = Rule(Kind.SLIDING, 2, 10 * S)
    calls = [
        *_calls([S // 2]),
        *_calls([S // 2 + 1], own=False, remaining=0),
        *_calls([S // 2 + 2], status=429, remaining=0),
    ]
    assert told(calls, rule) == 0

    # When another call is made after the refusal was answered, then the client knew better
    calls += _calls([S + HEARD_NS], status=429, remaining=0)
    assert told(calls, rule) == 1

    # And not where its own first call has left the window by then, and somebody else took that
    calls += [*_calls([11 * S], own=False, remaining=0), *_calls([11 * S + 1], status=429, remaining=0)]
    assert told(calls, rule) == 1
    assert judge(calls, rule, windows=2).refused == (2, 1)


def test_calls_under_way_count_against_what_was_said_to_remain() -> None:
    # Given an answer that one call remains, and a call under way already, when a second is sent it is one too many
    rule = Rule(Kind.FIXED, 3, 100 * S)
    heard = _calls([S], remaining=1)
    under_way = [Call(True, "/", 2 * S, 3 * S, 3 * S, 200, 0, 4 * S)]
    assert told([*heard, *under_way, Call(True, "/", 2 * S + 1, 3 * S + 1, 3 * S + 1, 429, 0, 4 * S)], rule) == 1
    assert told([*heard, Call(True, "/", 2 * S + 1, 3 * S + 1, 3 * S + 1, 429, 0, 4 * S)], rule) == 0


def test_nobody_is_judged_by_an_empty_log() -> None:
    with pytest.raises(ValueError, match="nobody called"):
        judge([], Rule(Kind.FIXED, 1, 1), windows=1)
    assert read(['{"n": 1, "own": tr']) == ()


@pytest.mark.parametrize(
    ("style", "said"),
    [
        (Style.EPOCH, {"x-rate-limit-limit": "9", "x-rate-limit-remaining": "4", "x-rate-limit-reset": "1461"}),
        (Style.EPOCH_MS, {"X-RateLimit-Limit": "9", "X-RateLimit-Remaining": "4", "X-RateLimit-Reset": "1460500"}),
        (Style.DELTA, {"X-RateLimit-Limit": "9", "X-RateLimit-Remaining": "4", "X-RateLimit-Reset": "361"}),
        (Style.DURATION, {"X-RateLimit-Limit": "9", "X-RateLimit-Remaining": "4", "X-RateLimit-Reset": "6m1s"}),
        (Style.IETF, {"RateLimit-Policy": '"default";q=9;w=900', "RateLimit": '"default";r=4;t=361'}),
        (Style.COUNT, {"X-RateLimit-Limit": "9", "X-RateLimit-Remaining": "4"}),
        (Style.NONE, {}),
    ],
)
def test_the_headers_of_each_style(style: Style, said: dict[str, str]) -> None:
    now = Now(9, 4, 900 * S, epoch_ns=1_100 * S + S // 4, more_ns=360 * S + S // 4)
    assert headers(style, now) == said


@pytest.mark.parametrize(
    ("phase_ms", "at_ms", "date_s"), [(None, 9999, 9), (600, 9599, 8), (600, 9600, 9), (0, 9000, 9), (999, 9998, 8)]
)
def test_a_date_is_of_the_instant_or_made_anew_each_second(phase_ms: int | None, at_ms: int, date_s: int) -> None:
    assert dated_ns(at_ms * S // 1000, phase_ms) // S == date_s


def test_the_process_counts_refuses_tells_and_logs_what_it_did(tmp_path: Path) -> None:
    # Given an API of 3 an hour, its clock an hour late, of which somebody else has taken one before
    rule = Rule(Kind.FIXED, 3, 3600 * S, phase_ns=1)
    config = Config(rule, latency_ms=(0, 2), skew_s=-3600, date_phase_ms=1, foreign=Foreign(Spends.BEFORE, 1))
    assert Config.from_json(config.to_json()) == config

    # When it is called three times on one connection
    with Judge(config, tmp_path) as api:
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
        answers = []
        for _ in range(3):
            connection.request("GET", "/x")
            with connection.getresponse() as answer:
                answer.read()
                answers.append((answer.status, answer.getheader("x-rate-limit-remaining")))
        connection.close()
        found = api.log()

    # Then it says so, and the log has each call with its instants
    assert answers == [(200, "1"), (200, "0"), (429, "0")]
    assert [(call.own, call.status) for call in found] == [(False, 200), (True, 200), (True, 200), (True, 429)]
    assert all(call.arrived_ns <= call.at_ns <= (call.answered_ns or 0) for call in found if call.own)
    assert over(found, rule) == 0
