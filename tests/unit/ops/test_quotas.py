"""`qctl quota set` and `clear`: what is meant, and what is proven of it; from built values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qctl.control.answer import Answer, QuotaRow
from qctl.control.event import Record, Verb, read
from qctl.control.host_answer import ProcessLook, ProcessState
from qctl.control.verdict import Heard, HostEvidence, Standing, Supervisor
from qctl.errors import Exit, UnknownName, UsageError
from qctl.inventory.load import load
from qctl.inventory.model import Inventory, Window
from qctl.ops.quotas import Report, Verdict, command, cut_bursts, judge, rates_of, select, too_dear

PAIR = (("web-1", "twitter"),)


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    """Three hosts, two quotas; a task of `big` costs ten units."""
    handler = {"exec": ["true"]}
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:5672/", "username": "guest"},
        "quotas": {"twitter": "20000/h", "mail": "500/d"},
        "consumers": {
            "timeline": {"handler": handler, "quota": {"twitter": 1}},
            "big": {"handler": handler, "quota": {"twitter": 10}},
        },
        "hosts": {"web-1": {}, "web-2": {"consumers": {"timeline": {}}}, "db-1": {}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


def answered(*rates: str, index: int = 0, pid: int = 1, refused: str = "", **quota: Any) -> Answer:
    """A process that says which limits hold for it."""
    row = QuotaRow("twitter", rates, quota.get("override", {}))
    return Answer("a" * 32, "web-1", index, pid, quotas=(row,) if rates else (), refused=refused)


def evidence(*answers: Answer, looks: tuple[ProcessLook, ...] = (), **more: Any) -> dict[str, HostEvidence]:
    """What was gathered of web-1."""
    by_process = {(one.index, one.pid): (one,) for one in answers}
    known = looks or tuple(ProcessLook(one.index, one.pid, ProcessState.CONNECTED, "") for one in answers)
    supervisor = Supervisor.ANSWERS if known else Supervisor.SILENT
    return {"web-1": HostEvidence(**{"supervisor": supervisor, "looks": known, "answers": by_process, **more})}


def test_a_name_means_one_quota_and_a_pattern_those_that_match(inventory: Inventory) -> None:
    assert select(inventory, "web-1/twitter").pairs == PAIR
    assert select(inventory, "web-*/twitter").pairs == (("web-1", "twitter"), ("web-2", "twitter"))
    assert select(inventory, "*/*").anywhere
    assert not select(inventory, "web-1/*").anywhere


@pytest.mark.parametrize(
    ("named", "kind", "hint"),
    [
        ("web-1/twiter", UnknownName, "twitter"),
        ("wep-1/twitter", UnknownName, "web-1"),
        ("web-1", UsageError, "*/twitter"),
        ("web-1/twitter/x", UsageError, ""),
        ("/twitter", UsageError, ""),
        ("mx-*/twitter", UsageError, ""),
        ("web 1/twitter", UsageError, ""),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_name(
    inventory: Inventory, named: str, kind: type[UsageError], hint: str
) -> None:
    with pytest.raises(kind) as refused:
        select(inventory, named)
    assert hint in refused.value.hint


def test_rates_are_written_as_in_inventories(inventory: Inventory) -> None:
    assert rates_of(("300/15m", "20000/1h", "300/15m")) == ("300/15m", "20000/h")
    with pytest.raises(UsageError, match="expected a rate"):
        rates_of(("many",))
    with pytest.raises(UsageError, match="at most 8"):
        rates_of(tuple(f"{number}/s" for number in range(1, 10)))


def test_consumers_whose_tasks_cost_more_than_the_new_limit_are_named(inventory: Inventory) -> None:
    [warning] = too_dear(inventory, select(inventory, "web-*/twitter"), ("100/h", "5/m"))
    assert warning == "web-1/big: a task is expected to need 10 units of twitter, more than 5"
    assert too_dear(inventory, select(inventory, "*/twitter"), ("10/m",)) == ()
    assert too_dear(inventory, select(inventory, "*/twitter"), ()) == ()


def test_bursts_that_the_new_limit_cuts_are_named(inventory: Inventory) -> None:
    # given a quota that is paced on one host, with a burst of 5
    host = inventory.hosts["web-1"]
    paced = replace(host.quotas["twitter"], window=Window.PACED, burst=5)
    fleet = replace(inventory, hosts={**inventory.hosts, "web-1": replace(host, quotas={"twitter": paced})})
    both = select(inventory, "web-*/twitter")

    [warning] = cut_bursts(fleet, both, ("100/h", "3/m"))
    assert warning == "web-1/twitter: its burst of 5 units is more than the limit: 3 hold"
    assert cut_bursts(fleet, both, ("5/m",)) == ()


def test_the_command_says_on_the_wire_what_was_meant(inventory: Inventory) -> None:
    # given
    selection = select(inventory, "web-*/twitter")
    wanted = command(
        selection, Verb.QUOTA_SET, identity="a" * 32, now_s=1_795_354_200.0, rates=("5/m",), reason="gentle"
    )

    # then who reads it understands the same
    found = read(Record(3, "qctl.control", "a" * 32, "oncall", wanted.body()))
    assert found.verb is Verb.QUOTA_SET
    assert (found.scope, found.rates, found.reason) == (selection.scope, ("5/m",), "gentle")


def test_what_all_processes_say_is_proven() -> None:
    [row] = judge(PAIR, ("5/m",), evidence(answered("5/1m"), answered("5/m", index=1, pid=2)))

    assert (row.standing, row.limits, row.override, row.processes) == (Standing.PROVEN, ("5/1m", "5/m"), True, 2)


def test_a_process_for_which_another_limit_holds_has_proven_nothing() -> None:
    [row] = judge(PAIR, ("5/m",), evidence(answered("5/m"), answered("20000/h", index=1, pid=2)))

    assert row.standing is Standing.UNPROVEN
    assert "20000/h holds" in row.words


def test_one_process_that_is_silent_leaves_it_unproven() -> None:
    looks = (ProcessLook(0, 1, ProcessState.CONNECTED, ""), ProcessLook(1, 2, ProcessState.CONNECTED, ""))

    [row] = judge(PAIR, ("5/m",), evidence(answered("5/m"), looks=looks))
    assert row.standing is Standing.UNPROVEN


@pytest.mark.parametrize(
    ("state", "standing"),
    [
        (ProcessState.STARTING, Standing.PROVEN),
        (ProcessState.DISCONNECTED, Standing.PROVEN),
        (ProcessState.ENDED, Standing.PROVEN),
        (ProcessState.CONNECTED, Standing.UNPROVEN),
    ],
)
def test_a_process_that_obeys_before_it_consumes_does_not_stand_in_the_way(
    state: ProcessState, standing: Standing
) -> None:
    looks = (ProcessLook(0, 1, ProcessState.CONNECTED, ""), ProcessLook(1, 2, state, ""))

    [row] = judge(PAIR, ("5/m",), evidence(answered("5/m"), looks=looks))
    assert row.standing is standing


def test_a_host_without_processes_is_down_and_one_that_is_silent_is_unproven() -> None:
    gone = {"web-1": HostEvidence(supervisor=Supervisor.ANSWERS)}
    silent = {"web-1": HostEvidence(supervisor=Supervisor.SILENT)}
    goodbye = {"web-1": HostEvidence(supervisor=Supervisor.NOBODY, heard=Heard.GOODBYE)}

    assert judge(PAIR, (), gone)[0].standing is Standing.DOWN
    assert judge(PAIR, (), silent)[0].standing is Standing.UNPROVEN
    assert judge(PAIR, (), goodbye)[0].standing is Standing.DOWN
    assert judge(PAIR, (), {})[0].standing is Standing.UNPROVEN


def test_answers_alone_do_not_prove_a_host_that_may_have_more_processes() -> None:
    for supervisor, heard in ((Supervisor.SILENT, Heard.UNKNOWN), (Supervisor.NOBODY, Heard.SILENT)):
        found = evidence(answered("5/m"), supervisor=supervisor, heard=heard)

        assert judge(PAIR, ("5/m",), found)[0].standing is Standing.UNPROVEN


def test_a_process_that_refuses_says_why() -> None:
    [row] = judge(PAIR, ("5/m",), evidence(answered(refused="user mallory is not an operator")))

    assert (row.standing, row.words) == (Standing.REFUSED, "user mallory is not an operator")


def test_a_process_that_does_not_spend_the_quota_has_proven_it_too() -> None:
    [row] = judge(PAIR, ("5/m",), evidence(answered()))

    assert (row.standing, row.words) == (Standing.PROVEN, "nothing that it runs spends it")


@pytest.mark.parametrize(
    ("standings", "code"),
    [
        ((Standing.PROVEN, Standing.DOWN), Exit.DONE),
        ((Standing.DOWN,), Exit.DONE),
        ((Standing.PROVEN, Standing.UNPROVEN), Exit.PARTLY),
        ((Standing.PROVEN, Standing.REFUSED), Exit.PARTLY),
        ((Standing.DOWN, Standing.UNPROVEN), Exit.FAILED),
        ((Standing.REFUSED,), Exit.REFUSED),
    ],
)
def test_the_exit_code_says_how_much_is_proven(
    inventory: Inventory, standings: tuple[Standing, ...], code: Exit
) -> None:
    selection = select(inventory, "*/twitter")
    wanted = command(selection, Verb.QUOTA_CLEAR, identity="a" * 32, now_s=0.0)
    rows = tuple(Verdict("web-1", "twitter", standing) for standing in standings)

    assert Report(selection, wanted, "oncall", True, rows).exit_code is code
