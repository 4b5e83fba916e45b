"""The `http` handler against a real server: what is called, what each answer means, and what never goes out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.brokers import Broker, fresh_vhost
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.worker_harness import Letter, Wire, assert_no_traceback, await_consuming, spent, wire
from tests.upstream import Call, Upstream

SECRET = "correct horse"
RETRY = {"attempts": 2, "delays": ["1s"]}


@dataclass(frozen=True, slots=True)
class Site:
    fleet: Fleet
    worker: Worker
    wire: Wire
    upstream: Upstream

    def call(self, consumer: str, payload: dict[str, Any], **fields: Any) -> Call:
        """Enqueue a task and return the call it makes."""
        below = f"/{consumer}/" + str(payload.get("path", "")).lstrip("/")
        before = len(self.upstream.calls(below.partition("?")[0]))
        self.wire.task(consumer, payload, **fields)
        return wait_until(  # type: ignore[no-any-return]
            f"a call of {below}",
            lambda: (self.upstream.calls(below.partition("?")[0])[before:] or [None])[0],
        )


def consumer(upstream: Upstream, name: str, **handler: Any) -> dict[str, Any]:
    http = {"base_url": f"{upstream.address}/{name}/", **handler}
    return {"handler": {"http": http}, "quota": {name: 1}, "retry": RETRY, "timeout": "1s", "concurrency": 4}


@pytest.fixture(scope="module")
def site(local_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker; each theme has a consumer with a quota of its own, since a refusal holds all that need its quota."""
    with Upstream() as upstream, fresh_vhost(local_broker) as vhost:
        directory = tmp_path_factory.mktemp("http")
        (directory / "token").write_text(SECRET + "\n")
        (directory / "token").chmod(0o600)
        fancy = {
            "headers": {"Authorization": {"file": "token"}, "X-Plain": "yes"},
            "allow_headers": ["X-Tenant", "Authorization"],
            "max_response": "1000B",
        }
        consumers = {
            "api": consumer(upstream, "api", **fancy),
            "small": consumer(upstream, "small"),
            **{name: consumer(upstream, name) for name in ("later", "soon", "forbidden", "strict")},
        }
        inventory = {
            "quotas": dict.fromkeys(consumers, "1000/h"),
            "consumers": consumers,
            "hosts": {
                "web-1": {"consumers": {name: None for name in consumers if name != "strict"}},
                "web-2": {"consumers": {"strict": None}},
            },
        }
        with Fleet(vhost, directory, **inventory) as fleet, wire(vhost) as connected:
            worker = fleet.start("web-1")
            await_consuming(worker, *(name for name in consumers if name != "strict"))
            connected.channel.queue_declare("answers")
            yield Site(fleet, worker, connected, upstream)


# The call


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_given_a_method_then_the_call_has_it_and_a_2xx_acknowledges(site: Site, method: str) -> None:
    call = site.call("api", {"method": method, "path": f"methods/{method}"})

    assert call.method == method
    assert_done(site, "api")


def test_given_nothing_but_a_path_then_it_is_fetched_below_the_base_url(site: Site) -> None:
    call = site.call("api", {"path": "/users/17"})

    assert (call.method, call.path, call.params, call.body) == ("GET", "/api/users/17", (), b"")


def test_given_an_empty_payload_then_the_base_url_itself_is_fetched(site: Site) -> None:
    assert site.call("api", {}).path == "/api/"


def test_given_json_then_it_is_posted(site: Site) -> None:
    call = site.call("api", {"path": "users", "json": {"name": "Zoë", "tags": [1, None]}})

    assert call.method == "POST"
    assert call.headers["content-type"] == "application/json"
    assert json.loads(call.body) == {"name": "Zoë", "tags": [1, None]}


def test_given_params_then_they_are_encoded_after_those_of_the_path(site: Site) -> None:
    params = {"q": "a b&c", "page": 2, "deep": True, "none": None, "id": [1, 2], "half": 0.5, "empty": ""}

    call = site.call("api", {"path": "search?sort=name", "params": params})

    expected = ("sort", "name"), ("q", "a b&c"), ("page", "2"), ("deep", "true"), ("id", "1"), ("id", "2")
    assert call.params == (*expected, ("half", "0.5"), ("empty", ""))


def test_given_headers_then_the_allowed_ones_go_out_and_the_inventorys_win(site: Site) -> None:
    call = site.call("api", {"path": "headers", "headers": {"x-tenant": "acme", "authorization": "forged"}})

    assert call.headers["x-tenant"] == "acme"
    assert call.headers["x-plain"] == "yes"
    assert call.headers["authorization"] == SECRET


