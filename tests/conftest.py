"""Fixtures for every test: the brokers of `tests/brokers.py`, started once for a run and only when a test asks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from qctl.broker.local import LocalNode
from tests import brokers
from tests.brokers import Broker, Vhost

# A run that a shell started in its background inherits an ignored Ctrl-C, and would pass it on to all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

_IN_CI = os.environ.get("CI", "") not in ("", "0", "false")
_WHY_NO_CONTAINER = pytest.StashKey[str]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a broker on each there is. In CI the container is never left out: missing, it is a failure."""
    if "broker" not in metafunc.fixturenames:
        return
    stash = metafunc.config.stash
    if _WHY_NO_CONTAINER not in stash:
        stash[_WHY_NO_CONTAINER] = brokers.container_missing()
    kinds = ["local"]
    if _IN_CI or not stash[_WHY_NO_CONTAINER]:
        kinds.append("container")
    metafunc.parametrize("broker", kinds, indirect=True, scope="session")


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say which brokers the run uses: a broker that is left out must not go unnoticed."""
    if _WHY_NO_CONTAINER not in config.stash:
        return []
    why = config.stash[_WHY_NO_CONTAINER]
    if not why:
        return [f"brokers: this machine's RabbitMQ, container {brokers.IMAGE}"]
    return [f"brokers: this machine's RabbitMQ; container {'FAILS' if _IN_CI else 'left out'}: {why}"]


@pytest.fixture(scope="session")
def brisk(pytestconfig: pytest.Config) -> bool:
    """Whether brokers count more often what lies in a queue; the whole fault matrix has them as they come."""
    return not pytestconfig.getoption("--faults", default=False)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, brisk: bool) -> Iterator[LocalNode]:
    """A private node of this machine's RabbitMQ."""
    with brokers.throwaway_node(tmp_path_factory.mktemp("node"), brisk=brisk) as running:
        yield running


@pytest.fixture(scope="session")
def local_broker(node: LocalNode) -> Broker:
    """This machine's RabbitMQ, for tests where the version does not matter."""
    return brokers.local_broker(node)


@pytest.fixture(scope="session")
def container_broker(brisk: bool) -> Iterator[Broker]:
    """RabbitMQ 4 in a container."""
    missing = brokers.container_missing()
    if missing:
        pytest.fail(f"RabbitMQ 4 cannot be tested: {missing}", pytrace=False)
    with brokers.container_broker(brisk=brisk) as running:
        yield running


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker there is, one after the other."""
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found


@pytest.fixture
def vhost(broker: Broker) -> Iterator[Vhost]:
    """A virtual host of the test's own, on each broker."""
    with brokers.fresh_vhost(broker) as fresh:
        yield fresh


@pytest.fixture
def local_vhost(local_broker: Broker) -> Iterator[Vhost]:
    """A virtual host of the test's own, on this machine's RabbitMQ only."""
    with brokers.fresh_vhost(local_broker) as fresh:
        yield fresh
