"""How a message shows text that somebody else wrote."""
from __future__ import annotations


def printable(text: str) -> str:
    """Returns the text on one line, without a character that a terminal would obey or a font would not have."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
