"""What all pages share: the head, the colours, and that nothing but their own style and script acts."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

from vae_edge.html_page import COLOURS, security_policy, style_sheet, whole_page


def hash_of(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def test_only_the_pages_own_style_and_script_act_and_nothing_is_loaded() -> None:
    style = style_sheet("p { margin: 0; }\n")
    assert security_policy(style) == (
        f"default-src 'none'; style-src {hash_of(style)}; base-uri 'none'; form-action 'none'"
    )
    policy = security_policy(style, "go();", "img-src data:; ")
    page = whole_page("a page", style, "<p>1 &lt; 2</p>\n", policy=policy, script="go();")
    (found,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    assert f'content="{policy}"' in page
    assert f"script-src {hash_of('go();')}; style-src {hash_of(found)}; img-src data:; " in policy
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert page.endswith("<body>\n<p>1 &lt; 2</p>\n</body>\n</html>\n")
    assert "http-equiv" not in whole_page("a page", style, "")


def test_a_page_adds_its_own_colours_to_both_themes() -> None:
    style = style_sheet("", {"line": ("#111111", "#222222"), "mark": ("#333333", "#444444")})
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root[^{]*{([^}]*)}", style)]
    light = {name: pair[0] for name, pair in COLOURS.items()} | {"line": "#111111", "mark": "#333333"}
    dark = {name: pair[1] for name, pair in COLOURS.items()} | {"line": "#222222", "mark": "#444444"}
    assert themes == [light, dark, dark]
