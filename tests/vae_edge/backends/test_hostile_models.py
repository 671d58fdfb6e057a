"""Models that somebody made to harm: every size, hash and digest of their bundles is correct.

All bundles of a runtime are opened by one process whose memory is limited; each must come to an error of this package.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile_bundles import Content, hostile_bundle
from tests.tiny_bundles import SIZE, make_bundle, torch_program, toy_onnx
from vae_edge.targets import Target

MOST_SECONDS = 5.0
"""Of one processor; some cases are allowed a part of what a real model may compute."""

Files = dict[str, Content]


def results_of(target: Target, module: str, cases: dict[str, Files], folder: Path) -> dict[str, dict[str, Any]]:
    """Make the bundles and let another process try them."""
    source = make_bundle(folder / "toy", target)
    bundles = folder / "bundles"
    bundles.mkdir()
    for name, files in cases.items():
        hostile_bundle(source, bundles / name, files=files)
    done = subprocess.run(
        [sys.executable, "-m", "tests.vae_edge.backends.try_bundles", str(bundles), module],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    results = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, f"it ended after {list(results)[-1:]}: {done.stderr[-2000:]}"
    assert "\x1b" not in done.stderr
    return results


def check(result: dict[str, Any]) -> None:
    """One sentence, soon, in little memory."""
    assert result["kind"] in ("BundleError", "DeviceError"), result
    assert result["message"].isprintable(), result
    assert len(result["message"]) < 1200, result
    assert not re.search(r"allocat|enough memory", result["message"]), result  # The process's limit was not needed.
    assert result["s"] < MOST_SECONDS, result


# --- torch -----------------------------------------------------------------------------------------------------------


def node(name: str) -> dict[str, str]:
    return {"node": name}


def program(change: Callable[[dict[str, Any]], object]) -> Files:
    """The toy's program with a change."""
    content = torch_program()
    change(content)
    return {"program.json": json.dumps(content).encode()}


def text(old: str, new: str) -> Files:
    """The toy's program with other text in it."""
    content = json.dumps(torch_program())
    assert old in content
    return {"program.json": content.replace(old, new).encode()}


def steps(
    *calls: tuple[str, list[Any]], output: int = 1, times: int = 1, before: Sequence[dict[str, Any]] = ()
) -> Files:
    """The toy's program with calls at its end, each on the one before it (`...`), whose last result is an output."""

    def change(content: dict[str, Any]) -> None:
        content["nodes"].extend(before)
        last = "map"
        for number, (operator, args) in enumerate(calls * times):
            args = [
                node(last) if arg is ... else [node(last)] * arg[0] if isinstance(arg, tuple) else arg for arg in args
            ]
            last = f"more{number}"
            content["nodes"].append({"name": last, "op": f"aten.{operator}", "args": args})
        content["outputs"][output] = last

    return program(change)


def nodes(*more: dict[str, Any]) -> Files:
    return program(lambda content: content["nodes"].extend(more))


