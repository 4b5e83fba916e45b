"""What should be, folded from the hellos: the ledger that each host spends from, and who says hello for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qctl.control.desired import Desired, Reign, fold
from qctl.control.event import Hello


def hellos(*said: tuple[str, str]) -> list[Hello]:
    """(host, ledger) as hellos with the nonces 0, 1, 2, ..."""
    return [Hello(str(n), host, 0, ledger, "box", 1) for n, (host, ledger) in enumerate(said)]


def folded(*said: tuple[str, str]) -> Desired:
    events, half = hellos(*said), len(said) // 2
    return fold(fold(Desired(), events[:half]), events[half:])


def test_given_a_first_hello_then_no_ledger_came_before() -> None:
    assert folded(("web-1", "a")).reigns == {"web-1": Reign("a", "0", None)}


def test_given_more_hellos_with_the_same_ledger_then_its_reign_goes_on() -> None:
    assert folded(("web-1", "a"), ("web-1", "a"), ("web-1", "a")).reigns["web-1"] == Reign("a", "0", None)


def test_given_another_ledger_then_its_reign_begins_with_its_first_hello_and_knows_the_one_before() -> None:
    assert folded(("web-1", "a"), ("web-1", "b"), ("web-1", "b")).reigns["web-1"] == Reign("b", "1", "a")


def test_given_a_ledger_that_comes_back_then_it_is_another_reign() -> None:
    assert folded(("web-1", "a"), ("web-1", "b"), ("web-1", "a")).reigns["web-1"] == Reign("a", "2", "b")


def test_given_another_user_who_says_hello_then_the_reign_goes_on_with_that_one() -> None:
    events = [Hello("0", "web-1", 0, "a", "box", 1, user=user) for user in ("first", "second")]

    assert fold(Desired(), events).reigns["web-1"] == Reign("a", "0", None, "second")


def test_given_other_hosts_then_each_has_its_own() -> None:
    found = folded(("web-1", "a"), ("web-2", "b"), ("web-1", "a"))

    assert found.reigns == {"web-1": Reign("a", "0", None), "web-2": Reign("b", "1", None)}


@given(st.lists(st.tuples(st.sampled_from(["web-1", "web-2"]), st.sampled_from("abc")), max_size=30))
def test_a_reign_begins_exactly_where_the_host_said_another_ledger_than_before(said: list[tuple[str, str]]) -> None:
    found = folded(*said)

    for host in {host for host, _ in said}:
        own = [(str(n), ledger) for n, (name, ledger) in enumerate(said) if name == host]
        changes = [(nonce, ledger) for k, (nonce, ledger) in enumerate(own) if k == 0 or own[k - 1][1] != ledger]
        before = changes[-2][1] if len(changes) > 1 else None
        assert found.reigns[host] == Reign(changes[-1][1], changes[-1][0], before)
