"""The one rule about hidden folders, leftovers, links and folders that cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_bundles import dark_image, write_image
from vae_edge.errors import InputError
from vae_edge.picture_files.listing import count_images, list_images
from vae_edge.sources.opening import image_files, open_sources
from vae_edge.sources.watch import WatchedFolders, WatchOptions
from vae_edge.train.data.inspection_set import open_inspection_set


def put(root: Path, *names: str) -> Path:
    for name in names:
        write_image(root / name, dark_image(1))
    return root


def found(root: Path, **options: Any) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_images(root, **options).images()]


def test_images_are_listed_folder_by_folder_and_the_rest_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "b/1.PNG", "a.tif", "b/c/2.webp", ".x.png", "b/._1.png")
    (tmp_path / "b" / "notes.txt").touch()
    listing = list_images(tmp_path)
    assert found(tmp_path) == ["a.tif", "b/1.PNG", "b/c/2.webp"]
    assert found(tmp_path, recursive=False) == ["a.tif"]
    assert listing.n_other == 1
    assert listing.remarks() == ["hidden image files, skipped: 2"]


@pytest.mark.parametrize(
    "name", ["results", "Results", ".cache", "@eaDir", "$RECYCLE.BIN", "__MACOSX", ".Trashes", "overlays", "Thumbs",
             "System Volume Information", "lost+found"],
)  # fmt: skip
def test_leftovers_are_never_looked_into(tmp_path: Path, name: str) -> None:
    put(tmp_path, "0.png", f"deep/{name}/sub/1.png", f"deep/{name}/2.png")
    listing = list_images(tmp_path)
    assert found(tmp_path) == ["0.png"]
    assert listing.leftovers == [tmp_path / "deep" / name]
    assert count_images(listing.leftovers[0]) == 2
    # What is named itself is taken.
    assert found(tmp_path / "deep" / name) == ["2.png", "sub/1.png"]


@pytest.mark.parametrize(
    "files",
    [
        ["training.json", "split.json"], ["model.json", "model.safetensors"], ["manifest.json", "model.onnx"],
        ["report.json", "report.html"], ["model_api.json", "model.xml"],
    ],
)  # fmt: skip
def test_folders_that_this_program_wrote_are_leftovers(tmp_path: Path, files: list[str]) -> None:
    put(tmp_path, "0.png", "mine/images/1.png", "yours/2.png")
    (tmp_path / "yours" / "manifest.json").touch()
    for file in files:
        (tmp_path / "mine" / file).touch()
    assert found(tmp_path) == ["0.png", "yours/2.png"]


def test_results_are_a_leftover_but_not_the_folder_of_pictures_that_they_were_written_into(tmp_path: Path) -> None:
    put(tmp_path, "day/0.png", "day/overlays/0.jpg", "out/overlays/0.jpg", "out/kept/1.png")
    for name in ("day", "out"):
        (tmp_path / name / "predictions.jsonl").touch()
    assert found(tmp_path) == ["day/0.png"]


def test_links_are_followed_once_and_never_round(tmp_path: Path) -> None:
    root = put(tmp_path / "set", "a/0.png", "b/1.png")
    put(tmp_path / "outside", "2.png", "deep/3.png")
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "a" / "self").symlink_to(root / "a" / "self")
    (root / "again").symlink_to(root / "b", target_is_directory=True)
    (root / "out").symlink_to(tmp_path / "outside", target_is_directory=True)
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "b" / "4.png").symlink_to(tmp_path / "outside" / "2.png")
    assert found(root) == ["a/0.png", "b/1.png", "b/4.png", "out/2.png", "out/deep/3.png"]
    listing = list_images(root)
    assert listing.dangling == [root / "a" / "self"]
    assert [folder.parts for folder in listing.folders if folder.again] == [("again",)]
    assert listing.remarks() == ["broken links, skipped: 1 (a/self)"]


def test_many_links_across_do_not_multiply_the_folders(tmp_path: Path) -> None:
    names = [f"f{i}" for i in range(12)]
    put(tmp_path, *(f"{name}/0.png" for name in names))
    for name in names:
        for other in names:
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other, target_is_directory=True)
    assert len(found(tmp_path)) == 12
    assert len(list_images(tmp_path).folders) <= 2 * 13


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes in the file system are POSIX's")
def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    put(tmp_path, "0.png")
    os.mkfifo(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "1.png")
    listing = list_images(tmp_path)
    assert found(tmp_path) == ["0.png"]
    assert [path.name for path in listing.special] == ["1.png", "2.png"]


def test_the_folder_of_the_results_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "0.png", "out/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "out", target_is_directory=True)
    assert found(tmp_path, except_in=tmp_path / "out") == ["0.png"]
    assert found(tmp_path / "out", except_in=tmp_path) == []
    assert found(tmp_path, except_in=tmp_path / "nowhere") == ["0.png", "out/1.png"]


@pytest.fixture
def closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set with a folder that cannot be read; root reads everything, so scandir is made to refuse."""
    root = put(tmp_path / "set", "0.png", "closed/1.png", "results/2.png")
    real = os.scandir

    def scandir(path: str | Path) -> Any:
        if Path(path).name in ("closed", "results"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return root


def test_a_folder_that_cannot_be_read_is_an_error_everywhere_but_in_a_watch(
    closed_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    says = r"closed could not be read \(Permission denied\), so its images are unknown; change"
    with pytest.raises(InputError, match=says):
        open_inspection_set(closed_folder)
    with pytest.raises(InputError, match=says):
        open_inspection_set(normal=closed_folder)
    with pytest.raises(InputError, match=says):
        open_sources([str(closed_folder)], recursive=True)
    with pytest.raises(InputError, match=says):
        open_sources([f"{closed_folder}/**/*.png"])
    with pytest.raises(InputError, match=says):
        image_files([str(closed_folder)], recursive=True)
    assert len(image_files([str(closed_folder)])) == 1
    options = WatchOptions(poll_s=0.01, settle_s=0, idle_timeout_s=0.05)
    watched = list(WatchedFolders([closed_folder], recursive=True, options=options))
    assert [Path(picture.source).name for picture in watched] == ["0.png"]
    assert caplog.text.count("closed cannot be read (Permission denied) and is skipped") == 1


def test_a_leftover_that_cannot_be_read_is_no_error(closed_folder: Path) -> None:
    (closed_folder / "closed").rename(closed_folder / "open")
    images = open_inspection_set(closed_folder)
    assert len(images.train) == 2
    assert "results: cannot be read, skipped: left-over or hidden" in images.describe()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to become somebody else")
def test_another_user_is_told_which_folder_and_which_link_cannot_be_read(tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others.
        root = put(Path(name), "0.png", "private/in/1.png")
        root.chmod(0o755)
        (root / "private").chmod(0o700)
        for link, expected in (("a.png", "1.png"), ("b", "private/in")):
            (root / link).symlink_to(root / "private" / "in" / expected if link == "a.png" else root / expected)
            refused = _as_nobody(root)
            assert "Permission denied" in refused
            (root / link).unlink()
        assert f"{root / 'private'} could not be read (Permission denied)" in _as_nobody(root)
        (root / "private").chmod(0o711)
        assert f"{root / 'private'} could not be read (Permission denied)" in _as_nobody(root)
        (root / "private").chmod(0o755)
        assert _as_nobody(root) == "2"


def _as_nobody(root: Path) -> str:
    """List in a process that has given up root's rights; the package is imported before it does."""
    code = (
        "import os, sys; from pathlib import Path; from vae_edge.picture_files.listing import list_images\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    print(len(list_images(Path(sys.argv[1])).images()))\nexcept ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_glob_takes_what_was_spelled_out_and_no_leftovers(tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "a/results/1.png", "a/b/overlays/2.png", "a/b/3.png")
    (tmp_path / "a" / "round").symlink_to(tmp_path / "a", target_is_directory=True)

    def names(pattern: str) -> Iterator[str]:
        return (path.name for path in image_files([f"{tmp_path}/{pattern}"]))

    assert sorted(names("**/*.png")) == ["0.png", "3.png"]
    assert sorted(names("a/*/*.png")) == ["0.png", "3.png"]
    assert sorted(names("*/b/overlays/*.png")) == ["2.png"]
    assert sorted(names("a/results/*.png")) == ["1.png"]