def call(number: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The toy's call of that number: 1 cast, 2 permute, 3 convolution, ..., 6 topk, 7 getitem, 8 mean."""
    return lambda content: content["nodes"][number]


def conv(place: int, value: Any) -> Files:
    """The toy's convolution with another argument: 2 bias, 3 stride, 4 padding, 5 dilation, 6 groups."""

    def change(content: dict[str, Any]) -> None:
        args = content["nodes"][3]["args"]
        args += [[1, 1], 1][: max(0, place + 1 - len(args))]
        args[place] = value

    return program(change)


def sorts(content: dict[str, Any]) -> None:
    """Sort millions of values again and again."""
    last = "many"
    content["nodes"] += [
        {"name": "list", "op": "aten.flatten.using_ints", "args": [node("map"), 0]},
        {"name": "many", "op": "aten.cat.default", "args": [[node("list")] * 8_000]},
    ]
    for number in range(1_000):
        sort = {"name": f"sort{number}", "op": "aten.topk.default", "args": [node(last), 8_192_000, 0]}
        last = f"sorted{number}"
        content["nodes"] += [sort, {"name": last, "op": "getitem", "args": [node(f"sort{number}"), 0]}]
    content["outputs"][1] = last


def tensors(header: dict[str, Any] | bytes, data: bytes = b"\0" * 108, length: int | None = None) -> Files:
    """The toy with another safetensors file."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return {"program.safetensors": struct.pack("<Q", len(raw) if length is None else length) + raw + data}


def million_tensors() -> bytes:
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    content = tensors({"kernel": KERNEL} | {f"t{i}": nothing for i in range(1_000_000)})["program.safetensors"]
    assert isinstance(content, bytes)
    return content


KERNEL: dict[str, Any] = {"dtype": "F32", "shape": [1, 3, 3, 3], "data_offsets": [0, 108]}
BIG = 2**63 - 1
CODE = "**__import__('os').system('touch CODE_RAN') or {}); _x = dict(y"

TORCH: dict[str, Files] = {
    # Code, names and keywords.
    "code-in-keyword": program(lambda c: call(3)(c).update(kwargs={CODE: 1})),
    "keyword-with-space": program(lambda c: call(3)(c).update(kwargs={"a b": 1})),
    "keyword-of-another": program(lambda c: call(3)(c).update(kwargs={"keepdim": True})),
    "keyword-given-twice": program(lambda c: call(8)(c).update(kwargs={"dim": [1]})),
    "keyword-dunder": program(lambda c: call(3)(c).update(kwargs={"__class__": 1})),
    "keyword-empty": program(lambda c: call(3)(c).update(kwargs={"": 1})),
    "keyword-out": program(lambda c: call(3)(c).update(kwargs={"out": node("float")})),
    "operator-os": steps(("os.system", [...])),
    "operator-file": steps(("from_file.default", ["/etc/passwd"])),
    "operator-inplace": steps(("add_.Tensor", [..., 1])),
    "operator-set-data": steps(("set_.source_Tensor", [..., node("kernel")])),
    "operator-is-a-list": program(lambda c: call(3)(c).update(op=["aten.abs.default"])),
    "name-is-a-list": program(lambda c: call(3)(c).update(name=["smooth"])),
    "name-escapes": nodes({"name": "\x1b[2J\x07" * 9, "op": "aten.abs.default", "args": [node("\x1b]0;x\x07")]}),
    "name-of-a-megabyte": nodes({"name": "n" * 1_000_000, "tensor": "kernel"}),
    "name-twice": nodes({"name": "map", "op": "aten.abs.default", "args": [node("map")]}),
    "name-of-the-input": nodes({"name": "image", "op": "aten.abs.default", "args": [node("map")]}),
    "input-twice": program(lambda c: c.update(inputs=["image", "image"])),
    "two-inputs": program(lambda c: c.update(inputs=["image", "other"])),
    "no-inputs": program(lambda c: c.update(inputs=[])),
    "input-not-used": program(lambda c: call(1)(c).update(args=[node("kernel"), {"dtype": "float32"}])),
    "a-later-node": program(lambda c: call(1)(c)["args"].__setitem__(0, node("score"))),
    "itself": program(lambda c: call(1)(c)["args"].__setitem__(0, node("float"))),
    "both-tensor-and-call": program(lambda c: call(3)(c).update(tensor="kernel")),
    "key-twice": text('"format": 1', '"format": 1, "format": 1'),
    "format-true": text('"format": 1', '"format": true'),
    "format-text": text('"format": 1', '"format": "1"'),
    # Structure.
    "deep": text('"args": [', '"args": [' + "[" * 900 + "]" * 900 + ", "),
    "very-deep": text('"args": [', '"args": [' + "[" * 100_000 + "]" * 100_000 + ", "),
    "deep-records": text('"args": [', '"args": [' + '{"node": ' * 900 + "1" + "}" * 900 + ", "),
    "long-list": {"program.json": lambda old: old.replace(b"[0, 3, 1, 2]", b"[" + b"1," * 3_000_000 + b"1]")},
    "list-of-nine": program(lambda c: call(2)(c)["args"].__setitem__(1, [1] * 9)),
    "many-nodes": nodes(*[{"name": f"t{i}", "tensor": "kernel"} for i in range(10_001)]),
    "many-arguments": program(lambda c: call(3)(c)["args"].extend([1] * 50)),
    "no-arguments": program(lambda c: call(3)(c).update(args=[])),
    "arguments-record": program(lambda c: call(3)(c).update(args={"input": node("planes")})),
    # Literals.
    "nan": text("[0, 3, 1, 2]", "NaN"),
    "infinity": steps(("mul.Tensor", [..., 1]), ("clamp.default", [..., 0]))
    | text('"format": 1', '"format": Infinity'),
    "overflowing-number": text('"args": [{"node": "float"}', '"args": [1e999'),
    "number-of-a-million-digits": text("[0, 3, 1, 2]", "9" * 1_000_000),
    "beyond-64-bits": text("[0, 3, 1, 2]", str(2**64)),
    "flag-for-a-number": steps(("unsqueeze.default", [..., True])),
    "number-for-a-flag": steps(("mean.dim", [..., [1, 2], 1])),
    "text-for-a-number": steps(("mul.Tensor", [..., "2"])),
    "null-for-a-tensor": steps(("abs.default", [None])),
    "unknown-mode": steps(("pad.default", [..., [1, 1], "circular"])),
    "unknown-dtype": steps(("to.dtype", [..., {"dtype": "complex64"}])),
    "half-dtype": steps(("to.dtype", [..., {"dtype": "float16"}])),
    "dtype-is-a-list": steps(("to.dtype", [..., {"dtype": ["float32"]}])),
    "dtype-for-a-tensor": steps(("abs.default", [{"dtype": "float32"}])),
    "record-with-more": steps(("abs.default", [{"node": "map", "dtype": "float32"}])),
    # Sizes.
    "expand-huge": steps(("unsqueeze.default", [..., 0]), ("expand.default", [..., [BIG, -1, -1, -1]])),
    "expand-and-copy": steps(
        ("unsqueeze.default", [..., 0]), ("expand.default", [..., [10**6, -1, -1, -1]]), ("abs.default", [...])
    ),
    "expand-many": steps(("expand.default", [..., [2**16, 2**16, 2**16, 2**15, 1, SIZE, SIZE]])),
    "expand-negative": steps(("expand.default", [..., [-5, -7, SIZE, SIZE]])),
    "cat-doubling": steps(("cat.default", [(2,), 0]), times=40),
    "cat-thousands": steps(("cat.default", [(4000,), 0]), times=8),
    "outer-products": steps(
        ("flatten.using_ints", [..., 0]), ("unsqueeze.default", [..., 1]), ("mul.Tensor", [..., node("flat")]), times=4
    ),
    "matrix-growth": steps(
        ("flatten.using_ints", [..., 0]),
        ("unsqueeze.default", [..., 1]),
        ("matmul.default", [..., node("flat")]),
        times=6,
    ),
    "pool-of-padding": steps(
        ("unsqueeze.default", [..., 0]), ("avg_pool2d.default", [..., [2**16, 2**16], [1, 1], [2**15, 2**15]])
    ),
    "pool-of-nothing": steps(("unsqueeze.default", [..., 0]), ("avg_pool2d.default", [..., [SIZE + 1, 1]])),
    "pool-of-three-sides": steps(("unsqueeze.default", [..., 0]), ("avg_pool2d.default", [..., [2, 2, 2]])),
    "pool-of-one-dimension": steps(("flatten.using_ints", [..., 0]), ("avg_pool2d.default", [..., [2, 2]])),
    "pool-with-a-negative-divisor": steps(
        ("unsqueeze.default", [..., 0]), ("avg_pool2d.default", [..., [2, 2], [2, 2], [0, 0], False, True, -1])
    ),
    "pools-of-everything": steps(
        ("unsqueeze.default", [..., 0]),
        *[("avg_pool2d.default", [..., [SIZE - 1, SIZE - 1], [1, 1], [SIZE // 2 - 1, SIZE // 2 - 1]])] * 3_000,
    ),
    "pad-huge": steps(("pad.default", [..., [0, 10**12]])),
    "pad-beyond-64-bits": steps(("pad.default", [..., [BIG, BIG, BIG, BIG]])),
    "pad-to-nothing": steps(("pad.default", [..., [-SIZE, 0]])),
    "pad-odd": steps(("pad.default", [..., [1, 1, 1]])),
    "pad-reflect-far": steps(("pad.default", [..., [0, SIZE * 9], "reflect"])),
    "reshape-huge": steps(("reshape.default", [..., [BIG, BIG]])),
    "reshape-to-zero": steps(("reshape.default", [..., [0, -1]])),
    "reshape-two-unknown": steps(("reshape.default", [..., [-1, -1]])),
    "view-negative": steps(("view.default", [..., [-SIZE, -SIZE]])),
    "narrow-outside": steps(("narrow.default", [..., 1, 0, 10**9])),
    "narrow-negative": steps(("narrow.default", [..., 1, 0, -1])),
    "narrow-nothing": steps(("narrow.default", [..., 1, 0, 0])),
    "slice-step-zero": steps(("slice.Tensor", [..., 1, 0, BIG, 0])),
    "slice-backwards": steps(("slice.Tensor", [..., 1, 0, BIG, -1])),
    "slice-nothing": steps(("slice.Tensor", [..., 1, 5, 5])),
    "select-outside": steps(("select.int", [..., 1, SIZE])),
    "permute-twice-the-same": steps(("permute.default", [..., [0, 1, 1]])),
    "topk-huge": steps(("topk.default", [..., 2**31, 1])),
    "topk-zero": steps(("topk.default", [..., 0, 1])),
    "topk-too-many": steps(("topk.default", [..., SIZE + 1, 1])),
    "unsqueeze-70-times": steps(("unsqueeze.default", [..., 0]), times=70),
    "flatten-outside": steps(("flatten.using_ints", [..., 5, 9])),
    "empty-mean": steps(("narrow.default", [..., 1, 0, 0]), ("mean.dim", [..., [1, 2]])),
    # Convolutions.
    "stride-zero": conv(3, [0, 0]),
    "stride-negative": conv(3, [-1, 1]),
    "padding-negative": conv(4, [-1, -1]),
    "padding-huge": conv(4, [2**16, 2**16]),
    "padding-beyond": conv(4, [2**40, 2**40]),
    "dilation-zero": conv(5, [0, 0]),
    "dilation-huge": conv(5, [2**16, 2**16]),
    "groups-zero": conv(6, 0),
    "groups-huge": conv(6, 2**31),
    "groups-seven": conv(6, 7),
    "bias-of-another-size": conv(2, node("image")),
    "three-strides": conv(3, [1, 1, 1]),
    "padding-as-text": conv(4, "same"),
    "transposed-far": program(
        lambda c: call(3)(c).update(
            op="aten.conv_transpose2d.input", args=[node("planes"), node("planes"), None, [2**16, 2**16]]
        )
    ),
    "convolved-with-itself": program(lambda c: call(3)(c)["args"].__setitem__(1, node("planes"))),
    # Time.
    "thousands-of-steps": steps(
        ("unsqueeze.default", [..., 0]),
        ("expand.default", [..., [10_000, -1, -1, -1]]),
        *[("exp.default", [...])] * 5_000,
    ),
    "thousands-of-products": steps(
        ("cat.default", [(128,), 1]),
        ("cat.default", [(128,), 2]),
        *[("matmul.default", [..., ...])] * 3_000,
    ),
    "thousands-of-sorts": program(sorts),
    # Results of other nodes.
    "item-of-a-tensor": program(lambda c: call(7)(c)["args"].__setitem__(0, node("map"))),
    "third-item": program(lambda c: call(7)(c)["args"].__setitem__(1, 2)),
    "last-item": program(lambda c: call(7)(c)["args"].__setitem__(1, -1)),
    "item-as-a-list": program(lambda c: call(7)(c)["args"].__setitem__(1, [0])),
    "pair-for-a-tensor": program(lambda c: call(8)(c)["args"].__setitem__(0, node("top"))),
    "positions-as-scores": program(lambda c: call(7)(c)["args"].__setitem__(1, 1)),
    "record-for-a-list": program(lambda c: call(8)(c)["args"].__setitem__(1, {"node": "map"})),
    # Outputs.
    "outputs-swapped": program(lambda c: c.update(outputs=c["outputs"][::-1])),
    "outputs-the-same": program(lambda c: c.update(outputs=["map", "map"])),
    "one-output": program(lambda c: c.update(outputs=["map"])),
    "no-outputs": program(lambda c: c.update(outputs=[])),
    "three-outputs": program(lambda c: c.update(outputs=["map", "score", "flat"])),
    "the-image-itself": program(lambda c: c.update(outputs=["image", "score"])),
    "a-stored-tensor": program(lambda c: c.update(outputs=["map", "kernel"])),
    "a-pair": program(lambda c: c.update(outputs=["map", "top"])),
    "map-of-bytes": steps(("to.dtype", [..., {"dtype": "uint8"}]), output=0),
    "map-of-four-dimensions": steps(("unsqueeze.default", [..., 1]), output=0),
    "score-is-a-piece-of-the-map": steps(("select.int", [..., 1, 0]), ("select.int", [..., 1, 0])),
    "score-without-a-batch": steps(("amax.default", [..., [0, 1, 2]])),
    "two-scores-an-image": steps(("amax.default", [..., [1, 2]]), ("cat.default", [(2,), 0])),
    "score-of-the-first-image": steps(("amax.default", [..., [1, 2]]), ("narrow.default", [..., 0, 0, 1])),
    "map-of-nan": steps(("sub.Tensor", [..., 9.0]), ("sqrt.default", [...]), output=0),
    "map-of-infinity": steps(
        ("mul.Tensor", [..., 0]),
        ("add.Tensor", [..., 1]),
        ("mul.Tensor", [..., 3e38]),
        ("mul.Tensor", [..., 9.0]),
        output=0,
    ),
    "score-nan": steps(("sub.Tensor", [..., 9.0]), ("sqrt.default", [...]), ("amax.default", [..., [1, 2]])),
    "score-minus-infinity": steps(
        ("amax.default", [..., [1, 2]]),
        ("add.Tensor", [..., 1]),
        ("mul.Tensor", [..., -3e38]),
        ("mul.Tensor", [..., 9.0]),
    ),
    "grows-with-the-square-of-the-batch": steps(
        ("flatten.using_ints", [..., 0]),
        ("unsqueeze.default", [..., 1]),
        ("matmul.default", [..., node("row")]),
        ("mean.dim", [..., [1]]),
        ("reshape.default", [..., [-1, SIZE * SIZE]]),
        ("amax.default", [..., [1]]),
        before=[
            {"name": "all", "op": "aten.flatten.using_ints", "args": [node("map"), 0]},
            {"name": "row", "op": "aten.unsqueeze.default", "args": [node("all"), 0]},
        ],
    ),
    # The tensors' file.
    "million-tensors": {"program.safetensors": lambda _: million_tensors()},
    "header-longer-than-the-file": tensors({"kernel": KERNEL}, length=2**62),
    "header-of-nothing": tensors(b""),
    "header-deep": tensors(b"[" * 100_000),
    "no-such-tensor": tensors({"other": KERNEL}),
    "tensor-of-doubles": tensors({"kernel": {**KERNEL, "dtype": "F64", "data_offsets": [0, 216]}}, b"\0" * 216),
    "tensor-of-bytes": tensors({"kernel": {"dtype": "U8", "shape": [1, 3, 3, 12], "data_offsets": [0, 108]}}),
    "tensor-of-nothing": tensors({"kernel": {"dtype": "F32", "shape": [1, 3, 0, 3], "data_offsets": [0, 0]}}, b""),
    "tensor-larger-than-its-bytes": tensors({"kernel": {**KERNEL, "shape": [2**40, 3, 3, 3]}}),
    "tensor-of-an-overflowing-size": tensors({"kernel": {**KERNEL, "shape": [2**62, 2**62, 4, 4]}}),
    "tensor-outside": tensors({"kernel": {**KERNEL, "data_offsets": [2**40, 2**40 + 108]}}),
    "tensors-overlapping": tensors({"kernel": KERNEL, "other": KERNEL}),
    "tensor-of-another-shape": tensors({"kernel": {**KERNEL, "shape": [27]}}),
    "weights-of-nan": tensors({"kernel": KERNEL}, np.full(27, np.nan, np.float32).tobytes()),
    "weights-of-infinity": tensors({"kernel": KERNEL}, np.full(27, np.inf, np.float32).tobytes()),
    "pickle": {"program.safetensors": b"\x80\x04cos\nsystem\n(S'touch CODE_RAN'\ntR."},
}


@pytest.fixture(scope="module")
def torch_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    pytest.importorskip("torch")
    return results_of(Target.TORCH, "torch", TORCH, tmp_path_factory.mktemp("torch"))


@pytest.mark.parametrize("case", TORCH)
def test_a_hostile_program_is_refused(torch_results: dict[str, dict[str, Any]], case: str) -> None:
    check(torch_results[case])
    assert not Path("CODE_RAN").exists()


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


def graph(
    *more: tuple[str, list[str], list[str], dict[str, Any]],
    outputs: Sequence[tuple[str, str, list[Any]]] = (
        ("anomaly_map", "FLOAT", ["N", SIZE, SIZE]),
        ("score", "FLOAT", ["N"]),
    ),
    inputs: Sequence[tuple[str, str, list[Any]]] = (("image", "UINT8", ["N", SIZE, SIZE, 3]),),
    initializers: dict[str, Any] | None = None,
) -> bytes:
    """A model with `f`, the image's mean over colours [N, H, W], and `top`, its maximum [N], and more nodes."""
    from onnx import TensorProto, helper, numpy_helper

    first: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("Cast", [inputs[0][0]], ["planes"], {"to": TensorProto.FLOAT}),
        ("ReduceMean", ["planes", "last"], ["f"], {"keepdims": 0}),
        ("ReduceMax", ["f", "sides"], ["top"], {"keepdims": 0}),
    ]
    values = {"last": np.array([3]), "sides": np.array([1, 2]), **(initializers or {})}

    def infos(tensors: Sequence[tuple[str, str, list[Any]]]) -> list[Any]:
        return [helper.make_tensor_value_info(n, getattr(TensorProto, kind), shape) for n, kind, shape in tensors]

    made = helper.make_graph(
        [helper.make_node(kind, taken, given, **attributes) for kind, taken, given, attributes in [*first, *more]],
        "graph",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def same(taken: str, given: str) -> tuple[str, list[str], list[str], dict[str, Any]]:
    return ("Identity", [taken], [given], {})


MAP, SCORE = same("f", "anomaly_map"), same("top", "score")
MAP_INFO, SCORE_INFO = ("anomaly_map", "FLOAT", ["N", SIZE, SIZE]), ("score", "FLOAT", ["N"])
NAN, INF = np.float32(np.nan), np.float32(np.inf)


def cast(taken: str, given: str, kind: int) -> tuple[str, list[str], list[str], dict[str, Any]]:
    return ("Cast", [taken], [given], {"to": kind})


def endless_loop() -> bytes:
    """A Loop of 2^62 rounds makes the score."""
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"]),
        ],
    )
    rounds = {"rounds": np.int64(2**62), "true": np.bool_(True)}
    return graph(MAP, ("Loop", ["rounds", "true", "top"], ["score"], {"body": body}), initializers=rounds)


