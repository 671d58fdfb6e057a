"""Lets anomalib export this project's trained network: a stand-alone script for anomalib's own environment.

    python -I anomalib_export.py JOB.json RESULT.json

The job: `program` (the network and its scoring, a torch program, see `studies.peers.models`),
`size` of the model, `input_size` (of the images if it is to be fixed, or null, which is anomalib's default),
`image_threshold`, `pixel_threshold`, `files` to fit the normalization to, `calibration` (image files for INT8 by
post-training quantization, or none of them for FP32), `out`, `declare_operators`. No anomalib release has a VAE, so the
network is passed in as a custom model; pre-processing, post-processing, quantization and export are anomalib's.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

# This script runs isolated: its own folder is not on the path.
sys.path.append(str(Path(__file__).parent))
measured_process: Any = importlib.import_module("measured_process")
sys.path.pop()


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Export as the job says."""
    measured_process.keep_telemetry_off()
    if job["declare_operators"]:
        measured_process.declare_torchvision_operators()
    model = _make_model(job)
    _fit_post_processor(model, job)

    from anomalib.deploy import CompressionType, ExportType
    from anomalib.engine import Engine

    out = Path(job["out"])
    size = job["input_size"]
    engine = Engine(default_root_dir=str(out), accelerator="cpu", logger=False)
    # FP32 weights are what anomalib calls no compression.
    low = {"compression_type": CompressionType.INT8_PTQ, "datamodule": _Calibration(job["calibration"])}
    engine.export(
        model,
        ExportType.OPENVINO,
        export_root=out,
        input_size=None if size is None else tuple(size),
        **(low if job["calibration"] else {}),
    )
    return {}


class _Calibration:
    """The part of an anomalib data module that its quantization needs: images one by one, from 0 to 1."""

    def __init__(self, files: list[str]) -> None:
        self._files = files
        self.train_batch_size = 1

    def setup(self, stage: str) -> None:
        pass

    def val_dataloader(self) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(self)  # type: ignore[arg-type]  # it asks for no more than length and items

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, position: int) -> dict[str, Any]:
        from anomalib.data.utils import read_image

        return {"image": read_image(self._files[position], as_tensor=True)}


def _make_model(job: dict[str, Any]) -> Any:
    import torch
    from anomalib import LearningType
    from anomalib.data import InferenceBatch
    from anomalib.models.components.base import AnomalibModule
    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
    from torch import nn
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    class Program(nn.Module):
        """The trained network and its scoring, as torch exported them."""

        def __init__(self, path: str) -> None:
            super().__init__()
            self.program = torch.export.load(path).module()

        def train(self, mode: bool = True) -> Program:
            # An exported program is always in evaluation mode and refuses to be set to it.
            return self

        def forward(self, image: torch.Tensor) -> Any:
            anomaly_map, score = self.program(image)
            return InferenceBatch(pred_score=score[:, None], anomaly_map=anomaly_map[:, None])

    class TrainedVae(AnomalibModule):  # type: ignore[misc]  # anomalib need not be here when types are checked
        """anomalib's pipeline: its pre-processor, the network, its post-processor."""

        def __init__(self) -> None:
            half = [0.5, 0.5, 0.5]
            transform = Compose([Resize(tuple(job["size"]), antialias=True), Normalize(half, half)])
            super().__init__(
                pre_processor=PreProcessor(transform), post_processor=PostProcessor(), evaluator=False, visualizer=False
            )
            self.model = Program(job["program"])

        @property
        def trainer_arguments(self) -> dict[str, Any]:
            return {}

        @property
        def learning_type(self) -> Any:
            return LearningType.ONE_CLASS

    return TrainedVae().eval()


def _fit_post_processor(model: Any, job: dict[str, Any]) -> None:
    """Fit minimum and maximum to images as anomalib's validation does, by default on the test images."""
    import torch
    from anomalib.data.utils import read_image

    lowest, highest = [float("inf")] * 2, [float("-inf")] * 2
    with torch.inference_mode():
        for file in job["files"]:
            batch = model.model(model.pre_processor.transform(read_image(file, as_tensor=True)[None]))
            for position, values in enumerate((batch.pred_score, batch.anomaly_map)):
                lowest[position] = min(lowest[position], float(values.min()))
                highest[position] = max(highest[position], float(values.max()))
    post = model.post_processor
    post.image_min.fill_(lowest[0])
    post.image_max.fill_(highest[0])
    post.pixel_min.fill_(lowest[1])
    post.pixel_max.fill_(highest[1])
    post._image_threshold.fill_(job["image_threshold"])
    post._pixel_threshold.fill_(job["pixel_threshold"])


if __name__ == "__main__":
    sys.exit(measured_process.instruments.serve(sys.argv[1:], export))
