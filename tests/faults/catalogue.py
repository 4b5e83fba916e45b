"""The fault matrix: every row, what it injects, when it passes, and which brokers it runs on."""

from __future__ import annotations

from dataclasses import dataclass

#: What a broker is called here, and what it is.
BROKERS = {
    "local": "this machine's RabbitMQ",
    "container": "RabbitMQ's newest line, in a container",
    "container-older": "RabbitMQ 4.0, in a container",
}
ALL = tuple(BROKERS)
LOCAL = ("local",)


@dataclass(frozen=True, slots=True)
class Fault:
    """A row. `brokers` are the kinds it must pass on."""

    id: str
    fault: str
    passes_when: str
    brokers: tuple[str, ...] = LOCAL


#: k = tasks at once in a process, W = processes, P = prefetch, n = cost.
FAULTS = {
    fault.id: fault
    for fault in (
        Fault(
            "F01",
            "kill -9 a worker process mid-task, 20 times",
            "duplicates <= k a kill; quota leaked <= lease + k*n a kill; recovered <= 10 s",
        ),
        Fault(
            "F02",
            "kill -9 the whole group, start again",
            "ledger open <= 1 s; ledger spent >= API hits, always",
        ),
        Fault(
            "F03",
            "SIGTERM; twice; SIGKILL during the drain; a task of 3 heartbeats during the drain",
            "warm: duplicates 0, exit 0, connection kept; cold: duplicates <= k; unstarted work back <= 2 s",
        ),
        Fault(
            "F04",
            "a task kills its process, exits, hangs, eats memory, beside 15 innocents on 2 hosts",
            "the supervisors live; 3 crashes -> dead, `poison`; innocents dead 0; at most 3 processes lost before it "
            "is isolated",
        ),
        Fault(
            "F05",
            "SIGSTOP a worker for 30 s",
            "redelivered; late acks dropped on our side (no 406); duplicates <= k",
        ),
        Fault("F06", "`rabbitmqctl stop_app`, `start_app`", "back <= 10 s; duplicates <= W*k", ALL),
        Fault(
            "F07",
            "kill -9 the broker with 10k messages while enqueueing",
            "confirmed lost 0; duplicate publishes <= the confirm window",
        ),
        Fault(
            "F08",
            "`close_all_connections`, 10 times",
            "the set of consumers is exactly what it should be; paused stays paused",
            ALL,
        ),
        Fault("F09", "reset, half-close, black hole each way", "noticed <= 30 s; a publish fails <= 15 s"),
        Fault("F10", "500 ms latency, 5 % loss, 10 kB/s", "no false disconnect; duplicates 0"),
        Fault("F11", "SIGSTOP the broker 20 s and 120 s", "no busy loop (CPU <= 5 %); back <= 10 s"),
        Fault("F12", "three-node cluster, partitions of 10 and 30 s", "lost 0; back <= 30 s after healing"),
        Fault(
            "F13",
            "memory alarm while consuming and publishing",
            "deliveries and acks go on; `enqueue` ends <= 65 s with 75; back <= 5 s",
            ALL,
        ),
        Fault("F14", "disk alarm", "as F13"),
        Fault(
            "F15",
            "state directory full, read-only, wrong owner",
            "no call without a committed charge; back <= 10 s after space",
        ),
        Fault(
            "F16",
            "ledger truncated, random bytes, empty, 16 processes at once; or its lock held by a stopped process",
            "set aside once, window counts as spent, heals <= 1 window; a held lock is not set aside, no call is made "
            "meanwhile",
        ),
        Fault("F17", "wall clock +1 h, -1 h, skew between processes", "overspend 0; underspend <= 2 %"),
        Fault("F18", "boot id changes, boot clock restarts", "overspend 0"),
        Fault(
            "F19",
            "16 processes, 100k acquisitions, costs 1..n, and a state machine against a model",
            "exact sums; largest cost admitted <= 1 window; fair to within a factor 2",
        ),
        Fault(
            "F20",
            "API: 429 with Retry-After (both forms), 500, reset in the body, drip, hang, garbage",
            "ambiguous = spent; Retry-After +-1 s; calls a task <= n * attempts",
        ),
        Fault(
            "F21",
            "bodies and headers: not UTF-8, not JSON, NaN, 1e999, 100k nesting, wrong types, empty, unknown type",
            "one delivery -> dead with the reason; the worker lives; next good task <= 100 ms",
        ),
        Fault(
            "F22",
            "bodies of 1, 16, 100 MiB",
            "beyond the cap -> dead unparsed; memory <= base + 4*P*body; heartbeats hold",
        ),
        Fault(
            "F23",
            "30 pauses and resumes in a row, a foreign queue with delivery limit 20, P = 10; 100 looks at dead "
            "letters; `dead replay --all` of 10,000 with the broker stopped in the middle",
            "dead 0, dropped 0, on all three brokers; the count said is true",
            ALL,
        ),
        Fault(
            "F24",
            "1,000 messages, attempts 6, delays 1, 5, 30 s",
            "each run exactly 6 times; delay 0 to +2 s p99; a deleted or unbound target keeps its messages and delays "
            "nobody else's",
            ALL,
        ),
        Fault(
            "F25",
            "consumer_timeout 5 s and a 20 s task",
            "noticed <= 2 s; consuming <= 5 s; never silently idle",
            ALL,
        ),
        Fault(
            "F26",
            "queue deleted under the consumer, server-sent cancel, leader moves",
            "back <= 5 s, or a clear state",
            ALL,
        ),
        Fault(
            "F27",
            "queue exists with other arguments, exchange missing, permission refused",
            "one clear error naming the difference; neighbours untouched",
            ALL,
        ),
        Fault(
            "F28",
            "password rotated, wrong password, user deleted",
            "secret read anew at each connect; back <= 10 s; <= 12 tries in 5 min",
        ),
        Fault(
            "F29",
            "certificate expired, wrong host, self-signed, plain port as TLS and the reverse",
            "no session; cause named <= 15 s",
        ),
        Fault(
            "F30",
            "pause, then kill -9, reconnect, restart; pause of a host that is down; twice; unknown tag; two operators "
            "at once; a log cut off; SIGSTOP for 60 s",
            "no start after the acknowledgement; no false proof; ack p99 <= 2 s; survives all",
            ALL,
        ),
        Fault(
            "F31",
            "forged, unsigned, stale, huge, malformed and unknown control events",
            "none obeyed; the worker lives; the next good pause is obeyed",
            ALL,
        ),
        Fault("F32", "kill `qctl enqueue` in the middle; Ctrl-C", "the count said is the count confirmed"),
        Fault("F33", "unroutable, nacked", "true exit code and count"),
        Fault(
            "F34",
            "management API down, slow, 401, 500, garbage, redirect",
            "the console lives, says so, and recovers",
        ),
        Fault(
            "F35",
            "hostile names and payloads: escapes, markup, bidi, 10 kB",
            "no control byte reaches the terminal; nothing crashes or becomes clickable",
        ),
        Fault("F36", "10,000 queues, 500 hosts", "key to paint p99 <= 50 ms"),
        Fault("F37", "terminal resized, closed, dumb, no colour, Ctrl-Z", "terminal restored, no orphan"),
        Fault("F38", "an old and a new worker together; an old control event", "dead 0"),
        Fault("F39", "one host out of quota, another not", "the other uses >= 95 % of its own"),
        Fault("F40", "all of it at random, an hour", "lost 0, overspend 0, memory growth <= 1 MB/h"),
        Fault(
            "F41",
            "two machines under one host name; a lost state directory; a renamed host",
            "the second start is refused; the window counts as spent; over 0",
        ),
    )
}
