"""The control log: what operators command and processes say of themselves, in one order that the broker keeps.

`event` is what travels, `desired` folds events to what should be (pure), `log` reads the stream and proves that it was
read to its end. Workers read it before they consume; data comes from and goes to the broker alone.
"""
