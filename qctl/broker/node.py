"""The files and settings of a private RabbitMQ node: its record, its configuration, its environment.

DIRECTORY/node.json (0600) is the record: names, ports, password and processes. Everything else in the directory is
written from it or belongs to RabbitMQ.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from qctl.errors import QctlError

LOOPBACK = "127.0.0.1"
#: Below the ports that systems give to outgoing connections: one of those would be taken while the node is down.
PORTS = range(26_000, 32_000)
PORT_TRIES = 100
#: Lines of a log shown when the node does not start.
LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 64 * 1024
#: Administrators' folders, which the PATH of an ordinary user often lacks, and Homebrew's.
_MORE_PATH = "/usr/sbin:/sbin:/usr/local/sbin:/opt/homebrew/sbin:/opt/homebrew/bin:/usr/local/bin"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Where a private node is. The pids are None when it was stopped; `version` is "" until it first answered."""

    directory: Path
    nodename: str
    amqp_port: int
    management_port: int
    dist_port: int
    epmd_port: int
    username: str
    password: str = field(repr=False)
    version: str = ""
    pid: int | None = None
    pid_mark: str = field(default="", repr=False)
    epmd_pid: int | None = None
    epmd_mark: str = field(default="", repr=False)

    @property
    def amqp_url(self) -> str:
        """The address for AMQP, without credentials."""
        return f"amqp://{LOOPBACK}:{self.amqp_port}/"

    @property
    def management_url(self) -> str:
        """The address of the management API and its page."""
        return f"http://{LOOPBACK}:{self.management_port}"

    @property
    def password_file(self) -> Path:
        """The file (0600) that holds the password, under the key `password`."""
        return self.directory / "node.json"

    @property
    def log_file(self) -> Path:
        """The node's own log."""
        return self.directory / "log" / f"{self.nodename}.log"


def find_program(program: str) -> Path:
    """The script to run. Debian's in /usr/sbin is a wrapper that changes user; the real one lies where it leads to."""
    found = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":" + _MORE_PATH)
    if found is None:
        raise QctlError(
            f"{program} is not installed on this machine",
            hint="Install it with `apt-get install rabbitmq-server` (Debian, Ubuntu) or `brew install rabbitmq`.",
        )
    real = Path(found).resolve().with_name(program)
    return real if real.is_file() else Path(found)


def prepare(directory: Path) -> None:
    """Make the folders of a node, for its owner alone."""
    for folder in (directory, directory / "home", directory / "log", directory / "conf.d"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / ".gitignore").write_text("*\n", encoding="utf-8")


def new_info(directory: Path) -> NodeInfo:
    """A node that never ran: a name and a password of its own, no ports yet."""
    return NodeInfo(
        directory=directory,
        nodename=f"qctl-{secrets.token_hex(4)}@localhost",
        amqp_port=0,
        management_port=0,
        dist_port=0,
        epmd_port=0,
        username="qctl",
        password=secrets.token_urlsafe(24),
    )


def with_free_ports(info: NodeInfo) -> NodeInfo:
    """The ports it had, so that clients find it again, each replaced if somebody else has it now."""
    with ExitStack() as held:  # all held until all are chosen, or one might be given twice

        def choose(wanted: int) -> int:
            for port in (wanted, *random.choices(PORTS, k=PORT_TRIES)):  # noqa: S311 - no secret
                listener = held.enter_context(socket.socket())
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with suppress(OSError):
                    if port:
                        listener.bind((LOOPBACK, port))
                        return port
            raise QctlError(f"no free port on {LOOPBACK} between {PORTS.start} and {PORTS.stop - 1}")

        return replace(
            info,
            amqp_port=choose(info.amqp_port),
            management_port=choose(info.management_port),
            dist_port=choose(info.dist_port),
            epmd_port=choose(info.epmd_port),
        )


def write_configuration(info: NodeInfo) -> None:
    """Write what RabbitMQ reads: configuration, plugins, cookie."""
    directory = info.directory
    lines = {
        "listeners.tcp.1": f"{LOOPBACK}:{info.amqp_port}",
        "management.tcp.ip": LOOPBACK,
        "management.tcp.port": info.management_port,
        "default_user": info.username,
        "default_pass": info.password,
        "default_user_tags.administrator": "true",
        # The default of 512 MB is memory and disk that a private node does not need.
        "raft.wal_max_size_bytes": 64 * 1024 * 1024,
        "disk_free_limit.absolute": "50MB",
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    _write_private(directory / "rabbitmq.conf", text)
    _write_private(directory / "enabled_plugins", "[rabbitmq_management].\n")
    _write_private(directory / "advanced.config", "[].\n")
    _write_private(directory / "rabbitmq-env.conf", "")
    cookie = directory / "home" / ".erlang.cookie"
    if not cookie.exists():
        _write_private(cookie, secrets.token_hex(20), mode=0o400)


def environment(info: NodeInfo) -> dict[str, str]:
    """The whole environment of the node and of rabbitmqctl: nothing of the user's or the machine's settings gets in."""
    directory = info.directory
    loopback_only = "-kernel inet_dist_use_interface {127,0,0,1}"
    return {
        "PATH": os.environ.get("PATH", os.defpath) + ":" + _MORE_PATH,
        "LC_ALL": "C.UTF-8",
        "HOME": str(directory / "home"),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(info.epmd_port),
        "ERL_CRASH_DUMP": str(directory / "log" / "erl_crash.dump"),
        "ERL_CRASH_DUMP_BYTES": "0",  # a dump of a node that died is large and helps nobody here
        "RABBITMQ_NODENAME": info.nodename,
        "RABBITMQ_DIST_PORT": str(info.dist_port),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(directory / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback_only,
        "RABBITMQ_CTL_ERL_ARGS": loopback_only,
        # Makes the start script become the node instead of staying as its parent: one pid to know and to signal.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


def read_info(directory: Path) -> NodeInfo | None:
    """The record of the directory, None when there is none. Raises QctlError for a damaged one."""
    path = directory / "node.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return NodeInfo(directory=directory, **fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as broken:
        raise QctlError(
            f"{path} cannot be read as the record of a private broker",
            hint=f"End its processes by hand if there are any, then remove {directory}.",
        ) from broken


def write_info(info: NodeInfo) -> None:
    """Replace the record of its directory."""
    fields = {key: value for key, value in asdict(info).items() if key != "directory"}
    _write_private(info.directory / "node.json", json.dumps(fields, indent=2) + "\n")


def _write_private(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
    fresh.replace(path)


def tail(path: Path) -> str:
    """The lines of a log that matter: around a boot that failed, else its last. "" when there is no such file."""
    lines = [line for line in end_of(path).splitlines() if line.strip()]
    # The reason stands right before or after these words, and Erlang's report of the crash buries it.
    failed = next((number for number, line in enumerate(lines) if "BOOT FAILED" in line), len(lines))
    return "\n".join(lines[max(0, failed - LOG_TAIL_LINES) : failed + LOG_TAIL_LINES])


def end_of(path: Path) -> str:
    """The last 64 KiB of a log, "" when there is no such file."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", "replace")
    except OSError:
        return ""
