"""The kit for testing handlers: a task's own words in, its ending out, as a worker decides it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.auth import HTTPDigestAuth

from qctl import RateLimited, Reject, Retry, Task
from qctl.broker.message import MAX_COUNT
from qctl.errors import UnknownName
from qctl.inventory.model import RetryPolicy
from qctl.testing import Enqueued, FakeApi, UnexpectedCall, run_task
from qctl.worker.execute import Executor

USERS = "https://api.twitter.com/1.1/users/"


def timeline(task: Task) -> None:
    answer = task.http.get(f"{USERS}{task.payload['user']}")
    if answer.status_code == 404:
        raise Reject("no such user")
    if answer.status_code >= 500:
        raise Retry("30s", "the API is ill")
    for friend in answer.json()["friends"]:
        task.enqueue("timeline", {"user": friend}, delay="1m")


async def timeline_async(task: Task) -> None:
    await asyncio.sleep(0)
    timeline(task)


@pytest.fixture
def api() -> FakeApi:
    api = FakeApi()
    api.get(f"{USERS}17", json={"friends": [18, 19]})
    api.get(f"{USERS}404", status=404)
    api.get(f"{USERS}500", status=500)
    return api


@pytest.mark.parametrize("handler", [timeline, timeline_async])
class TestEndings:
    def test_a_task_that_returns(self, handler: object, api: FakeApi) -> None:
        result = run_task(handler, {"user": 17}, quota={"twitter": 1}, api=api)  # type: ignore[arg-type]

        assert (result.outcome, result.exception, result.error) == ("ack", None, "")
        assert result.spent == {"twitter": 1}
        assert [(call.method, call.url, call.status) for call in result.calls] == [("GET", f"{USERS}17", 200)]
        assert [(one.consumer, one.payload, one.delay) for one in result.enqueued] == [
            ("timeline", {"user": 18}, "1m"),
            ("timeline", {"user": 19}, "1m"),
        ]
        assert len({one.id for one in result.enqueued}) == 2

    def test_a_task_that_rejects(self, handler: object, api: FakeApi) -> None:
        result = run_task(handler, {"user": 404}, quota={"twitter": 1}, api=api)  # type: ignore[arg-type]

        assert (result.outcome, result.reason, result.error) == ("dead", "rejected", "no such user")
        assert isinstance(result.exception, Reject)

    def test_a_task_that_retries(self, handler: object, api: FakeApi) -> None:
        result = run_task(handler, {"user": 500}, quota={"twitter": 1}, api=api)  # type: ignore[arg-type]

        assert (result.outcome, result.delay_s, result.error) == ("retry", 30.0, "the API is ill")

    def test_a_task_at_its_last_attempt(self, handler: object, api: FakeApi) -> None:
        result = run_task(handler, {"user": 500}, api=api, attempt=2, retry=RetryPolicy(attempts=2))  # type: ignore[arg-type]

        assert (result.outcome, result.reason) == ("dead", "attempts")

    def test_a_task_that_is_told_429(self, handler: object, api: FakeApi) -> None:
        api.limit(USERS, 1, retry_after=20)

        first = run_task(handler, {"user": 17}, quota={"twitter": 1}, api=api)  # type: ignore[arg-type]
        second = run_task(handler, {"user": 17}, quota={"twitter": 1}, api=api)  # type: ignore[arg-type]

        assert first.outcome == "ack"
        assert (second.outcome, second.delay_s, second.enqueued) == ("deferred", 30.0, ())
        assert isinstance(second.exception, RateLimited)
        assert [call.status for call in second.calls] == [429]

    def test_a_host_that_cannot_pay(self, handler: object, api: FakeApi) -> None:
        result = run_task(handler, {"user": 17}, quota={"twitter": 1}, left={"twitter": 0}, api=api)  # type: ignore[arg-type]

        assert (result.outcome, result.calls, result.spent) == ("given back", (), {})

    def test_a_call_that_nobody_expects(self, handler: object, api: FakeApi) -> None:
        with pytest.raises(UnexpectedCall, match=f"the handler called GET {USERS}1; the FakeApi answers GET {USERS}17"):
            run_task(handler, {"user": 1}, api=api)  # type: ignore[arg-type]


def two_calls(task: Task) -> None:
    for number in (1, 2):
        task.http.get(f"{USERS}{number}")


def test_a_second_call_that_cannot_be_paid_defers_the_task() -> None:
    api = FakeApi()
    api.get(f"{USERS}1")
    api.get(f"{USERS}2")

    result = run_task(two_calls, quota={"twitter": 1}, left={"twitter": 1}, api=api)

    assert (result.outcome, result.spent, len(result.calls)) == ("deferred", {"twitter": 1}, 1)
    assert run_task(two_calls, quota={"twitter": 1}, left={"twitter": 2}, api=api).spent == {"twitter": 2}


def test_a_call_is_counted_by_the_quota_whose_urls_match() -> None:
    api = FakeApi()
    api.get(f"{USERS}1")
    api.get(f"{USERS}2")

    result = run_task(two_calls, quota={"users": 1, "rest": 1}, urls={"users": [USERS]}, api=api)

    assert result.spent == {"users": 2, "rest": 1}  # `rest` was never metered: as declared


def test_a_redirect_is_two_calls() -> None:
    api = FakeApi()
    api.get(f"{USERS}1", status=302, headers={"location": f"{USERS}2"})
    api.get(f"{USERS}2", body="there")

    def follow(task: Task) -> None:
        assert task.http.get(f"{USERS}1").text == "there"

    result = run_task(follow, quota={"twitter": 1}, api=api)

    assert (result.outcome, result.spent) == ("ack", {"twitter": 2})


def test_answers_are_given_in_turn_and_a_query_is_told_apart() -> None:
    api = FakeApi()
    api.get(f"{USERS}1", json=1)
    api.get(f"{USERS}1", json=2)
    api.get(f"{USERS}1?page=9", json=9)
    seen: list[int] = []

    def ask(task: Task) -> None:
        seen.extend(task.http.get(f"{USERS}1", params=query).json() for query in ({}, {"page": 9}, {"page": 8}, {}))

    assert run_task(ask, api=api).outcome == "ack"
    assert seen == [1, 9, 2, 2]


def test_an_upstream_that_takes_no_connection_is_an_error_of_requests() -> None:
    api = FakeApi()
    api.post(f"{USERS}1", error=requests.ReadTimeout("hangs"))

    def post(task: Task) -> None:
        task.http.post(f"{USERS}1", json={"a": 1})

    result = run_task(post, quota={"twitter": 1}, api=api)

    assert (result.outcome, result.delay_s, result.error) == ("retry", 5.0, "ReadTimeout: hangs")
    assert (result.spent, result.calls[0].json, result.calls[0].status) == ({"twitter": 1}, {"a": 1}, None)


def test_an_unexpected_call_that_the_handler_swallows_fails_the_test_all_the_same() -> None:
    def swallow(task: Task) -> None:
        try:
            task.http.get(USERS)
        except Exception:  # noqa: BLE001
            return

    with pytest.raises(UnexpectedCall, match="answers nothing"):
        run_task(swallow)


def test_spend_counts_and_a_task_that_meters_nothing_costs_what_was_declared() -> None:
    assert run_task(lambda task: task.spend(3), quota={"mail": 1}).spent == {"mail": 3}
    assert run_task(lambda _: None, quota={"mail": 1}).spent == {"mail": 1}


def test_a_plain_function_runs_in_the_thread_of_the_test() -> None:
    threads: list[threading.Thread] = []
    run_task(lambda _: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_what_the_handler_says_in_the_log_is_there() -> None:
    result = run_task(lambda task: logging.getLogger("mine").info("user %s", task.id), id="id-7")
    assert "user id-7" in result.log


def test_what_ends_a_test_is_not_swallowed() -> None:
    def ask(_: Task) -> None:
        pytest.fail("on purpose")

    with pytest.raises(pytest.fail.Exception, match="on purpose"):
        run_task(ask)


def test_a_function_over_its_time_makes_no_more_calls_and_is_retried() -> None:
    def slow(task: Task) -> None:
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            task.spend(0)
            time.sleep(0.01)

    result = run_task(slow, quota={"mail": 1}, timeout=0.1)

    assert (result.outcome, result.delay_s) == ("retry", 5.0)
    assert "over its timeout" in result.error


def test_a_coroutine_over_its_time_is_cancelled() -> None:
    async def slow(_: Task) -> None:
        await asyncio.sleep(5)

    result = run_task(slow, timeout="100ms")

    assert (result.outcome, result.error) == ("retry", "the task ran longer than 0.1 s")


def test_a_test_that_is_a_coroutine_itself_may_run_tasks() -> None:
    async def test() -> str:
        return run_task(timeline_async, body=b"[").outcome

    assert asyncio.run(test()) == "dead"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"headers": {"qctl-cost": {"mail": -1}}}, "cost"),
        ({"headers": {"qctl-cost": {"sms": 1}}}, "cost"),
        ({"headers": {"qctl-attempt": MAX_COUNT + 1}}, "malformed"),
        ({"body": b"x" * (1 << 21)}, "too large"),
    ],
)
def test_a_message_that_no_worker_takes_is_dead(sent: dict[str, object], reason: str) -> None:
    result = run_task(lambda _: pytest.fail("it ran"), quota={"mail": 1}, **sent)  # type: ignore[arg-type]
    assert (result.outcome, result.reason) == ("dead", reason)


def test_a_run_that_raises_enqueues_nothing() -> None:
    def both(task: Task) -> None:
        assert task.enqueue("other", 1, id="mine") == "mine"
        raise Retry

    assert run_task(both).enqueued == ()


def test_what_is_enqueued_has_all_that_was_said() -> None:
    result = run_task(
        lambda task: task.enqueue("other", [1], id="a", type="b", cost={"q": 2}, delay=3.0, host="h") and None
    )
    assert result.enqueued == (Enqueued("other", [1], "a", "b", {"q": 2}, 3.0, "h"),)


INVENTORY = {
    "version": 1,
    "broker": {"amqp": "amqp://127.0.0.1:1/"},
    "quotas": {"api": "100/h"},
    "consumers": {
        "calls": {"handler": {"http": {"base_url": "https://api.example.com/v1/"}}, "quota": {"api": 5}},
        "shop": {"handler": {"python": {"sale": "shop_handlers:sale"}}, "quota": {}},
    },
    "hosts": {"web-1": None, "web-2": {"consumers": {"shop": {"retry": {"attempts": 1}}}}},
}
SHOP = """
def sale(task):
    task.enqueue(task.payload["for"], {}, cost={"api": 1})
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "shop_handlers.py").write_text(SHOP, encoding="utf-8")
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(INVENTORY), encoding="utf-8")
    return path


