"""Draw which part of the package imports which: python -m tests.packaging.import_diagram [--write].

Prints a Mermaid diagram, or writes it into CONTRIBUTING.md, where `test_imports.py` compares it with the code.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
PARTS = ("benchmarks", "export", "anomalib", "train", "cli", "archive", "serve", "sinks", "sources", "backends")
"""Drawn as one box each. The other modules are two more: those that use the backends, and those that everybody uses."""
USERS, FOUNDATION = "detector, refit, doctor, ...", "bundle, manifest, image, records, errors, ..."
BLOCK = re.compile(r"```mermaid\n.*?```", re.DOTALL)


def diagram() -> str:
    """Return the diagram; arrows that others imply are left out."""
    graph = grimp.build_graph("vae_edge", exclude_type_checking_imports=True)

    def box_of(module: str) -> str:
        part = module.split(".")[1] if "." in module else ""
        if part in PARTS or part == "__main__":
            return "cli" if part == "__main__" else part
        if module == "vae_edge":
            return FOUNDATION
        return USERS if graph.find_shortest_chain(module, "vae_edge.backends", as_packages=True) else FOUNDATION

    boxes = {module: box_of(module) for module in graph.modules}
    arrows: dict[str, set[str]] = {box: set() for box in boxes.values()}
    for module, box in boxes.items():
        for imported in graph.find_modules_directly_imported_by(module):
            arrows[box].add(boxes[imported])

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        rest = [start]
        while rest:
            for end in arrows[rest.pop()] - found:
                found.add(end)
                rest.append(end)
        return found

    names = {box: re.sub(r"\W.*", "", box) for box in arrows}
    lines = [f'    {names[box]}["{box}"]' for box in sorted(arrows)]
    lines += [
        f"    {names[start]} --> {names[end]}"
        for start in sorted(arrows)
        for end in sorted(arrows[start] - {start})
        if not any(end in reached(other) for other in arrows[start] - {start, end})
    ]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(BLOCK.sub(diagram(), PAGE.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    else:
        sys.stdout.write(diagram() + "\n")
