"""A host's worker: takes tasks, pays for them from the host's quota, runs them, and settles what became of them.

`supervisor` starts the processes; in each `process`, every `consumer` hands its deliveries to `execute`, which pays
from `qctl.quota`, runs one of the `handlers` and lets `outcome` decide. Task authors use `task` and `exceptions`,
through the names of the package `qctl`. Deliveries come from `qctl.broker` and leave through it; nothing here prints.
"""
