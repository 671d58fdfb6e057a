from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vae_edge.errors import UsageError
from vae_edge.platform.outside import home_folder, printable, printable_json, user_path

TITLE = "\x1b]0;owned\x07"
HARMFUL = [TITLE, "\x9b31m", "\x7f", "a\rb", "a\u202egpj.exe", "\u2066", "\u200b", "\ufeff", "\u2028", "\udcff", "\x00"]


@pytest.mark.parametrize("text", HARMFUL)
def test_what_a_terminal_would_act_on_becomes_its_escape(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode("ascii").decode("unicode_escape") == text.encode("unicode_escape").decode("unicode_escape")
    assert printable(shown) == shown
    whole = json.dumps({"name": text}, ensure_ascii=False)
    assert json.loads(printable_json(whole)) == {"name": text}
    assert printable_json(whole).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "Stück 7",
        "\u90e8\u54c1\u3000\uff11",
        "\u0642\u0637\u0639\u0647\u200c\u0647\u0627",
        "\u0915\u094d\u0937",
        "\U0001f469\u200d\U0001f527",
        "a\\x1b",
        "[red]x[/red]",
    ],
)
def test_names_in_any_script_stay_as_they_are(text: str) -> None:
    assert printable(text) == text
    assert printable_json(json.dumps(text, ensure_ascii=False)) == json.dumps(text, ensure_ascii=False)


def test_line_ends_stay_where_they_are_wanted() -> None:
    assert printable("a\n\tb\x1b") == "a\\n\\tb\\x1b"
    assert printable("a\n\tb\r\x1b", keep_lines=True) == "a\n\tb\\r\\x1b"


def test_a_home_folder_is_put_in_the_place_of_the_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x/y") == tmp_path / "x/y"
    assert user_path(Path("~")) == tmp_path
    assert user_path("a/~/x") == Path("a/~/x")
    assert user_path("./~") == Path("~")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no list of users to ask")
def test_the_system_knows_the_home_where_the_environment_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    entry = pwd.getpwuid(os.getuid())
    assert user_path(f"~{entry.pw_name}/x") == Path(entry.pw_dir) / "x"
    for value in (None, "", "relative"):
        monkeypatch.delenv("HOME", raising=False) if value is None else monkeypatch.setenv("HOME", value)
        assert home_folder() == Path(entry.pw_dir)
        assert user_path("~/x") == Path(entry.pw_dir) / "x"
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert home_folder() is None
    with pytest.raises(UsageError, match=r"no home folder.*write the path in full, or ./~/x"):
        user_path("~/x")


@pytest.mark.parametrize("name", ["nobody-of-that-name", "a b", "\udcff", "..", "x\x1b"])
def test_a_user_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="there is no user"):
        user_path(f"~{name}/x")


def test_a_file_that_begins_with_a_tilde_is_that_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~backup.png").touch()
    Path("~dangling").symlink_to("nowhere")
    assert user_path("~backup.png") == Path("~backup.png")
    assert user_path("~dangling") == Path("~dangling")
