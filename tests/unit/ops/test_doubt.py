"""Which letters may lie there still though they are done with."""

from __future__ import annotations

from qctl.broker.walk import WINDOW
from qctl.ops.afterlife import Act, Report
from qctl.ops.doubt import MAX_IN_DOUBT, Doubt


def doubt_of(*keys: str) -> Doubt:
    found = Doubt()
    for key in keys:
        found.note_done(key)
    return found


def test_without_a_loss_no_letter_is_one_that_is_done_with() -> None:
    doubt = doubt_of("a", "a")
    assert not doubt.take_back("a")
    assert doubt.count == 2


def test_after_a_loss_each_that_was_done_can_come_back_once() -> None:
    # Given a loss, and what was done after it
    doubt = doubt_of("a", "b", "b")
    doubt.note_lost()
    doubt.note_done("c")

    # Then what was done before it can come back, as often as it was done
    assert [doubt.take_back(key) for key in ("a", "a", "b", "b", "b", "c")] == [True, False, True, True, False, False]
    assert (doubt.is_alike("a"), doubt.is_alike("b")) == (False, True)

    # and what was done since can after the next one
    doubt.note_lost()
    assert doubt.take_back("c")


def test_what_the_broker_is_known_to_have_does_not_come_back() -> None:
    doubt = doubt_of("a", "b")
    doubt.note_proven()
    doubt.note_lost()
    assert (doubt.take_back("a"), doubt.count) == (False, 0)


def test_it_stays_small_and_keeps_the_newest() -> None:
    names = [str(number) for number in range(MAX_IN_DOUBT + 10)]
    doubt = doubt_of(*names)
    doubt.note_lost()
    assert (doubt.take_back(names[0]), doubt.take_back(names[-1]), doubt.count) == (False, True, WINDOW)
    for name in names:
        doubt.note_done(name)
        doubt.note_sent(name, name)
        doubt.note_lost()
    assert doubt.take_back(names[-1])
    assert (doubt.name_of(names[0]), doubt.name_of(names[-1])) == (None, names[-1])


def test_a_letter_without_an_id_goes_out_under_the_one_it_had() -> None:
    doubt = Doubt()
    doubt.note_sent("a", "first")
    doubt.note_sent("a", "second")
    assert [doubt.name_of("a") for _ in range(3)] == ["second", "first", None]


def test_what_was_dropped_may_lie_there_and_what_was_replayed_be_there_twice() -> None:
    told = [Report(act, "work.dead", 10, 10, 3, 0, 1.0).words for act in Act]
    assert told == [
        "replayed 10 of 10; 3 of them may be there twice",
        "dropped 10 of 10; 3 of them may still lie there",
    ]
