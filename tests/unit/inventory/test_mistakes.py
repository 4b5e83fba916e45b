"""Every mistake is reported at its place, by its path, with what was expected.

In each text a mark ▶ stands where a mistake is to be reported; it is taken out before the text is read.
"""

from __future__ import annotations

from textwrap import indent

import pytest

from tests.unit.inventory.conftest import Mistakes

MARK = "▶"


def text(
    *,
    top: str = "",
    version: str = "version: 1",
    broker: str = "broker: local",
    quotas: str = "twitter: 300/15m\nmail: 500/d",
    consumers: str = "timeline: {handler: {exec: [cat]}, quota: {twitter: 1}}",
    groups: str = "large: {quotas: {twitter: 1000/h}}",
    hosts: str = "web-1:",
) -> str:
    """An inventory, sound but for what a case replaces."""
    sections = {"quotas": quotas, "consumers": consumers, "groups": groups, "hosts": hosts}
    return "\n".join(
        [version, broker, *([top] if top else []), *(f"{key}:\n{indent(body, '  ')}" for key, body in sections.items())]
    )


def consumer(body: str) -> str:
    """A consumer `timeline` with more in it."""
    return text(consumers=f"timeline:\n  handler: {{exec: [cat]}}\n  quota: {{twitter: 1}}\n{indent(body, '  ')}")


def http(body: str) -> str:
    """A consumer with an http handler."""
    return text(consumers=f"timeline:\n  quota: {{}}\n  handler:\n    http:\n{indent(body, '      ')}")


def handler(body: str) -> str:
    """A consumer with this handler."""
    return text(consumers=f"timeline:\n  quota: {{}}\n  handler: {body}")


def broker(body: str) -> str:
    """A broker mapping."""
    return text(broker=f"broker:\n{indent(body, '  ')}")


AMQP = "amqp: amqp://rabbit/\n"
TWO = "handler: {exec: [cat]}, quota: {}"