def test_a_consumer_of_an_inventory_runs_by_its_name_also_without_code(inventory: Path) -> None:
    api = FakeApi()
    api.get("https://api.example.com/v1/users", body=b"found", headers={"content-type": "text/plain"})

    result = run_task("calls", {"path": "users"}, inventory=inventory, api=api)

    assert (result.outcome, result.spent) == ("ack", {"api": 1})  # five were expected, one call was made
    assert result.answer is not None
    assert (result.answer.body, result.answer.content_type, result.answer.status) == (b"found", "text/plain", 200)
    assert run_task("calls", {"path": "../users"}, inventory=inventory, api=api).reason == "malformed"


@pytest.mark.parametrize("kind", ["", "text/plain; x=" + "y" * 300])
def test_a_content_type_that_amqp_has_no_room_for_is_left_out(inventory: Path, kind: str) -> None:
    api = FakeApi()
    api.get("https://api.example.com/v1/users", body=b"found", headers={"content-type": kind})

    result = run_task("calls", {"path": "users"}, inventory=inventory, api=api)

    assert result.answer is not None
    assert (result.answer.body, result.answer.content_type) == (b"found", "application/octet-stream")


def test_an_inventory_checks_what_is_enqueued(inventory: Path) -> None:
    good = run_task("shop", {"for": "calls"}, inventory=inventory, type="sale")
    bad = run_task("shop", {"for": "cals"}, inventory=inventory, type="sale")
    there = run_task("shop", {"for": "cals"}, inventory=inventory, type="sale", host="web-2")

    assert [one.consumer for one in good.enqueued] == ["calls"]
    assert (bad.outcome, there.outcome) == ("retry", "dead")
    assert isinstance(bad.exception, UnknownName)
    assert run_task("shop", {}, inventory=inventory, type="purchase").reason == "malformed"


