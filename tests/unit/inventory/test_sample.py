"""What an inventory means: defaults, precedence, ranges, addresses."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from qctl.errors import UnknownName
from qctl.inventory.load import load
from qctl.inventory.model import (
    FIXED_LADDER_S,
    Broker,
    Consumer,
    Endpoint,
    ExecHandler,
    HeaderStyle,
    HttpHandler,
    PythonHandler,
    Quota,
    RetryPolicy,
    Secret,
    Tls,
    Window,
)
from qctl.units import parse_rate
from tests.unit.inventory.conftest import Load

SAMPLE = """\
version: 1
environment: development
broker:
  amqp: amqp://127.0.0.1:5672/
  management: http://127.0.0.1:15672
  username: guest
  password: {env: QCTL_PASSWORD}
operators: [oncall, deploy]
worker: {hold_after: 1s, max_body: 1MiB, python_path: [.]}
quotas:
  twitter:
    limit: [300/15m, 20000/h]
    window: sliding
    urls: ["https://api.twitter.com/"]
    headers: auto
  mail: 500/d
consumers:
  timeline:
    queue: timeline
    handler: {http: {base_url: "https://api.twitter.com/1.1/"}}
    quota: {twitter: 1}
    concurrency: 8
    timeout: 30s
    retry: {attempts: 5, delays: [5s, 30s, 5m]}
    directed: false
    persistent: true
    declare: true
groups:
  large: {quotas: {twitter: 100000/h}}
hosts:
  web-1:
  web-2: {group: large, consumers: {timeline: {concurrency: 64}}}
  "web-[03-40]": {group: large}
"""

MINIMAL = (
    "version: 1\nbroker: local\nconsumers:\n  timeline: {handler: {python: 'app:run'}, quota: {}}\nhosts: {web-1: }\n"
)


def rates(*texts: str) -> tuple[object, ...]:
    return tuple(parse_rate(text) for text in texts)


def test_the_sample_reads_as_it_says(read: Load, file: Path) -> None:
    inventory = read(SAMPLE)

    assert inventory.path == file
    assert inventory.environment == "development"
    assert inventory.operators == ("oncall", "deploy")
    assert inventory.broker == Broker(
        local=False,
        amqp=(Endpoint("127.0.0.1", 5672, False, "/"),),
        management="http://127.0.0.1:15672",
        username="guest",
        password=Secret("env", "QCTL_PASSWORD"),
        tls=None,
    )
    assert inventory.worker.hold_after_s == 1.0
    assert inventory.worker.max_body_bytes == 1 << 20
    assert inventory.worker.python_path == (file.parent,)
    assert inventory.quotas["twitter"] == Quota(
        "twitter", rates("300/15m", "20000/h"), Window.SLIDING, 1, ("https://api.twitter.com/",), HeaderStyle.AUTO
    )
    assert inventory.quotas["mail"] == Quota("mail", rates("500/d"), Window.SLIDING, 1, (), HeaderStyle.AUTO)
    assert inventory.consumers["timeline"] == Consumer(
        name="timeline",
        queue="timeline",
        handler=HttpHandler("https://api.twitter.com/1.1/", {}, (), 1 << 20),
        cost={"twitter": 1},
        concurrency=8,
        timeout_s=30.0,
        retry=RetryPolicy(5, (5.0, 30.0, 300.0)),
        directed=False,
        persistent=True,
        declare=True,
    )
    assert list(inventory.hosts) == ["web-1", "web-2", *(f"web-{number:02d}" for number in range(3, 41))]
    assert inventory.groups["large"].hosts == ("web-2", *(f"web-{number:02d}" for number in range(3, 41)))


def test_what_the_sample_shows_with_one_value_is_the_default(read: Load) -> None:
    # given the sample, and the least that is valid
    full, least = read(SAMPLE), read(MINIMAL)

    # then what the least leaves out is what the sample says
    full_consumer, consumer = full.consumers["timeline"], least.consumers["timeline"]
    for name in ("queue", "concurrency", "timeout_s", "retry", "directed", "persistent", "declare"):
        assert getattr(consumer, name) == getattr(full_consumer, name), name
    assert (least.environment, least.worker) == (full.environment, full.worker)
    assert least.operators == ()
    assert least.broker == Broker(local=True)


def test_a_group_comes_before_the_top_and_a_host_before_its_group(read: Load) -> None:
    inventory = read(
        """\
version: 1
broker: local
quotas: {twitter: {limit: 100/h, window: fixed, urls: ["https://api/"]}, mail: 5/d}
consumers:
  timeline: {handler: {exec: [a]}, quota: {twitter: 1}, timeout: 1s, retry: {attempts: 9, delays: [1s]}}
  mails: {handler: {exec: [b]}, quota: {mail: 1}}
groups:
  large:
    quotas: {twitter: 1000/h}
    consumers: {timeline: {timeout: 2s, concurrency: 2}}
hosts:
  plain:
  grouped: {group: large}
  own:
    group: large
    quotas: {twitter: [7/m, 70/h]}
    consumers: {timeline: {concurrency: 3, retry: {attempts: 2}}, mails: }
  whole: {group: large, quotas: {twitter: {limit: 9/h}}}
