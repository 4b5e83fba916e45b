"""What becomes of a task: the truth table of `decide`, row by row, and the ladder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult

import aiohttp
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from qctl.broker.message import DeadReason, Malformed, Message, Properties
from qctl.inventory.model import FIXED_LADDER_S, RetryPolicy
from qctl.worker.exceptions import RateLimited, Reject, Retry, TimedOut, Unpaid
from qctl.worker.logs import JsonFormat, TextFormat
from qctl.worker.outcome import ACK, MAX_DEFERRALS, Ending, Outcome, decide, explain, rung

LADDER_S = (1.0, 2.0, 5.0, 30.0)
RETRY = RetryPolicy(attempts=3, delays_s=(2.0, 5.0))


def message(*, attempt: int = 1, deferrals: int = 0) -> Message:
    return Message(b"", Properties(), attempt=attempt, deferrals=deferrals)


def ended(error: BaseException | None, **counts: int) -> Outcome:
    return decide(error, message(**counts), RETRY, LADDER_S)


# Returned


@pytest.mark.parametrize("attempt", [1, 3])
def test_given_a_handler_that_returned_then_the_task_is_acknowledged(attempt: int) -> None:
    assert ended(None, attempt=attempt) == ACK


# Failed


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no such user"), "ValueError: no such user"),
        (KeyError("id"), "KeyError: 'id'"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (Retry(), "the handler asked for a retry"),
        (Retry(None, "not yet there"), "not yet there"),
        (TimedOut("ran longer than 30 s"), "ran longer than 30 s"),
    ],
)
def test_given_a_failure_and_attempts_left_then_the_task_runs_later_as_the_next_attempt(
    error: BaseException, words: str
) -> None:
    for attempt, delay_s in ((1, 2.0), (2, 5.0)):
        outcome = ended(error, attempt=attempt)

        assert (outcome.ending, outcome.delay_s, outcome.error) == (Ending.LATER, delay_s, words)
        assert outcome.headers == {"qctl-attempt": attempt + 1, "qctl-error": words}


@pytest.mark.parametrize("error", [ValueError("x"), Retry("30s"), TimedOut("x")])
@pytest.mark.parametrize("attempt", [3, 4, 1000])
def test_given_a_failure_of_the_last_attempt_then_the_task_is_dead_with_its_history(
    error: BaseException, attempt: int
) -> None:
    outcome = ended(error, attempt=attempt)

    assert (outcome.ending, outcome.reason) == (Ending.DEAD, DeadReason.ATTEMPTS)
    assert outcome.headers == {"qctl-reason": "attempts", "qctl-attempt": attempt, "qctl-error": explain(error)}


@pytest.mark.parametrize(
    ("asked", "delay_s"),
    [(0, 1.0), (0.2, 1.0), (1, 1.0), (1.01, 2.0), ("4s", 5.0), (30, 30.0), (31, 30.0), (float("inf"), 30.0)],
)
def test_given_a_retry_with_a_delay_then_it_is_rounded_up_to_a_rung_whatever_the_consumers_delays(
    asked: float | str, delay_s: float
) -> None:
    assert ended(Retry(asked)).delay_s == delay_s


# Refused


@pytest.mark.parametrize("deferrals", [0, 3, MAX_DEFERRALS - 1])
def test_given_a_rate_limit_then_the_task_runs_later_and_uses_no_attempt(deferrals: int) -> None:
    outcome = ended(RateLimited(4), attempt=3, deferrals=deferrals)

    assert (outcome.ending, outcome.delay_s) == (Ending.LATER, 5.0)
    assert outcome.headers == {"qctl-deferrals": deferrals + 1, "qctl-error": "rate limited"}


@pytest.mark.parametrize(("deferrals", "delay_s"), [(0, 1.0), (1, 2.0), (2, 5.0), (3, 30.0), (4, 30.0), (19, 30.0)])
def test_given_a_rate_limit_that_names_no_time_then_each_deferral_waits_a_rung_longer(
    deferrals: int, delay_s: float
) -> None:
    assert ended(RateLimited(), deferrals=deferrals).delay_s == delay_s


def test_given_a_task_deferred_as_often_as_it_may_then_it_is_dead() -> None:
    outcome = ended(RateLimited(1, "the upstream answered 429"), deferrals=MAX_DEFERRALS)

    assert (outcome.ending, outcome.reason) == (Ending.DEAD, DeadReason.DEFERRALS)
    assert outcome.error == "deferred 20 times, too often; last: the upstream answered 429"
    assert outcome.headers == {"qctl-reason": "deferrals", "qctl-error": outcome.error}


def test_given_a_call_that_the_host_cannot_pay_then_the_task_is_deferred_like_one_that_was_refused() -> None:
    outcome = ended(Unpaid(), attempt=3)

    assert (outcome.ending, outcome.headers["qctl-deferrals"]) == (Ending.LATER, 1)
    assert ended(Unpaid(), deferrals=MAX_DEFERRALS).reason is DeadReason.DEFERRALS


# Given up


@pytest.mark.parametrize("counts", [{}, {"attempt": 3}, {"deferrals": 20}])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Reject("no such user"), DeadReason.REJECTED),
        (Malformed("not JSON"), DeadReason.MALFORMED),
        (Malformed("too much", DeadReason.COST), DeadReason.COST),
    ],
)
def test_given_a_task_that_must_never_run_again_then_it_is_dead_at_once(
    error: Exception, reason: DeadReason, counts: dict[str, int]
) -> None:
    outcome = ended(error, **counts)

    assert (outcome.ending, outcome.reason) == (Ending.DEAD, reason)
    assert outcome.headers == {"qctl-reason": reason.value, "qctl-error": str(error)}


# Words


class Unspeakable(Exception):
    """An error that fails when it is asked what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class BadlyNamed(Exception):
    """An error whose text is not a text."""

    def __str__(self) -> Any:
        return 17


