"""The command line: `main` holds the table of commands and maps errors to exit codes; one module a group of commands.

Commands read the inventory, call `ops`, `worker` or `demo`, and hand values to `render`, the only module that
writes to stdout. Nothing heavy is imported before it is needed: `qctl --help` imports click and nothing else.
"""
