"""The one class that a device's program uses: images in, verdicts out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from vae_edge.backends.base import Backend, RuntimeOptions, open_backend
from vae_edge.bundle import Bundle
from vae_edge.decision import conformal_p_value
from vae_edge.errors import DeviceError, UsageError, VaeEdgeError
from vae_edge.image import load_prepared
from vae_edge.prediction import Prediction

Source = str | Path | NDArray[Any]
"""A path, or an array: uint8 or uint16, HxWx3 RGB, HxW grey or HxWx4 RGBA, of any size."""

DEFAULT_BATCH_SIZE = 1
"""On the processors this is made for a batch gains little and delays the first verdict."""

_PREFETCH_WORKERS = 2


class Detector:
    """A bundle opened on this device. It may be called from several threads at once.

    with Detector.open("bundles/tile-openvino-fp32") as detector:
        prediction = detector.predict("part.png")
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self._preparation = bundle.manifest.preparation
        self._thresholds = bundle.manifest.thresholds
        self._calibration_scores = np.asarray(self._thresholds.calibration_scores, dtype=np.float64)

    @classmethod
    def open(cls, bundle: str | Path | Bundle, *, device: str = "auto", threads: int | None = None) -> Detector:
        """Check a bundle and load its model.

        Args:
            bundle: the bundle's folder, or a bundle that is open already.
            device: `auto`, or the runtime's name of a device: `cpu`, `gpu`, `npu`, `cuda`, `cuda:1`.
            threads: processor threads for one inference; None: the runtime decides.

        Raises:
            BundleError: the bundle is damaged, changed or too new.
            MissingDependencyError: its runtime is not installed.
            DeviceError: the device or the runtime cannot run it.
            InputError: `device` or `threads` makes no sense.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = opened.manifest
        backend = open_backend(
            manifest.target,
            opened.model_path,
            manifest.inputs,
            manifest.outputs,
            max_batch=manifest.max_batch,
            options=RuntimeOptions(device=device, threads=threads),
        )
        return cls(opened, backend)

    def predict(self, image: Source) -> Prediction:
        """Decide about one image.

        Raises:
            InputError: the image cannot be read, or the array has another type or shape.
            DeviceError: the runtime failed, or the score is not a finite number.
        """
        result = self._decide(self._prepare(image)[None], [_name(image)])[0]
        if isinstance(result, VaeEdgeError):
            raise result
        return result

    def predict_batch(self, images: Iterable[Source], *, batch_size: int | None = None) -> Iterator[Prediction]:
        """Decide about many images, in order; like `stream`, which stops at the first image that cannot be read.

        Raises:
            InputError: an image cannot be read, or `batch_size` is not positive.
        """
        return self.stream(images, batch_size=batch_size)

    @overload
    def stream(
        self, images: Iterable[Source], *, batch_size: int | None = None, errors: Literal["raise"] = "raise"
    ) -> Iterator[Prediction]: ...

    @overload
    def stream(
        self, images: Iterable[Source], *, batch_size: int | None = None, errors: Literal["return"]
    ) -> Iterator[Prediction | VaeEdgeError]: ...

    def stream(
        self, images: Iterable[Source], *, batch_size: int | None = None, errors: Literal["raise", "return"] = "raise"
    ) -> Iterator[Prediction | VaeEdgeError]:
        """Decide about images as they come, in order; the next ones are decoded while the model runs.

        Args:
            images: paths or arrays; may be endless. At most a few are taken ahead of the one being decided, so an array
                must stay as it is until its prediction has come, and a camera that waits for a trigger is better
                served by `predict` for each picture. If the source itself fails, what it gave before is decided first.
            batch_size: images per run of the model, at most the bundle's `max_batch`; None: 1.
            errors: `raise` at an image that cannot be read or gets no finite score, or `return` the error in that
                image's place and go on.

        Raises:
            InputError: `batch_size` is not positive or more than the bundle allows; an image cannot be read.
        """
        size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        limit = self.backend.max_batch
        if size < 1 or (limit is not None and size > limit):
            allowed = "1 or more" if limit is None else f"1 to {limit}"
            raise UsageError(f"batch_size is {size}; this bundle takes {allowed}")
        return self._stream(iter(images), size, errors)

    def _stream(
        self, images: Iterator[Source], batch_size: int, errors: Literal["raise", "return"]
    ) -> Iterator[Prediction | VaeEdgeError]:
        with ThreadPoolExecutor(_PREFETCH_WORKERS, thread_name_prefix="vae-edge-prepare") as pool:
            waiting: deque[tuple[str | None, Future[NDArray[np.uint8]]]] = deque()

            failures: list[Exception] = []

            def fill() -> None:
                try:
                    for image in islice(images, batch_size + _PREFETCH_WORKERS - len(waiting) if not failures else 0):
                        waiting.append((_name(image), pool.submit(self._prepare, image)))
                except Exception as error:  # noqa: BLE001 - whatever the caller's source raises; raised again below
                    failures.append(error)

            try:
                fill()
                while waiting:
                    batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                    fill()
                    yield from self._decide_futures(batch, errors)
                if failures:
                    raise failures[0]
            finally:
                for _, future in waiting:
                    future.cancel()

    def _decide_futures(
        self, batch: list[tuple[str | None, Future[NDArray[np.uint8]]]], errors: Literal["raise", "return"]
    ) -> list[Prediction | VaeEdgeError]:
        results: list[Prediction | VaeEdgeError | None] = [None] * len(batch)
        prepared: list[NDArray[np.uint8]] = []
        places: list[int] = []
        for place, (_, future) in enumerate(batch):
            try:
                prepared.append(future.result())
                places.append(place)
            except VaeEdgeError as error:
                if errors == "raise":
                    raise
                results[place] = error
        if prepared:
            names = [batch[place][0] for place in places]
            for place, result in zip(places, self._decide(np.stack(prepared), names), strict=True):
                if errors == "raise" and isinstance(result, VaeEdgeError):
                    raise result
                results[place] = result
        return [result for result in results if result is not None]

    def _prepare(self, image: Source) -> NDArray[np.uint8]:
        return load_prepared(image, self._preparation)

    def _decide(self, images: NDArray[np.uint8], names: list[str | None]) -> list[Prediction | VaeEdgeError]:
        outputs = self.backend.run({"image": images})
        return [
            self._verdict(float(score), anomaly_map, name)
            for score, anomaly_map, name in zip(outputs["score"], outputs["anomaly_map"], names, strict=True)
        ]

    def _verdict(self, score: float, anomaly_map: NDArray[np.float32], name: str | None) -> Prediction | VaeEdgeError:
        if not math.isfinite(score):
            # Neither above nor below a threshold: a broken model must not pass a part as good.
            what = "the image" if name is None else name
            return DeviceError(
                f"the anomaly score of {what} is {score}, which is no number: the model or its precision is broken; "
                "export it again"
            )
        thresholds = self._thresholds
        return Prediction(
            score=score,
            p_value=conformal_p_value(score, self._calibration_scores),
            threshold=thresholds.image_threshold,
            is_anomalous=score > thresholds.image_threshold,
            anomaly_map=anomaly_map,
            pixel_threshold=thresholds.pixel_threshold,
            source=name,
        )

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self.backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _name(image: Source) -> str | None:
    return None if isinstance(image, np.ndarray) else str(image)
