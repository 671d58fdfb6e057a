"""Whether a picture is fit to be judged: measures, learnt ranges, the stated rate, and what a detector says."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny_bundles import dark_image, make_bundle, spotted_image, toy_gate, write_image
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import BundleError
from vae_edge.gate import GateRecord
from vae_edge.gate_fitting import MIN_NORMALS, fit_gate, tail_limit
from vae_edge.gate_measures import MEASURES, PLACE_SIDE, Look, MeanPicture, measure_picture
from vae_edge.manifest import MANIFEST_FILE, manifest_digest
from vae_edge.sinks.lines import COLUMNS

_NAMES = [measure.name for measure in MEASURES]


def _picture(seed: int = 0) -> NDArray[np.uint8]:
    """Blobs of some 4 pixels, with little noise: uint8 [200, 240, 3]."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.normal(0, 1, (200, 240)), (0, 0), 1.5)
    grey = 110 + 40 * blobs / blobs.std() + rng.normal(0, 1, blobs.shape)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _values(image: NDArray[np.uint8]) -> dict[str, float]:
    return dict(zip(_NAMES, measure_picture(image).values, strict=False))


def _random_look(rng: np.random.Generator) -> Look:
    values = np.exp(rng.normal(0, 0.2, len(MEASURES) - 2)) * np.array([100, 30, 0.01, 0.01, 0.3, 20, 0.6, 1.3, 5, 0.4])
    return Look(tuple(map(float, values)), np.zeros((PLACE_SIDE, PLACE_SIDE), dtype=np.uint8))


def _gate(*args: Any, **kwargs: Any) -> GateRecord:
    gate = fit_gate(*args, **kwargs)
    assert gate is not None
    return gate


def test_sharpness_depends_on_blur_and_hardly_on_light() -> None:
    sharp = _values(_picture())
    darker = _values((_picture() * 0.6).astype(np.uint8))
    blurred = _values(cv2.GaussianBlur(_picture(), (0, 0), 5).astype(np.uint8))
    assert darker["sharpness"] == pytest.approx(sharp["sharpness"], rel=0.1)
    assert darker["brightness"] == pytest.approx(0.6 * sharp["brightness"], rel=0.02)
    assert blurred["sharpness"] < 0.6 * sharp["sharpness"]


def test_clipped_shares_and_regions_say_what_is_covered() -> None:
    covered = _picture()
    covered[:, :120] = 0
    found = _values(covered)
    assert found["black"] == pytest.approx(0.5, abs=0.01)
    assert found["darkest"] == found["plainest"] == 0
    covered[:, :120] = 255
    assert _values(covered)["white"] == pytest.approx(0.5, abs=0.01)


def test_displacement_is_the_shift_as_a_share_of_the_side() -> None:
    place = measure_picture(_picture()).place
    mean = MeanPicture(place)
    assert mean.compare(place) == pytest.approx((0, 1), abs=1e-5)
    shift, likeness = mean.compare(np.roll(place, (3, 4), axis=(0, 1)))
    assert shift == pytest.approx(5 / PLACE_SIDE, abs=0.01)
    assert likeness < 0.7
    assert mean.compare(place) == pytest.approx((0, 1), abs=1e-5)  # Nothing of it was overwritten.


def test_likeness_is_the_correlation_coefficient() -> None:
    places = [measure_picture(_picture(seed)).place for seed in (0, 1)]
    half_covered = places[0].copy()
    half_covered[:32] = 20
    even = np.full_like(half_covered, 20)
    for place in (*places, half_covered, 255 - places[0]):
        expected = np.corrcoef(places[0].ravel(), place.ravel())[0, 1]
        found = MeanPicture(places[0]).likeness(place)
        assert found == pytest.approx(expected, abs=1e-9)
        light = float(place.mean()), float(place.std())
        assert MeanPicture(places[0]).likeness(place, light) == pytest.approx(found, abs=1e-9)
    assert MeanPicture(places[0]).likeness(even) == pytest.approx(0, abs=1e-6)


def test_a_displacement_is_looked_for_only_in_the_pictures_least_like_the_mean() -> None:
    rng = np.random.default_rng(0)
    part = measure_picture(_picture())
    parts = []
    for _ in range(60):
        noisy = part.place + rng.normal(0, rng.uniform(1, 20), part.place.shape)
        parts.append(part._replace(place=np.clip(noisy, 0, 255).astype(np.uint8)))
    gate = _gate(parts, is_aligned=True)
    below = gate.displaced_below
    assert below is not None
    assert gate.mean_picture is not None
    mean = MeanPicture(
        np.frombuffer(base64.b64decode(gate.mean_picture), np.uint8).reshape(PLACE_SIDE, PLACE_SIDE), below
    )
    compared = [mean.compare(each.place) for each in parts]
    assert 0.02 < np.mean([likeness < below for _, likeness in compared]) < 0.25
    assert all(displacement == 0 for displacement, likeness in compared if likeness >= below)
    assert gate.problems(part) == ()
    moved = part._replace(place=np.roll(part.place, (3, 4), axis=(0, 1)))
    assert any(each.startswith("displaced: shift from the mean of good parts 7.8 %") for each in gate.problems(moved))