#: name, text, and for each mark the path and parts of the sentence
CASES: dict[str, tuple[str, list[tuple[str, ...]]]] = {
    # required keys and unknown keys
    "no version": (MARK + text(version="environment: development"), [("version: ", "required key is missing")]),
    "version 2": (text(version=f"version: {MARK}2"), [("version: ", "expected 1", "found '2'")]),
    "version as a text": (text(version=f'version: {MARK}"1.0"'), [("version: ", "expected 1")]),
    "no broker": (MARK + text(broker="operators: [ops]"), [("broker: ", "required key is missing", "amqp")]),
    "unknown top key": (text(top=f"{MARK}operator: [x]"), [("operator: ", "unknown key", "did you mean operators?")]),
    "unknown top key, far": (text(top=f"{MARK}zzz: 1"), [("zzz: ", "unknown key", "expected any of version")]),
    "no handler": (
        text(consumers=f"{MARK}timeline: {{quota: {{}}}}"),
        [("consumers.timeline.handler: ", "required key is missing", "{python: ...}")],
    ),
    "no quota": (
        text(consumers=f"{MARK}timeline: {{handler: {{exec: [cat]}}}}"),
        [("consumers.timeline.quota: ", "required key is missing", "{} when it costs nothing")],
    ),
    "unknown key of a consumer": (
        consumer(f"{MARK}concurency: 3"),
        [("consumers.timeline.concurency: ", "did you mean concurrency?")],
    ),
    "unknown key of a retry": (
        consumer(f"retry: {{{MARK}delay: [5s]}}"),
        [("consumers.timeline.retry.delay: ", "did you mean delays?")],
    ),
    "unknown key of a host": (
        text(hosts=f"web-1: {{{MARK}groups: large}}"),
        [("hosts.web-1.groups: ", "did you mean group?")],
    ),
    "unknown key of http": (
        http(f"base_url: http://api/\n{MARK}max_respnse: 1MiB"),
        [("consumers.timeline.handler.http.max_respnse: ", "did you mean max_response?")],
    ),
    # shapes
    "consumers is a list": (
        text(consumers=f"{MARK}- timeline"),
        [("consumers: ", "expected a mapping", "found a list")],
    ),
    "a consumer is a text": (
        text(consumers=f"timeline: {MARK}queue"),
        [("consumers.timeline: ", "expected a mapping", "found 'queue'")],
    ),
    "hosts is a list": (text(hosts=f"{MARK}- web-1"), [("hosts: ", "expected a mapping of hosts", "found a list")]),
    "no hosts": (text(hosts=f"{MARK}{{}}"), [("hosts: ", "at least one host")]),
    "no consumers": (text(consumers=f"{MARK}{{}}"), [("consumers: ", "at least one consumer")]),
    "operators is a text": (text(top=f"operators: {MARK}ops"), [("operators: ", "expected a list of broker users")]),
    "operators is empty": (text(top=f"operators: {MARK}[]"), [("operators: ", "found an empty list")]),
    # environment and worker
    "environment": (
        text(top=f"environment: {MARK}prod"),
        [("environment: ", "expected one of development, production", "found 'prod'")],
    ),
    "environment, near": (text(top=f"environment: {MARK}prodution"), [("environment: ", "did you mean production?")]),
    "hold_after without a unit": (
        text(top=f"worker: {{hold_after: {MARK}1}}"),
        [("worker.hold_after: ", "expected a duration", "found '1'")],
    ),
    "max_body in bytes of another kind": (
        text(top=f"worker: {{max_body: {MARK}1MB}}"),
        [("worker.max_body: ", "expected a size such as 64KiB", "found '1MB'")],
    ),
    "max_body above the bound": (text(top=f"worker: {{max_body: {MARK}1GiB}}"), [("worker.max_body: ", "128MiB")]),
    "python_path is a text": (
        text(top=f"worker: {{python_path: {MARK}src}}"),
        [("worker.python_path: ", "a list of folders")],
    ),
    # broker
    "broker is another text": (text(broker=f"broker: {MARK}remote"), [("broker: ", "expected local, or a mapping")]),
    "broker is a URL": (
        text(broker=f"broker: {MARK}amqp://u:hunter2@h/"),
        [("broker: ", "expected local, or a mapping")],
    ),
    "broker without amqp": (
        text(broker=f"{MARK}broker: {{username: x}}"),
        [("broker.amqp: ", "required key is missing")],
    ),
    "credentials in amqp": (broker(f"amqp: {MARK}amqp://guest:hunter2@rabbit/"), [("broker.amqp: ", "credentials")]),
    "credentials with a slash": (
        broker(f"amqp: {MARK}amqp://guest:hun/ter2@rabbit/"),
        [("broker.amqp: ", "credentials")],
    ),
    "credentials in a list": (
        broker(f"amqp:\n  - amqp://rabbit-1/\n  - {MARK}amqp://guest:hunter2@rabbit-2/"),
        [("broker.amqp[1]: ", "credentials")],
    ),
    "user alone in management": (
        broker(AMQP + f"management: {MARK}http://hunter2@rabbit:15672"),
        [("broker.management: ", "credentials", "broker.username")],
    ),
    "amqp with http": (
        broker(f"amqp: {MARK}http://rabbit/"),
        [("broker.amqp: ", "beginning with amqp:// or amqps://")],
    ),
    "amqp without a scheme": (
        broker(f"amqp: {MARK}rabbit:5672"),
        [("broker.amqp: ", "expected a URL such as amqp://")],
    ),
    "amqp port": (broker(f"amqp: {MARK}amqp://rabbit:99999/"), [("broker.amqp: ", "a port between 1 and 65535")]),
    "amqp vhost of two": (broker(f"amqp: {MARK}amqp://rabbit/a/b"), [("broker.amqp: ", "%2F")]),
    "amqp with a query": (broker(f"amqp: {MARK}amqp://rabbit/?heartbeat=3"), [("broker.amqp: ", "without ? and #")]),
    "amqp is empty": (broker(f"amqp: {MARK}[]"), [("broker.amqp: ", "found an empty list")]),
    "amqp is nothing": (broker(f"amqp:{MARK}"), [("broker.amqp: ", "found nothing")]),
    "password in plain": (broker(AMQP + f"password: {MARK}hunter2"), [("broker.password: ", "{env: NAME}")]),
    "password by two ways": (
        broker(AMQP + f"password: {MARK}{{env: A, file: b}}"),
        [("broker.password: ", "exactly one")],
    ),
    "password, unknown way": (
        broker(AMQP + f"password: {MARK}{{envv: A}}"),
        [("broker.password: ", "did you mean env?")],
    ),
    "password, no variable": (
        broker(AMQP + f"password: {MARK}{{env: 'hunter2!'}}"),
        [("broker.password: ", "{env: NAME}")],
    ),
    "password, command a text": (
        broker(AMQP + f"password: {MARK}{{command: pass}}"),
        [("broker.password: ", "a list")],
    ),
    "username a list": (broker(AMQP + f"username: {MARK}[guest]"), [("broker.username: ", "found a list")]),
    "value in production": (
        text(
            top="environment: production", broker=f"broker: {{amqp: 'amqp://r/', password: {MARK}{{value: hunter2}}}}"
        ),
        [("broker.password: ", "development only", "{env: NAME}")],
    ),
    "tls without amqps": (broker(AMQP + f"tls: {MARK}{{ca_file: ca.pem}}"), [("broker.tls: ", "amqps://")]),
    "key without certificate": (
        broker(f"amqp: amqps://rabbit/\ntls: {{key_file: {MARK}key.pem}}"),
        [("broker.tls.key_file: ", "cert_file")],
    ),
    # quotas
    "rate without a period": (
        text(quotas=f"twitter: {MARK}20000"),
        [("quotas.twitter: ", "N/PERIOD", "found '20000'")],
    ),
    "rate of an unknown period": (text(quotas=f"twitter: {MARK}20000/w"), [("quotas.twitter: ", "found '20000/w'")]),
    "rate of zero": (text(quotas=f"twitter: {MARK}0/h"), [("quotas.twitter: ", "between 1 and 10^12")]),
    "rate above the bound": (text(quotas=f"twitter: {MARK}1000000000001/h"), [("quotas.twitter: ", "10^12")]),
    "second rate of a bare list": (text(quotas=f"twitter: [3/m, {MARK}x]"), [("quotas.twitter[1]: ", "N/PERIOD")]),
    "second rate of a limit": (
        text(quotas=f"twitter: {{limit: [3/m, {MARK}x]}}"),
        [("quotas.twitter.limit[1]: ", "N/PERIOD")],
    ),
    "no rates": (text(quotas=f"twitter: {MARK}[]"), [("quotas.twitter: ", "found an empty list")]),
    "quota without a limit": (
        text(quotas=f"{MARK}twitter: {{window: fixed}}"),
        [("quotas.twitter.limit: ", "required")],
    ),
    "quota of nothing": (text(quotas=f"{MARK}twitter:"), [("quotas.twitter.limit: ", "required key is missing")]),
    "window": (
        text(quotas=f"twitter: {{limit: 3/m, window: {MARK}slidng}}"),
        [("quotas.twitter.window: ", "sliding, fixed, paced", "did you mean sliding?")],
    ),
    "headers of an unknown style": (
        text(quotas=f"twitter: {{limit: 3/m, headers: {MARK}git-hub}}"),
        [("quotas.twitter.headers: ", "did you mean github?")],
    ),
    "burst of sliding": (
        text(quotas=f"twitter: {{limit: 3/m, {MARK}burst: 2}}"),
        [("quotas.twitter.burst: ", "window: paced only")],
    ),
    "burst above the limit": (
        text(quotas=f"twitter: {MARK}{{limit: 3/m, window: paced, burst: 4}}"),
        [("quotas.twitter: ", "burst: 4 is above the limit of 3")],
    ),
    "credentials in urls": (
        text(quotas=f"twitter: {{limit: 3/m, urls: [{MARK}'https://u:hunter2@api/']}}"),
        [("quotas.twitter.urls[0]: ", "credentials")],
    ),
    "urls is a text": (
        text(quotas=f"twitter: {{limit: 3/m, urls: {MARK}'https://api/'}}"),
        [("quotas.twitter.urls: ", "list")],
    ),
    "name of a quota": (
        text(quotas=f"twitter: 300/15m\n{MARK}_mail: 3/m"),
        [("quotas._mail: ", "expected the name of a quota", "found '_mail'")],
    ),
    # consumers
    "name of a consumer": (
        text(consumers=f"{MARK}'a b': {{{TWO}}}"),
        [("consumers.'a b': ", "expected the name of a consumer")],
    ),
    "queue of qctl": (consumer(f"queue: {MARK}qctl.retry"), [("consumers.timeline.queue: ", "qctl.")]),
    "queue of the broker": (consumer(f"queue: {MARK}amq.gen"), [("consumers.timeline.queue: ", "amq.")]),
    "queue of the dead": (consumer(f"queue: {MARK}timeline.dead"), [("consumers.timeline.queue: ", ".dead")]),
    "queue with a blank": (
        consumer(f"queue: {MARK}'time line'"),
        [("consumers.timeline.queue: ", "found 'time line'")],
    ),
    "consumer named like a dead queue": (
        text(consumers=f"{MARK}x.dead: {{{TWO}}}"),
        [("consumers.x.dead: ", ".dead", "give it a queue")],
    ),
    "concurrency zero": (
        consumer(f"concurrency: {MARK}0"),
        [("consumers.timeline.concurrency: ", "between 1 and 1000")],
    ),
    "concurrency above": (consumer(f"concurrency: {MARK}1001"), [("consumers.timeline.concurrency: ", "found '1001'")]),
    "concurrency quoted": (consumer(f"concurrency: {MARK}'8'"), [("consumers.timeline.concurrency: ", "whole number")]),
    "concurrency a fraction": (
        consumer(f"concurrency: {MARK}1.5"),
        [("consumers.timeline.concurrency: ", "found '1.5'")],
    ),
    "concurrency with an underscore": (
        consumer(f"concurrency: {MARK}1_0"),
        [("consumers.timeline.concurrency: ", "'1_0'")],
    ),
    "timeout without a unit": (consumer(f"timeout: {MARK}30"), [("consumers.timeline.timeout: ", "30s", "found '30'")]),
    "timeout as base 60": (consumer(f"timeout: {MARK}1:30"), [("consumers.timeline.timeout: ", "found '1:30'")]),
    "timeout of nothing": (consumer(f"timeout:{MARK}"), [("consumers.timeline.timeout: ", "found nothing")]),
    "timeout above a day": (consumer(f"timeout: {MARK}2d"), [("consumers.timeline.timeout: ", "between 10ms and 1d")]),
    "attempts": (
        consumer(f"retry: {{attempts: {MARK}0}}"),
        [("consumers.timeline.retry.attempts: ", "between 1 and 100")],
    ),
    "third delay": (
        consumer(f"retry: {{delays: [5s, 30s, {MARK}5]}}"),
        [("consumers.timeline.retry.delays[2]: ", "found '5'")],
    ),
    "delay of zero": (
        consumer(f"retry: {{delays: [{MARK}0s]}}"),
        [("consumers.timeline.retry.delays[0]: ", "between 1ms")],
    ),
    "no delays": (consumer(f"retry: {{delays: {MARK}[]}}"), [("consumers.timeline.retry.delays: ", "empty list")]),
    "directed": (consumer(f"directed: {MARK}maybe"), [("consumers.timeline.directed: ", "expected true or false")]),
    "directed as a number": (
        consumer(f"directed: {MARK}1"),
        [("consumers.timeline.directed: ", "expected true or false")],
    ),
    # costs
    "cost as a fraction": (
        text(consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {{twitter: {MARK}1.5}}}}"),
        [("consumers.timeline.quota.twitter: ", "whole number", "found '1.5'")],
    ),
    "cost as a boolean": (
        text(consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {{twitter: {MARK}true}}}}"),
        [("consumers.timeline.quota.twitter: ", "whole number", "found 'true'")],
    ),
    "cost below zero": (
        text(consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {{twitter: {MARK}-1}}}}"),
        [("consumers.timeline.quota.twitter: ", "found '-1'")],
    ),
    "cost is a list": (
        text(consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {MARK}[twitter]}}"),
        [("consumers.timeline.quota: ", "a mapping of quota to units")],
    ),
    "cost of an unknown quota": (
        text(consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {{{MARK}twiter: 1}}}}"),
        [("consumers.timeline.quota.twiter: ", "no quota of this name", "did you mean twitter?")],
    ),
    "cost above the limit": (
        text(consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {{twitter: {MARK}301}}}}"),
        [("consumers.timeline.quota.twitter: ", "301 units", "limit 300/15m", "on host web-1")],
    ),
    "cost above the tightest of two": (
        text(
            quotas="twitter: [20000/h, 5/s]",
            consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {{twitter: {MARK}6}}}}",
            groups="{}",
        ),
        [("consumers.timeline.quota.twitter: ", "limit 5/s")],
    ),
    "cost above the limit of a group": (
        text(
            quotas="twitter: 1000/h",
            consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {{twitter: {MARK}20}}}}",
            groups="small: {quotas: {twitter: 10/h}}",
            hosts="web-1:\nweb-2: {group: small}",
        ),
        [("consumers.timeline.quota.twitter: ", "limit 10/h", "on host web-2")],
    ),
    "cost above the limit on a host": (
        text(hosts=f"web-1: {{consumers: {{timeline: {{quota: {{twitter: {MARK}301}}}}}}}}"),
        [("hosts.web-1.consumers.timeline.quota.twitter: ", "limit 300/15m")],
    ),
    "cost above the burst": (
        text(
            quotas="twitter: {limit: 300/m, window: paced, burst: 2}",
            consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {{twitter: {MARK}3}}}}",
            groups="{}",
        ),
        [("consumers.timeline.quota.twitter: ", "burst 2 of quota twitter (write `burst: 3` or more) on host web-1")],
    ),
    "cost above the burst on a host": (
        text(
            quotas="twitter: {limit: 300/m, window: paced, burst: 3}",
            consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {{twitter: {MARK}3}}}}",
            groups="{}",
            hosts="web-1:\nweb-2: {quotas: {twitter: {limit: 300/m, window: paced}}}",
        ),
        [("consumers.timeline.quota.twitter: ", "burst 1 of quota twitter (write `burst: 3` or more) on host web-2")],
    ),
    "two quotas without urls": (
        text(consumers=f"timeline: {{handler: {{exec: [cat]}}, quota: {MARK}{{twitter: 1, mail: 1}}}}"),
        [("consumers.timeline.quota: ", "needs urls on all but one", "twitter, mail")],
    ),
    "declared as persistent and not": (
        text(consumers=f"a: {{{TWO}, queue: q}}\nb: {{{TWO}, queue: q, persistent: {MARK}false}}"),
        [("consumers.b.persistent: ", "false here and true in consumer a", "same queue")],
    ),
    "declared as ours and not": (
        text(consumers=f"a: {{{TWO}, queue: q, declare: false}}\nb: {MARK}{{{TWO}, queue: q}}"),
        [("consumers.b: ", "declare is true here and false in consumer a")],
    ),
    # handlers
    "handler of nothing": (
        handler(f"{MARK}{{}}"),
        [("consumers.timeline.handler: ", "exactly one of python, http and exec")],
    ),
    "two handlers": (
        handler(f"{MARK}{{python: 'a:b', exec: [cat]}}"),
        [("consumers.timeline.handler: ", "exactly one")],
    ),
    "function without a module": (
        handler(f"{{python: {MARK}timeline}}"),
        [("consumers.timeline.handler.python: ", "found 'timeline'")],
    ),
    "function with a dash": (
        handler(f"{{python: {MARK}'my-app:run'}}"),
        [("consumers.timeline.handler.python: ", "package.module")],
    ),
    "no message types": (
        handler(f"{{python: {MARK}{{}}}}"),
        [("consumers.timeline.handler.python: ", "at least one message type")],
    ),
    "exec is a text": (
        handler(f"{{exec: {MARK}cat -n}}"),
        [("consumers.timeline.handler.exec: ", "a program and its arguments")],
    ),
    "exec is empty": (handler(f"{{exec: {MARK}[]}}"), [("consumers.timeline.handler.exec: ", "empty list")]),
    "http without base_url": (
        text(consumers=f"timeline: {{quota: {{}}, handler: {{{MARK}http: }}}}"),
        [("consumers.timeline.handler.http.base_url: ", "required key is missing")],
    ),
    "credentials in base_url": (
        http(f"base_url: {MARK}https://u:hunter2@api/"),
        [("consumers.timeline.handler.http.base_url: ", "credentials")],
    ),
    "base_url without a scheme": (
        http(f"base_url: {MARK}api.example.com"),
        [("consumers.timeline.handler.http.base_url: ", "https://")],
    ),
    "name of a header": (
        http(f"base_url: http://api/\nheaders: {{{MARK}'a b': x}}"),
        [("consumers.timeline.handler.http.headers.'a b': ", "name of an HTTP header")],
    ),
    "header twice": (
        http(f"base_url: http://api/\nheaders: {{accept: x, {MARK}Accept: y}}"),
        [("consumers.timeline.handler.http.headers.Accept: ", "twice")],
    ),
    "header over two lines": (
        http(f'base_url: http://api/\nheaders: {{accept: {MARK}"hunter2\\r\\nhunter2: x"}}'),
        [("consumers.timeline.handler.http.headers.accept: ", "printable")],
    ),
    "credential header in production": (
        f"environment: production\n{http(f'base_url: http://api/{chr(10)}headers: {{{MARK}Authorization: hunter2}}')}",
        [("consumers.timeline.handler.http.headers.Authorization: ", "in production", "by reference")],
    ),
    # groups and hosts
    "unknown quota of a group": (
        text(groups=f"large: {{quotas: {{{MARK}twiter: 1000/h}}}}"),
        [("groups.large.quotas.twiter: ", "no quota of this name", "did you mean twitter?")],
    ),
    "unknown consumer of a group": (
        text(groups=f"large: {{consumers: {{{MARK}timelin: }}}}"),
        [("groups.large.consumers.timelin: ", "did you mean timeline?")],
    ),
    "unknown group": (
        text(hosts=f"web-1: {{group: {MARK}larg}}"),
        [("hosts.web-1.group: ", "no group of this name", "did you mean large?")],
    ),
    "unknown group, far": (text(hosts=f"web-1: {{group: {MARK}zzz}}"), [("hosts.web-1.group: ", "there is large")]),
    "unknown consumer of a host": (
        text(hosts=f"web-1: {{consumers: {{{MARK}timelin: {{}}}}}}"),
        [("hosts.web-1.consumers.timelin: ", "no consumer of this name", "did you mean timeline?")],
    ),
    "unknown quota of a host": (
        text(hosts=f"web-1: {{quotas: {{{MARK}main: 3/m}}}}"),
        [("hosts.web-1.quotas.main: ", "did you mean mail?")],
    ),
    "host with an empty list of consumers": (
        text(hosts=f"web-1: {{consumers: {MARK}{{}}}}"),
        [("hosts.web-1.consumers: ", "no consumers")],
    ),
    "host whose consumers are nothing": (
        text(hosts=f"web-1:\n  consumers:{MARK}"),
        [("hosts.web-1.consumers: ", "no consumers")],
    ),
    "queue overridden": (
        text(hosts=f"web-1: {{consumers: {{timeline: {{{MARK}queue: x}}}}}}"),
        [("hosts.web-1.consumers.timeline.queue: ", "cannot be overridden")],
    ),
    "declare overridden in a group": (
        text(groups=f"large: {{consumers: {{timeline: {{{MARK}declare: false}}}}}}"),
        [("groups.large.consumers.timeline.declare: ", "cannot be overridden")],
    ),
    "override of nothing": (
        text(hosts=f"web-1: {{consumers: {{timeline: {{concurrency: {MARK}null}}}}}}"),
        [("hosts.web-1.consumers.timeline.concurrency: ", "found nothing")],
    ),
    "name of a host": (
        text(hosts=f"{MARK}'-web':"),
        [("hosts.-web: ", "expected the name of a host", "found '-web'")],
    ),
    "name of a host too long": (text(hosts=f"{MARK}{'w' * 64}:"), [(f"hosts.{'w' * 64}: ", "at most 62")]),
    "range without an end": (text(hosts=f"{MARK}'web-[03-]':"), [("hosts.web-[03-]: ", "one range of numbers")]),
    "range of letters": (text(hosts=f"{MARK}'web-[a-c]':"), [("hosts.web-[a-c]: ", "web-[03-40]")]),
    "two ranges": (text(hosts=f"{MARK}'web-[1-2]-[1-2]':"), [("hosts.web-[1-2]-[1-2]: ", "one range")]),
    "range backwards": (text(hosts=f"{MARK}'web-[40-03]':"), [("hosts.web-[40-03]: ", "smaller end")]),
    "range of uneven zeros": (
        text(hosts=f"{MARK}'web-[03-140]':"),
        [("hosts.web-[03-140]: ", "same number of digits")],
    ),
    "range above the bound": (
        text(hosts=f"{MARK}'web-[1-10001]':"),
        [("hosts.web-[1-10001]: ", "at most 10,000 hosts")],
    ),
    "ranges above the bound together": (
        text(hosts=f"'a-[1-6000]':\n{MARK}'b-[1-6000]':"),
        [("hosts.b-[1-6000]: ", "at most 10,000 hosts")],
    ),
    "range over a name": (
        text(hosts=f"web-05:\n{MARK}'web-[03-40]':"),
        [("hosts.web-[03-40]: ", "host web-05 is given already by 'web-05'")],
    ),
    "range over a range": (
        text(hosts=f"'web-[1-5]':\n{MARK}'web-[4-9]':"),
        [("hosts.web-[4-9]: ", "host web-4 and 1 more is given already")],
    ),
    # YAML itself
    "key twice": (
        text(hosts=f"web-1:\nweb-2:\n{MARK}web-1:"),
        [("hosts.web-1: ", "stands here twice", "first in line 11")],
    ),
    "key twice at the top": (text(top=f"{MARK}version: 1"), [("version: ", "twice", "line 1")]),
    "tag": (text(hosts=f"web-1: {MARK}!!python/object:os.system {{}}"), [("hosts.web-1: ", "tags")]),
    "alias without an anchor": (
        text(hosts=f"web-1: {{group: large, quotas: {{twitter: {MARK}*hunter2}}}}"),
        [("hosts.web-1", "anchor")],
    ),
    "alias in itself": (
        text(hosts=f"web-1: &a {{consumers: {MARK}*a}}"),
        [("hosts.web-1.consumers: ", "inside its own anchor")],
    ),
    "key that is a list": (text(hosts=f"web-1:\n? {MARK}[a]\n: x"), [("hosts: ", "a key must be a text")]),
    "second document": (text() + f"\n{MARK}---\nversion: 1", [("a second document",)]),
    "tab": (text() + f"\n{MARK}\tx: 1", [("not valid YAML: ", "tab")]),
    "bracket left open": (text(hosts=f"web-1: {MARK}{{group: large\n"), [("not valid YAML: ", "not closed")]),
    "colon too many": (text(hosts=f"web-1: a{MARK}: b"), [("not valid YAML: ", "a ':' too many")]),
    "text that must be quoted": (text(hosts=f"web-1: {MARK}@x"), [("not valid YAML: ", "must be quoted")]),
    "key out of line": (text(hosts=f"  web-1:\n {MARK}web-2:"), [("not valid YAML: ", "indentation")]),
    "bell": (text(hosts=f"web-1: {MARK}\a"), [("the character U+0007",)]),
}


@pytest.mark.parametrize(("marked", "expected"), CASES.values(), ids=CASES)
def test_a_mistake_is_reported_at_its_place(mistakes: Mistakes, marked: str, expected: list[tuple[str, ...]]) -> None:
    # given a text with mistakes where the marks are
    places = []
    for number, line in enumerate(marked.split("\n"), start=1):
        while MARK in line:
            places.append(f"{number}:{line.index(MARK) + 1}: ")
            line = line.replace(MARK, "", 1)

    # when it is read
    reported = mistakes(marked.replace(MARK, ""))

    # then just those are reported, each at its place
    assert len(reported) == len(expected) == len(places), reported
    for message, place, (path, *parts) in zip(reported, places, expected, strict=True):
        assert message.startswith(place + path), (message, place + path)
        for part in parts:
            assert part in message
        # in our own words, and without the secret
        assert "Input should" not in message
        assert "hunter2" not in message
