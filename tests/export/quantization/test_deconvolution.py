from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.export.tiny_networks import make_images, make_network, nodes_of, run_model
from vae_edge.errors import InputError
from vae_edge.export.quantization.deconvolution import rewrite_transposed_convolutions, subpixel_weights
from vae_edge.export.quantization.onnx_network import quantizable_layers

pytest.importorskip("onnxruntime")


def lone_deconvolution(
    n_in: int,
    n_out: int,
    side: tuple[int, int],
    *,
    kernel: tuple[int, int] = (4, 4),
    stride: int = 2,
    pad: int = 1,
    bias: bool = True,
    activation: str | None = None,
    group: int = 1,
) -> onnx.ModelProto:
    rng = np.random.default_rng(n_in * 100 + n_out)
    constants = [numpy_helper.from_array(rng.normal(size=(n_in, n_out, *kernel)).astype(np.float32), "w")]
    if bias:
        constants.append(numpy_helper.from_array(rng.normal(size=n_out * group).astype(np.float32), "b"))
    result = "y" if activation is None else "x1"
    nodes = [
        helper.make_node(
            "ConvTranspose",
            ["x", *(each.name for each in constants)],
            [result],
            "up",
            strides=[stride, stride],
            pads=[pad] * 4,
            group=group,
        )
    ]
    if activation is not None:
        nodes.append(helper.make_node(activation, ["x1"], ["y"], "active"))
    out = [(size - 1) * stride - 2 * pad + taps for size, taps in zip(side, kernel, strict=True)]
    graph = helper.make_graph(
        nodes,
        "lone",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", n_in, *side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", n_out * group, *out])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "Relu", "LeakyRelu", "Tanh"])
@pytest.mark.parametrize(("n_in", "n_out", "side"), [(3, 5, (4, 4)), (8, 3, (5, 9)), (1, 1, (1, 1)), (7, 2, (1, 6))])
def test_a_doubling_transposed_convolution_equals_its_rewrite(
    n_in: int, n_out: int, side: tuple[int, int], activation: str | None, bias: bool
) -> None:
    model = lone_deconvolution(n_in, n_out, side, bias=bias, activation=activation)
    rewritten = rewrite_transposed_convolutions(model)
    assert not nodes_of(rewritten, "ConvTranspose")
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, n_in, *side)).astype(np.float32)
        np.testing.assert_allclose(outputs(rewritten, x), outputs(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "Relu"])
@pytest.mark.parametrize("kernel", [(4, 4), (4, 7), (5, 1)])
def test_a_transposed_convolution_of_one_pixel_equals_its_rewrite(
    kernel: tuple[int, int], activation: str | None, bias: bool
) -> None:
    model = lone_deconvolution(6, 5, (1, 1), kernel=kernel, stride=1, pad=0, bias=bias, activation=activation)
    rewritten = rewrite_transposed_convolutions(model)
    assert [node.op_type for node in rewritten.graph.node if node.op_type not in ("Relu",)] == ["Conv", "Reshape"]
    for batch in (1, 4):
        x = np.random.default_rng(batch).normal(size=(batch, 6, 1, 1)).astype(np.float32)
        np.testing.assert_allclose(outputs(rewritten, x), outputs(model, x), rtol=1e-5, atol=1e-5)


def test_every_weight_is_used_once_and_none_is_added() -> None:
    weights = np.arange(2 * 3 * 16, dtype=np.float32).reshape(2, 3, 4, 4)
    rewritten = subpixel_weights(weights)
    assert rewritten.shape == (12, 2, 2, 2)
    assert sorted(rewritten.ravel()) == sorted(weights.ravel())


@pytest.mark.parametrize("size", [(16, 24), (32, 32)])
def test_the_whole_model_gives_the_same_map_and_score(size: tuple[int, int]) -> None:
    model = make_network(size=size)
    images = make_images(3, size)
    for before, after in zip(
        run_model(model, images), run_model(rewrite_transposed_convolutions(model), images), strict=True
    ):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_layers_keep_their_names_and_the_file_its_metadata_and_size() -> None:
    model = make_network()
    rewritten = rewrite_transposed_convolutions(model)
    assert quantizable_layers(rewritten) == quantizable_layers(model)
    assert [(entry.key, entry.value) for entry in rewritten.metadata_props] == [("name", "tile")]
    n_weights = [
        sum(int(np.prod(each.dims)) for each in m.graph.initializer if each.data_type == 1) for m in (model, rewritten)
    ]
    # Only the biases are repeated.
    assert n_weights[1] - n_weights[0] < 0.1 * n_weights[0]


def test_an_activation_comes_right_after_its_convolution() -> None:
    nodes = list(rewrite_transposed_convolutions(make_network()).graph.node)
    for position, node in enumerate(nodes):
        if node.name in ("node_grow", "node_up0"):
            assert nodes[position + 1].op_type == "Relu"
            assert nodes[position + 1].input[0] == node.output[0]


def test_the_model_that_came_is_left_alone_and_two_rewrites_are_equal_to_the_byte() -> None:
    model = make_network()
    before = model.SerializeToString()
    first, second = (rewrite_transposed_convolutions(model).SerializeToString() for _ in range(2))
    assert model.SerializeToString() == before
    assert first == second


@pytest.mark.parametrize(
    "model",
    [
        lone_deconvolution(2, 2, (4, 4), pad=0),
        lone_deconvolution(2, 2, (4, 4), kernel=(3, 3)),
        lone_deconvolution(2, 2, (4, 4), stride=1, pad=0),
        lone_deconvolution(4, 1, (4, 4), group=2),
    ],
    ids=["no padding", "kernel 3", "stride 1 on more than a pixel", "two groups"],
)
def test_another_form_is_refused_by_name(model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="transposed convolution 'up' cannot be rewritten: expected kernel 4"):
        rewrite_transposed_convolutions(model)
