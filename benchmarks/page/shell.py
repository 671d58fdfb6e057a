"""The page around the sections: head, policy, style, script, navigation."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files

from vae_edge.benchmarks.page.markup import Child, Markup, element, join, trusted


def page(title: str, summary: Child, sections: Sequence[tuple[str, str, Markup]], *hidden: Markup) -> str:
    """Return the whole document.

    Args:
        title: of the page.
        summary: below the title, one sentence.
        sections: identifier, short name for the navigation, and content of each.
        hidden: what other parts refer to.
    """
    style, script = _file("report.css"), _file("report.js")
    # Nothing may be loaded from anywhere, and only this very style and script may act: text that came from a file name
    # would not run even if it were not escaped.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; "
        f"script-src 'sha256-{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", trusted(style)),
        element("script", trusted(script)),
    )
    links = [element("li", element("a", name, href=f"#{identifier}")) for identifier, name, _ in sections]
    toggle = element(
        "button", "Theme: system", type="button", id="theme", class_="only-script", title="system, light or dark"
    )
    body = element(
        "body",
        element("a", "Skip to the report", href="#main", class_="skip"),
        element("header", element("div", element("h1", title), element("p", summary)), toggle, class_="top"),
        element("nav", element("ul", links), aria_label="Sections"),
        element("main", [content for _, _, content in sections], id="main", tabindex="-1"),
        *hidden,
    )
    return join(trusted("<!DOCTYPE html>\n"), element("html", head, body, lang="en"), "\n")


def _file(name: str) -> str:
    return files("vae_edge.benchmarks.page").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return b64encode(sha256(content.encode()).digest()).decode("ascii")
