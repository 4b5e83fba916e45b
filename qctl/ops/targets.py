"""What the words of a command mean: names of the inventory checked and made the targets of control events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qctl.broker.topology import directed_queue
from qctl.control.giving import MAX_COMMANDS
from qctl.control.target import WILDCARD, Subject, Target, is_literal, pattern
from qctl.control.verdict import Expected
from qctl.errors import UnknownName, UsageError
from qctl.inventory.model import Inventory
from qctl.inventory.nearest import did_you_mean

#: Names that a hint lists when none is near.
LISTED_NAMES = 8
#: Targets of one command line, and events that are given at once.
MAX_TARGETS = MAX_COMMANDS


@dataclass(frozen=True, slots=True)
class Words:
    """A command line: TARGETs and the options that narrow each of them."""

    targets: tuple[str, ...] = ()
    consumer: str | None = None
    queue: str | None = None
    tag: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What is commanded, and what it concerns by the inventory.

    targets: an event each. expected: the subscriptions. hosts: theirs, and all that a target may concern. anywhere:
    hosts that the inventory does not know may be concerned too. shown: as an operator writes it.
    """

    targets: tuple[Target, ...]
    expected: tuple[Expected, ...]
    shown: str

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the inventory that are concerned."""
        return tuple(dict.fromkeys(one.host for one in self.expected))

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every HOST, CONSUMER that is concerned."""
        return tuple(dict.fromkeys((one.host, one.consumer) for one in self.expected))

    @property
    def anywhere(self) -> bool:
        """Whether hosts that are not in the inventory may be concerned."""
        return not all(is_literal(target.host) or is_literal(_host_of(target.tag)) for target in self.targets)


def select(inventory: Inventory, words: Words) -> Selection:
    """What `words` mean. Raises UnknownName with the nearest name, UsageError where nothing is meant."""
    if words == Words():
        raise UsageError(
            "nothing named to pause or resume",
            hint="Name HOST/CONSUMER, HOST, */CONSUMER, or --consumer, --queue, --tag or --group.",
        )
    if len(words.targets) > MAX_TARGETS:
        raise UsageError(f"{len(words.targets)} targets are more than {MAX_TARGETS}", hint="Use a pattern, or --group.")
    queues = _queues(inventory)
    _check_options(inventory, words, queues)
    every = _by_host(inventory, words.tag)
    targets: list[Target] = []
    expected: dict[Expected, None] = {}
    for text in dict.fromkeys(words.targets) or [None]:
        meant = _meant(inventory, words, text)
        met = [(target, found) for target in meant if (found := _concerned(target, every))]
        if not met:
            named = shown(words if text is None else replace(words, targets=(text,)))
            raise UsageError(f"nothing matches {named}", hint=_nothing_hint(inventory, words))
        for target, found in met:
            targets.append(target)
            expected.update(dict.fromkeys(found))
    if len(targets) > MAX_TARGETS:
        raise UsageError(
            f"{shown(words)} is more than {MAX_TARGETS} hosts to name", hint="A pattern is a single event."
        )
    return Selection(tuple(dict.fromkeys(targets)), tuple(expected), shown(words))


def together(selections: Sequence[Selection]) -> Selection:
    """Several selections as one. Raises UsageError for none, and for more events than are given at once."""
    targets = tuple(dict.fromkeys(target for one in selections for target in one.targets))
    if not targets:
        raise UsageError("nothing named to pause or resume")
    shown_each = " ".join(one.shown for one in selections)
    if len(targets) > MAX_TARGETS:
        raise UsageError(f"{len(targets)} targets are more than {MAX_TARGETS}", hint="Use a pattern, or --group.")
    return Selection(targets, tuple(dict.fromkeys(each for one in selections for each in one.expected)), shown_each)


def _host_of(tag: str | None) -> str | None:
    """The host's part of a tag; its other parts do not reach beyond that host, whatever stands for them."""
    return None if tag is None else tag.split("/")[1]


def _meant(inventory: Inventory, words: Words, text: str | None) -> list[Target]:
    """A TARGET, or None for any, narrowed by the options: an event each."""
    host, consumer = (None, None) if text is None else _named(inventory, text)
    narrowed = _narrow(consumer, words.consumer)
    if narrowed == "":
        return []
    return [Target(one, narrowed, words.queue, words.tag) for one in _hosts(inventory, words, host)]


def _concerned(target: Target, every: Mapping[str, list[Expected]]) -> list[Expected]:
    """The subscriptions that a target is about."""
    hosts = every if target.host is None or not is_literal(target.host) else {target.host: None}
    return [one for host in hosts for one in every.get(host, ()) if _concerns(target, one)]


def shown(words: Words) -> str:
    """As on the command line."""
    options = {"--group": words.group, "--consumer": words.consumer, "--queue": words.queue, "--tag": words.tag}
    return " ".join((*words.targets, *(f"{name} {value}" for name, value in options.items() if value is not None)))


