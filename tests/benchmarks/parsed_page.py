"""A page of HTML taken apart with the standard library, for tests that ask what is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "wbr"})


@dataclass
class Node:
    """One element."""

    name: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def all(self, name: str | None = None) -> list[Node]:
        """Return the elements below, in the order of the page."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                found += [child] if name in (None, child.name) else []
                found += child.all(name)
        return found

    def get(self, name: str) -> str:
        """Return an attribute's value, empty where it is not there."""
        return self.attributes.get(name) or ""

    def by_id(self, identifier: str) -> Node:
        """Return the one element of that identifier."""
        (found,) = [node for node in self.all() if node.get("id") == identifier]
        return found

    @property
    def classes(self) -> list[str]:
        return self.get("class").split()

    @property
    def text(self) -> str:
        """All text below, spaces and lines drawn together."""
        return " ".join(self._raw_text().split())

    def _raw_text(self) -> str:
        return "".join(child if isinstance(child, str) else child._raw_text() for child in self.children)


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("document", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice: {names}"
        node = Node(tag, dict(attrs))
        self._open[-1].children.append(node)
        if tag not in _VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].name == tag, f"</{tag}> closes <{self._open[-1].name}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def finish(self) -> Node:
        self.close()
        assert self._open == [self.root], f"not closed: {[node.name for node in self._open[1:]]}"
        return self.root


def parse(page: str) -> Node:
    """Return the page as a tree; an element that is not closed where it should be fails the test."""
    builder = _Builder()
    builder.feed(page)
    return builder.finish()
