"""The views, a module each: which rows they list, in which columns, and what there is to know of one row. Pure.

From a `Scene` alone, without Textual, so that `qctl tui --once` and tests see what the console shows.
"""
