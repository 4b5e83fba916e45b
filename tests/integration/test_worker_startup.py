"""What keeps a worker from starting is said at once, in a sentence; a broker that is not there yet is waited for."""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Vhost
from tests.faults.proxy import Proxy
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import assert_no_traceback, await_consuming, await_history, wire

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
    with Proxy(1) as way:
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


def not_a_directory(state: Path) -> None:
    state.write_text("")


def not_ours(state: Path) -> None:
    (state / "web-1").mkdir(parents=True)
    os.chown(state / "web-1", 12_345, -1)


def open_to_all(state: Path) -> None:
    (state / "web-1").mkdir(parents=True)
    (state / "web-1").chmod(0o777)


def on_a_network(state: Path) -> None:
    state.mkdir()
    (state.parent / "mounts").write_text(f"36 35 0:30 / {state} rw - nfs4 server:/export rw\n")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (not_a_directory, "is not a directory"),
        (not_ours, "belongs to another user (uid 12345)"),
        (open_to_all, "can be written by others (mode 0777)"),
        (on_a_network, "is on a network file system (nfs4)"),
    ],
)
def test_given_a_state_directory_that_cannot_keep_a_ledger_then_the_worker_does_not_start_and_says_which_and_why(
    local_vhost: Vhost, tmp_path: Path, nowhere: str, make: Callable[[Path], None], words: str
) -> None:
    # Given such a directory, and a broker that is not there: it is said before anything else is tried
    state = tmp_path / "elsewhere"
    make(state)
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet:
        rewrite(fleet, amqp=nowhere)
        if make is on_a_network:
            mounts = f"d._MOUNTS = pathlib.Path({str(tmp_path / 'mounts')!r})"
            mounted = f"import sys, pathlib, qctl.quota.directory as d; {mounts}"
            fleet.command[1:3] = ["-c", mounted + "; from qctl.cli.main import main; sys.exit(main())"]

        ended = refused(fleet, "--state-dir", str(state))

    # Then
    assert ended.returncode == 2
    assert f"the state directory {state}/web-1" in error(ended)
    assert words in error(ended)
    assert "--state-dir" in error(ended) or "chmod go-w" in error(ended)
    assert "started" not in ended.stderr


# Processes


def test_given_a_handler_whose_import_hangs_then_the_process_is_killed_and_started_anew(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a module that hangs when it is imported for the first time
    (tmp_path / "hangs.py").write_text(
        "import pathlib, time\n"
        f"first = pathlib.Path({str(tmp_path / 'first')!r})\n"
        "if not first.exists():\n    first.touch()\n    time.sleep(600)\n"
        "from handlers import calls\n"
    )
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory({"python": "hangs:calls"})) as fleet:
        impatient = "import sys, qctl.worker.child as c, qctl.worker.supervisor as s; c.READY_S = s.READY_S = 1.0; "
        fleet.command[1:3] = ["-c", impatient + "from qctl.cli.main import main; sys.exit(main())"]

        worker = fleet.start("web-1", ready=False)

        # Then it is not waited for, and the next one works
        worker.await_log("was not ready within 1 s; killing it")
        await_consuming(worker, "calls")
        assert worker.stop() == 0


LOCKS = """
    import pathlib, sqlite3

    def locks(task):
        if not pathlib.Path(BASE + "/once").exists():
            pathlib.Path(BASE + "/once").touch()
            connection = sqlite3.connect(BASE + "/state/web-1/ledger.sqlite", isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            note("locked", os.getpid())
            time.sleep(600)
        note("ran", os.getpid())
"""


def test_given_a_process_that_keeps_the_ledger_locked_then_it_is_killed_if_it_is_ours_and_else_named(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a worker process that keeps the ledger locked, and a stranger who reads it all the time
    source = f"    BASE = {str(tmp_path)!r}\n" + LOCKS
    document = inventory({"python": "handlers:locks"}, quotas={"api": "10/s"})
    document["consumers"]["calls"]["quota"] = {"api": 1}
    with Fleet(local_vhost, tmp_path, source, **document) as fleet, wire(local_vhost) as connected:
        worker = fleet.start("web-1", "--processes", "2", ready=False)
        await_consuming(worker, "calls", processes=2)
        connected.task("calls", {}, message_id="one")
        pid = int(await_history(fleet, "locked", 1)[0])
        stranger = sqlite3.connect(fleet.state / "web-1" / "ledger.sqlite", isolation_level=None)
        try:
            stranger.execute("BEGIN")
            stranger.execute("SELECT count(*) FROM meta").fetchone()

            # Then ours is ended, the stranger is only named, and the task is done by another process
            worker.await_log(f"process pid={pid} held the ledger's lock for too long; killing it")
            worker.await_log(f"the ledger is locked by process {os.getpid()}, which is not of this worker")
        finally:
            stranger.close()
        assert int(await_history(fleet, "ran", 1)[0]) != pid
        assert worker.stop() == 0
        assert_no_traceback(worker.log())


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


def test_given_a_virtual_host_that_takes_no_more_queues_then_the_worker_ends_with_5_and_says_so(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    local_vhost.broker.api("PUT", f"/vhost-limits/{local_vhost.name}/max-queues", {"value": 0})
    with Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet:
        ended = refused(fleet)

    assert ended.returncode == 5
    assert "the name of host web-1 cannot be taken on the broker: " in ended.stderr
    assert "list_vhost_limits" in ended.stderr


def test_given_a_broker_that_is_not_there_yet_then_the_worker_waits_and_works_when_it_is(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a way to the broker that does not lead anywhere yet
    port = local_vhost.broker.amqp_port
    with Proxy(port) as way, Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet:
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


def test_given_the_rights_that_the_docs_name_then_a_worker_runs(local_vhost: Vhost, tmp_path: Path) -> None:
    # Given a user with exactly the rights of docs/install.md, for the queue of this consumer
    text = (Path(__file__).parents[2] / "docs" / "install.md").read_text(encoding="utf-8")
    patterns = re.findall(r"(?m)^(configure|write|read) +(\^.*)$", text)[:3]  # the worker's come first
    rights = {right: pattern.replace("(timeline|mail)", "calls") for right, pattern in patterns}
    assert len(rights) == 3
    name, api = f"worker-{secrets.token_hex(4)}", local_vhost.broker.api
    api("PUT", f"/users/{name}", {"password": "limited", "tags": ""})
    try:
        api("PUT", f"/permissions/{local_vhost.name}/{name}", rights)
        with Fleet(local_vhost, tmp_path, HANDLERS, **inventory()) as fleet, wire(local_vhost) as connected:
            rewrite(fleet, username=name, password={"value": "limited"})

            # When a worker runs as that user
            worker = fleet.start("web-1", ready=False)

            # Then it does its tasks without a complaint, and tells another machine who it is
            await_consuming(worker, "calls")
            connected.task("calls", {}, message_id="done")
            assert await_history(fleet, "calls", 1) == ["done"]
            ended = refused(fleet, "--state-dir", str(tmp_path / "elsewhere"))
            assert f"process {worker.process.pid}, since" in error(ended)
            assert worker.stop() == 0
            assert "WARNING" not in worker.log()
    finally:
        api("DELETE", f"/users/{name}")


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
