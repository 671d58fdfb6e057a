from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tiny_bundles import dark_image
from vae_edge import InputError, Prediction
from vae_edge.sinks.overlays import OverlayFolder
from vae_edge.sinks.sink import FreeNames, Inspected
from vae_edge.sources.pictures import Picture

PREDICTION = Prediction(0.5, 0.01, 0.25, True, np.eye(32, dtype=np.float32), 0.5, "piece.png")
NORMAL = Prediction(0.1, 0.5, 0.25, False, np.zeros((32, 32), dtype=np.float32), 0.5, "piece.png")


def picture(name: str = "piece") -> Picture:
    return Picture("piece.png", name, dark_image(0, 64))


def test_overlays_of_equal_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    overlays = OverlayFolder(tmp_path / "overlays")
    names = ["piece", "piece", "PIECE", "piece-2", "a/b\\c:d", "", "..", "x" * 500]
    paths = [overlays.draw(picture(name), dark_image(0, 64), PREDICTION) for name in names]
    assert len({path.name.casefold() for path in paths}) == len(names)
    assert all(path.parent == tmp_path / "overlays" for path in paths)
    assert len(list((tmp_path / "overlays").iterdir())) == len(names)


@pytest.mark.parametrize("file_format", ["jpg", "png"])
def test_an_overlay_has_the_size_and_the_colours_of_its_picture(tmp_path: Path, file_format: str) -> None:
    image = np.zeros((90, 120, 3), dtype=np.uint8)
    image[:, :, 0] = 200
    overlays = OverlayFolder(tmp_path, file_format=file_format)  # type: ignore[arg-type]  # one of the two
    path = overlays.draw(picture(), image, PREDICTION)
    assert path.suffix == f".{file_format}"
    read = cv2.imread(str(path))
    assert read is not None
    assert read.shape == (90, 120, 3)
    assert read[80, 10, 2] > 150  # red is last in OpenCV's order
    assert read[80, 10, 0] < 60


def test_an_overlay_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="could not be written"):
        OverlayFolder(tmp_path / "file" / "overlays").draw(picture(), dark_image(0), PREDICTION)


@pytest.mark.parametrize("only_anomalous", [True, False])
def test_an_overlay_is_named_in_the_record_where_one_is_wanted(tmp_path: Path, only_anomalous: bool) -> None:
    overlays = OverlayFolder(tmp_path / "overlays", only_anomalous=only_anomalous)
    records = []
    for result in (PREDICTION, NORMAL, InputError("no verdict")):
        inspected = Inspected(picture(), result)
        overlays.write(inspected)
        records.append(inspected.record)
    second = {} if only_anomalous else {"overlay": "overlays/piece-2.jpg"}
    assert records == [{"overlay": "overlays/piece.jpg"}, second, {}]
    assert overlays.summary() == [("overlays", f"{1 if only_anomalous else 2} in {tmp_path / 'overlays'}")]


def test_names_are_short_in_bytes_stable_distinct_and_allowed_everywhere(tmp_path: Path) -> None:
    wanted = [
        "漢" * 70,
        "漢" * 69 + "字" * 70,
        "字" * 70 + "漢" * 69,
        "é" * 200,
        "e\u0301" * 20,
        "\u00e9" * 20,
        "con",
        "COM1",
        "nul.tar",
        "dots...",
        "space ",
        "\udcff\udcfe broken",
        "😀" * 60,
        "x" * 4000,
        "x" * 4001,
    ]
    taken = [FreeNames().take(name) for name in wanted]
    assert taken == [FreeNames().take(name) for name in wanted]
    names = FreeNames()
    for name in [*wanted, *wanted]:
        path = tmp_path / f".{names.take(name)}.jpg.part"
        assert not path.exists()
        path.touch()
        stem = path.name[1 : -len(".jpg.part")]
        assert len(stem.encode()) <= 200
        assert not stem.startswith(".")
        assert not stem.endswith((".", " "))
        assert stem.split(".")[0].lower() not in {"con", "nul", "com1", "aux"}
    assert len(list(tmp_path.iterdir())) == 2 * len(wanted)


def test_an_overlay_of_a_large_picture_is_drawn_small(tmp_path: Path) -> None:
    overlays = OverlayFolder(tmp_path)
    for shape, expected in (((64, 70000), (4, 4096)), ((5000, 2500), (4096, 2048)), ((4096, 10), (4096, 10))):
        path = overlays.draw(picture(), np.zeros((*shape, 3), dtype=np.uint8), PREDICTION)
        read = cv2.imread(str(path))
        assert read is not None
        assert read.shape[:2] == expected


def test_an_overlay_gets_its_name_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        OverlayFolder(tmp_path).draw(picture(), dark_image(0), PREDICTION)
    assert list(tmp_path.iterdir()) == []
