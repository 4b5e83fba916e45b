"""Foreign text as one line in which every character is seen: the one place that knows what an escape looks like."""

from __future__ import annotations


def visible(text: str) -> str:
    """`text` with what a terminal obeys, or an eye misses, as escapes: control and format characters, line ends,
    foreign blanks, lone surrogates, characters that nobody has assigned."""
    return text if text.isprintable() else "".join(c if c.isprintable() else escape(c) for c in text)


def escape(character: str) -> str:
    r"""A character as it is written in source code: `\x1b`, `\u202e`, `\U000e0001`."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