"""
    )
    plain, grouped, own, whole = (inventory.hosts[name] for name in ("plain", "grouped", "own", "whole"))

    # a host without a group has all consumers and the top's values
    assert plain.consumers == inventory.consumers
    assert plain.quotas == inventory.quotas
    # a group replaces what it names, and chooses the consumers
    assert list(grouped.consumers) == ["timeline"]
    assert grouped.consumers["timeline"] == replace(inventory.consumers["timeline"], timeout_s=2.0, concurrency=2)
    # a host replaces what the group said, and chooses instead of it
    assert list(own.consumers) == ["timeline", "mails"]
    assert own.consumers["timeline"].concurrency == 3
    assert own.consumers["timeline"].timeout_s == 2.0
    # a value is replaced whole: the delays of the new retry are the default
    assert own.consumers["timeline"].retry == RetryPolicy(2, (5.0, 30.0, 300.0))
    # a bare rate replaces the limit and keeps the rest; a mapping replaces the quota
    top = inventory.quotas["twitter"]
    assert grouped.quotas["twitter"] == replace(top, limits=rates("1000/h"))
    assert own.quotas["twitter"] == replace(top, limits=rates("7/m", "70/h"))
    assert whole.quotas["twitter"] == Quota("twitter", rates("9/h"))
    # a quota that nobody overrides is the top's
    assert {host.quotas["mail"] for host in (grouped, own, whole)} == {inventory.quotas["mail"]}


@pytest.mark.parametrize(
    ("written", "handler"),
    [
        ("{python: 'app.tasks:run'}", PythonHandler("app.tasks:run", {})),
        ("{python: {a: 'app:a', 'b/c': 'app:b'}}", PythonHandler(None, {"a": "app:a", "b/c": "app:b"})),
        ("{exec: [sh, -c, 'exit 0', '']}", ExecHandler(("sh", "-c", "exit 0", ""))),
        (
            "{http: {base_url: http://api/, headers: {A: {env: X}, B: y}, allow_headers: [C], max_response: 64KiB}}",
            HttpHandler("http://api/", {"A": Secret("env", "X"), "B": "y"}, ("C",), 65_536),
        ),
    ],
)
def test_every_kind_of_handler_is_read(read: Load, written: str, handler: object) -> None:
    inventory = read(MINIMAL.replace("{python: 'app:run'}", written))
    assert inventory.consumers["timeline"].handler == handler


@pytest.mark.parametrize(
    ("written", "endpoint", "printed"),
    [
        ("amqp://rabbit", Endpoint("rabbit", 5672, False, "/"), "amqp://rabbit:5672/"),
        ("amqp://rabbit:5673/", Endpoint("rabbit", 5673, False, "/"), "amqp://rabbit:5673/"),
        ("amqps://rabbit/app", Endpoint("rabbit", 5671, True, "app"), "amqps://rabbit:5671/app"),
        ("amqp://rabbit/%2F", Endpoint("rabbit", 5672, False, "/"), "amqp://rabbit:5672/"),
        ("amqp://rabbit/a%2Fb", Endpoint("rabbit", 5672, False, "a/b"), "amqp://rabbit:5672/a%2Fb"),
        ("amqp://[::1]:5672/", Endpoint("::1", 5672, False, "/"), "amqp://[::1]:5672/"),
    ],
)
def test_an_address_is_read_and_printed(read: Load, written: str, endpoint: Endpoint, printed: str) -> None:
    inventory = read(MINIMAL.replace("broker: local", f"broker: {{amqp: '{written}'}}"))
    assert inventory.broker.amqp == (endpoint,)
    assert str(inventory.broker.amqp[0]) == printed


def test_files_of_tls_are_looked_for_next_to_the_inventory(read: Load, file: Path) -> None:
    tls = "{amqp: 'amqps://rabbit/', tls: {ca_file: tls/ca.pem, cert_file: /etc/cert.pem}}"
    inventory = read(MINIMAL.replace("broker: local", f"broker: {tls}"))
    assert inventory.broker.tls == Tls(file.parent / "tls/ca.pem", Path("/etc/cert.pem"), None)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("web-[03-05]", ["web-03", "web-04", "web-05"]),
        ("web-[8-11]", ["web-8", "web-9", "web-10", "web-11"]),
        ("web-[099-101].eu", ["web-099.eu", "web-100.eu", "web-101.eu"]),
        ("[1-2]", ["1", "2"]),
        ("web-[7-7]", ["web-7"]),
    ],
)
def test_a_range_stands_for_many_hosts(read: Load, pattern: str, names: list[str]) -> None:
    inventory = read(MINIMAL.replace("{web-1: }", f"{{'{pattern}': }}"))
    assert list(inventory.hosts) == names


@pytest.mark.parametrize("name", ["on", "no", "null", "~0", "1", "007", "1.5", "1e3", "2026-11-22"])
def test_names_stay_as_they_are_written(read: Load, name: str) -> None:
    # YAML 1.1 would make a boolean, nothing, a number or a date of most of these
    name = name.removeprefix("~")
    inventory = read(MINIMAL.replace("web-1", name))
    assert list(inventory.hosts) == [name]
    assert inventory.host(name).name == name


@pytest.mark.parametrize(
    ("written", "value"), [("yes", True), ("on", True), ("True", True), ("no", False), ("off", False)]
)
def test_a_boolean_may_be_written_as_people_do(read: Load, written: str, value: bool) -> None:
    inventory = read(MINIMAL.replace("quota: {}", f"quota: {{}}, directed: {written}"))
    assert inventory.consumers["timeline"].directed is value


def test_nothing_is_an_empty_mapping(read: Load) -> None:
    text = MINIMAL.replace("quota: {}", "quota: , retry: ").replace("hosts:", "groups: {g: }\nquotas:\nworker:\nhosts:")
    inventory = read(text.replace("{web-1: }", "{web-1: {group: g, quotas: , consumers: {timeline: }}}"))
    assert inventory.hosts["web-1"].consumers == read(MINIMAL).consumers
    assert inventory.hosts["web-1"].group == "g"


def test_an_anchor_can_be_used_again(read: Load) -> None:
    text = MINIMAL.replace("{web-1: }", "{web-1: &one {consumers: {timeline: {concurrency: 2}}}, web-2: *one}")
    hosts = read(text).hosts
    assert [hosts[name].consumers["timeline"].concurrency for name in ("web-1", "web-2")] == [2, 2]


def test_a_merge_key_takes_what_is_not_there(read: Load) -> None:
    hosts = """\
