"""Pieces of torch's work, one on each core: their order, threads and errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from vae_edge.train.model.cores import on_each_core


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_as_many_pieces_are_computed_at_a_time_as_torch_has_threads_in_the_order_of_the_items() -> None:
    met = threading.Barrier(3, timeout=60)  # Passed only by three at a time.

    def work(item: int) -> tuple[int, int]:
        met.wait()
        return item, torch.get_num_threads()

    assert list(on_each_core(work, range(9))) == [(item, 1) for item in range(9)]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_is_raised_in_its_place_and_torchs_threads_are_as_before() -> None:
    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(on_each_core(lambda item: 6 // item, (3, 2, 0, 1)))
    assert seen == [2, 3]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_torchs_threads_are_as_before_where_not_all_results_are_taken() -> None:
    results = on_each_core(lambda item: item, range(100))
    assert next(results) == 0
    results.close()
    assert torch.get_num_threads() == 3