def functions_in_functions() -> bytes:
    """Each of 30 functions calls the one before it twice."""
    import onnx
    from onnx import helper

    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f0", ["x"], ["y"], [helper.make_node("Abs", ["x"], ["y"])], imports)]
    for number in range(1, 30):
        calls = [helper.make_node(f"f{number - 1}", [a], [b], domain="own") for a, b in (("x", "z"), ("z", "y"))]
        functions.append(helper.make_function("own", f"f{number}", ["x"], ["y"], calls, imports))
    model = onnx.load_from_string(graph(MAP, ("f29", ["top"], ["score"], {"domain": "own"})))
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return bytes(model.SerializeToString())


ONNX: dict[str, Callable[[], bytes]] = {
    "scalar-score": lambda: graph(
        MAP, ("ReduceMax", ["f"], ["score"], {"keepdims": 0}), outputs=(MAP_INFO, ("score", "FLOAT", []))
    ),
    "five-scores": lambda: graph(
        MAP, same("s", "score"), outputs=(MAP_INFO, ("score", "FLOAT", [5])), initializers={"s": np.ones(5, np.float32)}
    ),
    "five-scores-said-to-be-n": lambda: graph(MAP, same("s", "score"), initializers={"s": np.ones(5, np.float32)}),
    "score-of-two-dimensions": lambda: graph(
        MAP,
        ("ReduceMax", ["f", "last_"], ["score"], {"keepdims": 0}),
        outputs=(MAP_INFO, ("score", "FLOAT", ["N", SIZE])),
        initializers={"last_": np.array([2])},
    ),
    "map-of-nan": lambda: graph(("Mul", ["f", "nan"], ["anomaly_map"], {}), SCORE, initializers={"nan": NAN}),
    "map-of-nan-in-one-place": lambda: graph(
        ("Add", ["f", "bad"], ["anomaly_map"], {}),
        SCORE,
        initializers={"bad": np.where(np.arange(SIZE * SIZE) == 77, NAN, 0).astype(np.float32).reshape(SIZE, SIZE)},
    ),
    "map-minus-infinity": lambda: graph(("Sub", ["f", "inf"], ["anomaly_map"], {}), SCORE, initializers={"inf": INF}),
    "constant-map-of-nan": lambda: graph(
        same("n", "anomaly_map"), SCORE, initializers={"n": np.full((1, SIZE, SIZE), NAN)}
    ),
    "score-nan": lambda: graph(MAP, ("Mul", ["top", "nan"], ["score"], {}), initializers={"nan": NAN}),
    "score-infinity": lambda: graph(MAP, ("Add", ["top", "inf"], ["score"], {}), initializers={"inf": INF}),
    "map-1x1": lambda: graph(
        same("one", "anomaly_map"),
        SCORE,
        outputs=(("anomaly_map", "FLOAT", [1, 1, 1]), SCORE_INFO),
        initializers={"one": np.ones((1, 1, 1), np.float32)},
    ),
    "map-of-another-size": lambda: graph(
        ("Slice", ["f", "from", "to", "axis"], ["anomaly_map"], {}),
        SCORE,
        outputs=(("anomaly_map", "FLOAT", ["N", SIZE - 1, SIZE]), SCORE_INFO),
        initializers={"from": np.array([0]), "to": np.array([SIZE - 1]), "axis": np.array([1])},
    ),
    "map-of-unsaid-size": lambda: graph(
        ("Slice", ["f", "from", "to", "axis"], ["anomaly_map"], {}),
        SCORE,
        outputs=(("anomaly_map", "FLOAT", ["N", "h", "w"]), SCORE_INFO),
        initializers={"from": np.array([0]), "to": np.array([SIZE - 1]), "axis": np.array([1])},
    ),
    "map-and-score-swapped": lambda: graph(
        same("top", "anomaly_map"),
        same("f", "score"),
        outputs=(("anomaly_map", "FLOAT", ["N"]), ("score", "FLOAT", ["N", SIZE, SIZE])),
    ),
    "score-of-the-first-image": lambda: graph(
        MAP,
        ("Slice", ["top", "from", "to"], ["score"], {}),
        outputs=(MAP_INFO, ("score", "FLOAT", ["one"])),
        initializers={"from": np.array([0]), "to": np.array([1])},
    ),
    "score-twice-an-image": lambda: graph(
        MAP, ("Concat", ["top", "top"], ["score"], {"axis": 0}), outputs=(MAP_INFO, ("score", "FLOAT", ["m"]))
    ),
    "score-of-doubles": lambda: graph(MAP, cast("top", "score", 11), outputs=(MAP_INFO, ("score", "DOUBLE", ["N"]))),
    "score-of-halves": lambda: graph(MAP, cast("top", "score", 10), outputs=(MAP_INFO, ("score", "FLOAT16", ["N"]))),
    "score-of-integers": lambda: graph(MAP, cast("top", "score", 7), outputs=(MAP_INFO, ("score", "INT64", ["N"]))),
    "score-of-texts": lambda: graph(MAP, cast("top", "score", 8), outputs=(MAP_INFO, ("score", "STRING", ["N"]))),
    "no-score": lambda: graph(MAP, outputs=(MAP_INFO,)),
    "no-outputs": lambda: graph(outputs=()),
    "one-output-more": lambda: graph(
        MAP, SCORE, same("top", "more"), outputs=(MAP_INFO, SCORE_INFO, ("more", "FLOAT", ["N"]))
    ),
    "output-called-otherwise": lambda: graph(
        MAP, same("top", "\x1b[2Jscore"), outputs=(MAP_INFO, ("\x1b[2Jscore", "FLOAT", ["N"]))
    ),
    "input-called-otherwise": lambda: graph(MAP, SCORE, inputs=(("picture", "UINT8", ["N", SIZE, SIZE, 3]),)),
    "input-of-floats": lambda: graph(MAP, SCORE, inputs=(("image", "FLOAT", ["N", SIZE, SIZE, 3]),)),
    "input-of-another-size": lambda: graph(
        MAP,
        SCORE,
        inputs=(("image", "UINT8", ["N", 64, 64, 3]),),
        outputs=(("anomaly_map", "FLOAT", ["N", 64, 64]), SCORE_INFO),
    ),
    "two-inputs": lambda: graph(
        MAP, SCORE, inputs=(("image", "UINT8", ["N", SIZE, SIZE, 3]), ("other", "FLOAT", ["N"]))
    ),
    "input-for-three-images": lambda: graph(
        MAP,
        SCORE,
        inputs=(("image", "UINT8", [3, SIZE, SIZE, 3]),),
        outputs=(("anomaly_map", "FLOAT", [3, SIZE, SIZE]), ("score", "FLOAT", [3])),
    ),
    "fails-when-it-runs": lambda: graph(
        MAP,
        ("Reshape", ["top", "seven"], ["score"], {}),
        outputs=(MAP_INFO, ("score", "FLOAT", ["m"])),
        initializers={"seven": np.array([7])},
    ),
    "unknown-operator": lambda: graph(MAP, ("Nonsense\n\x1b[2J", ["top"], ["score"], {})),
    "operator-of-another-domain": lambda: graph(MAP, ("Gelu", ["top"], ["score"], {"domain": "somewhere.else"})),
    "a-cycle": lambda: graph(MAP, ("Add", ["score", "top"], ["x"], {}), same("x", "score")),
    "an-input-from-nowhere": lambda: graph(MAP, same("nowhere", "score")),
    **{
        f"random-{kind.lower()}": lambda kind=kind: graph(  # type: ignore[misc]  # mypy infers no lambda with defaults
            MAP, (kind, ["top"], ["r"], {}), ("Add", ["top", "r"], ["score"], {})
        )
        for kind in ("RandomNormalLike", "RandomUniformLike", "Bernoulli")
    },
    "dropout-that-drops": lambda: graph(
        MAP,
        ("Dropout", ["top", "half", "on"], ["score"], {}),
        initializers={"half": np.float32(0.5), "on": np.bool_(True)},
    ),
    "values-without-end": lambda: graph(
        MAP,
        ("ConstantOfShape", ["billion"], ["big"], {}),
        ("ReduceMax", ["big"], ["m"], {"keepdims": 0}),
        ("Add", ["top", "m"], ["score"], {}),
        initializers={"billion": np.array([10**9])},
    ),
    "operator-of-the-runtime-alone": lambda: graph(MAP, ("Gelu", ["top"], ["score"], {"domain": "com.microsoft"})),
    "endless-loop": endless_loop,
    "functions-in-functions": functions_in_functions,
    "cut": lambda: toy_onnx()[:-40],
    "empty": lambda: b"",
    "not-a-model": lambda: b"not a model" * 100,
}


