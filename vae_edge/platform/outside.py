"""What comes from outside: texts that are printed, and paths as users write them.

File names, the strings in a manifest and a server's answers are untrusted. On a terminal a control character in
them moves the cursor, changes the title or hides a line, and a bidirectional one reorders what is read.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from vae_edge.errors import InputError, UsageError

_LINE_ENDS_AND_TABS = "\n\t"

_NOT_PRINTABLE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: U+009B alone begins an escape sequence on some terminals.
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # They reorder a line, so that gpj.exe reads exe.jpg.
    "\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # Invisible.
    "\ud800-\udfff"  # Bytes of a file name that is not UTF-8.
    "]"
)


def printable(text: str, *, keep_lines: bool = False) -> str:
    r"""Return a text in which every character that a terminal would act on is written as its escape.

    Control characters, bidirectional and invisible ones and the bytes of a name that is not UTF-8 become `\x1b`,
    `\u202e` and so on, as Python writes them; everything else, in any script, stays.

    Args:
        text: anything.
        keep_lines: leave line ends and tabs as they are.

    Examples:
        >>> print(printable("part\x1b[2J.png"), printable("größe.png"))
        part\x1b[2J.png größe.png
    """

    def escaped(match: re.Match[str]) -> str:
        character = match[0]
        if keep_lines and character in _LINE_ENDS_AND_TABS:
            return character
        return character.encode("unicode_escape").decode("ascii")

    return _NOT_PRINTABLE.sub(escaped, text)


def printable_json(text: str) -> str:
    r"""Return JSON in which the same characters are written as JSON's own escapes, such as `\u202e`: its value stays.

    Args:
        text: JSON without line ends.
    """
    # Below U+0020 there is nothing to find: JSON has no such characters within its strings.
    return _NOT_PRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def plain_markdown(text: str) -> str:
    r"""Return a text as Markdown that shows it and does nothing else: no HTML, no link, no code, no new line.

    `<b>` becomes `&lt;b>`, `[` becomes `\[`, a backtick an apostrophe; what is not printable becomes an escape. A bar
    stays, for only in a table does it mean something.

    Examples:
        >>> print(plain_markdown("<b>part</b> [link](x)"))
        &lt;b>part&lt;/b> \[link](x)
    """
    one_line = printable(" ".join(text.split())).replace("`", "'")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", one_line).replace("[", "\\[")


def home_folder() -> Path | None:
    """Return this user's home folder: `$HOME` where it is an absolute path, else the system's entry, else None.

    Python's own answer is `/` where `$HOME` is set to nothing.
    """
    if os.name != "posix":
        home = os.path.expanduser("~")  # noqa: PTH111 - Path.home raises
        return Path(home) if Path(home).is_absolute() else None
    home = os.environ.get("HOME", "")
    return Path(home) if home.startswith("/") else _home_of(None)


def user_folder(own: str, kind: str, default: str) -> Path | None:
    """Return a folder of this user's for vae-edge, which need not exist; None: this user has no home folder.

    A relative path in `XDG_...` is ignored, as the XDG Base Directory Specification asks.

    Args:
        own: the environment variable that names it.
        kind: the XDG variable that names its parent where the first is not set.
        default: its parent below the home folder where that one is not set, either.
    """
    if named := os.environ.get(own):
        return user_path(named).absolute()
    shared = os.environ.get(kind)
    if shared and Path(shared).is_absolute():
        return Path(shared) / "vae-edge"
    home = home_folder()
    return None if home is None else home / default / "vae-edge"


def user_path(text: str | Path) -> Path:
    """Return a path as its writer means it: `~/x` and `~name/x` begin with a home folder.

    A shell replaces them only where they begin a word: not in `--data=~/x`, and not in a service's file. A file whose
    name begins with ~ is taken as it is, where it exists.

    Raises:
        UsageError: there is no such user, or this user has no home folder.
    """
    written = str(text)
    if not written.startswith("~") or os.path.lexists(written):
        return Path(text)
    name, _, rest = written[1:].partition("/")
    if os.name != "posix":
        home = None if (found := os.path.expanduser(written)).startswith("~") else Path(found)  # noqa: PTH111 - as above
        rest = ""
    else:
        home = _home_of(name) if name else home_folder()
    if home is None:
        why = f"there is no user {name!r} on this machine" if name else "this user has no home folder (HOME is not set)"
        raise UsageError(f"{written} begins with ~, and {why}; write the path in full, or ./{written} for a file here")
    return home / rest


def check_current_folder() -> None:
    """Refuse to continue where the current folder was deleted: Intel's MKL, which torch loads, ends the process there.

    Raises:
        InputError: it was.
    """
    try:
        os.getcwd()  # noqa: PTH109 - nothing is made of it
    except OSError as error:
        raise InputError("torch cannot run because the current folder was deleted; change to another folder") from error


def _home_of(name: str | None) -> Path | None:
    """Return a user's home folder by the system's list of users; None for this process's user."""
    import pwd

    try:
        entry = pwd.getpwuid(os.getuid()) if name is None else pwd.getpwnam(name)
    except (KeyError, OSError, ValueError):  # ValueError: no name that a user can have.
        return None
    return Path(entry.pw_dir) if entry.pw_dir.startswith("/") else None
