"""The class that programs on a device use: images in, verdicts out."""

from __future__ import annotations

import math
import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.backends.base import Backend, Hint, Layout, RuntimeOptions, Tensors, in_native_code, open_backend
from vae_edge.bundle import Bundle
from vae_edge.decision import conformal_p_value, thresholds_at
from vae_edge.errors import BundleError, DeviceError, UsageError, VaeEdgeError
from vae_edge.gate import GateRecord, gate_in_force
from vae_edge.gate_measures import Look, measure_picture
from vae_edge.ignored_region import paint_over
from vae_edge.image import load_prepared, max_pixels_in_force
from vae_edge.manifest import GPU_KIND, ThresholdMethod, Thresholds
from vae_edge.platform.after_fork import Process
from vae_edge.platform.machine import usable_cores
from vae_edge.platform.work import InOrder, Progress, StepProgress
from vae_edge.prediction import Prediction

if TYPE_CHECKING:
    from vae_edge.drift import DriftMonitor
    from vae_edge.references import ReferenceCheck
    from vae_edge.refit import Refit
    from vae_edge.signing.keys import KeySource, TrustedKeys

Source = str | Path | NDArray[Any]
"""A path, or an array: uint8 or uint16, HxWx3 RGB, HxW grey or HxWx4 RGBA, of any size."""

DEFAULT_BATCH_SIZE = 1
"""On the targeted processors a batch is not faster than the same number of single images in parallel."""

_UINT8 = np.dtype(np.uint8)

_CLOSED = "this detector has been closed; open it again"

MAX_REFIT_IMAGES = 10_000
"""Normals that a re-fit takes at most: enough for a rate of 1 in 10,000."""


@dataclass(slots=True)
class _Batch:
    """Images on their way through the model together."""

    images: NDArray[np.uint8] | None
    """uint8 [N, H, W, 3], prepared; None: none of them can be read."""
    names: list[str | None]
    """Of those that are in `images`."""
    errors: dict[int, VaeEdgeError] | None = None
    """Of the other ones, by their place in the batch, ascending."""
    outputs: Tensors = field(default_factory=dict)
    """The model's, once it has run."""


