"""The console: what a fleet does, live, and the keys that change it.

`snapshot` is all that can be shown, as values; sources make one about every second, in a thread of their own, and the
views show it. Nothing in here decides: `ops` does, and `actions` is the one table of what may be done.
"""
