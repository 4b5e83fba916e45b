"""The shape of the file, part by part (pydantic): which keys there are, which are required, what each value may be.

Every check raises ValueError with a sentence of ours; `reading` gives it its place in the file. What one part says
about another (references, costs, contradictions) is `rules`' matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from qctl.inventory import leaves, urls
from qctl.inventory.mistakes import found
from qctl.inventory.model import Endpoint, HeaderStyle, PythonHandler, Secret, Window
from qctl.units import MAX_UNITS, Rate

MAX_CONCURRENCY = 1_000
MAX_ATTEMPTS = 100
#: Retry delays of one consumer; each is a queue on the broker.
MAX_DELAYS = 32
#: Rates of one quota; each is looked at for every task.
MAX_RATES = 8
MAX_ADDRESSES = 32
MAX_TIMEOUT_S = 86_400.0
#: Largest body and response: what RabbitMQ before 4.0 takes at most.
MAX_BODY_BYTES = 128 << 20

#: Keys of a consumer that say what its queue is; the same on every host, so no host may override them.
FIXED_KEYS = frozenset({"queue", "declare", "persistent"})

_RATE_PATTERN = r"^\s*\d{1,13}/\d{0,9}[smhd]\s*$"
_RATE = {"type": "string", "pattern": _RATE_PATTERN, "examples": ["20000/h", "900/15m"]}


def _leaf(check: Callable[[Any], Any], **schema: Any) -> Any:
    return _Leaf(check, schema)


class _Leaf:
    """Our own check of one value, and its JSON Schema, as one annotation."""

    def __init__(self, check: Callable[[Any], Any], schema: dict[str, Any]) -> None:
        self.check, self.schema = PlainValidator(check), WithJsonSchema(schema)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return self.check.__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> Any:
        return self.schema.__get_pydantic_json_schema__(core, handler)


def _items(what: str, *, most: int, single: bool = False) -> BeforeValidator:
    """A list of one to `most` items; `single` also takes one item without brackets."""

    def check(value: object) -> list[object]:
        items = [value] if single and isinstance(value, str) else value
        if not isinstance(items, list) or not items:
            raise ValueError(f"expected {what}, found {found(value) if items != [] else 'an empty list'}")
        if len(items) > most:
            raise ValueError(f"expected {what}, at most {most} of them")
        return items

    return BeforeValidator(check)


def _mapping(what: str) -> BeforeValidator:
    """A mapping; nothing is an empty one."""

    def check(value: object) -> dict[str, object]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ValueError(f"expected {what}, found {found(value)}")
        return value

    return BeforeValidator(check)


#: Nothing is an empty mapping.
_EMPTY = BeforeValidator(lambda value: {} if value is None else value)

_TEXT = {"type": "string", "minLength": 1}
_DURATION = {"type": "string", "pattern": r"^\s*\d{1,12}(ms|s|m|h|d)\s*$"}
_SIZE = {"type": "string", "pattern": r"^\s*\d{1,12}(B|KiB|MiB|GiB)?\s*$"}
_FUNCTION = {"type": "string", "pattern": "^[^:]+:[^:]+$"}
_SECRET: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
    "properties": {
        "env": _TEXT,
        "file": _TEXT,
        "command": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "value": _TEXT,
    },
}
_SECRET_OR_TEXT = {"anyOf": [_TEXT, _SECRET]}

Limit = Annotated[Rate, _leaf(leaves.rate, **_RATE)]
Units = Annotated[int, _leaf(leaves.whole(0, MAX_UNITS), type="integer", minimum=0, maximum=MAX_UNITS)]
Delay = Annotated[float, _leaf(leaves.duration(0.001, leaves.MAX_DELAY_S), **_DURATION)]
_FLAG = _leaf(leaves.flag, type="boolean")
Flag = Annotated[bool, _FLAG]
File = Annotated[str | None, _leaf(leaves.text("the path of a file"), **_TEXT)]
HttpUrl = Annotated[str, _leaf(urls.api_url, type="string", format="uri")]
SecretOrText = Annotated[Secret | str, _leaf(leaves.secret_or_text("a text"), **_SECRET_OR_TEXT)]
HeaderName = Annotated[str, _leaf(leaves.header_name, **_TEXT)]
Argv = Annotated[
    tuple[Annotated[str, _leaf(leaves.argument, type="string")], ...] | None,
    _items("a list: a program and its arguments", most=leaves.MAX_ITEMS),
]


class Form(BaseModel):
    """A mapping of the file. Nothing (`web-1:`) is the empty mapping."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, value: object) -> object:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ValueError(f"expected a mapping with {listed(cls)}, found {found(value)}")
        return value


