from __future__ import annotations

import threading
from collections.abc import Iterator

import cv2
import pytest

from tests.tiny_bundles import dark_image, spotted_image
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import DeviceError, InputError, UsageError
from vae_edge.image import decode_image
from vae_edge.prediction import Prediction
from vae_edge.serve.service import Judged, Service
from vae_edge.serve.tensors import Picture


@pytest.fixture
def detector(onnx_bundle: Bundle) -> Iterator[Detector]:
    with Detector.open(onnx_bundle, hint="throughput") as opened:
        yield opened


def encoded(seed: int) -> Picture:
    draw = spotted_image if seed % 3 == 0 else dark_image
    done, data = cv2.imencode(".png", cv2.cvtColor(draw(seed, 40), cv2.COLOR_RGB2BGR))
    assert done
    return Picture(f"encoded[{seed}]", data)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_many_clients_get_the_verdicts_of_the_detector(detector: Detector, batch_size: int) -> None:
    pictures = [encoded(seed) for seed in range(60)]
    images = [decode_image(picture.content, name=picture.name) for picture in pictures]
    expected = [(p.is_anomalous, p.score, p.p_value) for p in map(detector.predict, images)]
    found: dict[int, tuple[bool, float, float]] = {}
    seen: list[Judged] = []

    def ask(first: int) -> None:
        for place in range(first, len(pictures), 6):
            (future,) = service.submit([pictures[place]])
            result = future.result(20)
            assert isinstance(result, Prediction)
            found[place] = (result.is_anomalous, result.score, result.p_value)

    with Service("toy", detector, batch_size=batch_size, watchers=[seen.append]) as service:
        clients = [threading.Thread(target=ask, args=(first,)) for first in range(6)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert [found[place] for place in range(len(pictures))] == expected
    assert {verdict for verdict, *_ in expected} == {True, False}
    assert len(seen) == len(pictures)
    assert all(judged.latency_s > 0 and judged.image is not None for judged in seen)


def test_a_broken_picture_spoils_no_other(detector: Detector) -> None:
    pictures = [encoded(1), Picture("encoded[1]", encoded(2).content[:60]), encoded(3)]
    with Service("toy", detector, batch_size=8) as service:
        first, broken, last = [future.result(20) for future in service.submit(pictures)]
    assert isinstance(first, Prediction)
    assert not first.is_anomalous
    assert isinstance(broken, InputError)
    assert str(broken).startswith("encoded[1] ")
    assert isinstance(last, Prediction)
    assert last.is_anomalous


def test_a_picture_with_too_many_pixels_is_not_decoded(detector: Detector) -> None:
    with Service("toy", detector, max_pixels=100) as service:
        (future,) = service.submit([encoded(1)])
        assert isinstance(future.result(20), InputError)


def test_a_model_that_fails_answers_every_client(detector: Detector) -> None:
    with Service("toy", detector) as service:
        detector.backend.close()
        results = [future.result(20) for future in service.submit([encoded(1), encoded(2)])]
    assert all(isinstance(result, DeviceError) for result in results)


def test_the_end_waits_for_what_was_asked_and_takes_no_more(detector: Detector) -> None:
    service = Service("toy", detector)
    futures = service.submit([encoded(seed) for seed in range(20)])
    service.close()
    service.close()
    assert all(isinstance(future.result(0), Prediction) for future in futures)
    with pytest.raises(DeviceError, match="ending"):
        service.submit([encoded(1)])


def test_a_detector_judges_a_few_images_together(detector: Detector) -> None:
    images = [dark_image(1), spotted_image(2), dark_image(3, 50)]
    together = detector.predict_together([images[0], "missing.png", *images[1:]])
    assert isinstance(together[1], InputError)
    del together[1]
    for image, result in zip(images, together, strict=True):
        alone = detector.predict(image)
        assert isinstance(result, Prediction)
        assert (result.score, result.is_anomalous) == (alone.score, alone.is_anomalous)
    assert detector.predict_together([]) == []
    detector.backend.max_batch = 2
    with pytest.raises(UsageError, match="at most 2"):
        detector.predict_together(images)
