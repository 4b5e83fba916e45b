"""From the form to the model: precedence (consumer < group < host), merging, ranges of hosts.

A pure function of the form. It remembers for each host entry which key of the file a value came from, so that `rules`
can point at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qctl.inventory import hosts
from qctl.inventory.form import BrokerForm, ConsumerForm, HandlerForm, InventoryForm, OverrideForm, QuotaForm, RetryForm
from qctl.inventory.mistakes import Keys
from qctl.inventory.model import (
    Broker,
    Consumer,
    ExecHandler,
    Group,
    Handler,
    Host,
    HttpHandler,
    Inventory,
    Quota,
    RetryPolicy,
    Tls,
    WorkerSettings,
)


@dataclass(frozen=True, slots=True)
class Effective:
    """What hosts of one kind spend and run, and where in the file each decision was made.

    `cost_keys`: consumer -> the key of its cost. `limit_keys`: quota -> the key of its limit. `set_keys`: the key that
    chooses the consumers, or None when all of them run.
    """

    quotas: Mapping[str, Quota]
    limit_keys: Mapping[str, Keys]
    consumers: Mapping[str, Consumer]
    cost_keys: Mapping[str, Keys]
    set_keys: Keys | None


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One key of `hosts`, with the names it stands for, or what is wrong with it."""

    pattern: str
    names: tuple[str, ...]
    effective: Effective
    fault: str = ""


def resolve(form: InventoryForm, path: Path) -> tuple[Inventory, tuple[HostEntry, ...]]:
    """The inventory, and its host entries for `rules`. References that do not exist are passed over here."""
    base = path.parent
    top = Effective(
        quotas={name: _quota(name, quota) for name, quota in form.quotas.items()},
        limit_keys={name: ("quotas", name) for name in form.quotas},
        consumers={name: _consumer(name, consumer) for name, consumer in form.consumers.items()},
        cost_keys={name: ("consumers", name, "quota") for name in form.consumers},
        set_keys=None,
    )
    quotas_of_group = {name: _with_quotas(top, group.quotas, ("groups", name)) for name, group in form.groups.items()}
    of_group = {
        name: _with_consumers(quotas_of_group[name], group.consumers, ("groups", name), top)
        if "consumers" in group.model_fields_set
        else quotas_of_group[name]
        for name, group in form.groups.items()
    }
    entries = []
    total = 0
    hosts_by_name: dict[str, Host] = {}
    members: dict[str, list[str]] = {name: [] for name in form.groups}
    for pattern, host in form.hosts.items():
        keys: Keys = ("hosts", pattern)
        group = host.group if host.group in form.groups else None
        effective = of_group[group] if group is not None else top
        effective = _with_quotas(effective, host.quotas, keys)
        if "consumers" in host.model_fields_set:
            effective = _with_consumers(effective, host.consumers, keys, top)
        names, fault = _names(pattern, most=hosts.MAX_HOSTS - total)
        total += len(names)
        entries.append(HostEntry(pattern, names, effective, fault))
        for name in names:
            hosts_by_name[name] = Host(name, group, effective.quotas, effective.consumers)
        if group is not None:
            members[group].extend(names)
    inventory = Inventory(
        path=path,
        environment=form.environment,
        broker=_broker(form.broker, base),
        operators=form.operators,
        worker=WorkerSettings(
            form.worker.hold_after, form.worker.max_body, tuple(base / folder for folder in form.worker.python_path)
        ),
        quotas=top.quotas,
        consumers=top.consumers,
        groups={name: Group(name, tuple(names)) for name, names in members.items()},
        hosts=hosts_by_name,
    )
    return inventory, tuple(entries)


def _names(pattern: str, *, most: int) -> tuple[tuple[str, ...], str]:
    try:
        return hosts.expand(pattern, most=most), ""
    except ValueError as error:
        return (), str(error)


def _with_quotas(below: Effective, forms: Mapping[str, QuotaForm], keys: Keys) -> Effective:
    known = {name: form for name, form in forms.items() if name in below.quotas}
    if not known:
        return below
    quotas = {name: _overridden(below.quotas[name], form) for name, form in known.items()}
    return replace(
        below,
        quotas={**below.quotas, **quotas},
        limit_keys={**below.limit_keys, **{name: (*keys, "quotas", name) for name in known}},
    )


def _with_consumers(below: Effective, forms: Mapping[str, OverrideForm], keys: Keys, top: Effective) -> Effective:
    """Only the consumers of `forms`; each begins from what the group made of it, or from the top."""
    consumers, cost_keys = {}, {}
    for name, form in forms.items():
        layer = below if name in below.consumers else top
        if name not in layer.consumers:
            continue
        consumers[name] = _merged(layer.consumers[name], form)
        own_cost = "quota" in form.model_fields_set
        cost_keys[name] = (*keys, "consumers", name, "quota") if own_cost else layer.cost_keys[name]
    return replace(below, consumers=consumers, cost_keys=cost_keys, set_keys=(*keys, "consumers"))


def _overridden(base: Quota, form: QuotaForm) -> Quota:
    """A bare rate replaces the limit and keeps window, urls and headers; a mapping replaces the whole quota."""
    return replace(base, limits=form.limit) if form.bare else _quota(base.name, form)


def _quota(name: str, form: QuotaForm) -> Quota:
    return Quota(name, form.limit, form.window, form.burst, form.urls, form.headers)


def _consumer(name: str, form: ConsumerForm) -> Consumer:
    return Consumer(
        name=name,
        queue=form.queue or name,
        handler=_handler(form.handler),
        cost=dict(form.quota),
        concurrency=form.concurrency,
        timeout_s=form.timeout,
        retry=_retry(form.retry),
        directed=form.directed,
        persistent=form.persistent,
        declare=form.declare,
    )


def _merged(base: Consumer, form: OverrideForm) -> Consumer:
    changes: dict[str, Any] = {}
    if form.handler is not None:
        changes["handler"] = _handler(form.handler)
    if form.quota is not None:
        changes["cost"] = dict(form.quota)
    if form.concurrency is not None:
        changes["concurrency"] = form.concurrency
    if form.timeout is not None:
        changes["timeout_s"] = form.timeout
    if form.retry is not None:
        changes["retry"] = _retry(form.retry)
    if form.directed is not None:
        changes["directed"] = form.directed
    return replace(base, **changes) if changes else base


def _retry(form: RetryForm) -> RetryPolicy:
    return RetryPolicy(form.attempts, form.delays)


def _handler(form: HandlerForm) -> Handler:
    if form.python is not None:
        return form.python
    if form.http is not None:
        http = form.http
        return HttpHandler(http.base_url, dict(http.headers), http.allow_headers, http.max_response)
    return ExecHandler(form.exec or ())


def _broker(form: BrokerForm, base: Path) -> Broker:
    if form.local:
        return Broker(local=True)
    tls = None
    if form.tls is not None:
        files = (form.tls.ca_file, form.tls.cert_file, form.tls.key_file)
        tls = Tls(*(base / file if file else None for file in files))
    return Broker(False, form.amqp, form.management, form.username, form.password, tls)
