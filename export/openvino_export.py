"""From a checked ONNX file to OpenVINO IR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vae_edge.backends.base import missing_runtime
from vae_edge.errors import DeviceError, InputError
from vae_edge.manifest import RuntimeRecord
from vae_edge.targets import Target


def export_openvino(onnx_path: Path, xml_path: Path, *, metadata: Mapping[str, str]) -> RuntimeRecord:
    """Convert the ONNX file and write `model.xml` and `model.bin` in FP32.

    Args:
        onnx_path: the file to convert.
        xml_path: the file to write; the weights go beside it.
        metadata: goes into the IR's `rt_info` under `vae_edge`.

    Raises:
        MissingDependencyError: openvino is not installed.
        DeviceError: OpenVINO cannot convert the file.
        InputError: the result cannot be written.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise missing_runtime(Target.OPENVINO, "openvino") from error
    try:
        model = openvino.Core().read_model(onnx_path)
        for key, value in sorted(metadata.items()):
            model.set_rt_info(value, ["vae_edge", key])
    except RuntimeError as error:
        raise DeviceError(f"OpenVINO {openvino.__version__} cannot convert {onnx_path.name}: {error}") from error
    try:
        # save_model would round the weights to FP16 by default.
        openvino.save_model(model, xml_path, compress_to_fp16=False)
    except RuntimeError as error:
        # It has nothing but "iostream error" to say about a full disk.
        raise InputError(
            f"{xml_path.parent} could not be written, most likely because the disk is full ({error}); make room or "
            "choose another place"
        ) from error
    return RuntimeRecord(flavour="openvino", version=str(openvino.__version__))
