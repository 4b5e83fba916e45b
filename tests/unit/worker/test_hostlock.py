"""Who runs as a host on this machine, what an answer from another one may say, and what a former name left behind."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from qctl.errors import HostTaken
from qctl.quota import Leases, Ledger, Limit, Policy
from qctl.quota.ledger import EVIDENCE_MAX
from qctl.worker.child import is_below
from qctl.worker.claim import Holder, parse_holder
from qctl.worker.former import former_hosts
from qctl.worker.hostlock import HostLock, is_run

POLICY = Policy("api", (Limit(10, 3600 * 10**9),))
SHORT = Policy("api", (Limit(10, 1_000_000),))


def spend(state: Path, host: str, policy: Policy = POLICY) -> None:
    """Have a host spend a unit."""
    with Leases.open(state / host, [policy]) as leases:
        grant = leases.acquire(leases.register("calls", {"api": 1}))
        leases.settle(grant)  # type: ignore[arg-type]


# The lock


def test_given_a_host_that_runs_then_a_second_start_is_refused_and_names_the_process(tmp_path: Path) -> None:
    lock = HostLock(tmp_path, "web-1")

    with pytest.raises(HostTaken) as taken:
        HostLock(tmp_path, "web-1")

    assert f"by process {os.getpid()} since 20" in taken.value.message
    assert is_run(tmp_path / "web-1")
    lock.release()
    assert not is_run(tmp_path / "web-1")
    HostLock(tmp_path, "web-1").release()


def test_given_a_supervisor_that_was_killed_then_its_name_is_free(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from qctl.worker.hostlock import HostLock; "
        "lock = HostLock(pathlib.Path(sys.argv[1]), 'web-1'); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_run(tmp_path / "web-1")

        holder.kill()
        holder.wait()

    assert not is_run(tmp_path / "web-1")
    HostLock(tmp_path, "web-1").release()


# The holder's answer


def test_given_an_answer_then_it_says_machine_process_and_since_when() -> None:
    body = json.dumps({"machine": "box", "pid": 17, "since": "2026", "run": "r", "more": 1}).encode()

    assert parse_holder(body) == Holder("box", 17, "2026", "r")
    assert str(parse_holder(body)) == "machine box, process 17, since 2026"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"17", b'{"machine": "box"}', b'{"machine": 1, "since": 2, "run": 3, "pid": "x"}', b"{" * 9_000],
)
def test_given_what_is_no_answer_then_the_holder_is_not_known(body: bytes) -> None:
    assert parse_holder(body) is None


def test_given_an_answer_with_control_characters_then_none_of_them_is_shown() -> None:
    found = parse_holder(
        json.dumps({"machine": "a\x1b[2Jb\n" + "x" * 2_000, "pid": 1, "since": "s", "run": "r"}).encode()
    )

    assert found is not None
    assert "\x1b" not in str(found)
    assert "\n" not in str(found)
    assert len(str(found)) < 600


# A former name


def test_given_a_former_name_that_spent_then_it_is_found_and_always_with_the_same_evidence(tmp_path: Path) -> None:
    spend(tmp_path, "old")

    first, second = (former_hosts(tmp_path, "new", {"new"}) for _ in range(2))

    assert [one.host for one in first] == ["old"]
    assert first == second


def test_given_a_former_name_that_spent_again_then_it_is_other_evidence(tmp_path: Path) -> None:
    spend(tmp_path, "old")
    before = former_hosts(tmp_path, "new", {"new"})

    spend(tmp_path, "old")

    assert former_hosts(tmp_path, "new", {"new"}) != before


def test_given_a_former_name_as_long_as_can_be_then_other_spending_is_other_evidence(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        spend(tmp_path, "o" * 200)
        (one,) = former_hosts(tmp_path, "new", {"new"})
        seen.append(one.evidence[:EVIDENCE_MAX])  # as much as a ledger keeps

    assert seen[0] != seen[1]


def test_given_hosts_of_the_inventory_then_they_are_no_former_names(tmp_path: Path) -> None:
    spend(tmp_path, "web-1")
    spend(tmp_path, "web-2")

    assert former_hosts(tmp_path, "web-1", {"web-1", "web-2"}) == ()


def test_given_a_former_name_whose_spending_counts_no_more_then_it_does_not_matter(tmp_path: Path) -> None:
    spend(tmp_path, "old", SHORT)

    assert former_hosts(tmp_path, "new", {"new"}) == ()


def test_given_a_former_name_that_runs_then_it_is_somebody_elses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spend(tmp_path, "old")
    lock = HostLock(tmp_path, "old")

    assert former_hosts(tmp_path, "new", {"new"}) == ()
    assert "host old runs on this machine and is not in the inventory: is it new?" in caplog.text
    lock.release()


def test_given_a_former_ledger_that_cannot_be_read_then_everything_may_be_spent(tmp_path: Path) -> None:
    (tmp_path / "old" / "ledger.sqlite").mkdir(parents=True)
    (tmp_path / "old").chmod(0o700)
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "ledger.sqlite").write_bytes(b"")
    (tmp_path / "older").chmod(0o777)

    (tmp_path / "none").mkdir()

    assert [one.host for one in former_hosts(tmp_path, "new", {"new"})] == ["old", "older"]


def garbage(folder: Path) -> None:
    (folder / "ledger.sqlite").write_bytes(b"garbage" * 1_000)


def gone(folder: Path) -> None:
    (folder / "ledger.sqlite").unlink()


def replaced_by_who_looked(folder: Path) -> None:
    garbage(folder)
    Ledger.open(folder).close()


@pytest.mark.parametrize("damage", [garbage, gone, replaced_by_who_looked])
def test_given_a_former_ledger_that_is_lost_then_everything_may_be_spent_and_it_is_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    spend(tmp_path, "old", SHORT)
    damage(tmp_path / "old")
    before = {path.name for path in (tmp_path / "old").iterdir()}

    first, second = (former_hosts(tmp_path, "new", {"new"}) for _ in range(2))

    assert [one.host for one in first] == ["old"]
    assert first == second
    assert {path.name for path in (tmp_path / "old").iterdir()} == before


def test_given_a_reboot_then_the_spending_of_a_former_name_still_counts_and_is_the_same_evidence(
    tmp_path: Path,
) -> None:
    # Given a former name that spent before the reboot, and one whose spending counted no more by then; the clock had
    # come further than it is now
    spend(tmp_path, "old")
    spend(tmp_path, "older", SHORT)
    for name, unseen_ns in (("old", 0), ("older", 10**12)):
        with closing(sqlite3.connect(tmp_path / name / "ledger.sqlite")) as ledger, ledger:
            ledger.execute("UPDATE spent SET expires_ns = expires_ns + ?", (10**15,))
            ledger.execute("UPDATE meta SET boot_id = 'another', seen_ns = seen_ns + ?", (10**15 + unseen_ns,))

    first, second = (former_hosts(tmp_path, "new", {"new"}) for _ in range(2))

    assert [one.host for one in first] == ["old"]
    assert first == second


def test_given_somebody_who_looks_whether_a_name_is_run_then_its_supervisor_starts_all_the_same(tmp_path: Path) -> None:
    HostLock(tmp_path, "web-1").release()
    with (tmp_path / "web-1" / "supervisor.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        over = threading.Timer(0.15, fcntl.flock, (looking, fcntl.LOCK_UN))
        over.start()

        HostLock(tmp_path, "web-1").release()
        over.join()


# Whose process it is


def test_given_a_process_below_us_then_it_is_ours_and_nobody_elses() -> None:
    script = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); input(); p.kill()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())

        assert is_below(child.pid, os.getpid())
        assert is_below(grandchild, os.getpid())
        assert not is_below(os.getpid(), child.pid)
        assert not is_below(os.getpid(), os.getpid())
        assert not is_below(1, os.getpid())
        child.communicate("\n")
    assert not is_below(child.pid, os.getpid())