def _named(inventory: Inventory, text: str) -> tuple[str | None, str | None]:
    """Host and consumer of a TARGET, both patterns; None for each."""
    host, slash, consumer = text.partition("/")
    if not host or (slash and not consumer) or "/" in consumer:
        hint = "A consumer tag goes with --tag." if text.startswith("qctl/") else ""
        raise UsageError(f"a target is HOST/CONSUMER, HOST or */CONSUMER, found {text!r}", hint=hint)
    for part in (host, consumer or host):
        _check_pattern(part)
    if not slash and host == WILDCARD:
        return WILDCARD, None
    if WILDCARD not in host and host not in inventory.hosts and not slash and host in inventory.consumers:
        raise UnknownName(
            f"{inventory.path} has no host {host!r}", hint=f"It is a consumer: on all hosts it is */{host}."
        )
    _check(inventory, "host", host, inventory.hosts)
    if slash:
        _check(inventory, "consumer", consumer, _consumers(inventory))
        if WILDCARD not in host + consumer and consumer not in inventory.hosts[host].consumers:
            runs = list(inventory.hosts[host].consumers)
            raise UnknownName(
                f"host {host} runs no consumer {consumer!r}", hint=did_you_mean(consumer, runs) or _listed("runs", runs)
            )
    return host, consumer if slash and consumer != WILDCARD else None


def _check_options(inventory: Inventory, words: Words, queues: Iterable[str]) -> None:
    for name, value in (("consumer", words.consumer), ("queue", words.queue), ("tag", words.tag)):
        if value is not None:
            _check_pattern(value, f"--{name}")
    if words.consumer is not None:
        _check(inventory, "consumer", words.consumer, _consumers(inventory))
    if words.queue is not None:
        _check(inventory, "queue", words.queue, queues)
    if words.group is not None and words.group not in inventory.groups:
        groups = list(inventory.groups)
        raise UnknownName(
            f"{inventory.path} has no group {words.group!r}",
            hint=did_you_mean(words.group, groups) or (_listed("has", groups) if groups else "It has no groups."),
        )
    if words.tag is not None:
        _check_tag(inventory, words.tag)


def _check_tag(inventory: Inventory, tag: str) -> None:
    """A tag is one of the inventory's, whatever its index: how many processes a host has is not in the file."""
    prefix, host, consumer, index, *rest = [*tag.split("/"), "", "", "", ""][: max(4, tag.count("/") + 1)]
    is_number = index.isdecimal() and index.isascii()
    if (
        prefix != "qctl"
        or not host
        or not consumer
        or not (is_number or index == WILDCARD)
        or rest not in ([], ["directed"])
    ):
        raise UsageError(
            f"a consumer tag is qctl/HOST/CONSUMER/INDEX or qctl/HOST/CONSUMER/INDEX/directed, found {tag!r}"
        )
    _check(inventory, "host", host, inventory.hosts)
    _check(inventory, "consumer", consumer, _consumers(inventory))


def _check(inventory: Inventory, kind: str, name: str, known: Iterable[str]) -> None:
    """Raise UnknownName for a name that is not known; a pattern may match nothing, which is seen later."""
    if WILDCARD in name or name in known:
        return
    names = list(known)
    raise UnknownName(
        f"{inventory.path} has no {kind} {name!r}", hint=did_you_mean(name, names) or _listed("has", names)
    )


def _check_pattern(text: str, name: str = "a target") -> None:
    try:
        pattern(text, name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _hosts(inventory: Inventory, words: Words, host: str | None) -> tuple[str | None, ...]:
    """The hosts of a target: itself, or those of the group that it matches, an event each."""
    if words.group is None:
        return (host,)
    of_group = Target(host=host)
    return tuple(one for one in inventory.groups[words.group].hosts if of_group.matches(Subject(one, "", "", "")))


def _narrow(named: str | None, option: str | None) -> str | None:
    """The consumer that is meant by both a target and --consumer; "" when none is."""
    if named is None or option is None or named == option:
        return named or option
    if Target(consumer=named).covers(Target(consumer=option)):
        return option
    if Target(consumer=option).covers(Target(consumer=named)):
        return named
    if Target(consumer=named).overlaps(Target(consumer=option)):
        raise UsageError(f"{named!r} and --consumer {option!r} are two patterns; one event can have only one of them")
    return ""


def _by_host(inventory: Inventory, tag: str | None = None) -> dict[str, list[Expected]]:
    """Every subscription of the inventory; with a tag, of the process that it names."""
    index = (tag or "").split("/")[3:4]
    number = int(index[0]) if index and index[0].isdecimal() else None
    found: dict[str, list[Expected]] = {}
    for host in inventory.hosts.values():
        found[host.name] = []
        for consumer in host.consumers.values():
            found[host.name].append(Expected(host.name, consumer.name, consumer.queue, False, number))
            if consumer.directed:
                queue = directed_queue(consumer.queue, host.name)
                found[host.name].append(Expected(host.name, consumer.name, queue, True, number))
    return found


def _concerns(target: Target, one: Expected) -> bool:
    if target.tag is not None and one.index is None:
        # The index is a pattern, so it is left open which process is meant: the tag's other parts decide.
        return target.matches(Subject(one.host, one.consumer, one.queue, one.tag(WILDCARD)))
    return target.matches(one.subject(one.index or 0))


def _queues(inventory: Inventory) -> Mapping[str, None]:
    return dict.fromkeys(one.queue for each in _by_host(inventory).values() for one in each)


def _consumers(inventory: Inventory) -> Mapping[str, None]:
    return dict.fromkeys(name for host in inventory.hosts.values() for name in host.consumers)


def _nothing_hint(inventory: Inventory, words: Words) -> str:
    if words.group is not None:
        return f"Group {words.group} is {', '.join(inventory.groups[words.group].hosts[:LISTED_NAMES])}."
    return "`qctl inventory check` shows which host runs which consumer."


def _listed(verb: str, names: list[str]) -> str:
    more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return f"It {verb}: {', '.join(names[:LISTED_NAMES])}{more}."
