from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from vae_edge.drift import DriftMonitor
from vae_edge.errors import InputError
from vae_edge.prediction import Prediction
from vae_edge.serve.page import LARGE_PX, MOST_ANOMALIES, MOST_LATENCIES, SMALL_PX, Page
from vae_edge.serve.service import Judged

NOW = 1_800_000_000.25
IMAGE = np.full((600, 1200, 3), 90, np.uint8)
NORMAL = Prediction(0.2, 0.5, 0.7, False, np.zeros((8, 8), np.float32), 0.5)
ANOMALOUS = replace(NORMAL, score=0.9, p_value=0.01, is_anomalous=True, anomaly_map=np.ones((8, 8), np.float32))
BLURRED = replace(NORMAL, not_inspectable_because=("blurred: sharpness 0.2, expected 0.8 to 1.3",))


def judged(result: Any = NORMAL, *, latency_s: float = 0.01, name: str = "a", image: Any = IMAGE) -> Judged:
    return Judged(name, None if isinstance(result, Exception) else image, result, latency_s)


def wait_for(condition: Callable[[], Any]) -> Any:
    ends = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.005)
    return found


def test_verdicts_are_counted_by_bundle_and_latencies_are_of_the_last_thousand() -> None:
    with Page(["a", "b"], interval_s=0) as page:
        assert page.state()["bundles"]["a"]["p50_s"] is None
        for _ in range(50):
            page.watch(judged(latency_s=9.0))
        for number in range(MOST_LATENCIES):
            page.watch(judged(latency_s=number / 1000))
        for result in (ANOMALOUS, BLURRED, InputError("broken"), InputError("broken")):
            page.watch(judged(result, name="b"))
        found = page.state()["bundles"]
    assert found["a"]["counts"] == {"normal": 1050, "anomalous": 0, "not inspectable": 0, "error": 0}
    assert found["b"]["counts"] == {"normal": 0, "anomalous": 1, "not inspectable": 1, "error": 2}
    assert found["a"]["p50_s"] == pytest.approx(0.4995)
    assert found["a"]["p99_s"] == pytest.approx(0.989, abs=1e-3)


def test_the_rate_is_of_the_last_ten_whole_seconds() -> None:
    now = [NOW]
    with Page(["a"], clock=lambda: now[0], interval_s=0) as page:
        for second in range(30):
            now[0] = NOW + second
            for _ in range(second):
                page.watch(judged())
        assert page.state()["rates"] == {"a": sum(range(19, 29)) / 10}
        now[0] += 11
        assert page.state()["rates"] == {"a": 0}


def test_a_state_has_only_the_bundles_that_changed_since() -> None:
    with Page(["a", "b"], interval_s=0) as page:
        page.watch(judged(InputError("broken"), name="a"))
        version = page.state()["version"]
        assert page.state(version)["bundles"] == {}
        page.watch(judged(InputError("broken"), name="b"))
        assert set(page.state(version)["bundles"]) == {"b"}
        # A version of an earlier start of the server.
        assert set(page.state(10**9)["bundles"]) == {"a", "b"}


