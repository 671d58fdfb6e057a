"""HTML and SVG as values: what is not markup already is escaped where it goes in, so no caller can forget it.

Plain functions and no templating library: a device that measures has `psutil` and nothing else from the `bench` extra,
and two thirds of the page is SVG, which is arithmetic rather than text with holes.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "wbr"})


class Markup(str):
    """Text that goes into a page as it is. Only this module makes it from other text."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[str | Iterable[str | None] | None] | None"
"""Markup, text to escape, nothing, or several of them."""

Attribute: TypeAlias = "str | float | bool | None"


def element(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """Return one element.

    Args:
        name: of the element.
        children: `Markup` goes in as it is, other text is escaped, None is left out.
        attributes: None and False are left out, True is the name alone. `class_` gives `class` and `aria_label` gives
            `aria-label`; numbers keep two decimals, which is a hundredth of a pixel.
    """
    head = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{head}>")
    return Markup(f"<{name}{head}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Return the children one after the other, text escaped."""
    return Markup("".join(_content(child) for child in children))


def trusted(text: str) -> Markup:
    """Take a text that is markup already: the page's style and script, never anything that was measured or named."""
    return Markup(text)


def decimal(value: float) -> str:
    """Return a length with two decimals at most: 12, 12.5, 12.25."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _content(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return escape(child, quote=False)
    return "".join(_content(part) for part in child)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = value if isinstance(value, str) else decimal(value)
    return f' {name}="{escape(text)}"'
