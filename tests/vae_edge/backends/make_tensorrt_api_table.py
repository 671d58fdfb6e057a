"""Writes the table of the TensorRT names in use from a folder of dumps of TensorRT's Python modules.

A dump is a JSON file with `flavour`, `version` and `names`, which maps every public name, such as
`Builder.create_network`, to its `kind` and, where the bindings print them, its `signatures`. Run from the repository:

    python -m tests.vae_edge.backends.make_tensorrt_api_table FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.vae_edge.backends.tensorrt_names import GUARDS, TABLE, all_used_names
from vae_edge.backends.tensorrt.module import version_numbers


def read_dumps(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the names of every dump by flavour and version, full TensorRT first, old before new."""
    dumps = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    dumps.sort(key=lambda dump: (dump["flavour"], version_numbers(dump["version"])))
    return {f"{dump['flavour']} {dump['version']}": dump["names"] for dump in dumps}


def make_table(dumps: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return, for every name in use, whether it is optional and where it is, with its signatures."""
    names = {
        name: {
            "optional": name in GUARDS,
            "in": {version: there[name].get("signatures", []) for version, there in dumps.items() if name in there},
        }
        for name in sorted(all_used_names()[0])
    }
    return {"versions": list(dumps), "names": names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder with the dumps")
    table = make_table(read_dumps(parser.parse_args().folder))
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