def test_the_last_picture_has_its_facts_and_an_overlay_of_bounded_size() -> None:
    with Page(["a"], clock=lambda: NOW, interval_s=0) as page:
        page.watch(judged(BLURRED))
        last = wait_for(lambda: page.state()["bundles"]["a"]["last"])
        data = page.image(last.pop("image"))
        assert page.state()["bundles"]["a"]["anomalies"] == []
        assert page.image(10**6) is None
    assert last == {
        "verdict": "not inspectable",
        "score": 0.2,
        "p_value": 0.5,
        "threshold": 0.7,
        "because": ["blurred: sharpness 0.2, expected 0.8 to 1.3"],
        "time_s": NOW,
    }
    assert data is not None
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert shown.shape == (LARGE_PX // 2, LARGE_PX, 3)


def test_twelve_anomalies_are_kept_and_older_ones_are_forgotten() -> None:
    numbers: list[int] = []
    with Page(["a"], interval_s=0) as page:
        for place in range(MOST_ANOMALIES + 3):
            page.watch(judged(replace(ANOMALOUS, score=1.0 + place)))
            wait_for(lambda: page.state()["bundles"]["a"]["last"])
            wait_for(lambda: page.state()["bundles"]["a"]["last"]["score"] == 1.0 + place)  # noqa: B023 - called here
            numbers.append(page.state()["bundles"]["a"]["anomalies"][0]["image"])
        kept = page.state()["bundles"]["a"]["anomalies"]
        assert [each["image"] for each in kept] == numbers[: -MOST_ANOMALIES - 1 : -1]
        assert all(page.image(number) is None for number in numbers[:3])
        data = page.image(numbers[-1])
    assert data is not None
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert shown.shape == (SMALL_PX // 2, SMALL_PX, 3)


class _Slow(Prediction):
    """A prediction whose overlay waits until it is let go."""

    begun = threading.Event()
    goes_on = threading.Event()
    drawn: list[float] = []  # noqa: RUF012 - a test's own record

    def overlay(self, *given: Any, **options: Any) -> Any:
        self.begun.set()
        assert self.goes_on.wait(20)
        self.drawn.append(self.score)
        return super().overlay(*given, **options)


def test_while_one_is_drawn_the_latest_wins_and_an_anomaly_is_not_lost() -> None:
    def slow(prediction: Prediction, score: float) -> Prediction:
        given = {name: getattr(prediction, name) for name in prediction.__dataclass_fields__}
        return _Slow(**{**given, "score": score})

    with Page(["a"], interval_s=0) as page:
        page.watch(judged(slow(NORMAL, 1)))
        assert _Slow.begun.wait(20)
        begun = time.monotonic()
        for prediction, score in ((NORMAL, 2), (ANOMALOUS, 3), (ANOMALOUS, 4), (NORMAL, 5)):
            page.watch(judged(slow(prediction, score)))
        assert time.monotonic() - begun < 5  # It waits for no drawing.
        assert page.state()["bundles"]["a"]["counts"]["normal"] == 3
        _Slow.goes_on.set()
        wait_for(lambda: page.state()["bundles"]["a"]["anomalies"])
        last, (anomaly,) = (page.state()["bundles"]["a"][name] for name in ("last", "anomalies"))
        assert (last["score"], last["verdict"], anomaly["score"]) == (5, "normal", 4)
    assert _Slow.drawn == [1, 5, 4]


def test_bundles_take_turns() -> None:
    with Page(["a", "b"], interval_s=0.05) as page:
        ends = time.monotonic() + 20
        while not all(page._bundles[name].last for name in "ab"):
            assert time.monotonic() < ends
            for name in "aaab":
                page.watch(judged(name=name))
            time.sleep(0.005)


def test_drawings_keep_their_distance() -> None:
    with Page(["a"], interval_s=60) as page:
        page.watch(judged(replace(NORMAL, score=1.0)))
        wait_for(lambda: page.state()["bundles"]["a"]["last"])
        page.watch(judged(replace(NORMAL, score=2.0)))
        time.sleep(0.2)
        assert page.state()["bundles"]["a"]["last"]["score"] == 1.0
    page.close()


def test_a_drawing_that_fails_ends_nothing() -> None:
    with Page(["a"], interval_s=0) as page:
        page.watch(judged(replace(NORMAL, anomaly_map=np.zeros((0, 0), np.float32))))
        wait_for(lambda: page._bundles["a"].waiting is None)
        page.watch(judged(replace(NORMAL, score=float("nan"))))
        last = wait_for(lambda: page.state()["bundles"]["a"]["last"])
    assert last["score"] is None


def test_the_page_says_in_words_whether_the_process_has_drifted() -> None:
    normals = np.random.default_rng(0).normal(size=200)
    monitor = DriftMonitor.for_scores(normals, seed=1)
    with Page(["a", "b"], interval_s=0) as page:
        page.add("a", has_gate=True, drift=monitor)
        page.add("b", has_gate=False, drift=None)
        found = page.state()["bundles"]
        assert (found["b"]["has_gate"], found["b"]["drift"]) == (False, None)
        assert found["a"]["drift"] == {
            "alarm": False,
            "since_s": None,
            "size": "",
            "evidence": "Evidence 1 after 0 parts; an alarm is at 100, and 0.01 is the chance that it is ever false.",
        }
        began_s = time.time()
        while not monitor.add(3.0 + monitor.n_parts * 1e-6).alarm:
            pass
        drift = page.state()["bundles"]["a"]["drift"]
        assert drift["alarm"] is True
        assert drift["since_s"] == pytest.approx(began_s, abs=60)
        assert drift["size"].startswith("Scores are higher by ")
        assert f"noticed at part {monitor.n_parts}" in drift["size"]
        json.dumps(page.state(), allow_nan=False)