@pytest.fixture(scope="module")
def onnx_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    cases: dict[str, Files] = {name: {"model.onnx": make()} for name, make in ONNX.items()}
    return results_of(Target.ONNX, "onnxruntime", cases, tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("case", ONNX)
def test_a_hostile_onnx_model_is_refused(onnx_results: dict[str, dict[str, Any]], case: str) -> None:
    check(onnx_results[case])


# --- OpenVINO --------------------------------------------------------------------------------------------------------


def ir(old: bytes, new: bytes) -> Files:
    """The toy's IR with other text in it."""

    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new)

    return {"model.xml": change}


def weights(value: float) -> Files:
    """The toy's IR with a kernel of one value; integers in the file stay."""

    def change(content: bytes) -> bytes:
        kernel = np.full(27, 1 / (27 * 255), np.float32).tobytes()
        assert kernel in content
        return content.replace(kernel, np.full(27, value, np.float32).tobytes())

    return {"model.bin": change}


OPENVINO: dict[str, Files] = {
    "type-not-utf-8": ir(b'type="Convolution"', b'type="\xff\xfe"'),
    "type-unknown": ir(b'type="Convolution"', b'type="Nonsense"'),
    "type-escapes": ir(b'type="Convolution"', b'type="&#27;[2J"'),
    "output-called-otherwise": ir(b"score", b"result"),
    "input-called-otherwise": ir(b'"image"', b'"picture"'),
    "outputs-swapped": {
        "model.xml": lambda old: (
            old.replace(b"score", b"x_x_x").replace(b"anomaly_map", b"score").replace(b"x_x_x", b"anomaly_map")
        )
    },
    "strides-zero": ir(b'strides="1, 1"', b'strides="0, 0"'),
    "strides-five": ir(b'strides="1, 1"', b'strides="5, 5"'),
    "padding-huge": ir(b'pads_begin="1, 1"', b'pads_begin="100000, 100000"'),
    "input-of-floats": ir(b'32,3" element_type="u8"', b'32,3" element_type="f32"'),
    "input-of-four-colours": ir(b"32,32,3", b"32,32,4"),
    "weights-of-nan": weights(np.nan),
    "weights-of-infinity": weights(np.inf),
    "weights-of-minus-infinity": weights(-np.inf),
    "cut": {"model.xml": lambda old: old[: len(old) // 2]},
    "no-weights": {"model.bin": b""},
    "no-layers": {"model.xml": b'<net name="x" version="11"><layers/><edges/></net>'},
    "empty": {"model.xml": b""},
    "not-xml": {"model.xml": b"junk"},
    "another-format": {"model.xml": b"\x08\x08\x12\x07unknown"},
    "edge-from-nowhere": ir(b'from-layer="0"', b'from-layer="999"'),
    "cycle": ir(b'from-layer="4" from-port="0" to-layer="5"', b'from-layer="5" from-port="2" to-layer="5"'),
}


def made_ir(change: Callable[[Any, Any, list[Any]], Any]) -> Files:
    """An IR with `change` as the score: of the ops of OpenVINO, the image's maximum [N], and a list of sinks."""
    import openvino

    op = import_module("openvino.opset13" if find_spec("openvino.opset13") else "openvino.runtime.opset13")  # 2024.4

    image = op.parameter([-1, SIZE, SIZE, 3], np.uint8, name="image")
    image.output(0).set_names({"image"})
    means = op.reduce_mean(op.convert(image, "f32"), op.constant(np.array([3])), False)
    sinks: list[Any] = []
    score = change(op, op.reduce_max(means, op.constant(np.array([1, 2])), False), sinks)
    means.output(0).set_names({"anomaly_map"})
    score.output(0).set_names({"score"})
    model = openvino.Model([op.result(means), op.result(score)], sinks, [image], "made")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return {file.name: file.read_bytes() for file in (path, path.with_suffix(".bin"))}


def with_state(op: Any, top: Any, sinks: list[Any]) -> Any:
    before = op.read_value(op.constant(np.zeros(1, np.float32)), "seen")
    after = op.add(before, op.constant(np.ones(1, np.float32)))
    sinks.append(op.assign(after, "seen"))
    return op.subtract(top, after)


def with_sines(op: Any, top: Any, sinks: list[Any]) -> Any:
    value = op.broadcast(top, op.constant(np.array([30_000_000])))
    for _ in range(100):
        value = op.sin(value)
    return op.reduce_max(value, op.constant(np.array([0])), True)


OPENVINO_MADE: dict[str, Callable[[Any, Any, list[Any]], Any]] = {
    "random": lambda op, top, sinks: op.add(
        top, op.random_uniform(*(op.constant(np.array(v)) for v in ([1], np.float32(0), np.float32(1))), "f32", 0, 0)
    ),
    "a-state": with_state,
    "size-by-what-the-image-shows": lambda op, top, sinks: op.reduce_max(
        op.broadcast(op.constant(np.zeros(1, np.float32)), op.convert(top, "i64")), op.constant(np.array([0])), True
    ),
    "many-large-tensors": with_sines,
}


@pytest.fixture(scope="module")
def openvino_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    cases = OPENVINO | {name: made_ir(change) for name, change in OPENVINO_MADE.items()}
    return results_of(Target.OPENVINO, "openvino", cases, tmp_path_factory.mktemp("openvino"))


@pytest.mark.parametrize("case", [*OPENVINO, *OPENVINO_MADE])
def test_a_hostile_ir_is_refused(openvino_results: dict[str, dict[str, Any]], case: str) -> None:
    check(openvino_results[case])