def listed(form: type[Form]) -> str:
    """The keys of a form, for `expected ...`."""
    return f"{'any of ' if len(form.model_fields) > 1 else ''}{', '.join(form.model_fields)}"


class TlsForm(Form):
    ca_file: File = None
    cert_file: File = None
    key_file: File = None


class BrokerForm(Form):
    amqp: Annotated[
        tuple[Annotated[Endpoint, _leaf(urls.amqp_url, type="string", format="uri")], ...],
        _items("a URL such as amqp://HOST:5672/, or a list of them", most=MAX_ADDRESSES, single=True),
    ]
    management: Annotated[str | None, _leaf(urls.management_url, type="string", format="uri")] = None
    username: Annotated[Secret | str | None, _leaf(leaves.secret_or_text("a user name"), **_SECRET_OR_TEXT)] = None
    password: Annotated[Secret | None, _leaf(leaves.secret, **_SECRET)] = None
    tls: Annotated[TlsForm | None, _EMPTY] = None
    _local: bool = PrivateAttr(default=False)

    @property
    def local(self) -> bool:
        return self._local

    def marked_local(self) -> BrokerForm:
        self._local = True
        return self


def _local_or_mapping(value: object, handler: Callable[[object], BrokerForm]) -> BrokerForm:
    if not isinstance(value, str):
        return handler(value)
    if value != "local":
        raise ValueError("expected local, or a mapping with amqp")  # the text may be a URL: not repeated
    return BrokerForm.model_construct(amqp=()).marked_local()


class WorkerForm(Form):
    hold_after: Annotated[float, _leaf(leaves.duration(0.0, 600.0), **_DURATION)] = 1.0
    max_body: Annotated[int, _leaf(leaves.size(1, MAX_BODY_BYTES), **_SIZE)] = 1 << 20
    python_path: Annotated[
        tuple[Annotated[str, _leaf(leaves.text("the path of a folder"), **_TEXT)], ...],
        _items("a list of folders", most=64),
    ] = (".",)


class QuotaForm(Form):
    limit: Annotated[
        tuple[Limit, ...],
        _items("a rate N/PERIOD such as 20000/h, or a list of them", most=MAX_RATES, single=True),
    ]
    window: Annotated[Window, _leaf(leaves.choice(Window), enum=[str(w) for w in Window])] = Window.SLIDING
    burst: Annotated[int, _leaf(leaves.whole(1, MAX_UNITS), type="integer", minimum=1, maximum=MAX_UNITS)] = 1
    urls: Annotated[tuple[HttpUrl, ...], _items("a list of URLs", most=leaves.MAX_ITEMS)] = ()
    headers: Annotated[HeaderStyle, _leaf(leaves.choice(HeaderStyle), enum=[str(h) for h in HeaderStyle])] = (
        HeaderStyle.AUTO
    )
    _bare: bool = PrivateAttr(default=False)

    @property
    def bare(self) -> bool:
        """Written as a rate or a list of rates: it says nothing about anything but the limit."""
        return self._bare

    def marked_bare(self) -> QuotaForm:
        self._bare = True
        return self


def _limit_or_mapping(value: object, handler: Callable[[object], QuotaForm]) -> QuotaForm:
    if not isinstance(value, (str, list)):
        return handler(value)
    return handler({"limit": value}).marked_bare()


class HttpForm(Form):
    base_url: HttpUrl
    headers: Annotated[dict[str, SecretOrText], _mapping("a mapping of header to text or secret reference")] = Field(
        default_factory=dict
    )
    allow_headers: Annotated[tuple[HeaderName, ...], _items("a list of header names", most=leaves.MAX_ITEMS)] = ()
    max_response: Annotated[int, _leaf(leaves.size(1, MAX_BODY_BYTES), **_SIZE)] = 1 << 20


