"""The matrix in pytest: which rows run, on which brokers, and a record of each.

pytest tests/faults                                 the selection that `make test` runs, on the local broker
pytest tests/faults --faults                        all rows on every broker they are for, with records
pytest tests/faults --faults --rows "F06 F08" --brokers local,container
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qctl.broker.local import LocalNode
from tests import brokers
from tests.brokers import Broker, Vhost
from tests.faults.catalogue import ALL, FAULTS
from tests.faults.rows import MAX_ERROR_CHARS, Record, Row, Stopwatch, commit, now
from tests.faults.scene import Scene

_RECORD = pytest.StashKey[Record]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "the fault matrix")
    group.addoption("--faults", action="store_true", help="all rows on all their brokers, with a record of each")
    group.addoption("--rows", default="", help="only these rows, for example 'F06 F08'")
    group.addoption("--brokers", default=",".join(ALL), help="only on these, default: %(default)s")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault_row(row): its place in the fault matrix; use the decorator `row`")
    config.addinivalue_line("markers", "long_run: a variant of a row that is left out of the selection")


def _row(item: pytest.Item) -> Row | None:
    marker = item.get_closest_marker("fault_row")
    return marker.args[0] if marker else None


def _words(config: pytest.Config, option: str) -> list[str]:
    return str(config.getoption(option)).replace(",", " ").split()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A row that plays on a broker runs once for each that it is for."""
    marker = metafunc.definition.get_closest_marker("fault_row")
    if marker is not None and "fault_broker" in metafunc.fixturenames:
        kinds = FAULTS[marker.args[0].id].brokers
        metafunc.parametrize("fault_broker", kinds, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for: by default all but the selection."""
    rows = _words(config, "--rows")
    kinds = _words(config, "--brokers") if config.getoption("--faults") else ["local"]
    full = config.getoption("--faults") or rows
    kept, left_out = [], []
    for item in items:
        found = _row(item)
        selected = found is not None and found.selected and item.get_closest_marker("long_run") is None
        wanted = found is None or ((not rows or found.id in rows) and (full or selected) and _kind(item) in kinds)
        (kept if wanted else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


# The record of a row, and what holds in every row


def _kind(item: pytest.Item) -> str:
    parameters = getattr(item, "callspec", None)
    return str(parameters.params.get("fault_broker", "local")) if parameters else "local"


def _name(item: pytest.Item) -> str:
    """The test's name with all of its parameters but the broker, fit for a file name."""
    name, _, rest = item.name.partition("[")
    parameters = [words for words in rest.rstrip("]").split("-") if words and words not in _kind(item).split("-")]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join([name, *parameters]))


def _recorded(item: pytest.Item) -> bool:
    return bool(item.config.getoption("--faults"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    found = _row(item)
    if found is None:
        return (yield)
    record = Record(found.id, _name(item), found.injected, _kind(item), commit=commit(), at=now())
    item.stash[_RECORD] = record
    if _recorded(item):
        record.write()
    watch = Stopwatch()
    result = yield
    record.seconds = round(watch.read_s(), 1)
    if record.state == "running":
        record.state = "passed"
    if _recorded(item):
        record.write()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    record = item.stash.get(_RECORD, None)
    if record is not None and not report.passed:
        record.state = "failed"
        record.error = (record.error + report.longreprtext)[-MAX_ERROR_CHARS:]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    result = yield
    record = pyfuncitem.stash.get(_RECORD, None)
    if record is not None:
        for staged in pyfuncitem.funcargs.values():
            if isinstance(staged, Scene):
                staged.conclude()
        print("; ".join(f"{one.name} {one.value:g}" + f" ({one.bound})" * bool(one.bound) for one in record.figures))
        record.verdict()
    return result


# Brokers


@pytest.fixture(scope="session")
def older_container_broker() -> Iterator[Broker]:
    """RabbitMQ 4.0 in a container: it counts every return of a message as a failed delivery."""
    missing = brokers.container_missing(brokers.OLDER_IMAGE)
    if missing:
        pytest.fail(f"RabbitMQ 4.0 cannot be tested: {missing}", pytrace=False)
    with brokers.container_broker(brokers.OLDER_IMAGE) as running:
        yield running


@pytest.fixture(scope="session")
def fault_broker(request: pytest.FixtureRequest) -> Broker:
    """The broker that a row runs on; it must find it again as it was."""
    names = {"local": "local_broker", "container": "container_broker", "container-older": "older_container_broker"}
    found: Broker = request.getfixturevalue(names[request.param])
    return found


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Where a row notes its figures."""
    found: Record = request.node.stash[_RECORD]
    return found


@pytest.fixture
def vhost(fault_broker: Broker, record: Record) -> Iterator[Vhost]:
    """A virtual host of the row's own on its broker."""
    record.version = fault_broker.version
    with brokers.fresh_vhost(fault_broker) as fresh:
        yield fresh


@pytest.fixture
def scene(request: pytest.FixtureRequest, vhost: Vhost, tmp_path: Path, record: Record) -> Iterator[Scene]:
    """A stage on the row's broker."""
    with Scene(vhost, tmp_path, record, thorough=_recorded(request.node)) as staged:
        yield staged


@pytest.fixture
def own_scene(request: pytest.FixtureRequest, tmp_path: Path, record: Record) -> Iterator[Scene]:
    """A stage on a local node that is this row's alone, to be killed, stopped and filled up."""
    with ExitStack() as stack:
        node: LocalNode = stack.enter_context(brokers.throwaway_node(tmp_path / "node"))
        broker = brokers.local_broker(node)
        record.version = broker.version
        vhost = stack.enter_context(brokers.fresh_vhost(broker))
        yield stack.enter_context(Scene(vhost, tmp_path, record, thorough=_recorded(request.node), node=node))
