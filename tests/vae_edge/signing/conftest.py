"""What the tests of signatures share; `cryptography` is imported where one is made, for it may be missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vae_edge import Bundle

if TYPE_CHECKING:
    from tests.signed_bundles import KeyPair


@pytest.fixture
def vendor(tmp_path: Path) -> KeyPair:
    """The key of a bundle's maker."""
    from tests.signed_bundles import make_key

    return make_key(tmp_path / "keys")


@pytest.fixture
def signed(onnx_bundle: Bundle, vendor: KeyPair) -> Path:
    """A bundle that its maker has signed."""
    from tests.signed_bundles import sign_by_hand

    sign_by_hand(onnx_bundle.folder, vendor.key)
    return onnx_bundle.folder
