"""OpenVINO: IR in FP32, with its weights in FP16, or quantized by NNCF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.export.openvino_ir import export_openvino, save_ir
from vae_edge.export.quantization.nncf_quantizer import OpenVinoQuantizer, QuantizationSettings
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.base import TargetExporter, Written
from vae_edge.platform.work import Progress
from vae_edge.targets import SUPPORTED, Precision, Target


class Exporter(TargetExporter):
    """Writes `model.xml` and `model.bin`."""

    target = Target.OPENVINO

    def write(self, folder: Path, precision: Precision, quantized: Any = None) -> Written:
        """Convert the ONNX file; FP16 stores the weights in FP16, but a CPU still computes in FP32."""
        path, metadata = folder / SUPPORTED[self.target].model_file, self.source.metadata
        if quantized is not None:
            return Written(save_ir(quantized, path, metadata=metadata, precision=precision))
        return Written(export_openvino(self.source.onnx_path, path, metadata=metadata, precision=precision))

    def quantize(
        self, images: NDArray[np.uint8], estimator: Estimator, progress: Progress | None = None
    ) -> OpenVinoQuantizer:
        """Quantize by NNCF, with its PERFORMANCE preset."""
        settings = QuantizationSettings(estimator=estimator)
        return OpenVinoQuantizer(self.source.onnx_path, images, settings, progress=progress)
