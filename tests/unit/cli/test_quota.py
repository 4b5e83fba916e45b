"""`qctl quota set` and `clear` around what they give: what is asked, when it ends, and with which code they end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qctl.cli import quota
from qctl.cli.options import Output, Settings
from qctl.control.event import Verb
from qctl.control.verdict import Standing
from qctl.errors import BrokerUnreachable, Interrupted, QctlError
from qctl.ops import quotas
from qctl.ops.quotas import Report, Verdict, command, select

DOCUMENT = {
    "version": 1,
    "broker": {"amqp": "amqp://127.0.0.1:5672/", "username": "guest"},
    "quotas": {"twitter": "20000/h"},
    "consumers": {"timeline": {"handler": {"exec": ["true"]}, "quota": {"twitter": 1}}},
    "hosts": {"web-1": {}},
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """One host with one quota."""
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(DOCUMENT), encoding="utf-8")
    monkeypatch.setenv("QCTL_USERNAME", "oncall")
    monkeypatch.setenv("QCTL_PASSWORD", "pw")
    return Settings(inventory=path, output=Output.JSON)


def test_a_duration_begins_when_the_question_is_answered_and_the_question_claims_no_present(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given somebody who takes ten minutes to answer
    now, asked, given = [1_795_354_200.0], [], []
    monkeypatch.setattr("time.time", lambda: now[0])

    def confirm(_inventory: Any, **question: Any) -> None:
        asked.append(question)
        now[0] += 600

    monkeypatch.setattr(quota, "confirm", confirm)
    monkeypatch.setattr(quota, "_run", lambda *arguments: given.append(arguments) or 0)

    # when
    quota.set_.callback.__wrapped__(  # type: ignore[union-attr]
        settings, "web-1/twitter", ("5/h",), 3600.0, None, reason=None, dry_run=False, yes=False, timeout=5.0
    )

    # then it lasts an hour from the answer on
    [(_, _, _, wanted, what, _)] = given
    assert wanted.until_s == now[0] + 3600
    assert what != asked[0]["what"]
    # and what is said of the inventory is not said of what holds now
    assert asked[0]["names"] == ["web-1/twitter, 20000/h by the inventory"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (BrokerUnreachable("lost"), 4), (Interrupted("interrupted"), 130)],
)
def test_the_exit_code_of_the_document_is_that_of_the_process(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: QctlError | None,
    code: int,
) -> None:
    # given a command that is confirmed and proven before it ends so
    inventory = settings.load()
    selection = select(inventory, "web-1/twitter")
    wanted = command(selection, Verb.QUOTA_CLEAR, identity="a" * 32, now_s=0.0)
    report = Report(selection, wanted, "oncall", True, (Verdict("web-1", "twitter", Standing.PROVEN),))

    async def run(*_: Any, **__: Any) -> Report:
        if error is not None:
            raise error
        return report

    monkeypatch.setattr(quotas, "Setting", lambda *_: SimpleNamespace(run=run, report=report))

    # when
    ended = 0
    try:
        ended = quota._run(settings, inventory, selection, wanted, "clear", 5.0)
    except QctlError as failure:
        ended = failure.exit_code

    # then
    assert ended == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code
