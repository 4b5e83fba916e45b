"""Programs as handlers: what they get, what their exit codes mean, and that nothing of them outlives their time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Broker, Vhost, fresh_vhost
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.worker_harness import (
    Letter,
    Wire,
    alive,
    assert_no_traceback,
    await_consuming,
    await_history,
    records,
    spent,
    wire,
)

#: Does what its payload says.
PROGRAM = """\
import json, os, subprocess, sys, time

def note(name, what):
    with open(name, "a") as history:
        history.write(json.dumps(what) + "\\n")

body = sys.stdin.buffer.read()
order = json.loads(body)
if "see" in order:
    note("seen", {"body": body.decode(), "argv": sys.argv[1:], "cwd": os.getcwd(),
                  **{name: value for name, value in os.environ.items() if name.startswith("QCTL_TASK")}})
if "spend" in order:
    os.write(int(os.environ["QCTL_SPEND_FD"]), order["spend"].encode())
if "noise" in order:
    for stream in (sys.stdout, sys.stderr):
        stream.write(("x" * 1023 + "\\n") * (order["noise"] << 10))
if "hang" in order:
    child = subprocess.Popen(["sleep", "600"])
    note("hanging", [os.getpid(), child.pid])
    time.sleep(600)
if "leave" in order:
    endless = "while :; do echo still here; echo and here >&2; done"
    child = subprocess.Popen(["sh", "-c", endless] if order["leave"] == "talking" else ["sleep", "600"])
    note("left", child.pid)
if "say" in order:
    sys.stderr.write(order["say"])
note("done", order)
sys.stdout.flush(), sys.stderr.flush()
os._exit(order.get("exit", 0))
"""
COST = 3


@dataclass(frozen=True, slots=True)
class Site:
    fleet: Fleet
    worker: Worker
    wire: Wire


def consumer(directory: Path, quota: str, **fields: Any) -> dict[str, Any]:
    argv = [sys.executable, str(directory / "program.py"), "an argument", "$HOME; false"]
    retry = {"attempts": 2, "delays": ["1s"]}
    return {"handler": {"exec": argv}, "quota": {quota: COST}, "retry": retry, "timeout": "30s", **fields}


@pytest.fixture(scope="module")
def site(local_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A host where `job` may take its time and `brief` may not; `idle` needs a quota of two units."""
    directory = tmp_path_factory.mktemp("exec")
    (directory / "program.py").write_text(PROGRAM)
    inventory: dict[str, Any] = {
        "quotas": {"api": "1000/h", "pages": "1000/h"},
        "consumers": {
            "job": consumer(directory, "api"),
            "brief": consumer(directory, "api", timeout="1s", retry={"attempts": 1}),
            "pages": consumer(directory, "pages"),
        },
        "hosts": {
            "web-1": {"consumers": {"job": None, "brief": None}},
            "web-2": {"consumers": {"pages": {"concurrency": 1}}},
        },
    }
    with (
        fresh_vhost(local_broker) as vhost,
        Fleet(vhost, directory, **inventory) as fleet,
        wire(vhost) as connected,
    ):
        worker = fleet.start("web-1")
        await_consuming(worker, "job", "brief")
        yield Site(fleet, worker, connected)


def test_given_a_task_then_the_program_gets_payload_arguments_and_names_and_no_shell(site: Site) -> None:
    body = json.dumps({"see": "Zoë"})

    site.wire.send("job", body, message_id="e-1", type="refresh", headers={"qctl-attempt": 2})

    await_history(site.fleet, "seen", 1)
    assert records(site.fleet, "seen")[0] == {
        "body": body,
        "argv": ["an argument", "$HOME; false"],
        "cwd": str(site.fleet.directory),
        "QCTL_TASK_ID": "e-1",
        "QCTL_TASK_TYPE": "refresh",
        "QCTL_TASK_ATTEMPT": "2",
    }


def test_given_a_megabyte_on_stdin_then_all_of_it_arrives(site: Site) -> None:
    site.wire.task("job", {"pad": "x" * 1_000_000, "id": "large"})

    wait_until("the large task", lambda: any(one.get("id") == "large" for one in records(site.fleet, "done")))


def test_given_exit_0_then_the_task_is_done(site: Site) -> None:
    site.wire.task("job", {"exit": 0, "id": "fine", "say": "a warning\n"})

    wait_until("the task", lambda: any(one.get("id") == "fine" for one in records(site.fleet, "done")))
    assert site.wire.look("job.dead") is None


def test_given_exit_65_then_the_task_is_dead_with_the_programs_last_words(site: Site) -> None:
    site.wire.task("job", {"exit": 65, "say": "first\nno such user\x1b[31m\n", "id": "dead"})

    dead = site.wire.take("job.dead")
    assert_dead(dead, "rejected", "ended with 65: no such user [31m")
    assert runs(site, "dead") == 1


def test_given_exit_69_then_the_task_is_deferred_and_no_attempt_is_used(site: Site) -> None:
    site.wire.task("job", {"exit": 69, "id": "deferred"}, headers={"qctl-attempt": 2, "qctl-deferrals": 19})

    # It waits on the longest rung after so many deferrals
    waiting = site.wire.take("qctl.retry.1d")
    assert waiting.headers["qctl-deferrals"] == 20
    assert waiting.headers["qctl-attempt"] == 2
    assert "ended with 69" in waiting.headers["qctl-error"]
    # One more is too many
    site.wire.send("job", waiting.body, properties=waiting.properties)
    assert_dead(site.wire.take("job.dead"), "deferrals", "deferred 20 times, too often; last:")
    assert runs(site, "deferred") == 2


