"""When a camera takes a picture, where that is decided from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable

_POLL_S = 0.1


class Trigger:
    """Asks a camera for one picture at a time; any thread may ask, and none has to wait.

    A picture that was asked for and not taken yet is not asked for again: however often triggers come, they cost no
    more than the pictures that can be taken.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_pending = False
        self.when_taken: Callable[[], None] = lambda: None
        """Called in the camera's thread when the picture is about to be taken; has to return at once."""
        self.n_taken = 0

    def request(self) -> bool:
        """Ask for a picture; return whether it is another one than was asked for already."""
        with self._changed:
            is_new = not self._is_pending
            self._is_pending = True
            self._changed.notify_all()
            return is_new

    def wait(self, is_over: Callable[[], bool]) -> bool:
        """Wait until a picture is asked for, and take the request away; return False once `is_over` says so.

        `is_over` is asked ten times a second.
        """
        with self._changed:
            while not self._is_pending:
                if is_over():
                    return False
                self._changed.wait(_POLL_S)
            self._is_pending = False
            self.n_taken += 1
        self.when_taken()
        return True