hosts:
  web-1: {consumers: {timeline: &base {concurrency: 2, timeout: 5s}}}
  web-2: {consumers: {timeline: {<<: *base, timeout: 9s}}}
"""
    consumer = read(MINIMAL.replace("hosts: {web-1: }\n", hosts)).hosts["web-2"].consumers["timeline"]
    assert (consumer.concurrency, consumer.timeout_s) == (2, 9.0)


def test_the_ladder_has_every_delay_once_in_order(read: Load) -> None:
    text = MINIMAL.replace("quota: {}", "quota: {}, retry: {delays: [90s, 5s]}")
    inventory = read(text.replace("{web-1: }", "{web-1: {consumers: {timeline: {retry: {delays: [250ms, 2d]}}}}}"))
    assert inventory.ladder_s == (0.25, *(s for s in FIXED_LADDER_S if s < 90), 90.0, *FIXED_LADDER_S[6:], 172_800.0)


def test_the_last_delay_repeats() -> None:
    retry = RetryPolicy(5, (5.0, 30.0))
    assert [retry.delay_s(attempt) for attempt in (1, 2, 3, 9)] == [5.0, 30.0, 30.0, 30.0]


@pytest.mark.parametrize(("kind", "name"), [("host", "web-2"), ("consumer", "timelines")])
def test_an_unknown_name_is_answered_with_the_nearest(read: Load, kind: str, name: str) -> None:
    inventory = read(MINIMAL)
    with pytest.raises(UnknownName) as caught:
        getattr(inventory, kind)(name)
    assert f"no {kind} {name!r}" in caught.value.message
    assert caught.value.hint == f"Did you mean {'web-1' if kind == 'host' else 'timeline'}?"


def test_a_name_far_from_all_is_answered_with_what_there_is(read: Load) -> None:
    with pytest.raises(UnknownName) as caught:
        read(MINIMAL).host("zzz")
    assert caught.value.hint == "It has: web-1."


def test_an_inventory_travels_to_another_process_without_pydantic_and_yaml(read: Load) -> None:
    # given an inventory with everything in it
    inventory = read(SAMPLE)
    assert {field.name for field in fields(inventory)} >= {"hosts", "consumers"}

    # when another process unpickles it
    program = (
        "import pickle, sys; i = pickle.load(sys.stdin.buffer); "
        "print(len(i.hosts), sorted({'pydantic', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(inventory), capture_output=True, check=True
    )

    # then it is the same, and needed neither
    assert done.stdout.decode().strip() == "40 []"
    assert pickle.loads(pickle.dumps(inventory)) == inventory  # noqa: S301 - our own, just written


def test_five_hundred_hosts_are_no_burden(read: Load) -> None:
    # given a file that names each of 500 hosts with an override
    lines = "".join(f"  host-{n}: {{consumers: {{timeline: {{concurrency: {n % 50 + 1}}}}}}}\n" for n in range(500))
    inventory = read(MINIMAL.replace("hosts: {web-1: }\n", f"hosts:\n{lines}"))
    assert [host.consumers["timeline"].concurrency for host in inventory.hosts.values()] == [
        n % 50 + 1 for n in range(500)
    ]


def test_hosts_without_overrides_share_what_they_run(read: Load) -> None:
    # a range of 10,000 hosts must not hold 10,000 copies
    hosts = read(MINIMAL.replace("{web-1: }", "{'web-[1-10000]': }")).hosts
    assert len(hosts) == 10_000
    assert len({id(host.consumers) for host in hosts.values()}) == 1


def test_the_sample_of_the_repository_is_valid() -> None:
    inventory = load(Path(__file__).parents[3] / "inventory.yaml")
    assert inventory.hosts
    assert inventory.consumers
