"""Model files that a hostile bundle may hold, its hashes and digest correct: refused before a runtime sees them."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_bundles import change_manifest, hostile_bundle, read_content, with_digest
from tests.tiny_bundles import dark_image, make_bundle, toy_onnx
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import BundleError
from vae_edge.model_files.onnx_header import read_external_data
from vae_edge.targets import Target

onnx = pytest.importorskip("onnx")

Change = Callable[[Any], object]
"""Changes an `onnx.ModelProto` in place."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Target, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    pytest.importorskip("openvino")
    pytest.importorskip("safetensors")
    return {each: make_bundle(folder / each, each) for each in (Target.ONNX, Target.OPENVINO, Target.TORCH)}


def external(tensor: Any, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "108")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def a_tensor(location: str) -> Any:
    tensor = onnx.helper.make_tensor("far", onnx.TensorProto.FLOAT, [1], [0.0])
    external(tensor, location)
    return tensor


def a_graph(location: str) -> Any:
    return onnx.helper.make_graph([], "inner", [], [], [a_tensor(location)])


def as_initializer(model: Any, location: str) -> None:
    external(model.graph.initializer[0], location)


def as_attribute(model: Any, location: str) -> None:
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=a_tensor(location)))


def in_a_list_of_tensors(model: Any, location: str) -> None:
    attribute = onnx.AttributeProto(name="all", type=onnx.AttributeProto.TENSORS, tensors=[a_tensor(location)])
    model.graph.node[0].attribute.append(attribute)


def in_a_branch(model: Any, location: str) -> None:
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=a_graph(location), else_branch=a_graph("model.onnx"))
    model.graph.node.append(node)


def in_a_branch_of_branches(model: Any, location: str) -> None:
    inner = a_graph(location)
    for _ in range(10):
        graph = onnx.helper.make_graph([], "outer", [], [])
        graph.node.append(onnx.helper.make_node("Loop", ["x"], ["y"], body=inner))
        inner = graph
    attribute = onnx.AttributeProto(name="all", type=onnx.AttributeProto.GRAPHS, graphs=[inner])
    model.graph.node[0].attribute.append(attribute)


def in_a_function(model: Any, location: str) -> None:
    node = onnx.helper.make_node("Constant", [], ["c"], value=a_tensor(location))
    opsets = [onnx.helper.make_opsetid("", 17)]
    model.functions.append(onnx.helper.make_function("of.mine", "f", [], ["c"], [node], opsets))


def as_a_functions_default(model: Any, location: str) -> None:
    in_a_function(model, "model.onnx")
    model.functions[0].attribute_proto.append(onnx.helper.make_attribute("value", a_tensor(location)))


def in_a_sparse_tensor(model: Any, location: str) -> None:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=a_tensor(location), dims=[1]))


def as_indices_of_a_sparse_attribute(model: Any, location: str) -> None:
    sparse = onnx.SparseTensorProto(indices=a_tensor(location), dims=[1])
    for kind in (
        {"type": onnx.AttributeProto.SPARSE_TENSOR, "sparse_tensor": sparse},
        {"type": onnx.AttributeProto.SPARSE_TENSORS, "sparse_tensors": [sparse]},
    ):
        model.graph.node[0].attribute.append(onnx.AttributeProto(name="s", **kind))


def in_the_training(model: Any, location: str) -> None:
    training = onnx.TrainingInfoProto()
    training.algorithm.CopyFrom(a_graph(location))
    model.training_info.append(training)


PLACES = (
    as_initializer,
    as_attribute,
    in_a_list_of_tensors,
    in_a_branch,
    in_a_branch_of_branches,
    in_a_function,
    as_a_functions_default,
    in_a_sparse_tensor,
    as_indices_of_a_sparse_attribute,
    in_the_training,
)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_values_in_a_file_that_is_not_listed_are_refused_wherever_the_tensor_is(
    bundles: dict[Target, Bundle], tmp_path: Path, place: Callable[[Any, str], None]
) -> None:
    model = onnx.load_from_string(toy_onnx())
    place(model, "../../secret.bin")
    out = hostile_bundle(bundles[Target.ONNX], tmp_path / "out", files={"model.onnx": model.SerializeToString()})
    assert "../../secret.bin" in read_external_data(out / "model.onnx")
    with pytest.raises(
        BundleError, match=r"refers to the file '\.\./\.\./secret\.bin', which the manifest does not list"
    ):
        Bundle.open(out)


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "other.bin", "./model.onnx", "a/../model.onnx", "", "MODEL.ONNX", "model.onnx ", "model.onnx\0"],
)
def test_a_file_is_only_meant_by_its_very_name(bundles: dict[Target, Bundle], tmp_path: Path, location: str) -> None:
    model = onnx.load_from_string(toy_onnx())
    as_initializer(model, location)
    files = {"model.onnx": model.SerializeToString(), "other.bin": bytes(108)}
    with pytest.raises(BundleError, match="which the manifest does not list"):
        Bundle.open(hostile_bundle(bundles[Target.ONNX], tmp_path / "out", files=files))