def test_a_region_that_shows_only_noise_is_told_from_what_is_in_focus() -> None:
    seen = _picture()[:128, :128]
    covered = seen.copy()
    covered[:, :40] = np.rint(110 + np.random.default_rng(1).normal(0, 1, (128, 40, 1)))
    assert _values(covered)["noisiest"] > 1.5 * _values(seen)["noisiest"]
    assert _values(covered)["plainest"] < 0.7 * _values(seen)["plainest"]


@pytest.mark.parametrize(("n", "rate"), [(60, 0.05), (240, 0.01), (600, 0.05)])
def test_the_rate_holds_for_all_measures_together_where_it_is_proven(n: int, rate: float) -> None:
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gate = _gate([_random_look(rng) for _ in range(n)], is_aligned=False, rejection_rate=rate, seed=seed)
        assert gate.rejection_rate <= rate
        shares.append(np.mean([bool(gate.problems(_random_look(rng))) for _ in range(100)]))
    # Standard deviation of the mean: that of the fresh looks and of the held-out ones.
    assert np.mean(shares) <= rate + 3 * np.sqrt(rate / 2000 + rate / (20 * n / 2))
    assert np.mean(shares) > 0.2 * rate  # A gate that lets everything pass would hold every rate.


def test_few_normals_support_only_a_higher_rate_and_the_ranges_are_extended() -> None:
    rng = np.random.default_rng(0)
    looks = [_random_look(rng) for _ in range(40)]
    gate, proven = (_gate(looks, is_aligned=False, rejection_rate=rate) for rate in (0.001, 0.1))
    assert gate.n_normals == gate.n_fitted == 20
    assert gate.rejection_rate == pytest.approx(1 / 21)
    assert "without a proof" in gate.promise
    assert "without a proof" not in proven.promise
    assert all((a.low or 0) <= (b.low or 0) for a, b in zip(gate.ranges, proven.ranges, strict=True))
    assert np.mean([bool(gate.problems(_random_look(rng))) for _ in range(1000)]) < 0.01
    assert fit_gate(looks[: MIN_NORMALS - 1], is_aligned=False) is None


def test_the_tail_of_exponential_deviations_is_found_with_a_margin() -> None:
    limits = [tail_limit(np.random.default_rng(seed).exponential(1, 200), 0.001) for seed in range(40)]
    exact = np.log(1000)
    assert exact < np.mean(limits) < 1.6 * exact
    assert np.mean(np.array(limits) > exact) > 0.8


def test_the_sentence_names_the_measure_its_value_and_what_is_expected() -> None:
    gate = _gate([measure_picture(_picture(seed)) for seed in range(60)], is_aligned=False)
    assert gate.problems(measure_picture(_picture(1000))) == ()
    blurred = cv2.GaussianBlur(_picture(1000), (0, 0), 8).astype(np.uint8)
    said = [sentence for sentence in gate.problems(measure_picture(blurred)) if sentence.startswith("blurred")]
    expected = gate.ranges[_NAMES.index("sharpness")]
    assert said == [f"blurred: sharpness {_values(blurred)['sharpness']:.3g}, expected {expected.expected()}"]
    assert any("white" in each for each in gate.problems(measure_picture(np.full((9, 9, 3), 255, dtype=np.uint8))))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"mean_picture": "AAAA"}, "3 values; expected 4096"),
        ({"mean_picture": "*"}, "not Base64"),
        ({"ranges": []}, "the ranges are those of nothing"),
        ({"ranges": [{"measure": "taste", "low": 1.0}]}, "there is no measure 'taste'"),
        ({"ranges": [{"measure": "contrast", "low": 2.0, "high": 1.0}]}, "expected the smaller first"),
        ({"rejection_rate": 0}, "greater than 0"),
    ],
)
def test_a_damaged_gate_is_refused_with_its_bundle(tmp_path: Path, damage: dict[str, Any], named: str) -> None:
    bundle = make_bundle(tmp_path / "toy", gate=toy_gate())
    path = bundle.folder / MANIFEST_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    content["gate"] |= damage
    content["digest"] = manifest_digest(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=named):
        Bundle.open(bundle.folder)


