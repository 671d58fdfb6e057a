from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tests import forked
from tests.forked import end_of, fork

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


class WaitsForEver:
    """As a model of OpenVINO whose threads are in another process."""

    def __init__(self) -> None:
        self.myself = self
        self.made_by = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.made_by:
            threading.Event().wait()


@pytest.fixture
def _no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.mark.usefixtures("_no_collection")
def test_a_child_does_not_free_what_an_earlier_test_left() -> None:
    WaitsForEver()
    gc.enable()
    assert end_of(fork(lambda: [[] for _ in range(100_000)])) == 0


def test_a_child_that_hangs_is_killed_and_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "LIMIT_S", 0.2)
    with pytest.raises(AssertionError, match="the forked child was killed"):
        end_of(fork(threading.Event().wait))


@pytest.mark.parametrize(("work", "code"), [(lambda: None, 0), (lambda: 1 / 0, 1)])
def test_a_child_ends_with_what_its_work_did(work: object, code: int) -> None:
    assert callable(work)
    assert end_of(fork(work)) == code


def test_a_child_that_is_killed_ends_with_the_signal() -> None:
    assert end_of(fork(lambda: os.kill(os.getpid(), signal.SIGKILL))) == -signal.SIGKILL
