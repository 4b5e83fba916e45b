"""The brokers that the tests run on: a private node of this machine's RabbitMQ, and RabbitMQ 4 in a container.

Both look the same to a test, which usually takes the fixture `vhost` alone: a virtual host of its own on each of them.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from testcontainers.core.container import DockerContainer

from qctl.broker.local import LocalNode
from qctl.broker.node import NodeInfo, new_info, with_free_ports

LOOPBACK = "127.0.0.1"
#: RabbitMQ's newest line, and the one that counts every return of a message as a failed delivery.
IMAGE = os.environ.get("QCTL_TEST_IMAGE", "qctl-test-rabbitmq:sid")
OLDER_IMAGE = os.environ.get("QCTL_TEST_OLDER_IMAGE", "qctl-test-rabbitmq:trixie")
_API_TIMEOUT_S = 30.0
_READY_TIMEOUT_S = 60.0
_DOCKER_TIMEOUT_S = 10
#: A container that does not come up is given up for a new one: what is tested is not Docker.
_CONTAINER_STARTS = 2
_LOG_LINES = 5
_BRISK_TICK_MS = 500
_LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"


class NeverAnswered(Exception):
    """A broker that was started, and why nobody can use it."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker and its administrator."""

    kind: str
    version: str
    host: str
    amqp_port: int
    management_url: str
    username: str
    password: str = field(repr=False)
    run_ctl: Callable[..., str] = field(repr=False)

    def amqp_url(self, vhost: str = "/") -> str:
        """The address of a virtual host, without credentials."""
        return f"amqp://{self.host}:{self.amqp_port}/" + ("" if vhost == "/" else quote(vhost, safe=""))

    def ctl(self, *args: str) -> str:
        """Run `rabbitmqctl --quiet ARGS` and return what it prints; about a second, since Erlang starts."""
        return self.run_ctl(*args)

    def eval(self, erlang: str) -> str:
        """Evaluate an Erlang expression, with its full stop, inside the broker."""
        return self.ctl("eval", erlang).strip()

    def stop_app(self) -> None:
        """Take RabbitMQ away: listeners and connections are closed, the data stays."""
        self.ctl("stop_app")

    def start_app(self) -> None:
        """Bring RabbitMQ back, and wait until both its APIs answer."""
        self.ctl("start_app")
        await_answer(self)

    def close_connections(self, reason: str = "closed by a test") -> None:
        """Close every client connection, as an operator can."""
        self.ctl("close_all_connections", "--global", reason)

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API, `api("GET", "/queues/%2F")`. None for no body, and for 404 of GET and DELETE."""
        answer = requests.request(
            method,
            f"{self.management_url}/api{path}",
            auth=(self.username, self.password),
            json=body,
            timeout=_API_TIMEOUT_S,
        )
        if answer.status_code == 404 and method in ("GET", "DELETE"):
            return None
        answer.raise_for_status()
        return answer.json() if answer.content else None


@dataclass(frozen=True, slots=True)
class Vhost:
    """A virtual host that belongs to one test."""

    broker: Broker
    name: str

    @property
    def amqp_url(self) -> str:
        return self.broker.amqp_url(self.name)

    @property
    def management_url(self) -> str:
        return self.broker.management_url

    @property
    def username(self) -> str:
        return self.broker.username

    @property
    def password(self) -> str:
        return self.broker.password

    def ctl(self, command: str, *args: str) -> str:
        """Run a command of `rabbitmqctl` for this virtual host."""
        return self.broker.ctl(command, "--vhost", self.name, *args)

    def queue(self, name: str) -> dict[str, Any] | None:
        """A queue as the management API sees it; its counts lag up to five seconds."""
        found: dict[str, Any] | None = self.broker.api("GET", f"/queues/{quote(self.name)}/{quote(name, safe='')}")
        return found

    def inventory_broker(self) -> dict[str, Any]:
        """The `broker:` section of a development inventory for this virtual host."""
        return {
            "amqp": self.amqp_url,
            "management": self.management_url,
            "username": self.username,
            "password": {"value": self.password},
        }

    def environment(self) -> dict[str, str]:
        """What a command needs in its environment to log in."""
        return {"QCTL_USERNAME": self.username, "QCTL_PASSWORD": self.password}


@contextmanager
def fresh_vhost(broker: Broker) -> Iterator[Vhost]:
    """A virtual host that nobody else uses; it is deleted at the end, with all its queues and connections."""
    vhost = Vhost(broker, f"test-{secrets.token_hex(6)}")
    broker.api("PUT", f"/vhosts/{vhost.name}", {})
    try:
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        broker.api("PUT", f"/permissions/{vhost.name}/{broker.username}", everything)
        yield vhost
    finally:
        broker.api("DELETE", f"/vhosts/{vhost.name}")


def await_answer(broker: Broker) -> str:
    """Wait until the management API answers, and return the broker's version."""
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        try:
            overview = broker.api("GET", "/overview")
            if any(listener["protocol"] == "amqp" for listener in overview["listeners"]):
                return str(overview["rabbitmq_version"])
            why = "it listens to no AMQP"
        except requests.RequestException as error:
            why = str(error)
        if time.monotonic() >= deadline:
            raise NeverAnswered(f"the broker has not answered for {_READY_TIMEOUT_S:.0f} s: {why}")
        time.sleep(0.1)


