"""Compare the verdicts of an Arm processor with this machine's: `python -m tests.arm.compare REFERENCE OTHER`.

Both are folders that `tests.arm.judge` wrote. Exit code 1 if a verdict flips, or a score or a map moves too far.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from vae_edge.agreement import Outputs, compare_outputs

TOLERANCES = {"fp32": (1e-5, 1e-5), "int8": (0.02, 0.1)}
"""How far a score, and how far a value of a map may move, as shares of the largest value on x86. ONNX Runtime's
INT8 keeps to those of FP32 too; OpenVINO computes INT8 by other rules on Arm than on x86."""


def main(reference: Path, other: Path) -> int:
    """Print a line for each bundle; return the exit code."""
    files = sorted(reference.glob("*.npz"))
    missing = [file.name for file in files if not (other / file.name).is_file()]
    if missing or not files:
        sys.stderr.write(f"{other} lacks {', '.join(missing) or 'everything'}\n")
        return 1
    return max([_compare(file, other / file.name) for file in files])


def _compare(reference_file: Path, file: Path) -> int:
    precision = file.stem.rpartition("-")[2]
    reference, other = np.load(reference_file), np.load(file)
    names = reference["names"].tolist()
    if names != other["names"].tolist():
        sys.stderr.write(f"{file.stem}: the two judged different pictures\n")
        return 1
    found = compare_outputs(
        Outputs(reference["maps"], reference["scores"]),
        Outputs(other["maps"], other["scores"]),
        reference_verdicts=reference["verdicts"],
        verdicts=other["verdicts"],
    )
    if found.maps is None:
        sys.stderr.write(f"{file.stem}: the maps are of {other['maps'].shape}; expected {reference['maps'].shape}\n")
        return 1
    problems = [f"{name} got another verdict" for name in found.names(names)]
    measured = ("score", found.scores), ("map", found.maps)
    for (what, moved), tolerance in zip(measured, TOLERANCES[precision], strict=True):
        # Written this way round, a NaN fails.
        if not moved.largest <= tolerance * moved.scale:
            problems.append(f"a {what} moved by {moved.largest:.3g}; at most {tolerance * moved.scale:.3g} is allowed")
    sys.stdout.write(
        f"{file.stem}: {other['version']} on Arm, {reference['version']} on x86: {len(found.flipped)} of {len(names)} "
        f"verdicts differ ({int(reference['verdicts'].sum())} anomalous); scores within {found.scores.largest:.2g} of "
        f"{found.scores.scale:.3g}, maps within {found.maps.largest:.2g} of {found.maps.scale:.3g}\n"
    )
    for problem in problems:
        sys.stderr.write(f"{file.stem}: {problem}\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
