from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import vae_edge
from tests.tiny_bundles import dark_image, write_image
from vae_edge import errors

ROOT = Path(__file__).parents[2]

HEAVY = ("torch", "lightning", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "onnx", "pycuda", "cuda")


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nsys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("\n")[-1].split())


def test_the_public_names_are_these() -> None:
    assert vae_edge.__all__ == [
        "Detector",
        "Prediction",
        "Bundle",
        "Preparation",
        "Vae",
        "read_image",
        "VaeEdgeError",
        "InputError",
        "BundleError",
        "MissingDependencyError",
        "DeviceError",
        "ParityError",
        "__version__",
    ]


@pytest.mark.parametrize("name", [name for name in vae_edge.__all__ if name != "Vae"])
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(vae_edge, name) is not None
    assert name in dir(vae_edge)


def test_the_network_can_be_had_where_torch_is() -> None:
    pytest.importorskip("torch")
    assert vae_edge.Vae.__name__ == "Vae"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        vae_edge.Detektor  # noqa: B018 - that is the test


def test_importing_the_package_loads_next_to_nothing() -> None:
    assert not loaded_after("import vae_edge") & {*HEAVY, "numpy", "cv2", "pydantic", "rich", "typer"}


@pytest.mark.parametrize(
    "code",
    [
        "from vae_edge import Detector, Bundle, read_image, Prediction, Preparation",
        "import vae_edge.cli.main, vae_edge.cli.run, vae_edge.cli.verify, vae_edge.cli.inspect",
        "import vae_edge.doctor, vae_edge.cli.doctor, vae_edge.cli.cache, vae_edge.cache.compiled",
        "import vae_edge.benchmarks.measure.worker, vae_edge.benchmarks.command",
        "import vae_edge.export.rebuild, vae_edge.export.command",
        "import vae_edge.train.command, vae_edge.train.run.folder, vae_edge.train.sample.command",
        "import vae_edge.sources.opening, vae_edge.sinks.sink, vae_edge.refit, vae_edge.backends.base",
    ],
)
def test_what_runs_on_a_device_loads_no_torch_and_no_runtime_on_import(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


def test_the_process_that_measures_loads_no_metrics() -> None:
    code = "import vae_edge.benchmarks.measure.worker, vae_edge.benchmarks.measure.rounds"
    assert not {name for name in loaded_after(code) if name.startswith("vae_edge.train")}


LAYERS = {"train": ("export", "benchmarks"), "export": ("benchmarks",), "vae_edge": ("train", "export", "benchmarks")}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down(layer: str) -> None:
    above = tuple(f"vae_edge.{name}" for name in LAYERS[layer])
    modules = [path for path in (ROOT / layer).rglob("*.py") if path.parent.resolve().is_relative_to(ROOT / layer)]
    assert len(modules) > 5
    for module in modules:
        if module == ROOT / "vae_edge" / "__init__.py":
            continue  # It names the network to type checkers, and loads it only where it is asked for.
        if module == ROOT / "vae_edge" / "anomalib.py":
            continue  # Only a name, under which users of anomalib find a module of `train`; nothing else imports it.
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.startswith(above)], module


def test_vae_run_reaches_its_verdict_without_torch(onnx_bundle: vae_edge.Bundle, tmp_path: Path) -> None:
    picture = write_image(tmp_path / "piece.png", dark_image(0))
    out = tmp_path / "results"
    code = (
        "from vae_edge.cli.main import invoke\n"
        f"assert invoke([{str(onnx_bundle.folder)!r}, {str(picture)!r}, '--out', {str(out)!r}], command='run') == 0"
    )
    assert not loaded_after(code) & {"torch", "lightning", "onnx", "openvino", "tensorrt", "tensorrt_rtx"}


@pytest.mark.parametrize(
    ("error", "builtin", "exit_code"),
    [
        (errors.InputError, ValueError, 1),
        (errors.UsageError, errors.InputError, 2),
        (errors.BundleError, ValueError, 1),
        (errors.MissingDependencyError, ImportError, 1),
        (errors.DeviceError, RuntimeError, 1),
        (errors.ParityError, RuntimeError, 3),
    ],
)
def test_every_error_is_ours_and_a_builtin(
    error: type[errors.VaeEdgeError], builtin: type[Exception], exit_code: int
) -> None:
    assert issubclass(error, errors.VaeEdgeError)
    assert issubclass(error, builtin)
    assert error.exit_code == exit_code
    assert str(error("what came")) == "what came"


def test_every_error_is_in_the_tree_at_the_top_of_the_module() -> None:
    tree = errors.__doc__ or ""
    ours = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(error.__name__ in tree for error in ours)


def test_the_package_list_is_the_folders_on_disk() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    on_disk = set()
    for top, package in {"vae_edge": "vae_edge", **{v: k for k, v in settings["package-dir"].items()}}.items():
        for init in (ROOT / top).rglob("__init__.py"):
            inside = [parent for parent in init.parents if parent.is_relative_to(ROOT) and parent != ROOT]
            if not any(parent.is_symlink() for parent in inside):
                on_disk.add(".".join((package, *init.parent.relative_to(ROOT / top).parts)))
    assert set(settings["packages"]) == on_disk


def test_no_folder_of_modules_lacks_its_init() -> None:
    for top in ("vae_edge", "train", "export", "benchmarks"):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


@pytest.mark.parametrize(("top", "link"), [(name, f"vae_edge/{name}") for name in ("train", "export", "benchmarks")])
def test_the_links_for_editors_are_relative(top: str, link: str) -> None:
    if not (ROOT / link).is_symlink():
        pytest.skip("this copy of the sources has no symbolic links")
    assert (ROOT / link).readlink() == Path("..", top)


def test_without_anomalib_one_sentence_says_what_to_install() -> None:
    if importlib.util.find_spec("anomalib") is not None:
        pytest.skip("anomalib is installed")
    with pytest.raises(
        errors.MissingDependencyError, match=r"anomalib is not installed.*pip install .vae-edge\[anomalib\]."
    ):
        importlib.import_module("vae_edge.anomalib")
