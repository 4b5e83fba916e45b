"""What the console can change, an act a module: what it concerns (`plan`), what it does, and what is true of it.

The deciding and the doing are `ops`'s, the same as for the shell. An act shows what it concerns before it is confirmed
(`Plan`) and what is proven of it while it runs and afterwards (`Shown`); `acting` keeps those that run.
"""