@pytest.mark.parametrize(("code", "words"), [(1, "ended with 1"), (255, "ended with 255"), (75, "ended with 75")])
def test_given_another_exit_code_then_the_task_is_tried_as_often_as_it_may(site: Site, code: int, words: str) -> None:
    site.wire.task("job", {"exit": code, "id": f"exit-{code}"})

    assert_dead(site.wire.take("job.dead"), "attempts", words)
    assert runs(site, f"exit-{code}") == 2


def test_given_ten_megabytes_of_output_on_both_streams_then_nothing_is_hurt(site: Site) -> None:
    before = resident_bytes(site.worker.pids()[0])

    site.wire.task("job", {"noise": 10, "id": "noisy", "exit": 65})

    dead = site.wire.take("job.dead")
    assert len(dead.headers["qctl-error"]) <= 500
    assert resident_bytes(site.worker.pids()[0]) - before < 5 << 20
    assert runs(site, "noisy") == 1


def test_given_a_program_over_its_time_then_its_whole_process_group_is_gone(site: Site) -> None:
    site.wire.task("brief", {"hang": True})

    assert_dead(site.wire.take("brief.dead"), "attempts", "the program ran longer than 1 s")
    ((program, child),) = records_of(site, "hanging")
    wait_until("both are gone", lambda: not alive(program) and not alive(child), timeout_s=5)


@pytest.mark.parametrize("kind", ["silent", "talking"])
def test_given_a_program_that_leaves_a_child_behind_then_that_neither_delays_nor_outlives_the_task(
    site: Site, kind: str
) -> None:
    before = len(records_of(site, "left"))
    site.wire.task("job", {"leave": kind, "id": "leaving"})

    child = wait_until("the child", lambda: records_of(site, "left")[before:])[0]
    wait_until("the child is gone", lambda: not alive(child), timeout_s=10)
    assert site.wire.look("job.dead") is None


def test_given_units_announced_on_the_spend_pipe_then_those_are_paid_and_else_the_declared_cost(site: Site) -> None:
    # Given a host of its own, so that its ledger tells them apart
    worker = site.fleet.start("web-2", ready=False)
    await_consuming(worker, "pages")

    # When programs announce 7, 2 and (without a newline) 5 units, nothing, and what cannot be
    for order in ({"spend": "pages 7\n"}, {"spend": "pages 1\npages 1\n"}, {"spend": "pages 5"}, {}):
        site.wire.task("pages", {**order, "id": "spending"})
    wrong_ones = {
        "mail 1\n": "this consumer has no quota 'mail'",
        "pages -1\n": "takes lines `QUOTA N`, found 'pages -1'",
        "pages\n": "takes lines `QUOTA N`, found 'pages'",
        "x" * 1000: "takes short lines",
    }
    for wrong, error in wrong_ones.items():
        site.wire.task("pages", {"spend": wrong, "hang": True})
        assert_dead(site.wire.take("pages.dead"), "cost", error)
    wait_until("the good ones", lambda: runs(site, "spending") == 4)
    assert worker.stop() == 0

    # Then the ledger has exactly that; the four that were wrong made no call it knows of and count at their cost
    assert spent(site.fleet, "web-2")["pages"] == 7 + 2 + 5 + COST + 4 * COST


def test_given_a_program_that_is_not_there_then_the_worker_does_not_start(local_vhost: Vhost, tmp_path: Path) -> None:
    inventory: dict[str, Any] = {
        "consumers": {"job": {"handler": {"exec": ["./no-such-program", "x"]}, "quota": {}}},
        "hosts": {"web-1": None},
    }
    with Fleet(local_vhost, tmp_path, **inventory) as fleet:
        ended = subprocess.run(
            [*fleet.command, "worker", "start", "--host", "web-1", "--state-dir", str(tmp_path / "state")],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert ended.returncode == 2
    assert "error: consumer job: program ./no-such-program is not there or not executable" in ended.stderr
    assert_no_traceback(ended.stderr)


def test_given_all_that_then_no_descriptor_is_left_open(site: Site) -> None:
    descriptors = Path(f"/proc/{site.worker.pids()[0]}/fd")
    site.wire.task("job", {"id": "one"})
    wait_until("one task", lambda: runs(site, "one") == 1)
    before = len(list(descriptors.iterdir()))

    for number in range(20):
        site.wire.task("job", {"id": f"many-{number}"})
    wait_until("all of them", lambda: all(runs(site, f"many-{number}") == 1 for number in range(20)))

    wait_until("closed descriptors", lambda: len(list(descriptors.iterdir())) <= before + 2, timeout_s=10)


def records_of(site: Site, name: str) -> list[Any]:
    return [json.loads(line) for line in site.fleet.history(name)]


def runs(site: Site, identity: str) -> int:
    return sum(one.get("id") == identity for one in records(site.fleet, "done"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def assert_dead(letter: Letter, reason: str, error: str) -> None:
    assert letter.headers["qctl-reason"] == reason
    assert error in letter.headers["qctl-error"]
