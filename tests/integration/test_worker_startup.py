"""What keeps a worker from starting is said at once, in a sentence; a broker that is not there yet is waited for."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import Forwarder, assert_no_traceback, await_consuming, await_history, wire

HANDLERS = """
    def calls(task):
        note("calls", task.id)

    number = 17
"""
#: A start that fails takes a fraction of a second; a broker that is not there is tried for ever.
AT_ONCE_S = 10.0


def inventory(handler: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    consumer = {"handler": handler or {"python": "handlers:calls"}, "quota": {}}
    return {"consumers": {"calls": consumer}, "hosts": {"web-1": None, "web-2": None}, **more}


def rewrite(fleet: Fleet, **broker: Any) -> None:
    """Change the `broker:` section of a fleet's inventory."""
    path = fleet.directory / "inventory.yaml"
    document = json.loads(path.read_text())
    document["broker"].update(broker)
    path.write_text(json.dumps(document))


def refused(fleet: Fleet, *arguments: str, host: str = "web-1") -> subprocess.CompletedProcess[str]:
    """A start that ends by itself."""
    started = time.monotonic()
    ended = subprocess.run(
        [*fleet.command, "worker", "start", "--host", host, "--state-dir", str(fleet.state), *arguments],
        cwd=fleet.directory,
        env=fleet.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert time.monotonic() - started < AT_ONCE_S
    assert ended.stdout == ""
    assert_no_traceback(ended.stderr)
    return ended


def error(ended: subprocess.CompletedProcess[str]) -> str:
    """The one sentence, with its hint."""
    lines = ended.stderr.splitlines()
    assert sum(line.startswith("qctl: error:") for line in lines) == 1, ended.stderr
    start = next(number for number, line in enumerate(lines) if line.startswith("qctl: error:"))
    return " ".join(line.strip() for line in lines[start:])


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The address of a broker that is not there, while nobody else can take its port."""
    with Forwarder(1) as way:
        yield f"amqp://127.0.0.1:{way.port}/"


# Handlers


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("handlers:missing", "handler handlers:missing cannot be imported: AttributeError"),
        ("handler:calls", "handler handler:calls cannot be imported: ModuleNotFoundError: No module named 'handler'"),
        ("handlers:number", "handler handlers:number is a int, not a function"),
        ("broken:calls", "handler broken:calls cannot be imported: ZeroDivisionError: division by zero"),
        ("exits:calls", "handler exits:calls cannot be imported: SystemExit: 0"),
    ],
)
@pytest.mark.parametrize("place", ["there", "not there"])
def test_given_a_handler_that_cannot_be_imported_then_the_worker_does_not_start_and_says_why(
    local_vhost: Vhost, tmp_path: Path, nowhere: str, place: str, reference: str, words: str
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "exits.py").write_text("import sys; sys.exit(0)")
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory({"python": reference})) as fleet:
        if place == "not there":
            rewrite(fleet, amqp=nowhere)

        ended = refused(fleet, "--processes", "3")

    assert ended.returncode == 2
    assert f"consumer calls: {words}" in error(ended)
    assert "worker.python_path" in error(ended) or "Name a function" in error(ended)


def test_given_a_secret_of_a_handler_that_cannot_be_read_then_the_worker_does_not_start(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    handler = {"http": {"base_url": "http://127.0.0.1/", "headers": {"Authorization": {"env": "NO_SUCH_VARIABLE"}}}}
    with Fleet(local_vhost, tmp_path, **inventory(handler)) as fleet:
        ended = refused(fleet)

    assert ended.returncode == 2
    assert "NO_SUCH_VARIABLE" in error(ended)


# Names


def test_given_an_unknown_host_then_the_nearest_is_named(local_vhost: Vhost, tmp_path: Path) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet:
        ended = refused(fleet, host="wbe-1")

    assert ended.returncode == 2
    assert "has no host 'wbe-1'" in error(ended)
    assert "web-1" in error(ended).partition("has no host")[2]


def test_given_an_unknown_consumer_then_the_nearest_is_named(local_vhost: Vhost, tmp_path: Path) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet:
        ended = refused(fleet, "--only", "call")

    assert ended.returncode == 2
    assert "host web-1 runs no consumer 'call'" in error(ended)
    assert "calls" in error(ended)


def test_given_a_wrong_inventory_then_every_mistake_is_named_with_its_place(local_vhost: Vhost, tmp_path: Path) -> None:
    document = inventory(quotas={"api": "200 per hour"}, worker={"hold_after": "soon"})
    with Fleet(local_vhost, tmp_path, HANDLERS, **document) as fleet:
        ended = refused(fleet)

    assert ended.returncode == 2
    places = [line for line in ended.stderr.splitlines() if "inventory.yaml:1:" in line]
    assert len(places) == 2


def test_given_a_state_directory_that_cannot_be_made_then_it_says_so(local_vhost: Vhost, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet:
        ended = refused(fleet, "--state-dir", str(tmp_path / "file" / "state"))

    assert ended.returncode == 2
    assert f"the state directory {tmp_path}/file/state/web-1 cannot be used" in error(ended)


# The broker


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"password": {"value": "wrong"}}, "refused the login of user"),
        ({"username": "nobody"}, "refused the login of user 'nobody'"),
        ({"amqp": "no-such-vhost"}, "access to virtual host 'no-such-vhost'"),
    ],
)
def test_given_a_broker_that_refuses_then_the_worker_ends_with_5(
    local_vhost: Vhost, tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    if "amqp" in wrong:
        wrong = {"amqp": local_vhost.broker.amqp_url("no-such-vhost")}
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet:
        rewrite(fleet, **wrong)

        ended = refused(fleet)

    assert ended.returncode == 5
    assert words in error(ended)
    assert local_vhost.password not in ended.stderr
    assert "wrong" not in ended.stderr.replace("wrong password", "")


def test_given_a_broker_that_is_not_there_yet_then_the_worker_waits_and_works_when_it_is(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a way to the broker that does not lead anywhere yet
    port = local_vhost.broker.amqp_port
    with Forwarder(port) as way, Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet:
        rewrite(fleet, amqp=local_vhost.amqp_url.replace(f":{port}/", f":{way.port}/"))
        worker = fleet.start("web-1", ready=False)
        wait_until("three tries", lambda: worker.log().count(f"127.0.0.1:{way.port}/") >= 3)
        assert worker.process.poll() is None

        # When it does
        way.listen()

        # Then the worker consumes
        await_consuming(worker, "calls")
        with wire(local_vhost) as connected:
            connected.task("calls", {}, message_id="at last")
        assert await_history(fleet, "calls", 1) == ["at last"]
        assert worker.stop() == 0
        assert_no_traceback(worker.log())
        tries = [line for line in worker.log().splitlines() if "trying again in" in line]
        assert all("does not answer" in line for line in tries)


def test_given_a_broker_that_is_not_there_then_a_signal_ends_the_waiting(
    local_vhost: Vhost, tmp_path: Path, nowhere: str
) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet:
        rewrite(fleet, amqp=nowhere)
        worker = fleet.start("web-1", ready=False)
        worker.await_log("trying again in")

        assert worker.stop() == 0
        assert_no_traceback(worker.log())


def test_given_a_queue_with_other_arguments_then_its_consumer_is_down_with_the_difference_and_others_run(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given somebody else's queue under the name of one consumer
    document = inventory()
    document["consumers"]["taken"] = {"handler": {"python": "handlers:calls"}, "quota": {}}
    with Fleet(local_vhost, tmp_path, HANDLERS, **document) as fleet, wire(local_vhost) as connected:
        connected.channel.queue_declare("taken", durable=True)

        worker = fleet.start("web-1", ready=False)

        await_consuming(worker, "calls")
        wait_until("the reason", lambda: "queue taken exists with other arguments than qctl declares" in worker.log())
        connected.task("calls", {}, message_id="beside")
        assert await_history(fleet, "calls", 1) == ["beside"]
        assert worker.stop() == 0
        assert_no_traceback(worker.log())
