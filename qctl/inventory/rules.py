"""What the parts of the inventory say about each other: names, references, costs, contradictions.

Each rule yields findings: the key they are about and the sentence. `findings` gives them their place in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice

from qctl.inventory.form import HandlerForm, InventoryForm, QuotaForm, RetryForm
from qctl.inventory.leaves import NAME, header_name, not_a_name, reserved_queue
from qctl.inventory.mistakes import MAX_MISTAKES, Keys, Mistake, word
from qctl.inventory.model import FIXED_LADDER_S, Quota, Secret, Window
from qctl.inventory.nearest import nearest
from qctl.inventory.resolve import Effective, HostEntry
from qctl.inventory.yaml_marks import Node, locate

#: Different retry delays in one inventory, the fixed ladder included; each is a queue on the broker.
MAX_LADDER = 64

#: Headers whose value is a credential.
_CREDENTIAL_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})

_BY_REFERENCE = "{env: NAME}, {file: PATH} or {command: [ARGV]}"

Finding = tuple[Keys, str]


def findings(form: InventoryForm, entries: Iterable[HostEntry], root: Node) -> list[Mistake]:
    """Every mistake of reference, by rule, not sorted; some past MAX_MISTAKES are left out."""
    entries = tuple(entries)
    at_keys = chain(_names(form), _host_names(entries), _references(form), _burst(form), _headers(form))
    at_values = chain(
        _groups_of_hosts(form),
        _nobody(form),
        _hosts_without_consumers(entries, root),
        _costs(entries),
        _urls(entries),
        _bursts(entries),
        _declarations(form),
        _ladder(form),
        _production(form),
        _tls(form),
    )
    mistakes = [_placed(root, finding, at_key=True) for finding in islice(at_keys, MAX_MISTAKES + 1)]
    return mistakes + [_placed(root, finding, at_key=False) for finding in islice(at_values, MAX_MISTAKES + 1)]


def _placed(root: Node, finding: Finding, *, at_key: bool) -> Mistake:
    keys, text = finding
    place = locate(root, keys, at_key=at_key)
    return Mistake(place.line, place.column, place.keys, text)


def _names(form: InventoryForm) -> Iterator[Finding]:
    for kind, section, names in (
        ("quota", "quotas", form.quotas),
        ("consumer", "consumers", form.consumers),
        ("group", "groups", form.groups),
    ):
        for name in names:
            if not NAME.fullmatch(name):
                yield (section, name), not_a_name(kind, name)
    for name, consumer in form.consumers.items():
        if consumer.queue is None and NAME.fullmatch(name) and (reserved := reserved_queue(name)):
            yield ("consumers", name), f"{reserved}, and the queue is named like the consumer; give it a queue"


def _host_names(entries: Iterable[HostEntry]) -> Iterator[Finding]:
    given: dict[str, str] = {}
    for entry in entries:
        keys: Keys = ("hosts", entry.pattern)
        if entry.fault:
            yield keys, entry.fault
        twice = [name for name in entry.names if name in given]
        if twice:
            more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
            yield keys, f"host {twice[0]}{more} is given already by {given[twice[0]]!r}"
        given.update((name, entry.pattern) for name in entry.names)


def _references(form: InventoryForm) -> Iterator[Finding]:
    for section, layers in (("groups", form.groups), ("hosts", form.hosts)):
        for name, layer in layers.items():
            for quota in layer.quotas:
                yield from _known("quota", quota, form.quotas, (section, name, "quotas", quota))
            for consumer, override in layer.consumers.items():
                keys: Keys = (section, name, "consumers", consumer)
                yield from _known("consumer", consumer, form.consumers, keys)
                for quota in override.quota or ():
                    yield from _known("quota", quota, form.quotas, (*keys, "quota", quota))
    for name, top in form.consumers.items():
        for quota in top.quota:
            yield from _known("quota", quota, form.quotas, ("consumers", name, "quota", quota))


def _groups_of_hosts(form: InventoryForm) -> Iterator[Finding]:
    for name, host in form.hosts.items():
        if host.group is not None:
            yield from _known("group", host.group, form.groups, ("hosts", name, "group"))


def _known(kind: str, name: str, known: Mapping[str, object], keys: Keys) -> Iterator[Finding]:
    if name not in known:
        sound = [each for each in known if NAME.fullmatch(each)]
        near = nearest(name, sound)
        hint = f"; did you mean {near}?" if near else f"; there is {', '.join(sound[:8])}" if sound else ""
        yield keys, f"there is no {kind} of this name{hint}"


def _nobody(form: InventoryForm) -> Iterator[Finding]:
    if not form.hosts:
        yield ("hosts",), "expected at least one host"
    if not form.consumers:
        yield ("consumers",), "expected at least one consumer"


def _hosts_without_consumers(entries: Iterable[HostEntry], root: Node) -> Iterator[Finding]:
    for entry in entries:
        keys = entry.effective.set_keys
        # A name that does not exist is reported as that; here only what the file leaves empty.
        if keys is not None and not _has_entries(root, keys):
            yield (
                keys,
                f"host {word(entry.pattern)} has no consumers; name one, or leave the key out to run all of them",
            )


def _has_entries(root: Node, keys: Keys) -> bool:
    node = root
    for key in keys:
        if node.entries is None or key not in node.entries:
            return True
        node = node.entries[str(key)].value
    return bool(node.entries)


def _costs(entries: Iterable[HostEntry]) -> Iterator[Finding]:
    """A task that costs more than a whole limit, or than the burst of a paced one, could never be paid for."""
    over: dict[Finding, list[str]] = {}
    for entry, effective in _distinct(entries):
        for consumer in effective.consumers.values():
            for name, units in consumer.cost.items():
                quota = effective.quotas.get(name)
                if quota is not None and (ceiling := _ceiling(quota, units)):
                    keys = (*effective.cost_keys[consumer.name], name)
                    text = f"{units} units for one task are above the {ceiling} of quota {word(name)}"
                    if units <= min(limit.units for limit in quota.limits):
                        text += f" (write `burst: {units}` or more)"
                    over.setdefault((keys, text), []).append(entry.pattern)
    for (keys, text), patterns in over.items():
        yield keys, f"{text} on host {_some(patterns)}"


def _ceiling(quota: Quota, units: int) -> str:
    """What `units` at once are above of, or ""."""
    tightest = min(quota.limits, key=lambda limit: limit.units)
    if units > tightest.units:
        return f"limit {tightest}"
    return f"burst {quota.burst}" if quota.window is Window.PACED and units > quota.burst else ""


def _urls(entries: Iterable[HostEntry]) -> Iterator[Finding]:
    """A call must belong to one quota: of several that a consumer names, one at most may be without urls."""
    unclear: dict[Finding, list[str]] = {}
    for entry, effective in _distinct(entries):
        for consumer in effective.consumers.values():
            named = [effective.quotas[name] for name in consumer.cost if name in effective.quotas]
            without = [quota.name for quota in named if not quota.urls]
            if len(without) > 1:
                text = (
                    "a consumer of several quotas needs urls on all but one of them, to tell which call counts where; "
                    f"there are none on {', '.join(map(word, without))}"
                )
                unclear.setdefault((effective.cost_keys[consumer.name], text), []).append(entry.pattern)
    for (keys, text), patterns in unclear.items():
        yield keys, f"{text} (host {_some(patterns)})"


def _distinct(entries: Iterable[HostEntry]) -> Iterator[tuple[HostEntry, Effective]]:
    """One entry for each different pair of consumers and quotas: hosts without overrides share theirs."""
    seen: set[tuple[int, int]] = set()
    for entry in entries:
        same = (id(entry.effective.consumers), id(entry.effective.quotas))
        if same not in seen:
            seen.add(same)
            yield entry, entry.effective


def _some(patterns: list[str]) -> str:
    return word(patterns[0]) + (f" and {len(patterns) - 1} more" if len(patterns) > 1 else "")


def _burst(form: InventoryForm) -> Iterator[Finding]:
    for keys, quota in _quota_forms(form):
        if "burst" in quota.model_fields_set and quota.window is not Window.PACED:
            yield (*keys, "burst"), "burst goes with window: paced only"


def _bursts(entries: Iterable[HostEntry]) -> Iterator[Finding]:
    for _, effective in _distinct(entries):
        for name, quota in effective.quotas.items():
            least = min(limit.units for limit in quota.limits)
            if quota.window is Window.PACED and quota.burst > least:
                yield effective.limit_keys[name], f"burst: {quota.burst} is above the limit of {least} units"


def _quota_forms(form: InventoryForm) -> Iterator[tuple[Keys, QuotaForm]]:
    yield from ((("quotas", name), quota) for name, quota in form.quotas.items())
    for section, layers in (("groups", form.groups), ("hosts", form.hosts)):
        for name, layer in layers.items():
            yield from (((section, name, "quotas", quota), given) for quota, given in layer.quotas.items())


def _declarations(form: InventoryForm) -> Iterator[Finding]:
    """Two consumers of one queue must declare it alike."""
    first: dict[str, str] = {}
    for name, consumer in form.consumers.items():
        other = first.setdefault(consumer.queue or name, name)
        for key in ("persistent", "declare"):
            mine, theirs = getattr(consumer, key), getattr(form.consumers[other], key)
            if mine != theirs:
                text = f"{key} is {str(mine).lower()} here and {str(theirs).lower()} in consumer {word(other)}"
                yield ("consumers", name, key), f"{text}, which has the same queue"


def _ladder(form: InventoryForm) -> Iterator[Finding]:
    delays = set(FIXED_LADDER_S)
    retries: list[tuple[Keys, RetryForm]] = []
    retries += [(("consumers", name, "retry", "delays"), top.retry) for name, top in form.consumers.items()]
    for section, layers in (("groups", form.groups), ("hosts", form.hosts)):
        for name, layer in layers.items():
            for consumer, override in layer.consumers.items():
                if override.retry is not None:
                    retries.append(((section, name, "consumers", consumer, "retry", "delays"), override.retry))
    for keys, retry in retries:
        delays.update(retry.delays)
        if len(delays) > MAX_LADDER:
            fixed = len(FIXED_LADDER_S)
            yield keys, f"an inventory has at most {MAX_LADDER} different retry delays, {fixed} of them fixed"
            return


def _handlers(form: InventoryForm) -> Iterator[tuple[Keys, HandlerForm]]:
    for name, top in form.consumers.items():
        yield ("consumers", name, "handler"), top.handler
    for section, layers in (("groups", form.groups), ("hosts", form.hosts)):
        for name, layer in layers.items():
            for consumer, override in layer.consumers.items():
                if override.handler is not None:
                    yield (section, name, "consumers", consumer, "handler"), override.handler


def _headers(form: InventoryForm) -> Iterator[Finding]:
    for keys, handler in _handlers(form):
        seen: set[str] = set()
        for header, value in handler.http.headers.items() if handler.http else ():
            place = (*keys, "http", "headers", header)
            try:
                header_name(header)
            except ValueError as error:
                yield place, str(error)
            if header.lower() in seen:
                yield place, "this header stands here twice; upper and lower case are the same"
            seen.add(header.lower())
            literal = isinstance(value, str) and header.lower() in _CREDENTIAL_HEADERS
            if form.environment == "production" and (literal or _is_value(value)):
                yield place, f"in production a credential is given by reference: {_BY_REFERENCE}"


def _production(form: InventoryForm) -> Iterator[Finding]:
    if form.environment == "production":
        for key in ("username", "password"):
            if _is_value(getattr(form.broker, key)):
                yield ("broker", key), f"value: is for development only; in production give {_BY_REFERENCE}"


def _is_value(secret: object) -> bool:
    return isinstance(secret, Secret) and secret.kind == "value"


def _tls(form: InventoryForm) -> Iterator[Finding]:
    tls = form.broker.tls
    if tls is None:
        return
    if tls.key_file is not None and tls.cert_file is None:
        yield ("broker", "tls", "key_file"), "key_file goes with cert_file"
    https = form.broker.management is not None and form.broker.management.lower().startswith("https:")
    if not https and not any(endpoint.tls for endpoint in form.broker.amqp):
        yield ("broker", "tls"), "tls is given, but no address is amqps:// or https://"
