"""The inventory: which hosts there are, what each may spend and what each consumes.

`load.find` and `load.load` turn the one YAML file into `model.Inventory`, a frozen value that everything else reads.
On the way: `yaml_marks` (text to a tree that knows line and column), `form` (the shape of each part, pydantic),
`rules` and `resolve` (references, precedence, merging) and `mistakes` (where it is and how it is said). `secrets`
resolves references when they are used, never while loading. May be used from every floor above; `model` and `nearest`
import nothing heavy. YAML and pydantic stay in this room.
"""
