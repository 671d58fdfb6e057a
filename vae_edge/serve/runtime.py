"""MLServer's view of a bundle: a request's inputs to pictures, verdicts to outputs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from mlserver import MLModel, ModelSettings
from mlserver.errors import InferenceError, MLServerError
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataTensor,
    Parameters,
    ResponseOutput,
    TensorData,
)
from numpy.typing import NDArray

from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.manifest import Manifest
from vae_edge.prediction import Prediction
from vae_edge.serve.service import Service
from vae_edge.serve.tensors import ENCODED, IMAGE, Picture, pictures_of

_log = logging.getLogger(__name__)

ANOMALY_MAP = "anomaly_map"
"""An output that comes only when it is asked for, by name or with a parameter of the same name: it is large."""

DATATYPES = {
    "is_anomalous": "BOOL",
    "score": "FP32",
    "p_value": "FP32",
    "threshold": "FP32",
    "verdict": "BYTES",
    "not_inspectable_because": "BYTES",
    ANOMALY_MAP: "FP32",
}
"""The outputs; each has one value for a picture, the map [H, W] at the model's size."""


class DetectorRuntime(MLModel):
    """A service as a model of MLServer."""

    def __init__(self, settings: ModelSettings, service: Service) -> None:
        super().__init__(settings)
        self._service = service

    async def load(self) -> bool:
        """Return that it is ready: the detector was opened before the server."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Judge the pictures of a request.

        Raises:
            MLServerError: the request is not one for this model (400), or the model failed (500).
        """
        try:
            pictures = _pictures(payload)
            names = _wanted(payload)
            futures = self._service.submit(pictures)
        except VaeEdgeError as error:
            raise _for_client(error) from error
        predictions = []
        for result in await asyncio.gather(*map(asyncio.wrap_future, futures)):
            if isinstance(result, VaeEdgeError):
                raise _for_client(result) from result
            predictions.append(result)
        return InferenceResponse(
            model_name=self.name, id=payload.id, outputs=[_output(name, predictions) for name in names]
        )


def model_settings(service: Service) -> ModelSettings:
    """Return what MLServer tells clients about a service."""
    manifest = service.detector.bundle.manifest
    return ModelSettings(
        _env_file=None,
        name=service.name,
        implementation=DetectorRuntime,
        platform=f"vae-edge-{manifest.target}-{manifest.precision}",
        versions=[],
        inputs=[
            MetadataTensor(name=IMAGE, datatype="UINT8", shape=[-1, -1, -1, 3]),
            MetadataTensor(name=ENCODED, datatype="BYTES", shape=[-1]),
        ],
        outputs=[
            MetadataTensor(name=name, datatype=datatype, shape=_shape(name, manifest))
            for name, datatype in DATATYPES.items()
        ],
    )


def _shape(name: str, manifest: Manifest) -> list[int]:
    preparation = manifest.preparation
    return [-1, preparation.height, preparation.width] if name == ANOMALY_MAP else [-1]


def _pictures(payload: InferenceRequest) -> list[Picture]:
    if len(payload.inputs) != 1:
        raise InputError(f"the request has {len(payload.inputs)} inputs; expected one, {IMAGE!r} or {ENCODED!r}")
    (given,) = payload.inputs
    datatype = getattr(given.datatype, "value", given.datatype)
    content_type = None if given.parameters is None else given.parameters.content_type
    data = getattr(given.data, "root", given.data)
    return pictures_of(given.name, datatype, given.shape, data, content_type)


def _wanted(payload: InferenceRequest) -> list[str]:
    """Return the names of the outputs that a request asks for."""
    if payload.outputs:
        names = [output.name for output in payload.outputs]
        unknown = sorted(set(names) - set(DATATYPES))
        if unknown:
            raise InputError(f"the output {unknown[0]!r} does not exist; expected {', '.join(DATATYPES)}")
        return names
    parameters: Parameters | None = payload.parameters
    extra = {} if parameters is None else parameters.model_extra or {}
    return [name for name in DATATYPES if name != ANOMALY_MAP or extra.get(ANOMALY_MAP) is True]


def _output(name: str, predictions: Sequence[Prediction]) -> ResponseOutput:
    datatype = DATATYPES[name]
    given = [getattr(prediction, name) for prediction in predictions]
    # MLServer passes lists on; an array, flat as they are, saves the way there and back where bytes are sent.
    data: list[bytes] | NDArray[Any]
    if datatype == "BYTES":
        data = [("; ".join(value) if isinstance(value, tuple) else value).encode() for value in given]
        shape = [len(data)]
    else:
        values = np.asarray(given, dtype=np.bool_ if datatype == "BOOL" else np.float32)
        data, shape = values.reshape(-1), list(values.shape)
    return ResponseOutput.model_construct(
        name=name, datatype=datatype, shape=shape, data=TensorData.model_construct(root=data)
    )


def _for_client(error: VaeEdgeError) -> MLServerError:
    if isinstance(error, InputError):
        return InferenceError(str(error))
    _log.error("a request failed: %s", error)
    return MLServerError(str(error), 500)
