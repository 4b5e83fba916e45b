"""Two servers share one queue: the scenario that shows what qctl promises, and the API that judges it.

Here live the rate-limited API (`api`, a process of its own; `api_process` starts and ends it), the judge of its log
(`judge`, pure), and the scenario (`scenario`), which runs the real commands `qctl worker start` and `qctl enqueue`
against a private broker and reports frozen values; `qctl.cli.demo` prints them. `inventory.yaml` is the sample that the
scenario runs and that the documentation teaches.

Data flows one way: the API appends a line to its log for each call; the judge reads nothing but that log and the ids
of the tasks that were enqueued. The code under test never judges itself.
"""
