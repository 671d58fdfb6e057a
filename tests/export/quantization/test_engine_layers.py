from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.export.tiny_networks import make_images, make_network
from vae_edge.errors import DeviceError
from vae_edge.export.quantization import engine_layers
from vae_edge.export.quantization.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.quantization.engine_layers import EngineLayer, count_layers, parse_layers, read_layers
from vae_edge.export.quantization.onnx_network import quantizable_layers, to_half
from vae_edge.export.quantization.onnx_quantizer import activation_ranges
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.tensorrt_target import quantize_for_tensorrt

DESCRIPTION = """Layers:
Name: __myl_Cast_myl0_1, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [-1,64,64,3], Datatype: UInt8, \
Format: (Linear) Row major linear format }], Constants: [ { Name: c_myl0, Dimensions: [1], Datatype: Float }], \
Outputs: [ { Name: a, Dimensions: [-1,3,64,64], Datatype: Half }, { Name: b, Datatype: Float }], TacticName: t, \
StreamId: 0, Metadata: [ONNX Layer: node_div][ONNX Layer: node_sub]
Name: __myl_CorrMulMax_myl0_2, LayerType: runtime_fusion, Inputs: [ { Name: a, Dimensions: [-1,3], Datatype: Half }], \
Constants: [ { Name: w, Dimensions: [16,3,4,4], Datatype: Half }], Outputs: [ { Name: d, Datatype: Half }], \
TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_conv2d]
Name: node_up_myl0_3, LayerType: deconv, Inputs: [ { Name: d, Datatype: Half }], Constants: [], \
Outputs: [ { Name: e, Datatype: Half }], TacticName: s, StreamId: 0
Name: __mye1010_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0
"""


def test_layers_are_read_from_the_log_with_their_types() -> None:
    layers = parse_layers(DESCRIPTION)
    assert layers[0] == EngineLayer("__myl_Cast_myl0_1", "other", ("UInt8",), ("Float",), ("Half", "Float"))
    assert [layer.kind for layer in layers] == ["other", "convolution", "transposed convolution", "other"]
    assert [layer.operands for layer in layers] == ["UInt8", "Half", "Half", "none"]


def test_layers_are_counted_by_kind_and_type() -> None:
    assert count_layers(parse_layers(DESCRIPTION)) == {
        "convolution": {"Half": 1},
        "other": {"UInt8": 1, "none": 1},
        "transposed convolution": {"Half": 1},
    }


class TestRealEngines:
    @pytest.fixture(autouse=True)
    def _rtx(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        pytest.importorskip("onnxruntime")

    @staticmethod
    def convolutions(model: onnx.ModelProto, folder: Path) -> dict[str, dict[str, int]]:
        onnx.save(model, folder / "model.onnx")
        counts = count_layers(read_layers(folder / "model.onnx"))
        counts.pop("other")
        return counts

    def test_fp32_and_fp16_engines_compute_in_those_types(self, tmp_path: Path) -> None:
        model = make_network()
        # The smoothing is the one convolution outside of the network: it stays in float32.
        assert self.convolutions(model, tmp_path) == {
            "convolution": {"Float": 4},
            "transposed convolution": {"Float": 3},
        }
        half = self.convolutions(to_half(model), tmp_path)
        assert half == {"convolution": {"Float": 1, "Half": 3}, "transposed convolution": {"Half": 3}}

    def test_the_rewrite_makes_every_layer_of_the_network_int8(self, tmp_path: Path) -> None:
        model = make_network()
        rewritten = rewrite_transposed_convolutions(model)
        n_layers = len(quantizable_layers(model))
        ranges = activation_ranges(rewritten, make_images(8), Estimator.MIN_MAX)
        after = self.convolutions(quantize_for_tensorrt(rewritten, ranges), tmp_path)
        assert after == {"convolution": {"Float": 1, "Int8": n_layers}}
        kept = [node.name for node in model.graph.node if node.op_type == "ConvTranspose"]
        ranges = activation_ranges(model, make_images(8), Estimator.MIN_MAX)
        before = self.convolutions(quantize_for_tensorrt(model, ranges, keep_float=kept), tmp_path)
        assert before == {
            "convolution": {"Float": 1, "Int8": n_layers - len(kept)},
            "transposed convolution": {"Half": len(kept)},
        }

    def test_a_layer_kept_in_float_is_half_in_the_engine(self, tmp_path: Path) -> None:
        rewritten = rewrite_transposed_convolutions(make_network())
        layers = quantizable_layers(rewritten)
        ranges = activation_ranges(rewritten, make_images(8), Estimator.MIN_MAX)
        counts = self.convolutions(quantize_for_tensorrt(rewritten, ranges, keep_float={layers[0]}), tmp_path)
        assert counts == {"convolution": {"Float": 1, "Half": 1, "Int8": len(layers) - 1}}

    def test_a_scale_of_rank_1_would_leave_every_convolution_in_half(self, tmp_path: Path) -> None:
        rewritten = rewrite_transposed_convolutions(make_network())
        ranges = activation_ranges(rewritten, make_images(8), Estimator.MIN_MAX)
        quantized = quantize_for_tensorrt(rewritten, ranges)
        for constant in quantized.graph.initializer:
            if constant.name.endswith((".input_scale", ".input_zero")):
                constant.dims.append(1)
        assert "Int8" not in self.convolutions(quantized, tmp_path)["convolution"]

    def test_the_command_prints_a_table(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        onnx.save(make_network(), tmp_path / "tile.onnx")
        assert engine_layers.main([str(tmp_path / "tile.onnx")]) == 0
        table = capsys.readouterr().out.splitlines()
        assert table[0] == "| model | convolution | transposed convolution | other |"
        assert table[2].startswith(f"| {tmp_path / 'tile.onnx'} | 4 Float | 3 Float | ")
        # TensorRT's own thousand lines reach no one else, and its logger is as it was.
        assert not caplog.records
        assert logging.getLogger("vae_edge.backends.tensorrt.module").propagate


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["none.onnx"], 1)])
def test_wrong_use_of_the_command_is_told(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert engine_layers.main(arguments) == code
    assert capsys.readouterr().err


def test_a_version_that_logs_no_layers_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def build_nothing(*arguments: Any, **settings: Any) -> None:
        logging.getLogger("vae_edge.backends.tensorrt.module").debug("nothing of use")

    monkeypatch.setattr(engine_layers, "build_engine", build_nothing)
    monkeypatch.setattr(engine_layers, "find_tensorrt", lambda flavour: "TensorRT-RTX 9.9")
    with pytest.raises(DeviceError, match=r"TensorRT-RTX 9\.9 logged no layers"):
        read_layers(tmp_path / "model.onnx")
