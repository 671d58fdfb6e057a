"""A bundle that answers requests: pictures from many clients, judged on all cores or in batches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vae_edge.detector import Detector, n_stream_workers
from vae_edge.errors import DeviceError, VaeEdgeError
from vae_edge.image import decode_image
from vae_edge.prediction import Prediction
from vae_edge.serve.tensors import Picture


@dataclass(frozen=True, eq=False)
class Judged:
    """A picture that was judged, for those who watch: metrics, the page."""

    service: str
    image: NDArray[np.uint8] | None
    """uint8 [H, W, 3] RGB; None: it could not be decoded."""
    result: Prediction | VaeEdgeError
    latency_s: float
    """From its arrival to the verdict."""


@dataclass(eq=False)
class _Job:
    picture: Picture
    arrived_s: float = field(default_factory=time.perf_counter)
    verdict: Future[Prediction | VaeEdgeError] = field(default_factory=Future)


class Service:
    """One bundle's detector with the threads that use it, as many as `Detector.stream` has.

    A thread takes what waits, up to `batch_size` pictures and without waiting for more, decodes it and judges it in one
    run of the model. A picture that cannot be read spoils no other. It is a context manager; `close` twice is fine.

    Args:
        name: under which clients ask for it.
        detector: opened with the hint `throughput`; is closed with the service.
        batch_size: pictures in one run of the model at most.
        max_pixels: of an encoded picture; None: see `vae_edge.image.read_image`.
        watchers: called after each verdict, in one of the threads, and must not take long.
    """

    def __init__(
        self,
        name: str,
        detector: Detector,
        *,
        batch_size: int = 1,
        max_pixels: int | None = None,
        watchers: Sequence[Callable[[Judged], None]] = (),
    ) -> None:
        self.name = name
        self.detector = detector
        self._batch_size = batch_size
        self._max_pixels = max_pixels
        self._watchers = tuple(watchers)
        self._white_level = detector.bundle.manifest.preparation.white_level
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"vae-edge-serve-{number}", daemon=True)
            for number in range(n_stream_workers(detector.backend.layout))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, pictures: Sequence[Picture]) -> list[Future[Prediction | VaeEdgeError]]:
        """Put pictures at the end of the queue; each future gets the verdict, or the error in its place.

        Raises:
            DeviceError: the service is closed.
        """
        jobs = [_Job(picture) for picture in pictures]
        with self._closing:
            if self._closed:
                raise DeviceError("the server is ending; send the pictures to another one, or again later")
            for job in jobs:
                self._jobs.put(job)
        return [job.verdict for job in jobs]

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            ends = False
            while len(jobs) < self._batch_size and not ends:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ends = True
                else:
                    jobs.append(more)
            self._judge(jobs)
            if ends:
                return

    def _judge(self, jobs: list[_Job]) -> None:
        images: list[NDArray[np.uint8] | None] = []
        results: list[Prediction | VaeEdgeError | None] = []
        for job in jobs:
            try:
                images.append(self._decoded(job.picture))
                results.append(None)
            except VaeEdgeError as error:
                images.append(None)
                results.append(error)
        ready = [place for place, image in enumerate(images) if image is not None]
        try:
            judged = self.detector.predict_together([image for image in images if image is not None])
        except Exception as error:  # noqa: BLE001 - a client that waits for ever is worse than any error
            failure = error if isinstance(error, VaeEdgeError) else DeviceError(f"the model failed: {error}")
            judged = [failure] * len(ready)
        for place, result in zip(ready, judged, strict=True):
            results[place] = result
        ended_s = time.perf_counter()
        for job, image, verdict in zip(jobs, images, results, strict=True):
            assert verdict is not None
            for watch in self._watchers:
                watch(Judged(self.name, image, verdict, ended_s - job.arrived_s))
            if not job.verdict.cancelled():
                job.verdict.set_result(verdict)

    def _decoded(self, picture: Picture) -> NDArray[np.uint8]:
        if not picture.is_encoded:
            return picture.content
        return decode_image(
            picture.content, name=picture.name, white_level=self._white_level, max_pixels=self._max_pixels
        )

    def close(self) -> None:
        """Judge what waits, then end the threads and close the detector."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            for _ in self._threads:
                self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self.detector.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
