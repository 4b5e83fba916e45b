"""Where a ledger may live."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qctl.errors import Exit, StateError
from qctl.quota import Ledger, check_directory, directory
from qctl.quota.directory import file_system, is_network

MOUNTS = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:20 / /proc rw,nosuid shared:5 - proc proc rw
30 21 0:40 / /srv rw,relatime shared:9 - nfs4 filer:/export rw,vers=4.2
31 30 0:41 / /srv/local\\040disk rw shared:10 - xfs /dev/sdb rw
32 21 0:42 / /home/me/far rw,nosuid shared:11 - fuse.sshfs me@far:/ rw
33 21 0:43 / /var/lib rw - 9p share rw
34 21 0:44 / /var/lib rw - tmpfs tmpfs rw
35 21 0:45 / /mnt/usb rw - fuseblk /dev/sdc rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/var/tmp/qctl", "ext4", False),
        ("/srv/qctl/web-1", "nfs4", True),
        ("/srv/local disk/qctl", "xfs", False),
        ("/srvother", "ext4", False),
        ("/home/me/far/qctl", "fuse.sshfs", True),
        ("/var/lib/qctl", "tmpfs", False),
        ("/mnt/usb/qctl", "fuseblk", False),
    ],
)
def test_the_file_system_of_a_path_is_the_mount_nearest_to_it(path: str, kind: str, network: bool) -> None:
    assert file_system(Path(path), MOUNTS) == kind
    assert is_network(kind) is network


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "fuse.glusterfs", "afs"])
def test_file_systems_of_other_machines_are_known(kind: str) -> None:
    assert is_network(kind)


def test_a_state_directory_on_a_network_file_system_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"{MOUNTS}36 21 0:46 / {tmp_path} rw - cifs //filer/share rw\n")
    monkeypatch.setattr(directory, "_MOUNTS", mounts)

    with pytest.raises(StateError, match=r"state/web-1 is on a network file system \(cifs\)") as caught:
        Ledger.open(tmp_path / "state" / "web-1")

    assert caught.value.exit_code is Exit.USAGE
    assert "--state-dir" in caught.value.hint
    assert not (tmp_path / "state").exists()


def test_a_local_directory_of_ours_is_good_whether_it_is_there_or_not(tmp_path: Path) -> None:
    check_directory(tmp_path)
    check_directory(tmp_path / "state" / "web-1")

    assert list(tmp_path.iterdir()) == []


def test_a_state_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "web-1"
    shared.mkdir()
    shared.chmod(0o770)

    with pytest.raises(StateError, match=r"web-1 can be written by others \(mode 0770\)") as caught:
        check_directory(shared)
    assert f"chmod go-w {shared}" in caught.value.hint


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")

    with pytest.raises(StateError, match="state is not a directory"):
        check_directory(tmp_path / "state" / "web-1")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that we cannot write to; root is kept out by a file system that nobody can write to."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    if os.geteuid():
        mounted.chmod(0o500)
        yield mounted
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m,mode=0700", "tmpfs", mounted], check=True)
        yield mounted
        subprocess.run(["umount", mounted], check=True)


def test_a_state_directory_that_cannot_be_written_is_refused_and_where_it_cannot_be_made_too(read_only: Path) -> None:
    with pytest.raises(StateError, match="mounted cannot be written"):
        check_directory(read_only)
    with pytest.raises(StateError, match=r"web-1 cannot be made, as .*mounted is not writable"):
        check_directory(read_only / "web-1")


def test_a_state_directory_of_another_user_is_refused_for_root_too(tmp_path: Path) -> None:
    theirs, owner = Path("/usr"), 0
    if not os.geteuid():
        theirs, owner = tmp_path / "web-1", 4711
        theirs.mkdir()
        os.chown(theirs, owner, owner)

    with pytest.raises(StateError, match=rf"{theirs} belongs to another user \(uid {owner}\)"):
        check_directory(theirs)


def test_a_directory_where_hosts_are_made_is_judged_as_well(tmp_path: Path) -> None:
    # given a directory that everybody may write, but sticky, as /tmp is
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o1777)
    check_directory(state / "web-1")

    # when it is not sticky, then anybody could put another ledger there
    state.chmod(0o777)
    with pytest.raises(StateError, match=r"state can be written by others \(mode 0777\)"):
        check_directory(state / "web-1")


@pytest.mark.parametrize("exists", [True, False])
def test_a_directory_of_somebody_else_is_no_place_for_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    if exists:
        (state / "web-1").mkdir()
    owner = os.geteuid() or 4711
    if owner == 4711:
        os.chown(state, owner, owner)
    else:  # nobody but root can give a directory away: be somebody else instead
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    with pytest.raises(StateError, match=rf"state(/web-1)? belongs to another user \(uid {owner}\)"):
        check_directory(state / "web-1")