def test_values_in_a_file_that_is_listed_are_used(bundles: dict[Target, Bundle], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = onnx.load_from_string(toy_onnx())
    weights = model.graph.initializer[0].raw_data
    as_initializer(model, "weights.bin")

    def list_weights(content: dict[str, Any]) -> None:
        content["files"].append({"name": "weights.bin", "size_bytes": 0, "sha256": "0" * 64})

    out = hostile_bundle(
        bundles[Target.ONNX],
        tmp_path / "out",
        files={"model.onnx": model.SerializeToString(), "weights.bin": weights},
        manifest=list_weights,
    )
    change_manifest(out)
    with Detector.open(out) as detector, Detector.open(bundles[Target.ONNX]) as original:
        assert detector.predict(dark_image(0)).score == original.predict(dark_image(0)).score
    (out / "weights.bin").write_bytes(bytes(len(weights)))
    with pytest.raises(BundleError, match=r"weights\.bin was changed"):
        Bundle.open(out)


def test_the_model_of_an_engine_is_checked_too(bundles: dict[Target, Bundle], tmp_path: Path) -> None:
    model = onnx.load_from_string(toy_onnx())
    as_initializer(model, "/etc/passwd")

    def as_tensorrt(content: dict[str, Any]) -> None:
        content.update(target="tensorrt", model_file="model.engine")
        content["files"].append({"name": "model.engine", "size_bytes": 0, "sha256": "0" * 64})

    files = {"model.onnx": model.SerializeToString(), "model.engine": b"no engine"}
    out = hostile_bundle(bundles[Target.ONNX], tmp_path / "out", files=files, manifest=as_tensorrt)
    change_manifest(out)
    with pytest.raises(BundleError, match=r"model\.onnx refers to the file '/etc/passwd'"):
        Bundle.open(out)


def varint(value: int, n_bytes: int = 1) -> bytes:
    """Write an integer, on at least so many bytes."""
    result = b""
    while value >= 0x80 or len(result) < n_bytes - 1:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def field(number: int, content: bytes, *, length_bytes: int = 1) -> bytes:
    return varint(number << 3 | 2) + varint(len(content), length_bytes) + content


HIDDEN = field(1, b"location") + field(2, b"/etc/passwd")
HIDDEN_GRAPH = field(5, field(13, HIDDEN))


def deep(content: bytes, n: int) -> bytes:
    """Put a graph into the branch of a node of a graph, and so on."""
    for _ in range(n):
        content = field(1, field(5, field(6, content)))
    return content


@pytest.mark.parametrize(
    ("added", "message"),
    [
        pytest.param(field(7, HIDDEN_GRAPH), "refers to the file", id="second part of the graph, to be merged"),
        pytest.param(field(7, HIDDEN_GRAPH, length_bytes=5), "refers to the file", id="length on five bytes"),
        pytest.param(varint(7 << 3 | 2, 5) + field(7, HIDDEN_GRAPH)[1:], "refers to the file", id="long field number"),
        pytest.param(
            varint(7 << 3 | 2 | 1 << 32) + field(7, HIDDEN_GRAPH)[1:], "damaged", id="field number of 33 bits"
        ),
        pytest.param(varint(7 << 3 | 3) + HIDDEN_GRAPH + varint(7 << 3 | 4), "damaged", id="group"),
        pytest.param(field(7, HIDDEN_GRAPH)[:-1], "damaged", id="cut off"),
        pytest.param(field(7, deep(HIDDEN_GRAPH, 2000)), "more than 100 deep", id="deep"),
        pytest.param(
            field(7, HIDDEN_GRAPH + b"\x08\xff") + field(2, b"x"), "beyond the end", id="number beyond the end"
        ),
        pytest.param(field(7, field(5, field(13, field(1, b"location") + field(2, b"\xff")))), "damaged", id="no text"),
        pytest.param(
            field(7, field(5, field(13, HIDDEN + field(1, b"x") + field(1, b"location")))), "refers", id="twice"
        ),
        pytest.param(field(7, field(1, b"") * 1_100_000 + HIDDEN_GRAPH), "more than 1000000 fields", id="many"),
    ],
)
def test_no_way_of_spelling_hides_a_reference(
    bundles: dict[Target, Bundle], tmp_path: Path, added: bytes, message: str
) -> None:
    out = hostile_bundle(bundles[Target.ONNX], tmp_path / "out", files={"model.onnx": lambda data: data + added})
    with pytest.raises(BundleError, match=message):
        Bundle.open(out)


def test_the_word_in_other_places_is_no_reference(bundles: dict[Target, Bundle], tmp_path: Path) -> None:
    model = onnx.load_from_string(toy_onnx())
    model.doc_string = "location " * 300_000  # Over the borders of what is read at once.
    model.metadata_props.add(key="location", value="/etc/passwd")
    model.graph.node[0].name = "location"
    out = hostile_bundle(bundles[Target.ONNX], tmp_path / "out", files={"model.onnx": model.SerializeToString()})
    assert read_external_data(out / "model.onnx") == set()
    Bundle.open(out)


@pytest.mark.parametrize("begin", range((1 << 20) - 12, (1 << 20) + 4))
def test_a_reference_over_the_border_of_two_blocks_is_seen(tmp_path: Path, begin: int) -> None:
    path = tmp_path / "model.onnx"
    hidden = field(7, HIDDEN_GRAPH)
    room = begin - hidden.index(b"location") - len(field(2, bytes(1 << 19))) + (1 << 19)
    path.write_bytes(field(2, bytes(room)) + hidden)
    assert path.read_bytes().index(b"location") == begin
    assert read_external_data(path) == {"/etc/passwd"}


def xml_bytes(change: Callable[[str], str]) -> Callable[[bytes], bytes]:
    return lambda data: change(data.decode()).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            xml_bytes(lambda text: text.replace("?>", '?><!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>', 1)),
            "declares a document type",
            id="entities",
        ),
        pytest.param(
            xml_bytes(lambda text: text.replace("?>", '?><!DOCTYPE net SYSTEM "file:///etc/passwd">', 1)),
            "declares a document type",
            id="external",
        ),
        pytest.param(
            lambda data: (
                b'<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE net [<!ENTITY a "a">]><net/>'.decode().encode(
                    "utf-16"
                )
            ),
            "declares a document type",
            id="entities in UTF-16",
        ),
        pytest.param(lambda data: data.replace(b'type="Convolution"', b'type="\xff\xfe"'), "damaged", id="no UTF-8"),
        pytest.param(
            xml_bytes(lambda text: text.replace('offset="0"', 'offset="9000000000"')),
            "its weights take 9000000032 bytes",
            id="outside",
        ),
        pytest.param(xml_bytes(lambda text: text.replace('offset="0"', 'offset="-8"')), "at -8", id="before"),
        pytest.param(xml_bytes(lambda text: text.replace('offset="0"', 'offset="x"')), "damaged", id="no number"),
        pytest.param(lambda data: b"<net>" + b"<a/>" * 1_100_000 + b"</net>", "more than 1000000", id="many"),
        pytest.param(lambda data: b"<net>" * 200_000, "more than 100 nested", id="deep"),
        pytest.param(lambda data: data + b" " * 50_000_000, "more than 50000000 bytes", id="large"),
        pytest.param(lambda data: b"", "damaged", id="empty"),
    ],
)
def test_a_hostile_ir_is_refused(
    bundles: dict[Target, Bundle], tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    out = hostile_bundle(bundles[Target.OPENVINO], tmp_path / "out", files={"model.xml": change})
    with pytest.raises(BundleError, match=message):
        Bundle.open(out)


def test_weights_that_end_too_early_are_refused(bundles: dict[Target, Bundle], tmp_path: Path) -> None:
    out = hostile_bundle(bundles[Target.OPENVINO], tmp_path / "out", files={"model.bin": lambda data: data[:-1]})
    with pytest.raises(BundleError, match=r"model\.xml is damaged: its weights take 164 bytes, model.bin has 163"):
        Bundle.open(out)


def header_of(tensors: dict[str, Any], rest: bytes = b"") -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            header_of({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}),
            "values; expected at most",
            id="many tensors",
        ),
        pytest.param(header_of({"a" * 11_000_000: 1}), "header cannot be", id="long header"),
        pytest.param(struct.pack("<Q", 2**63) + b"{}", "header cannot be", id="length beyond the file"),
        pytest.param(
            header_of({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
            "36 bytes are missing",
            id="outside",
        ),
        pytest.param(b"\x14" + bytes(7) + b'{"a":[1,2],"a":[1,2]}'[:20], "damaged", id="broken"),
        pytest.param(struct.pack("<Q", 13) + b'{"a":1,"a":1}', "'a' occurs twice", id="twice"),
        pytest.param(header_of({}, b"")[:9], "header cannot be", id="cut off"),
        pytest.param(struct.pack("<Q", 100_000) + b"[" * 100_000, "nested too deeply", id="deep"),
    ],
)
def test_a_hostile_safetensors_header_is_refused(
    bundles: dict[Target, Bundle], tmp_path: Path, content: bytes, message: str
) -> None:
    out = hostile_bundle(bundles[Target.TORCH], tmp_path / "out", files={"program.safetensors": content})
    with pytest.raises(BundleError, match=message):
        Bundle.open(out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" + b"1, " * 3_000_000 + b"1]", "about 3000001 values"),
        (b'"' + b"x" * 11_000_000 + b'"', "more than 10000000 bytes"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"\xff", "cannot be read"),
    ],
    ids=["long list", "large", "deep", "no UTF-8"],
)
def test_a_hostile_program_is_refused_before_it_is_parsed(
    bundles: dict[Target, Bundle], tmp_path: Path, content: bytes, message: str
) -> None:
    out = hostile_bundle(bundles[Target.TORCH], tmp_path / "out", files={"program.json": content})
    with pytest.raises(BundleError, match=message):
        Bundle.open(out)


posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


def put_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def put_link_to_the_same(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    target.write_bytes(b"")
    path.symlink_to(target)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # A socket's address has room for a hundred characters.
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def put_folder(path: Path) -> None:
    path.mkdir()


SPECIAL = [os.mkfifo, put_link, put_link_to_the_same, put_socket] if sys.platform != "win32" else []


@posix
@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "unlisted"])
@pytest.mark.parametrize("put", [*SPECIAL, put_folder], ids=lambda put: put.__name__)
def test_nothing_but_files_is_read_and_nothing_is_waited_for(
    bundles: dict[Target, Bundle], tmp_path: Path, name: str, put: Callable[[Path], None]
) -> None:
    out = hostile_bundle(bundles[Target.ONNX], tmp_path / "out")
    (out / name).unlink(missing_ok=True)
    put(out / name)
    if (put, name) == (put_folder, "unlisted"):
        Bundle.open(out)
        return
    failures: list[BaseException] = []

    def open_it() -> None:
        try:
            Bundle.open(out)
        except BundleError as error:
            failures.append(error)

    thread = threading.Thread(target=open_it, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert len(failures) == 1


def test_a_file_of_very_many_bytes_is_refused_by_its_size(bundles: dict[Target, Bundle], tmp_path: Path) -> None:
    out = hostile_bundle(bundles[Target.ONNX], tmp_path / "out")
    with (out / "model.onnx").open("r+b") as file:
        file.truncate(3 * 2**30)  # Sparse: it takes no room.

    content = read_content(out)
    content["files"][0]["size_bytes"] = 3 * 2**30
    (out / "manifest.json").write_text(json.dumps(with_digest(content)))
    with pytest.raises(BundleError, match=r"model\.onnx has 3221225472 bytes; expected at most 2147483648"):
        Bundle.open(out)


def test_a_folder_of_very_many_files_is_refused(bundles: dict[Target, Bundle], tmp_path: Path) -> None:
    out = hostile_bundle(bundles[Target.ONNX], tmp_path / "out")
    for number in range(1001):
        (out / f"{number}").touch()
    with pytest.raises(BundleError, match="contains more than 1000 files"):
        Bundle.open(out)