def test_given_many_tasks_then_connections_are_used_again(site: Site) -> None:
    for number in range(20):
        site.wire.task("small", {"path": f"pool/{number}"})

    calls = wait_until("20 calls", lambda: len(found := site.upstream.calls("/small/pool/")) == 20 and found)
    assert len({call.connection for call in calls}) <= 4


# The answer


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_given_a_reply_queue_then_the_answer_goes_there_with_status_and_correlation(site: Site, status: int) -> None:
    site.wire.task(
        "api", {"path": f"status/{status}"}, reply_to="answers", correlation_id=f"asked-{status}", message_id="m"
    )

    answer = site.wire.take("answers")
    assert answer.properties.correlation_id == f"asked-{status}"
    assert answer.headers["qctl-status"] == status
    assert answer.body == (b"" if status == 204 else b"{}")


def test_given_no_correlation_id_then_the_tasks_own_id_is_it(site: Site) -> None:
    site.wire.task("api", {"path": "echo", "json": [1]}, reply_to="answers", message_id="task-9")

    answer = site.wire.take("answers")
    assert answer.properties.correlation_id == "task-9"
    assert answer.properties.content_type == "application/json"
    assert json.loads(answer.body)["body"] == "[1]"


def test_given_a_reply_queue_that_is_gone_then_the_task_is_done_all_the_same(site: Site) -> None:
    site.call("api", {"path": "gone"}, reply_to="no-such-queue")

    assert_done(site, "api")
    assert len(site.upstream.calls("/api/gone")) == 1


@pytest.mark.parametrize(("size", "dead"), [(1000, False), (1001, True), (5_000_000, True)])
def test_given_an_answer_larger_than_max_response_then_the_task_is_dead(site: Site, size: int, dead: bool) -> None:
    site.call("api", {"path": f"size/{size}"})

    if dead:
        assert_dead(site.wire.take("api.dead"), "rejected", "larger than max_response (1000 bytes)")
    assert_done(site, "api")


# What fails


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("status/408", "the upstream answered 408 Request Timeout"),
        ("status/425", "the upstream answered 425 Too Early"),
        ("status/500", "the upstream answered 500 Internal Server Error"),
        ("status/503", "the upstream answered 503 Service Unavailable"),
        ("wait/30", "Read timed out"),
        ("drip", "1 s"),  # either the answer was not complete by then, or the task
        ("half", "IncompleteRead"),
    ],
)
def test_given_what_may_pass_then_the_task_is_tried_as_often_as_it_may(site: Site, path: str, error: str) -> None:
    site.wire.task("small", {"path": f"retry/{path}"}, message_id=path)

    dead = site.wire.take("small.dead")
    assert_dead(dead, "attempts", error)
    assert dead.properties.message_id == path
    assert dead.headers["qctl-attempt"] == 2
    assert len(site.upstream.calls(f"/small/retry/{path}")) == 2


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("status/400", "the upstream answered 400 Bad Request, which no retry will change"),
        ("status/404", "the upstream answered 404 Not Found"),
        ("status/422", "the upstream answered 422"),
        ("redirect", "the upstream answered 302 Found, a redirect, which is not followed"),
        ("status/304", "the upstream answered 304 Not Modified, a redirect"),
    ],
)
def test_given_what_no_retry_will_change_then_the_task_is_dead_after_one_call(
    site: Site, path: str, error: str
) -> None:
    site.wire.task("small", {"path": f"never/{path}"})

    assert_dead(site.wire.take("small.dead"), "rejected", error)
    assert len(site.upstream.calls(f"/small/never/{path}")) == 1
    assert site.upstream.calls("/away") == []


# What is refused for now


@pytest.mark.parametrize(
    ("name", "path"), [("soon", "retry-after/2"), ("later", "retry-after/600"), ("forbidden", "spent/600")]
)
def test_given_a_429_or_the_like_then_the_task_is_deferred_and_no_attempt_is_used(
    site: Site, name: str, path: str
) -> None:
    # When the upstream refuses a task in its last attempt
    site.wire.task(name, {"path": path}, message_id="refused", headers={"qctl-attempt": 2})
    wait_until("the line", lambda: f"{name} refused] task runs again" in site.worker.log())

    # Then it waits on a rung that is long enough, and the consumer holds until the upstream serves again
    site.worker.await_log(f"web-1/{name} held: blocked {name}")
    assert site.wire.depth(name) == 0
    if name != "soon":
        deferred = site.wire.take("qctl.retry.15m")
        assert deferred.headers["qctl-deferrals"] == 1
        assert deferred.headers["qctl-attempt"] == 2
        said = "answered 403" if name == "forbidden" else "answered 429"
        assert f"{said}, retry after 600 s" in deferred.headers["qctl-error"]
        assert "qctl-delay" in deferred.headers
        assert len(site.upstream.calls(f"/{name}/")) == 1
    else:
        # and comes back when it does
        started = time.monotonic()
        wait_until("the second call", lambda: len(site.upstream.calls(f"/{name}/")) >= 2)
        assert time.monotonic() - started < 20
    # and its neighbours, who need other quotas, never notice
    assert site.call("small", {"path": f"beside/{name}"})


