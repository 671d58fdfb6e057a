"""Checkpoints of a network that was trained elsewhere: what is in them comes back, and nothing in them is run."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.anomalib_checkpoints import ARCHITECTURE, make_constants, make_notes, save_own
from tests.train.circulated_vae import CirculatedVae, save_circulated
from tests.train.tiny_models import make_vae, noise
from vae_edge.errors import InputError, UsageError
from vae_edge.train.anomalib.checkpoint import CHECKPOINT_KEY, TrainedElsewhere, load_inert, read_checkpoint
from vae_edge.train.model.anomaly_graph import AnomalyGraph, run_graph
from vae_edge.train.model.input_settings import IMAGENET, SYMMETRIC, InputRange, Photometric, Tiling
from vae_edge.train.model.network import Vae


def vae_of(trained: TrainedElsewhere) -> Vae:
    """Return its network on pixels."""
    assert trained.vae is not None
    return trained.vae


class WritesAFile:
    """Runs code where it is unpickled as the pickle says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Settings:
    """Stands for a class of a program that is not there."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.nested = {"more": [1, 2, {3, 4}]}


class Mapped(dict[str, int]):
    """A dictionary of a class of its own."""


class TestOwnCheckpoints:
    def test_weights_constants_and_input_settings_come_back(self, tmp_path: Path) -> None:
        notes = make_notes(roles={"a" * 64: "fit"}, groups={"a" * 64: "part-1"})
        constants = make_constants(notes)
        trained = read_checkpoint(save_own(tmp_path / "model.ckpt", notes, constants=constants))
        assert trained.notes == notes
        assert trained.architecture == ARCHITECTURE
        assert (trained.input_settings.photometric, trained.input_settings.input_range) == (Photometric.IMAGE, IMAGENET)
        assert trained.input_settings.image_size == (32, 32)
        assert (trained.epochs, trained.remarks) == (5, ())
        assert "vae_edge.anomalib.Vae 0.1.0" in trained.description
        assert trained.constants is not None
        expected = AnomalyGraph(make_vae(), notes.scoring, constants, notes.input_settings)
        found = AnomalyGraph(vae_of(trained), notes.scoring, trained.constants, trained.input_settings)
        for ours, theirs in zip(run_graph(found, noise(3)), run_graph(expected, noise(3)), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_tiles_come_back(self, tmp_path: Path) -> None:
        notes = make_notes(tiling=Tiling(image_height=48, image_width=64, tile_height=32, tile_width=32))
        trained = read_checkpoint(save_own(tmp_path / "model.ckpt", notes, constants=make_constants(notes)))
        assert trained.input_settings.tiling == notes.tiling
        assert trained.input_settings.image_size == (48, 64)

    def test_without_constants_they_are_still_to_be_measured(self, tmp_path: Path) -> None:
        trained = read_checkpoint(save_own(tmp_path / "model.ckpt"))
        assert trained.notes is not None
        assert trained.constants is None

    def test_a_range_is_not_asked_for_where_the_checkpoint_says_it(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match="already records the range of its network's input values; leave out --input-range"
        ):
            read_checkpoint(save_own(tmp_path / "model.ckpt"), input_range=SYMMETRIC)

    def test_another_format_names_the_version_that_wrote_it(self, tmp_path: Path) -> None:
        path = save_own(tmp_path / "model.ckpt", make_notes(format=7, vae_edge_version="3.1.4"))
        with pytest.raises(InputError, match=r"written by vae-edge 3\.1\.4 in the format 7; expected the format 1"):
            read_checkpoint(path)

    @pytest.mark.parametrize(
        "said",
        [
            {"notes": "{not json", "constants": {}},
            {"notes": "[1, 2]", "constants": {}},
            {"notes": "{}", "constants": {}},
            {"constants": {}},
            {"notes": b"\x00", "constants": {}},
            None,
            17,
            {"notes": json.dumps({"format": 1, "vae_edge_version": "0.1.0"}), "constants": {}},
            {"notes": make_notes().model_dump_json()},
            {"notes": make_notes().model_dump_json(), "constants": 3},
            {"notes": make_notes().model_dump_json(), "constants": {"mean.0": "text", "scale.0": "text"}},
        ],
    )
    def test_damaged_notes_are_refused_and_the_file_is_named(self, said: object, tmp_path: Path) -> None:
        path = save_own(tmp_path / "model.ckpt", beside={CHECKPOINT_KEY: said})
        with pytest.raises(InputError, match=r"model\.ckpt.*; save the checkpoint again") as caught:
            read_checkpoint(path)
        assert caught.value.exit_code == 1, "a file is damaged, the command was used rightly"

    def test_a_value_out_of_range_in_the_notes_is_named(self, tmp_path: Path) -> None:
        raw = json.loads(make_notes().model_dump_json())
        raw["architecture"]["n_features"] = 0
        said = {"notes": json.dumps(raw), "constants": {}}
        with pytest.raises(InputError, match=r"model\.ckpt is damaged.*architecture\.n_features is 0"):
            read_checkpoint(save_own(tmp_path / "model.ckpt", beside={CHECKPOINT_KEY: said}))

    def test_weights_in_half_become_float(self, tmp_path: Path) -> None:
        path = save_own(tmp_path / "model.ckpt")
        content = torch.load(path)
        content["state_dict"] = {
            n: t.bfloat16() if t.is_floating_point() else t for n, t in content["state_dict"].items()
        }
        torch.save(content, path)
        vae = vae_of(read_checkpoint(path))
        assert {tensor.dtype for tensor in vae.parameters()} == {torch.float32}
        x = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(vae.reconstruct(x), make_vae().reconstruct(x), rtol=0, atol=0.02)

    def test_images_that_are_not_rgb_are_refused(self, tmp_path: Path) -> None:
        notes = make_notes(architecture=ARCHITECTURE.model_copy(update={"n_channels": 4}))
        with pytest.raises(InputError, match=r"model\.ckpt.*4 channels; expected 3"):
            read_checkpoint(save_own(tmp_path / "model.ckpt", notes))

    def test_weights_of_another_size_do_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"tensors in .*model\.ckpt do not fit its own notes .*size mismatch"):
            read_checkpoint(save_own(tmp_path / "model.ckpt", vae=make_vae(64, 64)))

    def test_a_missing_weight_does_not_fit(self, tmp_path: Path) -> None:
        path = save_own(tmp_path / "model.ckpt")
        content = torch.load(path)
        del content["state_dict"]["model.vae.mean_head.weight"]
        torch.save(content, path)
        with pytest.raises(InputError, match=r"do not fit its own notes .*mean_head\.weight"):
            read_checkpoint(path)

    def test_constants_of_another_size_or_number_do_not_fit(self, tmp_path: Path) -> None:
        other = make_notes(tiling=Tiling(image_height=48, image_width=64, tile_height=32, tile_width=32))
        with pytest.raises(InputError, match=r"do not fit its own notes .*constants of \(1, 1, 48, 64\)"):
            read_checkpoint(save_own(tmp_path / "model.ckpt", constants=make_constants(other)))
        none = {"notes": make_notes().model_dump_json(), "constants": {"mean.0": torch.zeros(1, 1, 1, 1)}}
        with pytest.raises(InputError, match="do not fit its own notes"):
            read_checkpoint(save_own(tmp_path / "model.ckpt", beside={CHECKPOINT_KEY: none}))


class TestCirculatedWeights:
    def normalize(self, mean: object, deviation: object) -> dict[str, Any]:
        arguments = {"mean": mean, "std": deviation}
        return {"class_path": "torchvision.transforms.v2.Normalize", "init_args": arguments}

    def config(self, *transforms: dict[str, Any]) -> dict[str, Any]:
        """What anomalib writes about its pre-processor: a composition within a composition."""
        resize = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [32, 32]}}
        inner = {
            "class_path": "torchvision.transforms.v2.Compose",
            "init_args": {"transforms": [resize, *transforms]},
        }
        outer = {"class_path": "torchvision.transforms.v2.Compose", "init_args": {"transforms": [inner]}}
        return {"anomalib_pre_processor_config": {"transform": outer}}

    def test_a_checkpoint_that_says_its_normalization(self, tmp_path: Path) -> None:
        beside = self.config(self.normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
        trained = read_checkpoint(save_circulated(tmp_path / "last.ckpt", epoch=11, **beside))
        assert trained.input_settings.input_range == InputRange(mean=(0.1, 0.2, 0.3), deviation=(0.4, 0.5, 0.6))
        assert (trained.epochs, trained.remarks, trained.notes, trained.constants) == (12, (), None, None)
        assert "circulates for anomalib" in trained.description
        assert trained.input_settings.image_size == vae_of(trained).image_size == (32, 32)
        x = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(vae_of(trained).reconstruct(x), CirculatedVae()(x)[0], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", ["state dict", "Lightning"])
    def test_without_one_it_is_taken_to_be_imagenets_and_that_is_said(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "weights.pt"
        if kind == "Lightning":
            save_circulated(path)
        else:
            torch.save(CirculatedVae().state_dict(), path)
        trained = read_checkpoint(path)
        assert trained.input_settings.input_range == IMAGENET
        (remark,) = trained.remarks
        assert "weights.pt does not record the range" in remark
        assert "ImageNet" in remark
        assert "--input-range symmetric" in remark
        assert trained.epochs == 1

    def test_what_is_asked_for_goes_before_what_the_file_says(self, tmp_path: Path) -> None:
        path = save_circulated(tmp_path / "last.ckpt", **self.config(self.normalize([0.1] * 3, [0.2] * 3)))
        trained = read_checkpoint(path, input_range=SYMMETRIC)
        assert trained.input_settings.input_range == SYMMETRIC
        assert trained.remarks == ()

    @pytest.mark.parametrize(
        "config",
        [
            {"transform": None},
            {"transform": {"class_path": "Normalize"}},
            {"transform": {"class_path": "x.Normalize", "init_args": None}},
            {"transform": {"class_path": "x.Normalize", "init_args": {"mean": [0.5], "std": [0.5]}}},
            {"transform": {"class_path": "x.Normalize", "init_args": {"mean": [0.5] * 3, "std": [0.0] * 3}}},
            {"transform": {"class_path": "x.Compose", "init_args": {"transforms": None}}},
            ["transform"],
            "transform",
            None,
        ],
    )
    def test_a_description_that_says_nothing_of_use_is_passed_over(self, config: object, tmp_path: Path) -> None:
        trained = read_checkpoint(save_circulated(tmp_path / "last.ckpt", anomalib_pre_processor_config=config))
        assert trained.input_settings.input_range == IMAGENET
        assert len(trained.remarks) == 1

    def test_grey_images_are_refused(self, tmp_path: Path) -> None:
        path = save_circulated(tmp_path / "grey.ckpt", CirculatedVae(n_channels=1))
        with pytest.raises(InputError, match=r"grey\.ckpt.*1 channel.*expected 3"):
            read_checkpoint(path)


class TestWhatIsNoCheckpoint:
    def test_another_models_is_named_by_its_tensors(self, tmp_path: Path) -> None:
        state = {f"model.feature_extractor.layer{i}.weight": torch.zeros(2) for i in range(5)}
        torch.save({"state_dict": state, "epoch": 1}, tmp_path / "patchcore.ckpt")
        with pytest.raises(InputError, match=r"another model: its tensors are model\.feature_extractor\.layer0"):
            read_checkpoint(tmp_path / "patchcore.ckpt")

    @pytest.mark.parametrize(
        "content", [b"", b"holiday pictures\n", b"\x89PNG\r\n\x1a\n" + bytes(50), b"PK\x03\x04abc", b"a"]
    )
    def test_a_file_of_something_else_is_refused(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "model.ckpt").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.ckpt is not a checkpoint that torch saved \(.+\)"):
            read_checkpoint(tmp_path / "model.ckpt")

    def test_a_file_that_breaks_off_is_refused(self, tmp_path: Path) -> None:
        path = save_own(tmp_path / "model.ckpt")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=r"model\.ckpt is not a checkpoint that torch saved"):
            read_checkpoint(path)

    def test_a_missing_file_and_a_folder_are_refused(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nothing.ckpt", tmp_path):
            with pytest.raises(InputError, match="there is no file"):
                read_checkpoint(path)

    @pytest.mark.parametrize(("content", "kind"), [([1, 2], "list"), (torch.zeros(3), "Tensor")])
    def test_what_is_no_dictionary_is_refused(self, content: object, kind: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(InputError, match=f"holds a {kind}; expected a checkpoint of Lightning"):
            read_checkpoint(tmp_path / "model.pt")

    @pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": [1]}, {"epoch": 3}])
    def test_one_without_tensors_is_refused(self, content: object, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "model.ckpt")
        with pytest.raises(InputError, match="holds no tensors"):
            read_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # torch, of a module in the older format
class TestNothingInAFileIsRun:
    def save(self, path: Path, as_zip: bool, **beside: object) -> Path:
        """Add to a checkpoint what torch's safe loader refuses, in the present format or in the one before it."""
        content = torch.load(save_own(path, constants=make_constants(make_notes())))
        torch.save(content | beside, path, _use_new_zipfile_serialization=as_zip)
        return path

    def test_code_in_the_pickle_does_not_run_and_the_tensors_are_read(self, as_zip: bool, tmp_path: Path) -> None:
        trap, state = tmp_path / "trap", {"inner": WritesAFile(tmp_path / "trap")}
        path = self.save(tmp_path / "model.ckpt", as_zip, callbacks=state)
        trained = read_checkpoint(path)
        assert not trap.exists()
        x = torch.rand(2, 3, 32, 32)
        assert torch.equal(vae_of(trained).reconstruct(x), make_vae().reconstruct(x))
        assert trained.constants is not None
        # The trap is one: a loader that trusts the file steps into it.
        torch.load(path, weights_only=False)
        assert trap.is_dir()

    @pytest.mark.parametrize(
        "value",
        [
            Settings(0.1),
            functools.partial(int, base=2),
            Mapped(a=1),
            torch.nn.Linear(2, 2),
            Path("images"),
            {"rates": np.float64(0.1), "array": np.zeros(3), "set": {1, 2}, "complex": 1 + 2j},
            [torch.optim.SGD, torch.float16, torch.device("cpu"), slice(1, 2)],
            Photometric.IMAGE,
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_objects_beside_the_weights_do_not_hinder(self, value: object, as_zip: bool, tmp_path: Path) -> None:
        path = self.save(tmp_path / "model.ckpt", as_zip, hyper_parameters={"value": value})
        trained = read_checkpoint(path)
        assert trained.notes == make_notes()
        x = torch.rand(2, 3, 32, 32)
        assert torch.equal(vae_of(trained).reconstruct(x), make_vae().reconstruct(x))

    def test_what_is_not_known_is_inert(self, as_zip: bool, tmp_path: Path) -> None:
        path = self.save(tmp_path / "model.ckpt", as_zip, hyper_parameters={"settings": Settings(0.1), "rate": 0.5})
        found = load_inert(path)["hyper_parameters"]
        assert found["rate"] == 0.5
        assert not isinstance(found["settings"], Settings)
        assert not hasattr(found["settings"], "rate")

    def test_parameters_and_shared_tensors_keep_their_values(self, as_zip: bool, tmp_path: Path) -> None:
        whole = torch.arange(12.0).reshape(3, 4)
        tensors = {
            "parameter": torch.nn.Parameter(whole.clone()),
            "turned": whole.T,
            "part": whole[1:, ::2],
            "half": whole.half(),
            "integers": whole.long(),
            "flags": whole > 5,
        }
        content = {"state_dict": tensors, "other": Settings(1)}
        torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=as_zip)
        found = load_inert(tmp_path / "model.ckpt")["state_dict"]
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