def test_arguments_that_do_not_go_together_are_refused(inventory: Path) -> None:
    with pytest.raises(TypeError, match="goes with `inventory`"):
        run_task("shop", {})
    with pytest.raises(TypeError, match="goes with `inventory`"):
        run_task("shop", {}, inventory=inventory, quota={"api": 1})
    with pytest.raises(TypeError, match="goes with the name"):
        run_task(timeline, {}, inventory=inventory)


def test_a_call_that_got_no_connection_costs_nothing() -> None:
    api = FakeApi()
    api.get(USERS, error=requests.ConnectTimeout())

    result = run_task(lambda task: task.http.get(USERS), 1, quota={"twitter": 1}, api=api)

    assert result.outcome == "retry"
    assert not any(result.spent.values())


class OnlyReads:
    """As an encoder of forms that are sent in parts."""

    def read(self, size: int = -1) -> bytes:
        return b"one two"


@pytest.mark.parametrize(
    "body",
    [OnlyReads(), b"one two", "one two", io.BytesIO(b"one two"), io.StringIO("one two"), iter([b"one ", b"two"])],
)
def test_a_body_is_sent_whole_whatever_it_is_made_of(body: Any) -> None:
    api = FakeApi()
    api.post(USERS)

    result = run_task(lambda task: task.http.post(USERS, data=body) and None, 1, quota={"twitter": 1}, api=api)

    assert (result.outcome, [call.body for call in result.calls]) == ("ack", [b"one two"])


