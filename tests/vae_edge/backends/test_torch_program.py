from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch target needs torch")
pytest.importorskip("safetensors", reason="the torch target needs safetensors")

import torch
from safetensors.numpy import save_file

from tests.tiny_bundles import torch_program
from vae_edge.backends.torch_program import OPERATORS, load_program
from vae_edge.errors import BundleError


@pytest.fixture
def program(tmp_path: Path) -> Path:
    save_file({"kernel": np.ones((1, 3, 3, 3), dtype=np.float32)}, tmp_path / "program.safetensors")
    (tmp_path / "program.json").write_text(json.dumps(torch_program()))
    return tmp_path / "program.json"


def rewrite(program: Path, **changes: Any) -> None:
    program.write_text(json.dumps({**json.loads(program.read_text()), **changes}))


def call(operator: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"name": "evil", "op": operator, "args": list(args), "kwargs": kwargs}


@pytest.mark.parametrize(
    "operator",
    [
        "aten.from_file.default",
        "aten.__getattr__.default",
        "os.system",
        "builtins.eval",
        "aten.conv2d.default.__globals__",
        "prim.Print.default",
        "",
        "getattr",
    ],
)
def test_an_operator_that_no_export_uses_is_refused(program: Path, operator: str) -> None:
    rewrite(program, nodes=[call(operator, "/etc/passwd")], outputs=["evil"])
    with pytest.raises(BundleError, match="do not run it"):
        load_program(program)


@pytest.mark.parametrize("argument", ["__import__('os').system('true')", "/etc/passwd", "cuda", ""])
def test_a_text_argument_that_no_export_uses_is_refused(program: Path, argument: str) -> None:
    rewrite(program, nodes=[call("aten.abs.default", argument)], outputs=["evil"])
    with pytest.raises(BundleError, match="do not run it"):
        load_program(program)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": None},
        {"inputs": None},
        {"outputs": ["nowhere"]},
        {"nodes": [{"name": "x", "tensor": "nowhere"}]},
        {"nodes": [{"name": "x"}]},
        {"nodes": [{"op": "aten.abs.default", "args": []}]},
        {"nodes": ["abs"]},
        {"nodes": 3},
        {"nodes": [call("aten.abs.default", {"node": "later"})]},
        {"nodes": [call("aten.to.dtype", {"node": "image"}, {"dtype": "object"})]},
        {"nodes": [call("aten.abs.default", {"other": 1})]},
        {"nodes": [{"name": "x", "op": ["list"], "args": []}]},
        {"nodes": [{"name": "x", "op": "aten.abs.default", "args": [], "kwargs": [1]}]},
        {"nodes": [{"name": ["x"], "tensor": "kernel"}]},
    ],
)
def test_a_damaged_program_is_a_bundle_error(program: Path, changes: dict[str, Any]) -> None:
    rewrite(program, **changes)
    with pytest.raises(BundleError):
        load_program(program)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"', "{"])
def test_a_program_that_is_no_record_is_a_bundle_error(program: Path, content: str) -> None:
    program.write_text(content)
    with pytest.raises(BundleError):
        load_program(program)


def test_no_source_is_made_of_a_program(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(torch_program()).replace('"image"', json.dumps("x): import os; os.abort() #"))
    program.write_text(text)
    zeros = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    load_program(program)(zeros)  # torch itself compiles something when an operator is looked up for the first time.

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("source was compiled or run")

    for name in ("compile", "exec", "eval"):
        monkeypatch.setattr(f"builtins.{name}", refuse)
    maps, scores = load_program(program)(zeros)
    assert maps.shape == (1, 32, 32)
    assert scores.shape == (1,)


def test_damaged_tensors_are_a_bundle_error(program: Path) -> None:
    program.with_suffix(".safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(BundleError):
        load_program(program)


def test_no_allowed_operator_reads_a_file_or_runs_code() -> None:
    assert all(name.startswith("aten.") or name == "getitem" for name in OPERATORS)
    assert not [name for name in OPERATORS if "file" in name or "__" in name]
