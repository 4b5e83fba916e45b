"""The API as a real process: what it grants, logs and survives."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from qctl.demo.api_process import ApiServer
from qctl.demo.judge import Upstream, judge_host, most_in_any_window
from qctl.errors import QctlError

UPSTREAMS = (Upstream("web-1", limit_units=20, window_s=60.0), Upstream("web-2", limit_units=100_000, window_s=60.0))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(UPSTREAMS, directory=tmp_path, latency_ms=1) as server:
        yield server


def connect(api: ApiServer, host: str) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection("127.0.0.1", api.ports[host], timeout=10))


def get(connection: http.client.HTTPConnection, path: str) -> tuple[int, dict[str, str], dict[str, object]]:
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, json.loads(response.read())


def test_given_a_limit_when_it_is_passed_on_one_connection_then_429_says_when_to_come_back_and_the_other_host_is_free(
    api: ApiServer,
) -> None:
    with connect(api, "web-1") as connection:
        granted = [get(connection, f"/users/{number}?task=t-{number}") for number in range(20)]

        status, headers, body = get(connection, "/users/20?task=t-20")
    with connect(api, "web-2") as connection:
        other = get(connection, "/")

    assert [answer[0] for answer in granted] == [200] * 20
    assert [int(answer[1]["x-rate-limit-remaining"]) for answer in granted] == list(range(19, -1, -1))
    assert status == 429
    assert 58 <= int(headers["retry-after"]) <= 60
    assert headers["x-rate-limit-limit"] == "20"
    assert abs(int(headers["x-rate-limit-reset"]) - (time.time() + 60)) < 5
    assert body == {"error": "rate limit exceeded"}
    assert other[0] == 200


def test_given_calls_when_read_from_the_log_then_each_has_its_instant_host_path_task_and_status(api: ApiServer) -> None:
    before_ns = time.monotonic_ns()
    with connect(api, "web-1") as connection:
        for number in range(21):
            get(connection, f"/users/{number}?task=t-{number}")
        connection.request("POST", "/users", body=b"{}", headers={"X-Task-Id": "by-header"})
        connection.getresponse().read()
    after_ns = time.monotonic_ns()

    calls = api.calls()

    assert [(one.task, one.status) for one in calls[:21]] == [(f"t-{n}", 200 if n < 20 else 429) for n in range(21)]
    assert (calls[21].method, calls[21].path, calls[21].task) == ("POST", "/users", "by-header")
    assert {one.host for one in calls} == {"web-1"}
    assert before_ns < calls[0].at_ns < calls[21].at_ns < after_ns


def test_given_eight_clients_at_once_when_they_hammer_a_short_window_then_no_window_grants_more_than_the_limit(
    tmp_path: Path,
) -> None:
    upstream = Upstream("web-1", limit_units=30, window_s=0.2)
    with ApiServer([upstream], directory=tmp_path, latency_ms=0) as api:

        def hammer() -> None:
            with connect(api, "web-1") as connection:
                for _ in range(100):
                    get(connection, "/")

        clients = [threading.Thread(target=hammer) for _ in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        calls = api.calls()

    granted_ns = [one.at_ns for one in calls if one.status == 200]
    assert len(calls) == 800
    assert most_in_any_window(granted_ns, upstream.window_ns) == 30
    assert judge_host(calls, upstream).refused == 800 - len(granted_ns)


def test_given_a_latency_when_called_by_many_at_once_then_they_wait_together_and_not_in_turn(tmp_path: Path) -> None:
    with ApiServer([UPSTREAMS[1]], directory=tmp_path, latency_ms=100) as api, ExitStack() as stack:
        connections = [stack.enter_context(connect(api, "web-2")) for _ in range(20)]
        began_s = time.monotonic()
        for connection in connections:
            connection.request("GET", "/")
        for connection in connections:
            assert connection.getresponse().read()
        took_s = time.monotonic() - began_s

    assert 0.1 <= took_s < 1.0


def test_given_pipelined_requests_when_answered_then_the_answers_come_in_order(api: ApiServer) -> None:
    with socket.create_connection(("127.0.0.1", api.ports["web-2"]), timeout=10) as client:
        client.sendall(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\nConnection: close\r\n\r\n")
        answered = b"".join(iter(lambda: client.recv(65_536), b""))

    assert answered.count(b"HTTP/1.1 200 OK") == 3
    assert answered.index(b'"/1"') < answered.index(b'"/2"') < answered.index(b'"/3"')


@pytest.mark.parametrize("raw", [b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"])
def test_given_a_malformed_request_when_sent_then_its_connection_ends_unlogged_and_others_are_served(
    api: ApiServer, raw: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", api.ports["web-2"]), timeout=10) as client:
        client.sendall(raw)
        answered = b"".join(iter(lambda: client.recv(65_536), b""))

    assert answered.startswith(b"HTTP/1.1 4")
    assert api.calls() == ()
    with connect(api, "web-2") as connection:
        assert get(connection, "/")[0] == 200


def test_given_a_client_that_leaves_before_its_answer_when_judged_then_its_call_counts(tmp_path: Path) -> None:
    with ApiServer([UPSTREAMS[1]], directory=tmp_path, latency_ms=50) as api:
        with connect(api, "web-2") as staying:
            with connect(api, "web-2") as leaving:
                leaving.request("GET", "/gone")
                get(staying, "/here")
            get(staying, "/here")

        paths = sorted(one.path for one in api.calls())

    assert paths == ["/gone", "/here", "/here"]


def test_given_a_running_api_when_stopped_then_the_process_is_gone_and_stopping_again_does_nothing(
    tmp_path: Path,
) -> None:
    api = ApiServer(UPSTREAMS, directory=tmp_path)
    api.start()
    pid = api.pid
    assert pid is not None
    assert api.running()

    api.stop()
    api.stop()

    assert not api.running()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_given_a_port_in_use_when_started_then_the_error_names_the_cause(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        api = ApiServer(UPSTREAMS, directory=tmp_path, ports={"web-1": port})

        with pytest.raises(QctlError, match=f"did not start.*{port}.*in use"):
            api.start()

    assert not api.running()


def run_api(tmp_path: Path) -> subprocess.Popen[bytes]:
    config = {"log": str(tmp_path / "log"), "latency_ms": 0,
              "servers": [{"host": "web-1", "port": 0, "limit_units": 1, "window_ms": 1000}]}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "qctl.demo.api", "--config", json.dumps(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize("end", ["sigterm", "sigint", "parent"])
def test_given_a_running_api_when_it_is_told_to_end_or_its_parent_is_gone_then_it_exits_0(
    tmp_path: Path, end: str
) -> None:
    with run_api(tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert b'"web-1"' in process.stdout.readline()

        if end == "parent":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM if end == "sigterm" else signal.SIGINT)

        assert process.wait(timeout=10) == 0


def test_given_a_config_that_is_not_of_the_form_when_started_then_it_says_so_without_a_traceback() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "qctl.demo.api", "--config", "{}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ended.returncode == 2
    assert "--config is not of the form" in ended.stderr
    assert "Traceback" not in ended.stderr