def test_a_detector_says_what_is_not_inspectable_by_every_way(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy", gate=toy_gate())
    grey = np.full((32, 32, 3), 40, dtype=np.uint8)
    images = [dark_image(5000), grey, spotted_image(1)]
    with Detector.open(bundle) as detector:
        one, many = [detector.predict(image) for image in images], list(detector.stream(images))
        assert [each.verdict for each in one] == [each.verdict for each in many]
        assert one[0].inspectable
        assert one[0].verdict == "normal"
        assert not one[1].is_anomalous
        assert one[1].verdict == "not inspectable"
        assert any(each.startswith("too little contrast: contrast 0 of 255") for each in one[1].not_inspectable_because)
        assert one[1].overlay(grey).shape == grey.shape
    with Detector.open(bundle, gate=False) as detector:
        assert detector.gate is None
        assert [detector.predict(image).verdict for image in images] == ["normal", "normal", "anomalous"]
    with Detector.open(make_bundle(tmp_path / "older")) as detector:
        assert detector.predict(grey).inspectable


def test_a_refit_learns_the_gate_of_the_device_and_keeps_it_where_normals_are_few(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy", gate=toy_gate())
    brighter = [dark_image(seed) + np.uint8(100) for seed in range(60)]
    with Detector.open(bundle) as detector:
        assert not detector.predict(brighter[0]).inspectable
        detector.refit_thresholds(brighter[:9])
        assert detector.gate == toy_gate()
        refit = detector.refit_thresholds(brighter)
        assert detector.predict(brighter[0]).inspectable
    gate = Bundle.open(bundle.folder).manifest.gate
    assert gate is not None
    assert gate == refit.bundle.manifest.gate
    assert gate.n_normals == 30
    with Detector.open(make_bundle(tmp_path / "older")) as detector:
        detector.refit_thresholds(brighter)
        assert detector.gate is not None
        assert not detector.predict(dark_image(0)).inspectable


@pytest.mark.parametrize("version", [None, 3])
def test_a_gate_of_other_measures_turns_no_picture_away_and_says_so_until_it_is_learnt_again(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, version: int | None
) -> None:
    bundle = make_bundle(tmp_path / "toy", gate=toy_gate())
    path = bundle.folder / MANIFEST_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    content["gate"]["measures_version"] = version
    content["gate"]["ranges"] = [{"measure": "taste", "low": 7.0}]
    if version is None:  # As the first ones, which had no number.
        del content["gate"]["measures_version"], content["gate"]["displaced_below"]
    content["digest"] = manifest_digest(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    grey = write_image(tmp_path / "in/grey.png", np.full((32, 32, 3), 40, dtype=np.uint8))
    code, lines, said = command("run", bundle.folder, grey)
    assert (code, json.loads(lines)["verdict"]) == (0, "normal")
    again = f"vae-edge verify {bundle.folder} --data NORMALS"
    assert "another version of vae-edge, so every picture is judged" in " ".join(said.split())
    assert again.replace(" ", "") in "".join(said.split())
    assert "never: the gate is of another version" in " ".join(command("inspect", bundle.folder)[1].split())
    with Detector.open(bundle.folder) as detector:
        assert detector.predict(grey).inspectable
        detector.refit_thresholds([dark_image(seed) for seed in range(60)])
        assert not detector.predict(grey).inspectable


def test_the_lines_have_the_verdict_at_the_end() -> None:
    assert COLUMNS[-2:] == ("verdict", "not_inspectable_because")


def test_a_run_writes_counts_and_draws_what_is_not_inspectable(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "toy", gate=toy_gate())
    for name, image in (("covered", np.full((32, 32, 3), 40, dtype=np.uint8)), ("good", dark_image(5000))):
        write_image(tmp_path / "in" / f"{name}.png", image)
    out = tmp_path / "out"
    code, _, said = command("run", bundle.folder, tmp_path / "in", "--out", out, "--format", "jsonl,csv")
    covered, good = (json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines())
    assert code == 0
    assert (covered["verdict"], good["verdict"]) == ("not inspectable", "normal")
    assert covered["is_anomalous"] is False
    assert covered["not_inspectable_because"][0].startswith("too little contrast")
    assert "not_inspectable_because" not in good
    assert covered["overlay"] == "overlays/in-covered.jpg"
    assert 'not inspectable,"too little contrast' in (out / "predictions.csv").read_text()
    assert re.search(r"^ *not inspectable +1 *$", said, re.MULTILINE)
    assert toy_gate().promise in " ".join(said.split())
    code, lines, _ = command("run", bundle.folder, tmp_path / "in", "--no-gate")
    assert [json.loads(line)["verdict"] for line in lines.splitlines()] == ["normal", "normal"]
    older = make_bundle(tmp_path / "older")
    code, _, said = command("run", older.folder, tmp_path / "in", "--no-gate")
    assert code == 2
    assert "this one has none" in said
    assert "never: there is no gate" in " ".join(command("inspect", older.folder)[1].split())
    assert "contrast" in command("inspect", bundle.folder)[1]
