"""The examples in the docstrings of `train/` give what they show."""

from __future__ import annotations

import pytest

from tests.docstring_examples import modules_with_examples, run_examples


@pytest.mark.parametrize("module", modules_with_examples("train"))
def test_its_examples_give_what_they_show(module: str) -> None:
    run_examples(module)
