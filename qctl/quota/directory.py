"""The state directory of a host: whether a ledger may live there, and making it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from qctl.errors import StateError

PROCESSES = "processes"
_NETWORK = (
    "9p acfs afs afpfs auristorfs beegfs ceph cifs coda davfs gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2"
    " orangefs panfs prl_fs pvfs2 smb smb2 smb3 smbfs vboxsf virtiofs vmhgfs"
)
_NETWORK_FUSE = (
    "blobfuse ceph-fuse curlftpfs gcsfuse goofys gvfsd-fuse httpfs juicefs moosefs mfs rclone s3fs seaweedfs sshfs"
    " vmhgfs-fuse weed"
)
#: File systems whose locks may not reach every process that writes, or whose files another machine may write as well.
NETWORK = frozenset(_NETWORK.split())
#: The same behind FUSE, as the part after `fuse.`; of others the kernel itself keeps the locks.
NETWORK_FUSE = NETWORK | frozenset(_NETWORK_FUSE.split())
_MOUNTS = Path("/proc/self/mountinfo")
_CHOOSE = "Choose a directory of a local disk that the worker may write to, with --state-dir."


def check_directory(path: Path) -> None:
    """Whether a ledger may live in `path`, which need not exist yet; changes nothing. Raises StateError: why not."""
    found = path
    try:
        while not os.path.lexists(found) and found != found.parent:
            found = found.parent
        status = found.stat()
        real = found.resolve(strict=True)
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape") if _MOUNTS.exists() else ""
    except OSError as error:
        raise StateError(f"cannot use the state directory {path}: {error.strerror}", hint=_CHOOSE) from error
    if not stat.S_ISDIR(status.st_mode):
        raise StateError(f"cannot use the state directory {path}: {found} is not a directory", hint=_CHOOSE)
    kind = file_system(real, mounts)
    if is_network(kind):
        raise StateError(
            f"the state directory {path} is on a network file system ({kind}), where locks cannot be relied on",
            hint=_CHOOSE,
        )
    if found == path:
        _check_ours(path, status, owners={os.geteuid()}, others=stat.S_IWGRP | stat.S_IWOTH)
    if path.parent.is_dir():
        # It may be root's, who lets a group make hosts in it, or sticky, where nobody may rename what is another's.
        status = path.parent.stat()
        sticky = status.st_mode & stat.S_ISVTX
        _check_ours(path.parent, status, owners={os.geteuid(), 0}, others=0 if sticky else stat.S_IWOTH)
    if not os.access(found, os.W_OK | os.X_OK, effective_ids=True):
        where = "" if found == path else f", as {found} is not writable"
        raise StateError(
            f"the state directory {path} cannot be {'written' if found == path else 'made'}{where}", hint=_CHOOSE
        )


def _check_ours(path: Path, status: os.stat_result, *, owners: set[int], others: int) -> None:
    """Whoever may write a directory may put another ledger in its place. others: rights that nobody else may have."""
    if status.st_uid not in owners:
        raise StateError(
            f"the state directory {path} belongs to another user (uid {status.st_uid})",
            hint="Run the worker as its owner, or choose another with --state-dir.",
        )
    if status.st_mode & others:
        who = "go" if others & stat.S_IWGRP else "o"
        raise StateError(
            f"the state directory {path} can be written by others (mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"Take that right away with `chmod {who}-w {path}`, if nobody has changed what is in it.",
        )


def prepare(path: Path) -> None:
    """Make the state directory, readable to its owner alone. Raises StateError."""
    check_directory(path)
    try:
        (path / PROCESSES).mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise StateError(f"cannot use the state directory {path}: {error.strerror}", hint=_CHOOSE) from error


def file_system(path: Path, mountinfo: str) -> str:
    """The type of the file system that `path`, absolute and without links, is on, or "" when that is not known.

    mountinfo: the text of /proc/self/mountinfo.
    """
    found, depth = "", 0
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 5 or not source:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        # Of two on one place the later hides the earlier.
        if len(point.parts) >= depth and path.is_relative_to(point):
            found, depth = source.split(" ")[0], len(point.parts)
    return found


def is_network(kind: str) -> bool:
    """Whether a file system of this type, as in /proc/mounts, is shared with other machines."""
    return kind.removeprefix("fuse.") in NETWORK_FUSE if kind.startswith("fuse.") else kind in NETWORK
