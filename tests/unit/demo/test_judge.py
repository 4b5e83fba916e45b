"""The judge against a naive model that looks at every window by brute force."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.demo.judge import Call, Upstream, judge, judge_host, most_in_any_window, read_calls, windows

instants = st.lists(st.integers(0, 60), max_size=40).map(sorted)


def call(at_ns: int, *, host: str = "web-1", task: str | None = None, status: int = 200) -> Call:
    return Call(at_ns=at_ns, host=host, method="GET", path="/", task=task, status=status)


@given(instants, st.integers(1, 70))
def test_the_most_in_any_window_is_what_trying_every_window_finds(instants_ns: list[int], window_ns: int) -> None:
    tried = [sum(start <= at_ns < start + window_ns for at_ns in instants_ns) for start in range(-70, 61)]

    assert most_in_any_window(instants_ns, window_ns) == max(tried)


@given(instants, st.integers(1, 70))
def test_the_windows_since_the_first_call_hold_each_call_once(instants_ns: list[int], window_ns: int) -> None:
    counts = windows(instants_ns, window_ns)

    assert sum(counts) == len(instants_ns)
    for number, count in enumerate(counts):
        start = instants_ns[0] + number * window_ns
        assert count == sum(start <= at_ns < start + window_ns for at_ns in instants_ns)


calls = st.lists(
    st.builds(
        Call,
        at_ns=st.integers(0, 60),
        host=st.sampled_from(["web-1", "web-2"]),
        method=st.just("GET"),
        path=st.just("/"),
        task=st.sampled_from(["a", "b", "c", "d", None]),
        status=st.sampled_from([200, 200, 429]),
    ),
    max_size=30,
)


@given(calls, st.sets(st.sampled_from("abcd")))
def test_the_judgement_of_the_tasks_is_what_counting_each_id_by_hand_finds(log: list[Call], enqueued: set[str]) -> None:
    upstreams = [Upstream("web-1", limit_units=3, window_s=1e-8), Upstream("web-2", limit_units=5, window_s=1e-8)]
    times = {task: sum(one.task == task and one.status == 200 for one in log) for task in "abcd"}

    judged = judge(log, upstreams, enqueued=enqueued)

    assert judged.enqueued == len(enqueued)
    assert judged.tasks_done == sum(count > 0 for count in times.values())
    assert judged.lost == sum(times[task] == 0 for task in enqueued)
    assert judged.twice == sum(count > 1 for count in times.values())
    assert judged.unexpected == sum(count > 0 and task not in enqueued for task, count in times.items())
    for host, upstream in zip(judged.hosts, upstreams, strict=True):
        own = [one for one in log if one.host == upstream.host]
        assert host.refused == sum(one.status == 429 for one in own)
        assert host.tasks_done == len({one.task for one in own if one.status == 200} - {None})


def test_given_calls_that_were_refused_when_judged_then_they_count_towards_the_most_in_any_window_but_not_as_used() -> (
    None
):
    log = [call(0), call(1), call(2, status=429)]

    judged = judge_host(log, Upstream("web-1", limit_units=2, window_s=1.0))

    assert judged.most_in_any_window == 3
    assert judged.refused == 1
    assert judged.windows_units == (2,)
    assert judged.first_window_use == 1.0


def good_log() -> list[Call]:
    return [call(at, task=f"t-{at}") for at in range(100)]


@pytest.mark.parametrize(
    ("log", "broken"),
    [
        pytest.param(good_log(), [], id="nothing"),
        pytest.param(good_log()[:98], [0, 3], id="the quota is not used and two are lost"),
        pytest.param([*good_log(), call(100, status=429)], [1, 2], id="one call over, refused"),
        pytest.param([*good_log(), call(100, task="t-100")], [1, 4], id="one call over, nobody's"),
        pytest.param([*good_log(), call(2_000, task="t-0")], [4], id="one done twice"),
    ],
)
def test_given_a_log_that_breaks_promises_when_judged_then_just_those_are_broken(
    log: list[Call], broken: list[int]
) -> None:
    judged = judge(log, [Upstream("web-1", limit_units=100, window_s=1e-6)], enqueued=[f"t-{n}" for n in range(100)])

    assert [number for number, promise in enumerate(judged.promises) if not promise.kept] == broken
    assert judged.kept == (not broken)


def test_given_a_host_that_made_no_call_when_judged_then_it_used_none_of_its_quota() -> None:
    judged = judge([], [Upstream("web-1", limit_units=10, window_s=1.0)], enqueued=[])

    assert judged.hosts[0].first_window_use == 0.0
    assert not judged.kept


def test_given_a_log_whose_last_line_is_being_written_when_read_then_all_but_that_line_come() -> None:
    whole = replace(call(5, task="t-5"), path="/users/5")
    line = json.dumps({**asdict(whole), "port": 1})

    assert list(read_calls([line + "\n", line[:20]])) == [whole]


def test_given_a_broken_line_in_the_middle_when_read_then_it_is_an_error_and_not_a_call_less() -> None:
    with pytest.raises(ValueError):
        list(read_calls(["{broken\n", "{}\n"]))
