"""What the HTML pages share: each is one file that loads nothing, for a desk or a phone, in light or dark."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256

COLOURS: dict[str, tuple[str, str]] = {
    "ground": ("#ffffff", "#12171d"),
    "panel": ("#f5f7f9", "#1b222a"),
    "text": ("#18212b", "#e8edf2"),
    "muted": ("#55606d", "#a7b2be"),
    "line": ("#d5dbe2", "#3a4450"),
    "link": ("#0b5cad", "#7db8f2"),
    "good": ("#14703f", "#6fd39b"),
    "bad": ("#b3261e", "#ff9a8f"),
    "warn": ("#7a4b00", "#f0c36a"),
    "flag": ("#fff4dc", "#33290f"),
}
"""In light and in dark, as variables of the style; text has a contrast of 4.5 on every ground, which tests measure."""

_RULES = """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
}
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 3px; }
[hidden] { display: none !important; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
"""


def style_sheet(own: str, colours: Mapping[str, tuple[str, str]] | None = None) -> str:
    """Return a page's style: the colours of the system's theme or of `data-theme`, the rules of all pages, and its own.

    Args:
        own: its rules.
        colours: its colours, as in `COLOURS`.
    """
    all_colours = COLOURS | dict(colours or {})
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in all_colours.items()) for i in (0, 1))
    return (
        f":root {{ color-scheme: light; {light} }}\n"
        "@media screen and (prefers-color-scheme: dark) "
        f'{{ :root:not([data-theme="light"]) {{ color-scheme: dark; {dark} }} }}\n'
        f'@media screen {{ :root[data-theme="dark"] {{ color-scheme: dark; {dark} }} }}\n'
        f"{_RULES}{own}"
    )


def security_policy(style: str, script: str = "", more: str = "") -> str:
    """Return a Content-Security-Policy by which nothing acts but this very style and script.

    Text that came from a file's name would not run even if it were not escaped.

    Args:
        style: the page's.
        script: the page's, if it has one.
        more: what it may do besides, such as `img-src data:; `.
    """
    scripts = f"script-src {_hash(script)}; " if script else ""
    return f"default-src 'none'; {scripts}style-src {_hash(style)}; {more}base-uri 'none'; form-action 'none'"


def whole_page(title: str, style: str, body: str, *, policy: str = "", script: str = "") -> str:
    """Return a page.

    Args:
        title: of the window.
        style: see `style_sheet`.
        body: what is in the element `body`.
        policy: see `security_policy`; empty: it comes with the answer that holds the page.
        script: is run before the body is there.
    """
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n' if policy else ""
    scripts = f"<script>{script}</script>\n" if script else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{head}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n{scripts}</head>\n<body>\n{body.strip()}\n</body>\n</html>\n"
    )


def _hash(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
