"""Make a tiny OpenVINO bundle and two pictures: `python -m tests.packaging.make_prediction_input FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.tiny_bundles import dark_image, make_bundle, spotted_image, write_image
from vae_edge.targets import Target


def main(folder: Path) -> None:
    """Write FOLDER/bundle and FOLDER/images."""
    (folder / "images").mkdir(parents=True)
    make_bundle(folder / "bundle", Target.OPENVINO)
    write_image(folder / "images" / "dark.png", dark_image(1))
    write_image(folder / "images" / "spotted.png", spotted_image(2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