# What never goes out

LEAVING: list[tuple[Any, str]] = [
    ({"path": "../admin"}, "tries to leave base_url"),
    ({"path": "%2e%2e/admin"}, "tries to leave base_url"),
    ({"path": "users/%252e%252e/%252e%252e/admin"}, "tries to leave base_url"),
    ({"path": "//evil.example/"}, "tries to leave base_url"),
    ({"path": "http://evil.example/"}, "tries to leave base_url"),
    ({"path": "..\\admin"}, "has a character that a path may not have"),
    ({"path": "users\r\nHost: evil"}, "has a character that a path may not have"),
    ({"path": "users/\ud800"}, "has a character that a path may not have"),
    ({"path": 17}, "payload.path must be a string"),
    ({"url": "http://evil.example/"}, "payload.url is not known"),
    ({"method": "CONNECT"}, "payload.method must be one of"),
    ({"method": ["GET"]}, "payload.method must be one of"),
    ({"method": "GET /admin HTTP/1.1\r\n"}, "payload.method must be one of"),
    ({"headers": {"Host": "evil.example"}}, "payload.headers.Host is not in the handler's allow_headers"),
    ({"headers": ["X-Tenant"]}, "payload.headers must be an object"),
    ({"params": [1]}, "payload.params must be an object"),
    ({"params": {"a": {"b": 1}}}, "payload.params.a must be a plain value"),
    ({"params": {"a": "\ud800"}}, "payload.params"),
    (["path"], "the payload must be an object"),
    ("users", "the payload must be an object"),
    (None, "the payload must be an object"),
]


def test_given_payloads_that_try_to_leave_then_they_are_dead_with_no_call_made_and_nothing_spent(site: Site) -> None:
    # Given a host that runs nothing else
    before = len(site.upstream.calls())
    worker = site.fleet.start("web-2", ready=False)
    await_consuming(worker, "strict")

    # When each of them is followed by a good task
    for payload, error in LEAVING:
        site.wire.task("strict", payload, message_id=error)
        dead = site.wire.take("strict.dead")
        assert_dead(dead, "malformed", error)
        assert dead.properties.message_id == error
    for text, error in ((b"{path: 1}", "the body is not JSON"), (b"", "the body is not JSON")):
        site.wire.send("strict", text)  # whatever it says it is, this handler needs JSON
        assert_dead(site.wire.take("strict.dead"), "malformed", error)
    site.call("strict", {"path": "good"})

    # Then the good one made the only call, and only that was paid
    assert worker.stop() == 0
    # (`soon` is refused again and again)
    paths = [call.path for call in site.upstream.calls()[before:] if not call.path.startswith("/soon/")]
    assert paths == ["/strict/good"]
    assert spent(site.fleet, "web-2")["strict"] == 1
    assert worker.log().count("process 0 started") == 1
    assert_no_traceback(worker.log())


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("two\r\nlines", "must be a line of ASCII text"),
        ("Zoë", "must be a line of ASCII text"),
        (" blank", "must be a line of ASCII text"),
        (17, "must be a line of ASCII text"),
    ],
)
def test_given_an_allowed_header_with_an_impossible_value_then_the_task_is_dead(
    site: Site, value: object, error: str
) -> None:
    site.wire.task("api", {"path": "bad", "headers": {"X-Tenant": value}})

    assert_dead(site.wire.take("api.dead"), "malformed", error)
    assert site.upstream.calls("/api/bad") == []


def test_given_all_that_then_the_secret_is_nowhere_in_the_log(site: Site) -> None:
    assert SECRET not in site.worker.log()
    assert_no_traceback(site.worker.log())


def assert_dead(letter: Letter, reason: str, error: str) -> None:
    assert letter.headers["qctl-reason"] == reason
    assert error in letter.headers["qctl-error"]


def assert_done(site: Site, queue: str) -> None:
    """Nothing of the task is left: another one goes all the way, and no dead letter has come."""
    site.wire.task(queue, {"path": "fence"}, reply_to="answers", correlation_id="fence")
    assert site.wire.take("answers").properties.correlation_id == "fence"
    assert site.wire.look(queue) is None
    assert site.wire.look(f"{queue}.dead") is None