class HandlerForm(Form):
    python: Annotated[
        PythonHandler | None,
        _leaf(
            leaves.python_handler,
            anyOf=[_FUNCTION, {"type": "object", "minProperties": 1, "additionalProperties": _FUNCTION}],
        ),
    ] = None
    http: Annotated[HttpForm | None, _EMPTY] = None
    exec: Argv = None

    @model_validator(mode="after")
    def _exactly_one(self) -> HandlerForm:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected exactly one of python, http and exec")
        return self


class RetryForm(Form):
    attempts: Annotated[int, _leaf(leaves.whole(1, MAX_ATTEMPTS), type="integer", minimum=1, maximum=MAX_ATTEMPTS)] = 5
    delays: Annotated[tuple[Delay, ...], _items("a list of durations such as [5s, 30s, 5m]", most=MAX_DELAYS)] = (
        5.0,
        30.0,
        300.0,
    )


Cost = Annotated[dict[str, Units], _mapping("a mapping of quota to units, such as {twitter: 1}, or {}")]
_CONCURRENCY = _leaf(leaves.whole(1, MAX_CONCURRENCY), type="integer", minimum=1, maximum=MAX_CONCURRENCY)
_TIMEOUT = _leaf(leaves.duration(0.01, MAX_TIMEOUT_S), **_DURATION)


class ConsumerForm(Form):
    handler: HandlerForm
    quota: Cost
    queue: Annotated[str | None, _leaf(leaves.queue_name, type="string", pattern=f"^{leaves.NAME.pattern}$")] = None
    concurrency: Annotated[int, _CONCURRENCY] = 8
    timeout: Annotated[float, _TIMEOUT] = 30.0
    retry: RetryForm = RetryForm()
    directed: Flag = False
    persistent: Flag = True
    declare: Flag = True


class OverrideForm(Form):
    """A consumer on a group or host: what is given replaces the whole value, what is not is inherited."""

    handler: Annotated[HandlerForm | None, _EMPTY] = None
    quota: Annotated[Cost | None, _EMPTY] = None
    concurrency: Annotated[int | None, _CONCURRENCY] = None
    timeout: Annotated[float | None, _TIMEOUT] = None
    retry: Annotated[RetryForm | None, _EMPTY] = None
    directed: Annotated[bool | None, _FLAG] = None


Quotas = Annotated[
    dict[str, Annotated[QuotaForm, WrapValidator(_limit_or_mapping)]], _mapping("a mapping of quota to its limit")
]
Overrides = Annotated[dict[str, OverrideForm], _mapping("a mapping of consumer to its overrides")]


class GroupForm(Form):
    quotas: Quotas = Field(default_factory=dict)
    consumers: Overrides = Field(default_factory=dict)


class HostForm(GroupForm):
    group: Annotated[str | None, _leaf(leaves.text("the name of a group"), **_TEXT)] = None


class InventoryForm(Form):
    version: Annotated[int, _leaf(leaves.version_one, const=1)]
    broker: Annotated[BrokerForm, WrapValidator(_local_or_mapping)]
    consumers: Annotated[dict[str, ConsumerForm], _mapping("a mapping of consumers")]
    hosts: Annotated[dict[str, HostForm], _mapping("a mapping of hosts")]
    environment: Annotated[
        Literal["development", "production"],
        _leaf(leaves.one_of("development", "production"), enum=["development", "production"]),
    ] = "development"
    operators: Annotated[
        tuple[Annotated[str, _leaf(leaves.text("the name of a broker user", longest=255), **_TEXT)], ...],
        _items("a list of broker users; leave the key out to let everyone command", most=leaves.MAX_ITEMS),
    ] = ()
    worker: WorkerForm = WorkerForm()
    quotas: Quotas = Field(default_factory=dict)
    groups: Annotated[dict[str, GroupForm], _mapping("a mapping of groups")] = Field(default_factory=dict)
