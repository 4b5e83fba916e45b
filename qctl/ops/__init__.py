"""What the commands do, one verb a module.

Functions in here take an inventory and values, talk to the broker through `qctl.broker`, and return frozen reports.
They print nothing and ask nothing, so that shell, console and programs share them.
"""
