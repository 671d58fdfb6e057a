"""Numbers of things in messages: `1 image`, `2 images`."""

from __future__ import annotations


def count(n: float, thing: str, things: str | None = None) -> str:
    """Return a number with its noun in the singular or the plural.

    Args:
        n: how many.
        thing: the noun, with what stands before it: `good part`.
        things: its plural; None: an s is added.

    Examples:
        >>> count(1, "image"), count(0, "image"), count(2, "entry", "entries"), count(1.5, "minute")
        ('1 image', '0 images', '2 entries', '1.5 minutes')
    """
    number = f"{n:g}" if isinstance(n, float) else str(n)
    return f"{number} {thing if n == 1 else things or thing + 's'}"


def verb(n: int, one: str, several: str) -> str:
    """Return the form of a verb that fits a number.

    Examples:
        >>> f"{verb(1, 'is', 'are')} {verb(3, 'differs', 'differ')}"
        'is differ'
    """
    return one if n == 1 else several