@contextmanager
def throwaway_node(directory: Path, *, brisk: bool = False) -> Iterator[LocalNode]:
    """A private node for the time of the run. Nobody wants its data: it is not asked to stop gracefully.

    brisk: it counts what lies in a quorum queue twice a second, which it does every five seconds unless told.
    """
    node = LocalNode(directory)
    node.start()
    try:
        if brisk:
            node.rabbitmqctl("eval", f"application:set_env(rabbit, quorum_tick_interval, {_BRISK_TICK_MS}).")
        yield node
    finally:
        node.stop(timeout_s=0.0)


def local_broker(node: LocalNode) -> Broker:
    """The private node as a test sees it."""
    info = node.info()
    return Broker(
        kind="local",
        version=info.version,
        host=LOOPBACK,
        amqp_port=info.amqp_port,
        management_url=info.management_url,
        username=info.username,
        password=info.password,
        run_ctl=node.rabbitmqctl,
    )


def container_missing(image: str = IMAGE) -> str:
    """Why there can be no container, or "" where a Docker engine answers and has the image."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    # Asked first, since docker's client leaves a socket open when nobody listens.
    if not _docker_listens():
        return "no Docker engine answers"
    try:
        client = docker.from_env(timeout=_DOCKER_TIMEOUT_S)
    except DockerException:
        return "no Docker engine answers"
    try:
        client.images.get(image)
    except ImageNotFound:
        return f"Docker has no image {image}; make it with tests/images/build"
    finally:
        client.close()
    return ""


def _docker_listens() -> bool:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not address.startswith("unix://"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(address.removeprefix("unix://")) == 0


@contextmanager
def container_broker(image: str = IMAGE, *, brisk: bool = False) -> Iterator[Broker]:
    """RabbitMQ 4 in a container that listens on this machine alone and ends with the block; brisk: as of a node."""
    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # its image comes from a registry, which may be out of reach
    reasons: list[str] = []
    while len(reasons) < _CONTAINER_STARTS:
        node = with_free_ports(new_info(Path()))
        container = _container(image, node, brisk=brisk)
        try:
            try:
                started = _started(container, node)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is said
                reasons.append(f"{type(error).__name__}: {error}; {_last_words(container)}")
                continue
            yield started
            return
        finally:
            container.stop()
    raise NeverAnswered(f"no container of {image}: {' / '.join(reasons)}")


def _container(image: str, node: NodeInfo, *, brisk: bool) -> DockerContainer:
    """A container in this machine's own network: nothing between the test and the broker, and no bridge that fails."""
    container = DockerContainer(image).with_kwargs(network_mode="host")
    return container.with_envs(
        RABBITMQ_NODENAME=node.nodename,
        RABBITMQ_NODE_IP_ADDRESS=LOOPBACK,
        RABBITMQ_NODE_PORT=str(node.amqp_port),
        RABBITMQ_DIST_PORT=str(node.dist_port),
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=_LOOPBACK_ONLY + f" -rabbit quorum_tick_interval {_BRISK_TICK_MS}" * brisk,
        RABBITMQ_CTL_ERL_ARGS=_LOOPBACK_ONLY,
        RABBITMQ_DEFAULT_USER=node.username,
        RABBITMQ_DEFAULT_PASS=node.password,
        MANAGEMENT_PORT=str(node.management_port),
        ERL_EPMD_ADDRESS=LOOPBACK,
        ERL_EPMD_PORT=str(node.epmd_port),
    )


def _started(container: DockerContainer, node: NodeInfo) -> Broker:
    """Start a container, and wait until what is in it answers."""
    container.start()

    def ctl(*args: str) -> str:
        code, output = container.exec(["rabbitmqctl", "--quiet", *args])
        if code:
            raise RuntimeError(f"rabbitmqctl {args[0]} failed with exit code {code}: {output.decode()}")
        return str(output.decode())

    broker = Broker(
        kind="container",
        version="",
        host=LOOPBACK,
        amqp_port=node.amqp_port,
        management_url=node.management_url,
        username=node.username,
        password=node.password,
        run_ctl=ctl,
    )
    return replace(broker, version=await_answer(broker))


def _last_words(container: DockerContainer) -> str:
    """What became of a container, in a line: its state, and the end of its log."""
    try:
        wrapped = container.get_wrapped_container()
        if wrapped is None:
            return "it was never made"
        wrapped.reload()
        log = wrapped.logs(tail=_LOG_LINES).decode(errors="replace").splitlines()
        return f"{wrapped.status}, {' | '.join(line.strip() for line in log)}"
    except Exception as error:  # noqa: BLE001 - this is about another error already
        return f"and nothing more is known: {error}"
