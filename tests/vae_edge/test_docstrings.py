"""The examples in the docstrings of `vae_edge/` give what they show."""

from __future__ import annotations

import pytest

from tests.docstring_examples import modules_with_examples, run_examples


@pytest.mark.parametrize("module", modules_with_examples("vae_edge"))
def test_its_examples_give_what_they_show(module: str) -> None:
    run_examples(module)
