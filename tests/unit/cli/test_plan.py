"""`qctl plan` before a broker is contacted, without one, interrupted, and how it prints what it found."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from qctl.cli.options import Output, Settings
from qctl.cli.plan import show
from qctl.ops.plan import Never, Plan, QueuePlan, QuotaPlan
from tests.unit.cli.conftest import QCTL, Run

NOW_S = 1_795_354_200.0
FOUND = Plan(
    at_s=NOW_S,
    queues=(
        QueuePlan("timeline", 700, 16, None, NOW_S + 125.4, by_host=(("web-1", 200), ("web-2", 500))),
        QueuePlan("outbox", 3, never=Never.PAUSED, words="web-1/mails paused"),
    ),
    quotas=(
        QuotaPlan("web-1", "twitter", ("100/20s",), 40, 100, NOW_S + 4, NOW_S + 20, 200, 200),
        QuotaPlan("web-3", "twitter", ("5/s",), None, None, None, None, 500, 500, asked=True),
    ),
    assumed=("web-3 is assumed to run what web-1 runs, one process, with nothing spent",),
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "web-1/twiter=5/h"), "Did you mean twitter?"),
        (("--set", "web-1/twitter=5"), "expected a rate N/PERIOD"),
        (("--add-host", "web-2/twitter=5/h"), "For another limit: --set web-2/twitter=RATE"),
        (("--pause", "web-1/timelin"), "Did you mean timeline?"),
    ],
)
def test_bad_names_and_rates_are_refused_before_anything_is_contacted(
    run: Run, inventory: Path, arguments: tuple[str, ...], said: str
) -> None:
    # given an inventory whose broker does not run
    assert inventory.exists()

    # when
    done = run("plan", *arguments)

    # then
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def listening(work: Path) -> socket.socket:
    """A broker that takes connections and never says a word."""
    deaf = socket.create_server(("127.0.0.1", 0))
    text = (work / "inventory.yaml").read_text(encoding="utf-8")
    port = deaf.getsockname()[1]
    broker = f"broker: {{amqp: 'amqp://127.0.0.1:{port}/', username: guest, password: {{value: guest}}}}"
    (work / "inventory.yaml").write_text(text.replace("broker: local", broker), encoding="utf-8")
    return deaf


def test_without_a_broker_it_ends_with_4(run: Run, work: Path, inventory: Path) -> None:
    # given a port on which nobody listens
    assert inventory.exists()
    listening(work).close()

    # when
    done = run("--connect-timeout", "1s", "plan")

    # then
    assert (done.returncode, done.stdout) == (4, "")
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_it_with_130(work: Path, environ: dict[str, str], inventory: Path) -> None:
    # given a plan that waits for a broker; its socket is closed by the end of the process
    assert inventory.exists()
    environ["PYTHONWARNINGS"] = "error,ignore::ResourceWarning"
    with listening(work) as deaf:
        process = subprocess.Popen(
            [*QCTL, "plan"], cwd=work, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        peer, _ = deaf.accept()

        # when
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
        peer.close()

    # then
    assert (process.returncode, out, error) == (130, "", "qctl: error: interrupted\n")


def test_the_tables_say_when_why_not_and_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    show(Settings(), FOUND)

    out = capsys.readouterr().out
    assert "(in 2m05s)  web-1 200, web-2 500  -" in out
    assert "never (paused)" in out
    assert "web-1/mails paused" in out
    assert "web-3/twitter (what if)" in out
    assert "\nweb-1/twitter runs out first: " in out
    assert out.endswith("\nassumed: web-3 is assumed to run what web-1 runs, one process, with nothing spent\n")


def test_that_nobody_is_heard_is_said_before_anything_else(capsys: pytest.CaptureFixture[str]) -> None:
    silent = "no worker is heard: every host of the inventory is assumed to run, one process each, with nothing spent"
    show(Settings(), replace(FOUND, assumed=(silent, *FOUND.assumed), unheard=True))

    out = capsys.readouterr().out
    assert out.startswith(f"assumed: {silent}\n\nQUEUE ")
    assert out.count(silent) == 1
    assert out.endswith("\nassumed: web-3 is assumed to run what web-1 runs, one process, with nothing spent\n")


def test_json_has_instants_and_seconds_and_names_are_those_of_queues(capsys: pytest.CaptureFixture[str]) -> None:
    show(Settings(output=Output.JSON), FOUND)
    document = json.loads(capsys.readouterr().out)
    assert document["queues"][0]["empty_in_s"] == 125.4
    assert document["queues"][1]["never"] == "paused"
    assert document["first_out"] == {"host": "web-1", "quota": "twitter", "at": document["quotas"][0]["out_at"]}

    show(Settings(output=Output.NAME), FOUND)
    assert capsys.readouterr().out == "timeline\noutbox\n"

    show(Settings(output=Output.JSONL), FOUND)
    kinds = [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["queue", "queue", "quota", "quota"]