def test_a_request_that_auth_sends_again_is_another_call() -> None:
    api = FakeApi()
    api.get(USERS, status=401, headers={"www-authenticate": 'Digest realm="r", nonce="n", qop="auth"'})
    api.get(USERS, status=200)

    result = run_task(
        lambda task: task.http.get(USERS, auth=HTTPDigestAuth("user", "word")) and None,
        1,
        quota={"twitter": 1},
        api=api,
    )

    assert (result.outcome, result.spent, [call.status for call in result.calls]) == ("ack", {"twitter": 2}, [401, 200])


def test_a_task_that_begins_late_is_over_its_time_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    admit = Executor._admit

    def late(self: Executor, delivery: Any) -> Any:
        time.sleep(0.05)
        return admit(self, delivery)

    monkeypatch.setattr(Executor, "_admit", late)

    assert run_task(lambda task: time.sleep(0.3), 1, timeout=0.05).outcome == "retry"


# Limits that the API reports


@pytest.mark.parametrize("reports", ["x-rate-limit", "ratelimit", "github"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_api_that_says_nothing_is_left_is_not_called(reports: str, asynchronous: bool) -> None:
    # given an API of which somebody else has used all but one call, and says so
    api = FakeApi()
    api.get(USERS, json=[])
    api.limit(USERS, 100, spent=99, reports=reports)

    def three(task: Task) -> None:
        for _ in range(3):
            task.http.get(USERS)

    async def three_async(task: Task) -> None:
        for _ in range(3):
            async with task.http_async.get(USERS) as answer:
                assert await answer.json() == []

    # when a task makes three
    result = run_task(three_async if asynchronous else three, 1, quota={"twitter": 1}, api=api)

    # then the first is answered, and the others are not made
    assert (result.outcome, result.error) == ("deferred", "quota twitter cannot pay for 1 more")
    assert [call.status for call in result.calls] == [200]
    assert result.spent == {"twitter": 1}


def test_the_wait_of_a_limit_that_reports_is_the_rest_of_its_period() -> None:
    api = FakeApi()
    api.get(USERS, json=[])
    api.limit(USERS, 0, reports="github", period=200)

    result = run_task(lambda task: task.http.get(USERS), 1, quota={"twitter": 1}, api=api)

    assert (result.outcome, result.delay_s) == ("deferred", 300)
    assert isinstance(result.exception, RateLimited)
    assert result.exception.retry_after_s == pytest.approx(200, abs=3)


def test_a_way_to_report_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="found 'x-ratelimit'"):
        FakeApi().limit(USERS, 1, reports="x-ratelimit")


async def linked(task: Task) -> None:
    async with task.http_async.post(USERS, json={"of": task.payload}, headers={"x-tenant": "a"}) as answer:
        assert answer.status == 201
        friends = (await answer.json())["friends"]
    await task.spend_async(2)
    for friend in friends:
        task.enqueue("timeline", {"user": friend})


def test_an_async_handler_with_an_async_client_is_the_same() -> None:
    api = FakeApi()
    api.post(USERS, status=302, headers={"location": "/moved"})
    api.get("https://api.twitter.com/moved", status=201, json={"friends": [1]})

    result = run_task(linked, 17, quota={"twitter": 1}, api=api)

    assert (result.outcome, result.exception) == ("ack", None)
    assert result.spent == {"twitter": 4}
    assert [(call.method, call.body, call.headers.get("x-tenant"), call.status) for call in result.calls] == [
        ("POST", b'{"of": 17}', "a", 302),
        ("GET", b"", "a", 201),
    ]
    assert len(result.enqueued) == 1


def test_an_async_handler_whose_call_fails_is_tried_again_and_one_that_is_limited_deferred() -> None:
    async def handler(task: Task) -> None:
        async with task.http_async.get(USERS) as answer:
            answer.raise_for_status()

    api = FakeApi()
    api.get(USERS, status=500)
    api.get(USERS, error=ConnectionResetError("gone"))

    first = run_task(handler, 1, quota={"twitter": 1}, api=api)
    second = run_task(handler, 1, quota={"twitter": 1}, api=api)
    api.limit(USERS, 0, retry_after=20)
    third = run_task(handler, 1, quota={"twitter": 1}, api=api)

    assert [one.outcome for one in (first, second, third)] == ["retry", "retry", "deferred"]
    assert [one.spent["twitter"] for one in (first, second, third)] == [1, 1, 1]
    assert third.delay_s == 30


def test_an_unexpected_call_of_an_async_client_fails_the_test() -> None:
    async def handler(task: Task) -> None:
        await task.http_async.get(USERS)

    with pytest.raises(UnexpectedCall, match="the handler called GET"):
        run_task(handler, 1, quota={"twitter": 1})


def test_a_cost_above_the_burst_can_never_be_paid(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.yaml"
    inventory.write_text(
        """
        version: 1
        broker: local
        quotas: {twitter: {limit: 100/m, window: paced, burst: 4}}
        consumers: {timeline: {handler: {http: {base_url: "https://api.twitter.com/"}}, quota: {twitter: 1}}}
        hosts: {web-1: }
        """
    )

    result = run_task("timeline", {}, inventory=inventory, headers={"qctl-cost": {"twitter": 5}})

    assert (result.outcome, result.reason) == ("dead", "cost")
    assert result.error == "qctl-cost asks 5 of twitter, more than the 4 it can ever pay at once"
    assert run_task("timeline", {"path": "../other"}, inventory=inventory).error.endswith("tries to leave base_url")
