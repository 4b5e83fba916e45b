"""The control log: what operators command and processes say of themselves, in one order that the broker keeps.

`target` and `event` are what travels, `desired` folds events to what should be (pure; `seen` is its memory of what came
before), `stream` takes the entries from the broker and knows where they belong, `following` folds them as they come,
`log` follows them from a proof that they were read to their end, `history` reads them for commands, and `checkpoint`
keeps in a file how far. `asking`, `answer`, `verdict`, `host_answer` and `socket` ask the processes and judge what they
answer; `reading`, `reading_parse`, `telemetry` and `telemetry_log` are what processes say of themselves all the time.
Workers read the log before they consume; data comes from and goes to the broker, the supervisor's socket and the state
directory.
"""