@pytest.mark.parametrize("error", [Unspeakable(), BadlyNamed(), Reject(Unspeakable()), Retry(None, Unspeakable())])  # type: ignore[arg-type]
def test_given_an_error_that_cannot_say_what_it_is_then_its_kind_is_said(error: Exception) -> None:
    assert explain(error).startswith(type(error).__name__)


@pytest.mark.parametrize("words", ["\ud800", "a\nb\x1b[31m", "x" * 10_000, "", "ü€😀", "\x00", "\x9b0m", "a\u2028b"])
def test_given_any_words_then_the_explanation_is_one_short_line_that_a_header_can_hold(words: str) -> None:
    for error in (ValueError(words), Reject(words), Malformed(words)):
        line = explain(error)

        assert len(line.splitlines()) <= 1
        assert len(line) <= 500
        assert len(line.encode()) <= 2_000
        assert not any(ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F for c in line)


SECRET = "S3CRET"
PARTS = SplitResult("http", f"me:{SECRET}@127.0.0.1:9", "/x", f"api_key={SECRET}", "")


def _refused() -> Exception:
    with pytest.raises(requests.ConnectionError) as raised:
        requests.Session().get(PARTS.geturl())
    return raised.value


def _of_a_status() -> Exception:
    answer = requests.Response()
    answer.status_code, answer.reason, answer.url = 404, "Not Found", PARTS.geturl()
    with pytest.raises(requests.HTTPError) as raised:
        answer.raise_for_status()
    return raised.value


def _of_aiohttp() -> Exception:
    about = aiohttp.RequestInfo(URL(PARTS.geturl()), "GET", CIMultiDictProxy(CIMultiDict()), URL(PARTS.geturl()))
    return aiohttp.ClientResponseError(about, (), status=404, message="Not Found")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_refused, "Max retries exceeded with url: /x?… (Caused by"),
        (_of_a_status, "404 Client Error: Not Found for url: http://127.0.0.1:9/x?…"),
        (_of_aiohttp, "http://127.0.0.1:9/x?…'"),
        (lambda: Reject(f"<https://h?key={SECRET}>, gone"), "<https://h?…>, gone"),
        (lambda: ValueError(f"//a?b='{SECRET}'&c={SECRET}. Really?no /a/b? 1/2"), "//a?…. Really?no /a/b? 1/2"),
        (lambda: ValueError("x" * 470 + f" http://h/?key={SECRET}" + "y" * 10_000), "http://h/?…"),
    ],
)
def test_given_a_failure_of_a_call_then_no_query_and_no_user_is_repeated(
    error: Callable[[], Exception], words: str
) -> None:
    failure = error()
    found = ended(failure)

    assert words in found.error
    assert SECRET not in str(found)
    # nor in what is logged about it
    record = logging.LogRecord("qctl", logging.DEBUG, "", 1, "", (), (type(failure), failure, None))
    assert SECRET not in TextFormat("web-1").format(record) + JsonFormat("web-1").format(record)


# The ladder


ladders = st.lists(st.sampled_from(FIXED_LADDER_S), min_size=1, unique=True).map(lambda rungs: tuple(sorted(rungs)))


@given(ladders, st.floats(min_value=0, max_value=1e6))
def test_a_rung_is_the_shortest_that_is_long_enough_or_the_longest_there_is(
    ladder_s: tuple[float, ...], delay_s: float
) -> None:
    found = rung(delay_s, ladder_s)

    long_enough = [step_s for step_s in ladder_s if step_s >= delay_s]
    assert found == (min(long_enough) if long_enough else max(ladder_s))


# Signals


@pytest.mark.parametrize("delay", ["soon", "5", "-1s", -1, float("nan")])
def test_given_a_delay_that_cannot_be_then_the_signal_says_so_where_it_is_made(delay: float | str) -> None:
    for signal in (Retry, RateLimited):
        with pytest.raises(ValueError, match=r"delay|duration"):
            signal(delay)
