from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from tests.export.targets.test_onnx_target import NORMALIZED, random_graph
from vae_edge.backends.base import open_backend
from vae_edge.backends.torch_program import load_program
from vae_edge.errors import InputError
from vae_edge.export.targets.onnx_target import export_program
from vae_edge.export.targets.torch_target import save_program
from vae_edge.manifest import graph_inputs, graph_outputs
from vae_edge.targets import Target


@pytest.mark.parametrize("scoring", [NORMALIZED, "mse"])
def test_a_loaded_program_gives_the_graphs_outputs_to_the_bit(scoring: str, tmp_path: Path) -> None:
    graph = random_graph(scoring)
    save_program(export_program(graph), tmp_path / "program.json")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    with (
        torch.inference_mode(),
        open_backend(Target.TORCH, tmp_path / "program.json", graph_inputs(32, 48), graph_outputs(32, 48)) as backend,
    ):
        outputs = backend.run({"image": images})
        maps, scores = graph(torch.from_numpy(images))
    assert np.array_equal(outputs["anomaly_map"], maps.numpy())
    assert np.array_equal(outputs["score"], scores.numpy())


def test_a_program_is_json_and_safetensors_and_no_pickle(tmp_path: Path) -> None:
    files = save_program(export_program(random_graph()), tmp_path / "program.json")
    assert [file.name for file in files] == ["program.json", "program.safetensors"]
    content = json.loads(files[0].read_text())
    assert content["inputs"] == ["image"]
    assert len(content["outputs"]) == 2
    # A pickle of torch is a zip archive.
    assert not files[1].read_bytes().startswith(b"PK")


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vae_edge.export.targets.torch_target.save_file", full)
    with pytest.raises(InputError, match=r"No space left on device.*free some space or choose another folder"):
        save_program(export_program(random_graph("mse")), tmp_path / "program.json")


def test_a_program_loads_without_the_networks_class(tmp_path: Path) -> None:
    save_program(export_program(random_graph()), tmp_path / "program.json")
    loaded = load_program(tmp_path / "program.json")
    maps, scores = loaded(torch.zeros(2, 32, 48, 3, dtype=torch.uint8))
    assert maps.shape == (2, 32, 48)
    assert scores.shape == (2,)


def test_an_operator_that_the_loader_refuses_is_not_written(tmp_path: Path) -> None:
    class Sorts(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.sort(image).values,)

    program = torch.export.export(Sorts(), (torch.zeros(2, 3),))
    with pytest.raises(AssertionError, match=r"aten\.sort\.default"):
        save_program(program, tmp_path / "program.json")
