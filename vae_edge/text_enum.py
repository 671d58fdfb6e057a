"""Enumerations of texts, for what users write and records hold."""

from __future__ import annotations

from enum import Enum


class TextEnum(str, Enum):
    """An enumeration whose members are texts and are shown as these, as by `enum.StrEnum` of Python 3.11.

    Examples:
        >>> class Colour(TextEnum):
        ...     RED = "red"
        >>> f"{Colour.RED}, {Colour.RED!s}", Colour.RED == "red", Colour("red") is Colour.RED
        ('red, red', True, True)
    """

    def __str__(self) -> str:
        return str.__str__(self)
