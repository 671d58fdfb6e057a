"""What long work calls to tell how far it is. It does not know who listens; `vae_edge.cli.progress` shows bars."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""

StepProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""
