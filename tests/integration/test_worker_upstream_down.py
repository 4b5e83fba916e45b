"""An API that refuses or is down: the consumer is held, single tasks probe, and no task loses an attempt by it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.brokers import Broker, fresh_vhost
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.worker_harness import Wire, await_history, spent, start_consuming, wire

HANDLERS = """
    def unreachable(task):
        task.http.get(URL + "/unreachable").raise_for_status()
        note("unreachable", task.attempt)

    def copes(task):
        note("copes", task.http.get(URL + "/copes").status_code)
"""
#: A task may not even fail once.
ONCE = {"attempts": 1, "delays": ["1s"]}


class Api(ThreadingHTTPServer):
    """Answers each path with the status that it is told to. It has a port, and listens from `open` on."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.server_bind()
        self.status: dict[str, int] = {}
        self.calls: list[tuple[float, str, int]] = []

    def open(self) -> None:
        self.server_activate()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_GET(self) -> None:
        path = self.path.split("/")[1]
        status = 403 if self.path.endswith("/private") else self.server.status.get(path, 200)
        self.server.calls.append((time.monotonic(), path, status))
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """The calls are the log."""


@dataclass(slots=True)
class Site:
    fleet: Fleet
    worker: Worker
    wire: Wire
    api: Api
    late: Api

    def calls(self, path: str) -> list[float]:
        """When this path was called."""
        return [at_s for at_s, called, _ in (*self.api.calls, *self.late.calls) if called == path]


@pytest.fixture(scope="module")
def site(local_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A worker, an API that answers, and one that does not listen yet."""
    api, late = Api(), Api()
    api.open()

    def consumer(handler: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return {"handler": handler, "quota": {"api": 1}, "concurrency": 2, "retry": ONCE, **changes}

    def http(path: str) -> dict[str, Any]:
        return {"http": {"base_url": f"http://127.0.0.1:{api.server_port}/{path}/"}}

    consumers = {
        "refused": consumer(http("refused")),
        "failing": consumer(http("failing"), retry={"attempts": 3, "delays": ["1s"]}, concurrency=1),
        "mixed": consumer(http("mixed")),
        "unreachable": consumer({"python": "handlers:unreachable"}),
        "copes": consumer({"python": "handlers:copes"}),
    }
    handlers = f'    URL = "http://127.0.0.1:{late.server_port}"\n' + HANDLERS.replace(
        'URL + "/copes"', f'"http://127.0.0.1:{api.server_port}/copes"'
    )
    with (
        fresh_vhost(local_broker) as vhost,
        Fleet(
            vhost,
            tmp_path_factory.mktemp("upstream"),
            handlers,
            quotas={"api": "10000/h"},
            consumers=consumers,
            hosts={"web-1": None},
        ) as fleet,
        wire(vhost) as connected,
    ):
        yield Site(fleet, start_consuming(fleet, "web-1", *consumers), connected, api, late)
    for one in (api, late):
        with suppress(OSError):
            one.socket.shutdown(socket.SHUT_RDWR)
        one.server_close()


def test_given_an_api_that_refuses_then_the_consumer_holds_probes_with_one_task_a_pause_and_all_are_done_at_last(
    site: Site,
) -> None:
    # Given an API that knows us no more
    site.api.status["refused"] = 401

    # When tasks come
    for number in range(12):
        site.wire.task("refused", {"path": str(number)})
    site.worker.await_log(
        f"web-1/refused held: upstream refuses: http://127.0.0.1:{site.api.server_port} answers 401, tried every 1 s"
    )

    # Then besides those under way at first there is one call a pause, and the pauses grow
    held_s = site.calls("refused")[0]
    wait_until("a second probe", lambda: time.monotonic() > held_s + 4.5)
    probes = [at_s - held_s for at_s in site.calls("refused") if at_s > held_s + 0.5]
    assert 1 <= len(probes) <= 3
    assert len(site.calls("refused")) - len(probes) <= 2
    # and its neighbours never notice
    site.wire.task("copes", {})
    await_history(site.fleet, "copes", 1)
    # and when it serves again all are done, by the one attempt that each of them has
    site.api.status["refused"] = 200
    wait_until("all are served", lambda: sum(status == 200 for _, p, status in site.api.calls if p == "refused") == 12)
    assert site.wire.look("refused.dead") is None


def test_given_an_api_that_takes_no_connection_then_the_same_and_nothing_is_spent_for_it(site: Site) -> None:
    # Given tasks for an API that is not there
    for number in range(6):
        site.wire.task("unreachable", number)
    site.worker.await_log("web-1/unreachable held: upstream down: http://127.0.0.1:")
    assert "takes no connection" in site.worker.log()

    # When it comes back
    site.late.open()

    # Then each is done in its first attempt
    assert await_history(site.fleet, "unreachable", 6) == ["1"] * 6
    assert site.wire.look("unreachable.dead") is None


def test_given_ten_failures_of_the_server_in_a_row_then_the_consumer_holds_and_no_more_attempts_are_used(
    site: Site,
) -> None:
    # Given an API that fails
    site.api.status["failing"] = 503
    for number in range(20):
        site.wire.task("failing", {"path": str(number)})

    # When ten in a row have failed
    site.worker.await_log("web-1/failing held: upstream down: ")

    # Then those were attempts
    assert 10 <= len(site.calls("failing")) <= 12  # what began before the tenth was judged is spared
    # and when it serves again, everybody still has one
    site.api.status["failing"] = 200
    wait_until("all are served", lambda: sum(status == 200 for _, p, status in site.api.calls if p == "failing") == 20)
    assert site.wire.look("failing.dead") is None


def test_given_a_task_that_alone_is_refused_while_others_are_served_then_it_is_dead_and_holds_nobody(
    site: Site,
) -> None:
    # Given an API that refuses one task only
    site.api.status["mixed"] = 200
    site.wire.task("mixed", {"path": "first"})
    wait_until("the first call", lambda: site.calls("mixed"))
    done = threading.Event()

    def serve_others() -> None:
        with wire(site.fleet.vhost) as other:
            while not done.wait(0.1):
                other.task("mixed", {"path": "others"})

    others = threading.Thread(target=serve_others)
    others.start()

    # When it comes beside the others
    site.wire.task("mixed", {"path": "private"}, message_id="private")
    try:
        dead = site.wire.take("mixed.dead")
    finally:
        done.set()
        others.join()

    # Then it is dead in the end, its last refusal being the reason, and the consumer was not held for it
    assert (dead.properties.message_id, dead.headers["qctl-reason"]) == ("private", "rejected")
    assert "answered 403" in dead.headers["qctl-error"]
    assert "web-1/mixed held" not in site.worker.log()


def test_given_a_handler_that_copes_with_a_refusal_then_nothing_is_held(site: Site) -> None:
    site.api.status["copes"] = 403
    before = len(site.fleet.history("copes"))

    for _ in range(6):
        site.wire.task("copes", {})

    assert await_history(site.fleet, "copes", before + 6)[before:] == ["403"] * 6
    assert "web-1/copes held" not in site.worker.log()


def test_given_all_that_then_the_worker_ends_in_order_and_every_answered_call_is_spent(site: Site) -> None:
    assert site.worker.stop() == 0

    assert spent(site.fleet, "web-1")["api"] == len(site.api.calls) + len(site.late.calls)
