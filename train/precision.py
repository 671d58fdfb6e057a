"""Which numbers a training computes in."""

from __future__ import annotations

from vae_edge.machine import look_at_machine

AUTO = "auto"
SINGLE = "32-true"
MIXED = "bf16-mixed"


def resolve_precision(asked: str, accelerator: str) -> str:
    """Return Lightning's precision; for `auto` the fastest one that trains as well as float32.

    bfloat16 has float32's range, so nothing has to be scaled; weights, optimizer and batch norms stay in float32. It is
    taken where the device multiplies it natively: on an NVIDIA GPU from Ampere on, and on a processor with AMX.

    Args:
        asked: `auto`, or one of Lightning's precisions, which is returned as it is.
        accelerator: Lightning's accelerator.
    """
    if asked != AUTO:
        return asked
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return MIXED if torch.cuda.is_bf16_supported(including_emulation=False) else SINGLE
    return MIXED if accelerator in ("auto", "cpu") and "amx_bf16" in look_at_machine().processor_flags else SINGLE