class Detector:
    """A bundle opened on this device. It may be called from several threads at once.

    with Detector.open("bundles/tile-openvino-fp32") as detector:
        prediction = detector.predict("part.png")

    It is bound to the bundle as it was opened: a changed working folder and a moved link do not matter, and if the
    bundle is replaced meanwhile, needing its files again is an error. To use it in other processes, pass it to
    them or pickle it: it is opened there again with the same arguments, once in a worker process, if the bundle is
    still the same. `copy` does the same here. A child that was forked after it was opened gets an error when it uses
    it; it can open its own.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, *, open_for_streams: Callable[[], Backend] | None = None
    ) -> None:
        """Construct a detector from its parts; `Detector.open` is the usual way.

        Args:
            bundle: gives preparation and thresholds.
            backend: its model.
            open_for_streams: loads the model once more for `stream`, laid out for throughput; None: one does both.
        """
        self.bundle = bundle
        self.backend = backend
        self._open_for_streams = open_for_streams
        self._stream_backend: Backend | None = None if open_for_streams else backend
        self._opening = threading.RLock()  # A signal handler that interrupts `stream_backend` may call `close`.
        # OpenCV lets other threads have the interpreter in each of some 20 calls: two threads that measure at the same
        # time would hand it to and fro. Reentrant: a signal handler that interrupts one may judge a picture, too.
        self._measuring = threading.RLock()
        self._closed = False
        self._process = Process("this detector")
        self._arguments: dict[str, Any] | None = None
        self._preparation = bundle.manifest.preparation
        self._input_shape = (self._preparation.height, self._preparation.width, 3)
        ignored = bundle.manifest.ignored
        self._ignored = None if ignored is None else ignored.mask
        self._max_pixels: int | None = None
        self._agrees = False
        """Whether the bundle's references were run here, and agree."""
        self._thresholds = bundle.manifest.thresholds
        self._is_gated = True
        self.gate: GateRecord | None = gate_in_force(bundle.manifest.gate)
        """The ranges in which a picture is inspectable; None: every picture is judged."""
        self._keeps_looks = False
        """Whether predictions have what a gate sees, though there may be none."""
        self.drift: DriftMonitor | None = None
        """Watches whether the process has drifted, where `open` was asked for it; see `vae_edge.drift`."""

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        device: str = "auto",
        hint: Hint | Literal["latency", "throughput"] | None = None,
        threads: int | None = None,
        requests: int | None = None,
        spinning: bool = False,
        arithmetic: Literal["fp32", "auto"] = "fp32",
        cache: bool = True,
        rebuild: bool = True,
        max_pixels: int | None = None,
        check: bool = False,
        false_alarm_rate: float | None = None,
        gate: bool = True,
        drift: bool | str | Path = False,
        drift_alarm_rate: float | None = None,
        trusted_keys: KeySource | Sequence[KeySource] | TrustedKeys | None = None,
        progress: StepProgress | None = None,
    ) -> Detector:
        """Check a bundle and load its model.

        A TensorRT engine that was rebuilt here is held to the bundle's references at its first start, in any case.

        On a CPU no single configuration is best for both one image and many. So by default `predict` uses
        all threads for one image, and the first `stream` loads the model again with one image per core.

        Args:
            bundle: the bundle's folder, or a bundle that is open already.
            device: `auto`, or the runtime's name of a device: `cpu`, `gpu`, `npu`, `cuda:1`, `hetero:gpu,cpu`.
            hint: load only one configuration, for both `predict` and `stream`: `latency` or `throughput`.
            threads: processor threads in use; None: as many as there are usable cores.
            requests: images that `stream` works on at the same time; None: as many as this device is fastest with.
            spinning: let ONNX Runtime's threads wait for work at full load.
            arithmetic: what floating-point layers are computed in: `fp32`, or `auto` for the device's faster arithmetic
                (bfloat16, FP16 or TF32, where OpenVINO or ONNX Runtime offers it) if the bundle's references agree in
                it, else FP32. `detector.backend.device.reason` says which one and why.
            cache: use the cache of compiled models in the user's cache folder.
            rebuild: rebuild a TensorRT engine that does not fit this device from the bundle's ONNX.
            max_pixels: refuse a picture file with more pixels before it is decoded; None: see
                `vae_edge.image.read_image`.
            check: run the bundle's references, about 16 pictures, and refuse the bundle where it does not give the
                outputs here that it is known to give.
            false_alarm_rate: share of normal images that may be called anomalous, in place of the bundle's; see the
                property of that name.
            gate: say of pictures that are unlike good parts in sharpness, light or place that they are not inspectable:
                see `prediction.inspectable` and `vae_edge.gate`.
            drift: watch whether the process drifts, and say so in `prediction.drift`: True, or the file that keeps what
                is known between two starts. Every image must then show another part; see `vae_edge.drift`.
            drift_alarm_rate: chance of a false alarm of drift over all time, 1e-6 to 0.5; None: 0.01.
            trusted_keys: files in PEM, or their contents: public keys, or certificates of roots. The bundle must be
                signed by one of them, see `vae_edge.signing`. None: what the user's policy says, which holds always.
            progress: called with the steps of such a build, which takes minutes.

        Raises:
            BundleError: the bundle is damaged, changed or too new, or was replaced while it was opened; it is not
                signed by whom it has to be; or `check` was asked for and it is older than references.
            ParityError: it does not give its reference outputs here.
            MissingDependencyError: its runtime is not installed, or `cryptography`, which checks signatures.
            DeviceError: the device or the runtime cannot run it.
            InputError: an argument is invalid; a trusted key or the policy cannot be read; or the file of `drift` is of
                another bundle, damaged or in use.
        """
        if not isinstance(bundle, Bundle):
            opened = Bundle.open(bundle, trusted_keys=trusted_keys)
        else:
            opened = bundle if trusted_keys is None else bundle.checked_by(trusted_keys)
        manifest = opened.manifest
        max_pixels_in_force(max_pixels)
        chosen = None if hint is None else _checked_hint(hint)
        if arithmetic not in ("fp32", "auto"):
            raise UsageError(f"arithmetic is {arithmetic!r}; expected 'fp32' or 'auto'")
        if chosen is Hint.LATENCY and requests is not None:
            raise UsageError(f"requests is {requests} and the hint latency, which implies 1; leave one of them out")
        options = RuntimeOptions(
            device=device,
            hint=chosen or Hint.LATENCY,
            threads=threads,
            requests=requests,
            spinning=spinning,
            model_sha256=opened.model_sha256 if cache else None,
            rebuild=rebuild,
            built_for=manifest.runtime.details.get(GPU_KIND),
            progress=progress,
        )

        def load(options: RuntimeOptions, opened: Bundle) -> Backend:
            opened.check_unchanged()
            backend = open_backend(
                manifest.target,
                opened.model_path,
                manifest.inputs,
                manifest.outputs,
                max_batch=manifest.max_batch,
                options=options,
            )
            try:
                opened.check_unchanged()  # Once more: so it was the same while it was loaded.
            except BundleError:
                backend.close()
                raise
            return backend

        def load_for_streams() -> Backend:
            return load(replace(options, hint=Hint.THROUGHPUT), detector.bundle)

        if arithmetic == "auto":
            backend = _load_in_faster_arithmetic(load, options, opened)
            options = replace(options, reduced=backend.reduced_to is not None)
        else:
            backend = load(options, opened)
        is_one = chosen is not None or not backend.separate_throughput
        detector = cls(opened, backend, open_for_streams=None if is_one else load_for_streams)
        detector._max_pixels = max_pixels
        detector._is_gated = gate
        detector.gate = gate_in_force(manifest.gate) if gate else None
        detector._arguments = {
            "device": device,
            "hint": chosen,
            "threads": threads,
            "requests": requests,
            "spinning": spinning,
            "arithmetic": arithmetic,
            "cache": cache,
            "rebuild": rebuild,
            "max_pixels": max_pixels,
            "check": check,
            "gate": gate,
            "trusted_keys": opened.trusted,
        }
        try:
            detector.false_alarm_rate = false_alarm_rate
            if drift:
                detector.drift = _open_drift(drift, opened, drift_alarm_rate)
            elif drift_alarm_rate is not None:
                raise UsageError(f"drift_alarm_rate is {drift_alarm_rate}, but drift is False; pass drift=True")
            if check:
                detector.check_references().require(str(opened.folder))
            elif backend.rebuilt_sha256 is not None:
                detector._check_rebuilt(keep=cache, progress=progress)
        except BaseException:
            detector.close()
            raise
        return detector

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds in force: the bundle's, unless another false-alarm rate was chosen."""
        return self._thresholds

    @property
    def false_alarm_rate(self) -> float:
        """The false-alarm rate in force, which can be changed between images.

        Setting it takes the image threshold for that rate from the calibration scores in the bundle, whose files stay
        as they are; None sets the bundle's own rate. An image is anomalous, as always, when its p-value is at most the
        rate. The pixel threshold stays. Copies have the rate, too; images in progress may get either verdict.

        Setting it raises UsageError: the rate is not from 1e-6 to 0.5, it is below the smallest that n normals support,
        1 / (n + 1), or the bundle's threshold is F1-optimal.
        """
        return self._thresholds.false_alarm_rate

    @false_alarm_rate.setter
    def false_alarm_rate(self, rate: float | None) -> None:
        own = self.bundle.manifest.thresholds
        self._thresholds = own if rate is None else thresholds_at(own, rate)
        if self._arguments is not None:
            self._arguments["false_alarm_rate"] = rate

    def check_references(self, *, progress: Progress | None = None) -> ReferenceCheck:
        """Run the bundle's references on this device and compare; nothing is written.

        Args:
            progress: called with pictures done and in all.

        Raises:
            BundleError: the bundle is older than references, or was replaced or changed since it was opened.
            DeviceError: the runtime failed, or this process was forked since.
        """
        self._process.check()
        from vae_edge.references import check_references  # Most programs never do this.

        found = check_references(self.bundle, self.backend, progress=progress)
        self._agrees = found.agrees
        return found

    def _check_rebuilt(self, *, keep: bool, progress: StepProgress | None) -> None:
        from vae_edge.references import check_rebuilt

        step = None if progress is None else lambda done, total: progress("checking the engine", done, total)
        check_rebuilt(self.bundle, self.backend, keep=keep, progress=step)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle how it was opened, without `progress`; what comes out of the pickle is another detector.

        Raises:
            DeviceError: it has been closed.
            TypeError: it was put together from its parts, or watches for drift.
        """
        if self._closed:
            raise DeviceError(_CLOSED)
        if self.drift is not None:
            raise TypeError("a detector that watches for drift cannot be copied or sent to another process")
        if self._arguments is None or self.bundle.seen is None:
            raise TypeError(
                "a detector constructed from its parts cannot be copied or sent to another process; create it with "
                "Detector.open"
            )
        return _reopen, (type(self), self.bundle.folder, self.bundle.seen.identity, self._arguments)

    def predict(self, image: Source) -> Prediction:
        """Judge one image with the lowest latency.

        Raises:
            InputError: the image cannot be read, or the array has another type or shape.
            DeviceError: the runtime failed, the score is not a finite number, or this process was forked since.
        """
        self._process.check()
        with in_native_code:
            batch = _Batch(self._prepare(image)[None], [_name(image)])
            result = self._decide([self._infer(self.backend, batch)])[0][0]
        if isinstance(result, VaeEdgeError):
            raise result
        return self._watched(result)

    def _watched(self, prediction: Prediction) -> Prediction:
        """Add an image's score to the drift monitor, where there is one, and what that says to the prediction.

        The score of a picture that is not inspectable says nothing about the process.
        """
        if self.drift is None:
            return prediction
        drift = self.drift.add(prediction.score) if prediction.inspectable else self.drift.verdict()
        return replace(prediction, drift=drift)

    def predict_together(self, images: Sequence[Source]) -> list[Prediction | VaeEdgeError]:
        """Judge a few images in one run of the model, as a server does with what waits.

        Returns:
            For each image its verdict, or the error of an image that cannot be read or gets no finite score.

        Raises:
            InputError: there are more images than the bundle's `max_batch`.
            DeviceError: the runtime failed, or this process was forked since.
        """
        self._process.check()
        limit = self.backend.max_batch
        if limit is not None and len(images) > limit:
            raise UsageError(f"there are {len(images)} images; this bundle takes at most {limit} at a time")
        if not images:
            return []
        with in_native_code:
            results = self._decide([self._infer(self.backend, self._prepared(list(images)))])[0]
        return [result if isinstance(result, VaeEdgeError) else self._watched(result) for result in results]

    def predict_batch(self, images: Iterable[Source], *, batch_size: int | None = None) -> Iterator[Prediction]:
        """Judge many images, in order; like `stream`, which stops at the first image that cannot be read.

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
        """Judge images as they arrive, in order, several concurrently.

        A few threads each take the next image, decode and resize it, run the model and decide, while the others do the
        same. A verdict is returned once it and all earlier ones are ready. Where a run of the model takes less than
        5 ms, up to four verdicts are made together, which costs less: one waits for runs of the model that have begun,
        5 ms and the last of those runs at most, and never for an image that the source has not given yet. The number of
        images on the way is limited, so memory does not grow with their number. When the loop over the verdicts ends,
        the threads end.

        Args:
            images: paths or arrays; may be endless. It is iterated in those threads, by one at a time, a few images
                ahead. An array that it gives is copied before the next is requested, so that it may use one buffer
                again and again; those of a list, a tuple or an array of images are not. A source that may wait for long
                should have a method `stop()`: it is called when the loop over the verdicts ends, and has to end the
                waiting. If the source itself fails, what it gave before is decided first.
            batch_size: images for one run of the model, at most the bundle's `max_batch`; None: 1. On ONNX Runtime a
                small network takes up to a quarter less time for each image in batches of 4 (`vae-bench --batch-sizes`
                measures it). Its scores may then differ in the last digits, and a batch waits until it is full.
            errors: `raise` at an image that cannot be read or gets no finite score, or `return` the error in that
                image's place and continue. A runtime that fails ends the stream either way.

        Raises:
            InputError: `images` is a single image or not iterable, `batch_size` is not positive or more
                than the bundle allows; an image cannot be read.
            BundleError: the bundle was replaced since it was opened, and its model has to be loaded again.
            DeviceError: the runtime failed, the detector was closed, or this process was forked since.
        """
        self._process.check()
        _check_is_many(images)
        limit = self.backend.max_batch
        if batch_size is not None and (batch_size < 1 or (limit is not None and batch_size > limit)):
            allowed = "1 or more" if limit is None else f"1 to {limit}"
            raise UsageError(f"batch_size is {batch_size}; this bundle takes {allowed}")
        return self._stream(images, batch_size or DEFAULT_BATCH_SIZE, errors)

    def _stream(
        self, images: Iterable[Source], batch_size: int, errors: Literal["raise", "return"]
    ) -> Iterator[Prediction | VaeEdgeError]:
        backend = self.stream_backend()
        # Where the processor infers, one thread more than inferences is of use only if some of them wait or decode.
        n_spare = 0 if backend.layout.threads is None else 1
        results = iter(
            InOrder(
                images,
                lambda batch: self._infer(backend, batch),
                n_workers=n_stream_workers(backend.layout) - n_spare,
                n_spare=n_spare,
                batch_size=batch_size,
                take=None if isinstance(images, Sequence | np.ndarray) else _own,
                prepare=self._prepared,
                finish=self._decide,
            )
        )
        with closing(results):
            for result in results:
                if errors == "raise" and isinstance(result, VaeEdgeError):
                    raise result
                # Here, in the order of the images, and not in the threads that decide.
                yield result if isinstance(result, VaeEdgeError) else self._watched(result)

    def stream_backend(self) -> Backend:
        """Return the model that `stream` runs, loading it on the first call.

        Raises:
            BundleError: the bundle was replaced since it was opened.
            DeviceError: it cannot be loaded, the detector is closed, or this process was forked since.
        """
        self._process.check()
        with self._opening:
            if self._stream_backend is None:
                if self._closed or self._open_for_streams is None:
                    raise DeviceError(_CLOSED)
                self._stream_backend = self._open_for_streams()
                self._close_if_asked(self._stream_backend)
            return self._stream_backend

    def _close_if_asked(self, loaded: Backend) -> None:
        """Close the model that was loading while a signal handler closed the detector; using it is then an error."""
        if self._closed:
            loaded.close()

    def _prepared(self, sources: list[Source]) -> _Batch:
        images: list[NDArray[np.uint8]] = []
        names: list[str | None] = []
        errors: dict[int, VaeEdgeError] = {}
        for place, source in enumerate(sources):
            try:
                images.append(self._prepare(source))
                names.append(_name(source))
            except VaeEdgeError as error:
                errors[place] = error
        if len(images) == 1:
            return _Batch(images[0][None], names, errors)
        return _Batch(np.stack(images) if images else None, names, errors)

    def _infer(self, backend: Backend, batch: _Batch) -> _Batch:
        if batch.images is not None:
            batch.outputs = backend.run({"image": batch.images})
        return batch

    def _judged(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the picture that the gate measures, without what the model ignores."""
        return image if self._ignored is None else paint_over(image, self._ignored)

    def _prepare(self, image: Source) -> NDArray[np.uint8]:
        # What is ready already is the usual case of a camera that is set up for the model.
        if (
            type(image) is np.ndarray
            and image.shape == self._input_shape
            and image.dtype == _UINT8
            and image.flags.c_contiguous
        ):
            return image
        return load_prepared(image, self._preparation, max_pixels=self._max_pixels)

    def _decide(self, batches: list[_Batch]) -> list[list[Prediction | VaeEdgeError]]:
        """Return a verdict or an error for each picture of each batch.

        What is done for one picture is done for all before the next thing is: right after an inference, which leaves
        nothing of it in the processor's caches, the first one takes twice as long as another.
        """
        names: list[str | None] = []
        images: list[NDArray[np.uint8]] = []
        scores: list[float] = []
        maps: list[NDArray[np.float32]] = []
        for batch in batches:
            if batch.images is not None:
                names += batch.names
                images.extend(batch.images)
                scores += batch.outputs["score"].tolist()
                maps.extend(batch.outputs["anomaly_map"])
        # A norm that is finite leaves no doubt, and takes half as long as looking at each value.
        finite = [math.isfinite(cv2.norm(each)) or bool(np.isfinite(each).all()) for each in maps]
        gate = self.gate
        looks: Sequence[Look | None] = [None] * len(images)
        problems: Sequence[tuple[str, ...]] = [()] * len(images)
        if images and (gate is not None or self._keeps_looks):
            with self._measuring:
                measured = [measure_picture(self._judged(image)) for image in images]
                looks = measured
                if gate is not None:
                    problems = [gate.problems(look) for look in measured]
        verdicts = map(self._verdict, scores, maps, names, finite, looks, problems)
        results = []
        for batch in batches:
            of_batch: list[Prediction | VaeEdgeError] = list(islice(verdicts, len(batch.names)))
            for place, error in (batch.errors or {}).items():
                of_batch.insert(place, error)
            results.append(of_batch)
        return results

    def _verdict(
        self,
        score: float,
        anomaly_map: NDArray[np.float32],
        name: str | None,
        is_finite: bool,
        look: Look | None,
        problems: tuple[str, ...],
    ) -> Prediction | VaeEdgeError:
        # What is not finite is neither above nor below a threshold: a broken model must not pass a part as good.
        broken = None
        if not math.isfinite(score):
            broken = f"score of {name or 'the image'} is {score}, which is not a number"
        elif not is_finite:
            broken = f"map of {name or 'the image'} has values that are not numbers"
        if broken is not None:
            return DeviceError(f"the anomaly {broken}: the model or its precision is broken; export it again")
        thresholds = self._thresholds
        return Prediction(
            score=score,
            p_value=conformal_p_value(score, thresholds.calibration_scores),
            threshold=thresholds.image_threshold,
            is_anomalous=score > thresholds.image_threshold,
            anomaly_map=anomaly_map,
            pixel_threshold=thresholds.pixel_threshold,
            source=name,
            false_alarm_rate=thresholds.false_alarm_rate,
            not_inspectable_because=problems,
            look=look,
        )

    def refit_thresholds(
        self,
        images: Iterable[Source],
        false_alarm_rate: float | None = None,
        *,
        anomalous: Iterable[Source] | None = None,
        method: ThresholdMethod | Literal["split-conformal", "f1-optimal"] = ThresholdMethod.SPLIT_CONFORMAL,
        max_images: int = MAX_REFIT_IMAGES,
        progress: Progress | None = None,
    ) -> Refit:
        """Fit both thresholds on this device's scores of normal images, write them into the bundle and use them.

        The ranges in which a picture is inspectable are learnt from the normal images again, too, from 10 of them on.

        An image threshold with the method `f1-optimal` is the one with the largest F1 on the normal and the anomalous
        images together. It guarantees no false-alarm rate; the resulting rate among the normals is recorded, and
        an image is anomalous, as always, when its p-value is at most that rate. See `fit_f1_threshold`. A rate that was
        set for this detector alone is in force no more.

        Before that the bundle's references are run, unless that was done: thresholds of a broken model are none.

        Args:
            images: paths or arrays of good parts that the model was not trained on; may be a stream. What cannot be
                read is left out. A rate of 0.01 needs 99 of them; with fewer, the smallest rate they support is in
                force, and the result says so.
            false_alarm_rate: share of normal images that may be called anomalous; None: 0.01. None with `f1-optimal`.
            anomalous: paths or arrays of defective parts. `f1-optimal` needs them; with `split-conformal` they decide
                nothing, and the result says how many of them are found.
            method: how the image threshold is chosen.
            max_images: stop after this many of each kind, where the source has no end.
            progress: called after each image with the number done and the number of all.

        Returns:
            The bundle with the thresholds that are written, the ones before, what was left out, and how many images
            the rate needs.

        Raises:
            InputError: no image can be read, or no anomalous one where they were given; the rate is outside (0, 1), or
                does not go with the method; no anomalous image scores above a normal one; the detector watches for
                drift; or the bundle cannot be written. The bundle is not changed.
            BundleError: the bundle was replaced or changed since it was opened. The new one is not changed.
            ParityError: the bundle does not give its reference outputs here. It is not changed.
            DeviceError: the runtime failed, a score is not a finite number, or this process was forked since. The
                bundle is as it was.
        """
        self._process.check()
        if self.drift is not None:
            raise UsageError("this detector watches for drift from the thresholds that it has; open it without drift")
        for source in (images, () if anomalous is None else anomalous):
            _check_is_many(source)
        # Loaded when it is needed: most programs on a device never do this.
        from vae_edge.refit import refit_thresholds

        self.bundle.check_writable()  # Before the work.
        if self.bundle.manifest.references is not None and not self._agrees:
            self.check_references().require(str(self.bundle.folder))

        def scored_by() -> str:
            backend = self.stream_backend()
            return f"{backend.version} on {backend.device.name}"

        self._keeps_looks = True
        try:
            fitted = refit_thresholds(
                self.bundle,
                lambda some: self.stream(some, errors="return"),
                scored_by,
                images,
                false_alarm_rate,
                anomalous=anomalous,
                method=method,
                max_images=max_images,
                progress=progress,
            )
        finally:
            self._keeps_looks = False
        self.bundle = fitted.bundle.with_manifest(fitted.bundle.manifest)
        self.false_alarm_rate = None
        if self._is_gated:
            self.gate = gate_in_force(self.bundle.manifest.gate)
        return replace(fitted, bundle=self.bundle)

    def close(self) -> None:
        """Wait for the images in progress, then free the model; a second call does nothing.

        Nor does one in a child that was forked since: the model is the parent's.
        """
        if not self._process.is_this:
            return
        with self._opening:
            self._closed = True
            backends = (self.backend, self._stream_backend)
        if self.drift is not None:
            self.drift.close()
        for backend in backends:
            if backend is not None:
                backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_drift(drift: bool | str | Path, bundle: Bundle, alarm_rate: float | None) -> DriftMonitor:
    from vae_edge.drift import DEFAULT_ALARM_RATE, DriftMonitor  # Most programs do not ask for it.

    rate = DEFAULT_ALARM_RATE if alarm_rate is None else alarm_rate
    if isinstance(drift, bool):
        return DriftMonitor.for_bundle(bundle, alarm_rate=rate)
    return DriftMonitor.open(Path(drift), bundle, alarm_rate=rate)


def _load_in_faster_arithmetic(
    load: Callable[[RuntimeOptions, Bundle], Backend], options: RuntimeOptions, bundle: Bundle
) -> Backend:
    """Load a model in less than FP32 if its references agree in that here, else in FP32; its device says why."""
    from vae_edge.references import check_references  # Most programs never do this.

    def because(backend: Backend, why: str) -> Backend:
        backend.device = replace(backend.device, reason=f"{backend.device.reason}; {why}")
        return backend

    backend = load(replace(options, reduced=True), bundle)
    reduced_to = backend.reduced_to
    if reduced_to is None:
        return because(backend, "there is no faster arithmetic for this model here")
    try:
        found = check_references(bundle, backend)
        problem = found.disagreement()
    except (BundleError, DeviceError) as error:
        problem = str(error)
    except BaseException:
        backend.close()
        raise
    if problem is None:
        return because(backend, f"it computes in {reduced_to}, in which the references agree")
    backend.close()
    return because(load(options, bundle), f"it computes in FP32, because in {reduced_to}: {problem}")


def n_stream_workers(layout: Layout) -> int:
    """Return how many threads `Detector.stream` uses at most with a model of that layout.

    One more than inferences at the same time, so that the model need not wait while an image is awaited or decoded.
    Where it is not the processor that infers, as many as there are cores, for those then only decode.
    """
    at_least = layout.requests + 1
    return at_least if layout.threads is not None else max(at_least, usable_cores())


def _checked_hint(hint: Hint | str) -> Hint:
    known = [str(each) for each in Hint]
    if hint not in known:
        raise UsageError(f"hint is {hint!r}; expected {' or '.join(known)}, or nothing for both")
    return Hint(hint)


def _check_is_many(images: object) -> None:
    """Refuse arguments that would be iterated in an unintended way."""
    if hasattr(images, "__aiter__"):
        raise UsageError(
            "the images come from an asynchronous source, which stream does not await; collect them with `async for` "
            "and call `await asyncio.to_thread(detector.predict, image)` for each"
        )
    if isinstance(images, str | bytes | Path):
        raise UsageError(f"stream expects several images but got one path, {images!s}; call predict, or pass a list")
    if isinstance(images, np.ndarray) and (images.ndim < 3 or (images.ndim == 3 and images.shape[-1] in (1, 3, 4))):
        raise UsageError(
            f"stream expects several images but got one array of shape {'x'.join(map(str, images.shape))}, which is "
            "one image; call predict, or pass a list"
        )
    if not isinstance(images, Iterable):
        raise UsageError(
            f"stream expects several images but got {type(images).__name__}; pass a list or another iterable"
        )


def _own(image: Source) -> Source:
    """Copy an array: its source may write the next frame into the same memory. It takes 0.7 ms for 1920x1080 RGB."""
    return image.copy() if isinstance(image, np.ndarray) else image


_reopened: dict[tuple[Any, ...], Detector] = {}
"""What a worker process was sent, so that it opens a detector once and not with every task."""


def _reopen(kind: type[Detector], folder: Path, identity: str, arguments: dict[str, Any]) -> Detector:
    key = (kind, folder, identity, tuple(arguments.items()))
    kept = _reopened.get(key)
    if kept is not None and kept._process.is_this and not kept._closed:
        return kept
    bundle = Bundle.open(folder, trusted_keys=arguments["trusted_keys"])
    if bundle.seen is None or bundle.seen.identity != identity:
        raise BundleError(f"the bundle {folder} was replaced or changed since its detector was pickled; open it again")
    detector = kind.open(bundle, **arguments)
    if multiprocessing.parent_process() is not None:
        _reopened[key] = detector
    return detector


def _name(image: Source) -> str | None:
    return None if isinstance(image, np.ndarray) else str(image)
