"""What counts as proof: the truth table, and what a report makes of the evidence of several processes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from qctl.control.answer import Answer, Remains, Row
from qctl.control.event import Verb
from qctl.control.host_answer import ProcessLook, ProcessState
from qctl.control.target import Target
from qctl.control.verdict import (
    Expected,
    Heard,
    HostEvidence,
    Standing,
    Supervisor,
    Verdict,
    judge,
    judge_process,
    judge_row,
)

CONFIRMED_S = 1_000.0
TIMELINE = Expected("web-1", "timeline", "timeline")
TARGET = Target("web-1", "timeline")
STOPPED = Row("timeline", "timeline", "qctl/web-1/timeline/0", "paused", "by oncall", 1_000.2, 1, 7)


def look(index: int, pid: int, state: ProcessState = ProcessState.CONNECTED) -> ProcessLook:
    return ProcessLook(index, pid, state, "2026-11-22T21:00:00Z")


def answer(
    row: Row | None = STOPPED, *, index: int = 0, pid: int = 10, refused: str = "", event: str = "one"
) -> Answer:
    tag = f"qctl/web-1/timeline/{index}"
    return Answer(event, "web-1", index, pid, () if row is None else (replace(row, tag=tag),), refused=refused)


def pause(
    evidence: HostEvidence, expected: tuple[Expected, ...] = (TIMELINE,), targets: tuple[Target, ...] = (TARGET,)
) -> tuple[Verdict, ...]:
    return judge(Verb.PAUSE, targets, expected, {"web-1": evidence}, confirmed_at_s=CONFIRMED_S)


def standings(rows: tuple[Verdict, ...]) -> dict[str, Standing]:
    return {row.tag.removeprefix("qctl/web-1/timeline/"): row.standing for row in rows}


class TestProcess:
    """`judge_process`: every combination of evidence."""

    @pytest.mark.parametrize("heard", Heard)
    @pytest.mark.parametrize("supervisor", Supervisor)
    def test_the_whole_table(self, supervisor: Supervisor, heard: Heard) -> None:
        cannot_run = (None, ProcessState.ENDED, ProcessState.STARTING, ProcessState.DISCONNECTED)
        for answers, refused, state, listed in product(
            (0, 1, 2), (False, True), (None, *ProcessState), (None, False, True)
        ):
            # given any evidence about a process that has two commands to answer
            standing, _ = judge_process(
                answers, 2, refused=refused, state=state, supervisor=supervisor, heard=heard, listed=listed
            )

            # then its own answer to both decides, else who would know whether it can be alive
            if answers == 2:
                wanted = Standing.REFUSED if refused else Standing.PROVEN
            elif supervisor is Supervisor.ANSWERS:
                wanted = Standing.DOWN if state in cannot_run else Standing.UNPROVEN
            elif supervisor is Supervisor.NOBODY and (
                heard is Heard.GOODBYE
                or (heard is Heard.SILENT and listed is False)
                or (heard is Heard.NEVER and not listed)
            ):
                wanted = Standing.DOWN
            else:
                wanted = Standing.UNPROVEN
            assert standing is wanted, (answers, refused, state, listed)

    @pytest.mark.parametrize("state", [None, ProcessState.ENDED])
    def test_a_process_that_its_supervisor_has_buried_or_forgotten_has_ended(self, state: ProcessState | None) -> None:
        standing, words = judge_process(
            0, 1, refused=False, state=state, supervisor=Supervisor.ANSWERS, heard=Heard.UNKNOWN, listed=None
        )
        assert (standing, words) == (Standing.DOWN, "the process has ended; the next one obeys when it starts")

    def test_whatever_is_not_proven_has_words(self) -> None:
        for supervisor, heard, state in product(Supervisor, Heard, (None, *ProcessState)):
            _, words = judge_process(0, 1, refused=False, state=state, supervisor=supervisor, heard=heard, listed=None)
            assert words


class TestRow:
    """`judge_row`: what a process says of a subscription."""

    @pytest.mark.parametrize("state", ["paused", "draining", "down"])
    def test_a_pause_is_proven_by_a_stopped_one(self, state: str) -> None:
        assert judge_row(Verb.PAUSE, replace(STOPPED, state=state))[0] is Standing.PROVEN

    @pytest.mark.parametrize("state", ["consuming", "held", "", "Paused", "unheard of"])
    def test_anything_else_proves_no_pause(self, state: str) -> None:
        assert judge_row(Verb.PAUSE, replace(STOPPED, state=state))[0] is Standing.UNPROVEN

    @pytest.mark.parametrize("state", ["consuming", "held", "paused", "down"])
    def test_a_resume_is_proven_by_any_answer(self, state: str) -> None:
        assert judge_row(Verb.RESUME, replace(STOPPED, state=state))[0] is Standing.PROVEN

    def test_what_remains_of_pauses_is_named(self) -> None:
        left = Remains("id", "web-1", "deploy", "release", "2026-11-22T22:00:00Z")
        _, words = judge_row(Verb.RESUME, replace(STOPPED, remains=(left,)))
        assert words == "still paused: web-1 by deploy until 2026-11-22T22:00:00Z (release)"


class TestHost:
    """`judge`: the rows of a host."""

    def test_each_process_that_has_answered_is_a_row(self) -> None:
        rows = pause(
            HostEvidence(
                Supervisor.ANSWERS,
                (look(0, 10), look(1, 11)),
                answers={(0, 10): (answer(),), (1, 11): (answer(index=1, pid=11),)},
            )
        )
        assert standings(rows) == {"0": Standing.PROVEN, "1": Standing.PROVEN}
        assert (rows[0].state, rows[0].cancelled_at_s, rows[0].running, rows[0].given_back) == ("paused", 1_000.2, 1, 7)

    def test_a_connected_process_that_is_silent_is_unproven_and_says_until_when(self) -> None:
        rows = pause(
            HostEvidence(Supervisor.ANSWERS, (look(0, 10), look(1, 11)), answers={(0, 10): (answer(),)}, heartbeat_s=7)
        )
        assert standings(rows) == {"0": Standing.PROVEN, "1": Standing.UNPROVEN}
        assert rows[1].may_start_until_s == CONFIRMED_S + 14
        assert rows[1].state == "unproven"

    def test_an_answer_of_an_earlier_process_proves_nothing_of_its_successor(self) -> None:
        rows = pause(HostEvidence(Supervisor.ANSWERS, (look(0, 99),), answers={(0, 10): (answer(),)}))
        assert standings(rows) == {"0": Standing.UNPROVEN}

    def test_a_process_that_ended_without_an_answer_gives_way_to_its_successor(self) -> None:
        looks = (look(0, 10, ProcessState.ENDED), look(0, 99))
        rows = pause(HostEvidence(Supervisor.ANSWERS, looks, answers={(0, 99): (answer(pid=99),)}))
        assert standings(rows) == {"0": Standing.PROVEN}

    def test_who_has_not_said_how_many_processes_there_are_leaves_the_others_open(self) -> None:
        for supervisor in (Supervisor.SILENT, Supervisor.NOBODY):
            for heard in Heard:
                rows = pause(HostEvidence(supervisor, heard=heard, listed=False, answers={(0, 10): (answer(),)}))
                assert standings(rows) == {"0": Standing.PROVEN, "*": Standing.UNPROVEN}

    def test_without_a_supervisor_the_processes_of_its_last_reading_are_waited_for(self) -> None:
        evidence = HostEvidence(Supervisor.NOBODY, heard=Heard.SPEAKS, spoke=((0, 10), (1, 11)))
        assert standings(pause(evidence)) == {"0": Standing.UNPROVEN, "1": Standing.UNPROVEN}

    def test_a_host_that_is_down_is_one_row(self) -> None:
        rows = pause(HostEvidence(Supervisor.NOBODY, heard=Heard.GOODBYE))
        assert [(row.tag, row.state) for row in rows] == [("qctl/web-1/timeline/*", "down")]
        assert rows[0].may_start_until_s is None

    def test_a_host_of_which_nothing_was_gathered_is_unproven(self) -> None:
        rows = judge(Verb.PAUSE, (TARGET,), (TIMELINE,), {}, confirmed_at_s=CONFIRMED_S)
        assert standings(rows) == {"*": Standing.UNPROVEN}

    def test_a_process_that_runs_nothing_of_it_is_no_row_where_another_does(self) -> None:
        looks = (look(0, 10), look(1, 11))
        answers = {(0, 10): (answer(),), (1, 11): (answer(None, index=1, pid=11),)}
        assert standings(pause(HostEvidence(Supervisor.ANSWERS, looks, answers=answers))) == {"0": Standing.PROVEN}

    def test_what_no_process_of_the_host_runs_is_down(self) -> None:
        evidence = HostEvidence(Supervisor.ANSWERS, (look(0, 10),), answers={(0, 10): (answer(None),)})
        assert standings(pause(evidence)) == {"*": Standing.DOWN}

    def test_a_host_without_a_process_is_down(self) -> None:
        assert standings(pause(HostEvidence(Supervisor.ANSWERS))) == {"*": Standing.DOWN}

    def test_a_tag_of_one_process_does_not_wait_for_the_others(self) -> None:
        one = replace(TIMELINE, index=1)
        target = Target(tag="qctl/web-1/timeline/1")
        looks = (look(0, 10), look(1, 11))
        evidence = HostEvidence(Supervisor.ANSWERS, looks, answers={(1, 11): (answer(index=1, pid=11),)})
        assert standings(pause(evidence, (one,), (target,))) == {"1": Standing.PROVEN}

    def test_a_tag_whose_process_the_host_does_not_have_is_down(self) -> None:
        one = replace(TIMELINE, index=7)
        evidence = HostEvidence(Supervisor.ANSWERS, (look(0, 10),), answers={(0, 10): (answer(None),)})
        rows = pause(evidence, (one,), (Target(tag="qctl/web-1/timeline/7"),))
        assert standings(rows) == {"7": Standing.DOWN}

    def test_of_two_commands_both_must_be_answered(self) -> None:
        targets = (TARGET, Target("web-1"))
        given = HostEvidence(Supervisor.ANSWERS, (look(0, 10),), answers={(0, 10): (answer(),)})
        assert standings(pause(given, targets=targets)) == {"0": Standing.UNPROVEN}
        both = replace(given, answers={(0, 10): (answer(), answer(replace(STOPPED, cancelled_at_s=None), event="two"))})
        rows = pause(both, targets=targets)
        assert standings(rows) == {"0": Standing.PROVEN}
        assert rows[0].cancelled_at_s == 1_000.2  # the first one cancelled it

    def test_a_command_for_another_host_need_not_be_answered_by_this_one(self) -> None:
        evidence = HostEvidence(Supervisor.ANSWERS, (look(0, 10),), answers={(0, 10): (answer(),)})
        assert standings(pause(evidence, targets=(TARGET, Target("web-2")))) == {"0": Standing.PROVEN}

    def test_who_refuses_says_why(self) -> None:
        refused = answer(refused="user mallory is not an operator")
        rows = pause(HostEvidence(Supervisor.ANSWERS, (look(0, 10),), answers={(0, 10): (refused,)}))
        assert [(row.state, row.standing, row.words) for row in rows] == [
            ("refused", Standing.REFUSED, "user mallory is not an operator")
        ]

    def test_a_refusal_without_rows_is_not_lost(self) -> None:
        refused = answer(None, refused="not understood")
        rows = pause(HostEvidence(Supervisor.ANSWERS, (look(0, 10),), answers={(0, 10): (refused,)}))
        assert standings(rows) == {"0": Standing.REFUSED}
        assert "not understood" in rows[0].words

    def test_a_host_that_the_inventory_does_not_know_is_shown_by_its_answers(self) -> None:
        evidence = HostEvidence(Supervisor.ANSWERS, (look(0, 10),), answers={(0, 10): (answer(),)})
        rows = judge(Verb.PAUSE, (Target(consumer="timeline"),), (), {"web-1": evidence}, confirmed_at_s=CONFIRMED_S)
        assert standings(rows) == {"0": Standing.PROVEN}


def test_who_answers_for_a_process_without_being_it_is_named() -> None:
    # given a process that is connected, and an answer of another user
    evidence = HostEvidence(Supervisor.ANSWERS, (look(0, 10),), strangers={(0, 10): "w3"})
    (row,) = pause(evidence)
    # then it proves nothing, and the row says so
    assert row.standing is Standing.UNPROVEN
    assert row.words == "process 10 answered as w3, not as its supervisor says"


@pytest.mark.parametrize(
    ("evidence", "may_run"),
    [
        (HostEvidence(Supervisor.ANSWERS, (look(0, 10, ProcessState.DISCONNECTED),)), True),
        (HostEvidence(Supervisor.ANSWERS, (look(0, 10, ProcessState.STARTING),)), False),
        (HostEvidence(Supervisor.ANSWERS, (look(0, 10, ProcessState.ENDED),)), False),
        (HostEvidence(Supervisor.ANSWERS), False),
        (HostEvidence(Supervisor.NOBODY, heard=Heard.GOODBYE), False),
        (HostEvidence(Supervisor.NOBODY, heard=Heard.NEVER), False),
        (HostEvidence(Supervisor.NOBODY, heard=Heard.SILENT, listed=False), True),
    ],
    ids=["disconnected", "starting", "ended", "none", "goodbye", "never", "silent"],
)
def test_what_is_down_may_run_what_it_began_unless_it_has_ended(evidence: HostEvidence, may_run: bool) -> None:
    (row,) = pause(evidence)
    assert (row.standing, row.may_run) == (Standing.DOWN, may_run)


def test_a_process_that_the_host_does_not_have_is_told_with_those_that_it_has() -> None:
    seventh = replace(TIMELINE, index=7)
    evidence = HostEvidence(Supervisor.ANSWERS, (look(0, 10), look(1, 11)))
    (row,) = pause(evidence, (seventh,), (Target(tag="qctl/web-1/timeline/7"),))
    assert (row.tag, row.standing) == ("qctl/web-1/timeline/7", Standing.DOWN)
    assert row.words == "the host has no process 7 now, only 0 to 1; it obeys when it starts"
