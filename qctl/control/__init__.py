"""The control log: what processes say of themselves and, later, operators command, in one order that the broker keeps.

`event` is what travels, `desired` folds events to what should be (pure), `log` reads the stream and proves that it was
read to its end, `checkpoint` keeps in a file how far. Workers read it before they consume; data comes from and goes to
the broker alone.
"""
