"""`qctl.Client`: an application enqueues, one confirmed task a call."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qctl
from qctl.errors import BrokerBlocked, BrokerRefused, QctlError
from tests.brokers import Broker, Vhost, fresh_vhost
from tests.fleet import wait_until
from tests.integration.test_enqueue_outages import alarm
from tests.integration.worker_harness import Wire, close_connections, wire


@pytest.fixture
def vhost(local_broker: Broker) -> Iterator[Vhost]:
    with fresh_vhost(local_broker) as fresh:
        yield fresh


def write_inventory(vhost: Vhost, directory: Path) -> Path:
    document = {
        "version": 1,
        "broker": vhost.inventory_broker(),
        "quotas": {"api": "100/h"},
        "consumers": {
            "timeline": {"handler": {"exec": ["cat"]}, "quota": {}},
            "work": {"handler": {"exec": ["cat"]}, "quota": {"api": 1}, "directed": True},
        },
        "hosts": {"web-1": None},
    }
    path = directory / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.fixture
def inventory(vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in vhost.environment().items():
        monkeypatch.setenv(name, value)
    return write_inventory(vhost, tmp_path)


@pytest.fixture
def client(inventory: Path) -> Iterator[qctl.Client]:
    with qctl.Client(inventory) as client:
        yield client


@pytest.fixture
def connected(vhost: Vhost) -> Iterator[Wire]:
    with wire(vhost) as connected:
        yield connected


def test_given_an_empty_broker_then_a_task_is_there_as_the_command_writes_it(
    client: qctl.Client, connected: Wire
) -> None:
    identity = client.enqueue("work", {"user": "ü"}, type="fetch", cost={"api": 2})

    letter = connected.take("work", timeout_s=1)
    assert json.loads(letter.body) == {"user": "ü"}
    assert letter.headers["qctl-cost"] == {"api": 2}
    written = letter.properties
    assert (written.message_id, written.type, written.delivery_mode) == (identity, "fetch", 2)


def test_given_a_host_and_a_delay_then_it_goes_there_after_that(client: qctl.Client, connected: Wire) -> None:
    asked_s = time.monotonic()
    assert client.enqueue("work", 1, id="mine", host="web-1", delay=0.5) == "mine"

    assert connected.take("work@web-1").properties.message_id == "mine"
    assert time.monotonic() - asked_s >= 1.0  # rounded up to a rung


def test_given_the_example_of_the_docs_then_it_works(
    inventory: Path, connected: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")
    monkeypatch.setenv("QCTL_INVENTORY", str(inventory))
    names: dict[str, Any] = {}

    exec(page.partition("# myapp/queue.py\n")[2].partition("```")[0], names)  # noqa: S102
    with names["client"]:
        identity = names["user_changed"](17)

    letter = connected.take("timeline")
    assert (letter.properties.message_id, letter.properties.type, letter.body) == (identity, "changed", b'{"user":17}')


def test_given_many_threads_then_one_connection_serves_them(client: qctl.Client, vhost: Vhost, connected: Wire) -> None:
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.extend(client.enqueue("work", n) for n in range(20))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(ids)) == 160
    assert {connected.take("work").properties.message_id for _ in range(160)} == set(ids)
    names = [row for row in vhost.ctl("list_connections", "client_properties").splitlines() if "qctl client" in row]
    assert len(names) == 1


def test_given_a_lost_connection_then_the_next_call_makes_another(
    client: qctl.Client, vhost: Vhost, connected: Wire
) -> None:
    client.enqueue("work", 1)
    wait_until("the connection is known", lambda: close_connections(vhost, "qctl client"))

    client.enqueue("work", 2)

    assert [connected.take("work").body for _ in range(2)] == [b"1", b"2"]


def test_given_a_deleted_queue_then_it_is_declared_again(client: qctl.Client, connected: Wire) -> None:
    client.enqueue("work", 1)
    connected.channel.queue_delete("work")

    client.enqueue("work", 2)

    assert connected.take("work").body == b"2"


def test_given_a_wrong_password_then_it_is_refused_at_once(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCTL_PASSWORD", "wrong")

    with qctl.Client(inventory) as client, pytest.raises(BrokerRefused, match="refused the login"):
        client.enqueue("work", 1)


def test_given_a_full_queue_then_the_call_says_that_it_is_not_enqueued(
    client: qctl.Client, inventory: Path, vhost: Vhost, connected: Wire
) -> None:
    client.enqueue("work", 1)
    vhost.ctl("set_policy", "full", "^work$", '{"max-length": 1}', "--apply-to", "queues")
    with qctl.Client(inventory, timeout_s=1.0) as hurried:
        wait_until("the queue is full", lambda: _refuses(hurried))

        with pytest.raises(BrokerBlocked, match="queue work refuses tasks; it is not enqueued"):
            hurried.enqueue("work", "refused")

    while letter := connected.look("work"):
        assert letter.body != b'"refused"'


def test_given_an_alarm_then_the_call_says_that_the_broker_takes_nothing(
    inventory: Path, local_broker: Broker, connected: Wire
) -> None:
    with qctl.Client(inventory, timeout_s=2.0) as client:
        client.enqueue("work", "before")
        with alarm(local_broker):
            first = wait_until("the client is told", lambda: _failure(client))  # sent before the alarm was known
            found = _failure(client)
        client.enqueue("work", "after")

    assert "the broker takes nothing (memory or disk alarm); it " in first.message
    assert found is not None
    assert "the broker takes nothing (memory or disk alarm); it is not enqueued" in found.message
    assert connected.take("work").body == b'"before"'


def _failure(client: qctl.Client) -> BrokerBlocked | None:
    try:
        client.enqueue("work", "meanwhile")
    except BrokerBlocked as error:
        return error
    return None


def _refuses(client: qctl.Client) -> bool:
    try:
        client.enqueue("work", 2)
    except BrokerBlocked:
        return True
    return False


def test_given_a_fork_then_parent_and_child_each_have_their_own_connection(
    client: qctl.Client, connected: Wire
) -> None:
    # given a client that is connected
    client.enqueue("work", "before")

    # when the process forks, and both go on
    child = os.fork()
    if child == 0:
        try:
            client.enqueue("work", "child")
            client.close()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    client.enqueue("work", "parent")

    # then everything is there, and the parent's connection is unharmed
    assert os.waitstatus_to_exitcode(status) == 0
    assert {connected.take("work").body for _ in range(3)} == {b'"before"', b'"child"', b'"parent"'}


def test_given_a_closed_client_then_it_says_so(client: qctl.Client) -> None:
    client.enqueue("work", 1)
    client.close()
    client.close()

    with pytest.raises(QctlError, match="the client is closed"):
        client.enqueue("work", 1)


def test_given_a_process_that_ends_without_closing_then_it_ends_at_once_and_quietly(
    inventory: Path, connected: Wire
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            f"import qctl; print(qctl.Client({str(inventory)!r}).enqueue('work', 1))",
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert connected.take("work").properties.message_id == done.stdout.strip()


def test_given_no_right_to_publish_then_the_broker_refuses_at_once(
    client: qctl.Client, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a client that works, with a user that may do anything but publish tasks
    name, api = f"limited-{secrets.token_hex(4)}", vhost.broker.api
    api("PUT", f"/users/{name}", {"password": "limited", "tags": ""})
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    api("PUT", f"/permissions/{vhost.name}/{name}", rights)
    monkeypatch.setenv("QCTL_USERNAME", name)
    monkeypatch.setenv("QCTL_PASSWORD", "limited")
    try:
        client.enqueue("work", 1)
        api("PUT", f"/permissions/{vhost.name}/{name}", {**rights, "write": "^(?!qctl.tasks$).*"})
        client.close()

        # When another enqueues
        started_s = time.monotonic()
        with qctl.Client(client.inventory) as refused, pytest.raises(BrokerRefused, match=r"'qctl\.tasks'"):
            refused.enqueue("work", 2)

        # Then it is told so, and does not try until its time is up
        assert time.monotonic() - started_s < 5
    finally:
        api("DELETE", f"/users/{name}")


def test_given_an_alarm_on_a_connection_that_is_lost_then_a_call_goes_on_with_another(
    client: qctl.Client, connected: Wire
) -> None:
    # Given a broker that blocked the connection
    client.enqueue("work", 1)
    link = client._link
    assert link is not None
    connection = link._connection
    assert connection is not None
    connection.blocked = True

    # When it is lost while a call waits for the alarm's end
    threading.Timer(0.5, link._loop.call_soon_threadsafe, (connection.abort, "lost")).start()
    started_s = time.monotonic()
    client.enqueue("work", 2)

    # Then the call is confirmed on the next one
    assert time.monotonic() - started_s < 5
    assert {connected.take("work").body for _ in range(2)} == {b"1", b"2"}
