"""Whether a bundle gives here what it is known to give: the comparison, the Detector, `verify`, and older bundles."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile_bundles import as_second_schema, hostile_bundle
from tests.tiny_bundles import TARGETS, dark_image, make_bundle, toy_references, write_image
from vae_edge import Bundle, BundleError, Detector, ParityError
from vae_edge.agreement import Outputs
from vae_edge.manifest import MANIFEST_FILE, NEVER_VERIFIED, SCHEMA_VERSION
from vae_edge.platform.machine import Machine, look_at_machine
from vae_edge.reference_file import REFERENCES_FILE, BlockOutputs, ReferencesRecord
from vae_edge.references import FP16_TOLERANCE, SATURATING_TOLERANCE, ReferenceCheck, compare
from vae_edge.targets import Precision, Target

Run = Callable[..., tuple[int, str, str]]


def own_of(record: ReferencesRecord, **changes: Any) -> ReferencesRecord:
    assert record.own is not None
    return record.model_copy(update={"own": record.own.model_copy(update=changes)})


def compared(change: Callable[[Outputs], Outputs], *, device: str = "cpu", **changes: Any) -> ReferenceCheck:
    """Compare the toy's outputs, changed, with its references."""
    whole = toy_references()
    assert whole.outputs is not None
    record = whole.record.model_copy(update=changes)
    return compare(
        record,
        whole.file,
        change(whole.outputs),
        precision=Precision.FP32,
        ran_on="a test",
        device=device,
        machine=look_at_machine(),
    )


def times(factor: float) -> Callable[[Outputs], Outputs]:
    return lambda found: Outputs(found.maps * factor, (found.scores * factor).astype(np.float32))


def test_the_same_outputs_agree_and_each_measure_has_a_line() -> None:
    check = compared(lambda found: found)
    assert check.agrees
    assert check.disagreement() is None
    check.require("toy")
    assert [line.partition(":")[0] for line in check.lines()] == [
        "verdicts",
        "scores from the trained model's",
        "maps from the trained model's",
        "scores from its own at export (NumPy on cpu)",
        "maps from its own at export (NumPy on cpu)",
    ]
    assert check.lines()[0] == "verdicts: 6 of 6 are the trained model's"


@pytest.mark.parametrize(("factor", "agrees"), [(1.0001, True), (1.0004, False), (0.998, False)])
def test_a_drift_beyond_a_tolerance_is_a_disagreement(factor: float, agrees: bool) -> None:
    check = compared(times(factor))
    assert check.agrees is agrees
    assert check.flipped == ()
    if not agrees:
        with pytest.raises(
            ParityError, match=r"toy does not give its reference outputs with a test: .*at most 0\.02 %"
        ):
            check.require("toy")


def test_one_dark_block_of_one_picture_is_enough() -> None:
    def spoil(found: Outputs) -> Outputs:
        maps = found.maps.copy()
        maps[0, 3, 4] = 0
        return Outputs(maps, found.scores)

    check = compared(spoil)
    assert [measure.holds for measure in check.measures] == [True, False, True, False]
    assert "maps from the trained model's: " in str(check.disagreement())


def test_differences_are_relative_to_each_picture() -> None:
    """A good part's score is a fifth of the defect's here: next to that it would move by little."""

    def spoil(found: Outputs) -> Outputs:
        scores = found.scores.copy()
        dark = int(np.argmin(scores))
        scores[dark] += 0.0015 * max(float(scores[dark]), toy_references().record.trained_threshold)
        return Outputs(found.maps, scores)

    check = compared(spoil)
    assert check.measures[0].share == pytest.approx(0.0015, rel=1e-3)
    assert not check.agrees


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["scores", "maps"])
def test_what_is_not_finite_never_agrees(broken: float, what: str) -> None:
    def spoil(found: Outputs) -> Outputs:
        values = {"maps": found.maps.copy(), "scores": found.scores.copy()}
        values[what].reshape(6, -1)[2, 0] = broken
        return Outputs(**values)

    assert not compared(spoil, score_tolerance=1.0, map_tolerance=1.0, own=None).agrees


def test_a_verdict_counts_as_another_one_only_away_from_the_threshold() -> None:
    whole = toy_references()
    assert whole.file.trained is not None
    first = float(whole.file.trained.scores[0])

    def across(found: Outputs) -> Outputs:
        scores = found.scores.copy()
        scores[0] = first * 1.002  # From just below the threshold to just above it.
        return Outputs(found.maps, scores)

    near: dict[str, Any] = {"trained_threshold": first * 1.001, "image_threshold": first * 1.001, "own": None}
    assert compared(across, score_tolerance=0.01, **near).flipped == ()
    assert compared(across, score_tolerance=0.0005, **near).flipped == (0,)


def test_own_outputs_count_on_the_same_kind_of_device_alone() -> None:
    assert not compared(times(1.0004)).agrees
    assert compared(times(1.0004), device="cuda:0").agrees
    assert not compared(times(1.002), device="cuda:0").agrees


@pytest.mark.parametrize(("architecture", "agrees"), [(None, False), (platform.machine(), False), ("pdp11", True)])
def test_own_outputs_in_fp16_count_on_the_same_kind_of_processor_alone(architecture: str | None, agrees: bool) -> None:
    whole = toy_references(precision=Precision.FP16)
    assert whole.outputs is not None
    assert whole.record.own is not None
    assert whole.record.own.architecture == platform.machine()
    record = own_of(whole.record, architecture=architecture)
    check = compare(
        record,
        whole.file,
        times(1.005)(whole.outputs),
        precision=Precision.FP16,
        ran_on="a test",
        device="cpu",
        machine=look_at_machine(),
    )
    assert check.agrees is agrees


def test_an_npu_computes_in_half_precision() -> None:
    assert compared(times(1 + FP16_TOLERANCE * 0.9), device="npu").agrees
    assert not compared(times(1 + FP16_TOLERANCE * 1.1), device="npu").agrees


AMX, VNNI, NEITHER, ARM = (
    replace(look_at_machine(), architecture=architecture, processor_flags=flags)
    for architecture, flags in (
        ("x86_64", ("avx2", "avx512f", "avx512_vnni", "amx_int8")),
        ("x86_64", ("avx2", "avx512f", "avx512_vnni")),
        ("x86_64", ("avx2", "avx512f")),
        ("aarch64", ("asimd", "asimddp")),
    )
)


def compared_in_int8(
    change: Callable[[Outputs], Outputs],
    *,
    off: float = 0.0,
    precision: Precision = Precision.INT8,
    here: Machine = VNNI,
    **own: Any,
) -> ReferenceCheck:
    """Compare the toy's outputs, changed, with its references, as if INT8 was off by a share in each picture."""
    whole = toy_references(precision=Precision.INT8)
    assert whole.outputs is not None
    assert whole.file.trained is not None
    trained = BlockOutputs(
        whole.file.trained.scores * np.float32(1 + off), whole.file.trained.maps * np.float16(1 + off)
    )
    file = replace(whole.file, trained=trained)
    own = {"int8_arithmetic": "AMX", **own}
    record = own_of(whole.record, **own).model_copy(update={"score_tolerance": 0.1, "map_tolerance": 0.1})
    outputs = change(whole.outputs)
    return compare(
        record,
        file,
        outputs,
        precision=precision,
        ran_on="a test",
        device="cpu",
        machine=here,
    )


def moves(n_pictures: int, factor: float) -> Callable[[Outputs], Outputs]:
    """Move scores and maps of the first pictures, as a value that is rounded to another level does."""

    def change(found: Outputs) -> Outputs:
        factors = np.where(np.arange(len(found.scores)) < n_pictures, factor, 1.0)
        return Outputs(found.maps * factors[:, None, None], (found.scores * factors).astype(np.float32))

    return change


@pytest.mark.parametrize(
    ("n_pictures", "factor", "agrees"),
    [
        (1, 1.09, True),  # By as much as INT8 may be off, and no other moves: a value went to another level.
        (3, 1.09, True),
        (4, 1.09, False),  # Most of them: the model is another one.
        (1, 1.11, False),  # By more than INT8 may be off.
        (6, 1.004, True),
        (6, 1.006, False),  # By little, and all of them: the model is another one.
    ],
)
def test_int8_may_round_a_few_pictures_to_other_levels_and_not_most(
    n_pictures: int, factor: float, agrees: bool
) -> None:
    check = compared_in_int8(moves(n_pictures, factor))
    assert check.agrees is agrees
    assert [measure.what for measure in check.measures[2:]] == [
        "scores from its own at export (NumPy on cpu), of half the pictures",
        "maps from its own at export (NumPy on cpu), of half the pictures",
    ]


@pytest.mark.parametrize(("factor", "agrees"), [(1.015, True), (1.025, False)])
def test_where_int8_is_off_by_more_half_of_the_pictures_may_be_too(factor: float, agrees: bool) -> None:
    check = compared_in_int8(moves(6, factor), off=0.04)
    assert check.agrees is agrees
    assert [measure.allowed for measure in check.measures] == pytest.approx([0.1, 0.1, 0.02, 0.02], rel=0.1)


@pytest.mark.parametrize(
    ("own", "here", "every_picture"),
    [
        ({"int8_arithmetic": "x86"}, VNNI, True),
        ({"int8_arithmetic": "x86"}, NEITHER, True),
        ({"int8_arithmetic": "x86"}, replace(AMX, architecture="AMD64"), True),  # As Windows calls it.
        ({"int8_arithmetic": "x86"}, replace(VNNI, processor_flags=()), False),  # Without AVX2, or not known.
        ({"int8_arithmetic": "x86"}, ARM, False),
        ({"int8_arithmetic": "aarch64"}, ARM, True),
        ({"int8_arithmetic": "AMX"}, VNNI, False),  # Of an earlier version, as are those that follow.
        ({"int8_arithmetic": "AMX"}, AMX, True),
        ({"int8_arithmetic": None}, AMX, False),
        ({"int8_arithmetic": None}, ARM, False),
        ({"runtime": "ONNX Runtime 1.32.0"}, VNNI, True),  # It rounds alike everywhere.
        ({"runtime": "ONNX Runtime 1.32.0", "int8_arithmetic": None}, ARM, True),
        ({"runtime": "OpenVINO 2026.4.1"}, VNNI, False),
    ],
)
def test_where_int8_is_rounded_alike_each_picture_counts(
    own: dict[str, Any], here: Machine, every_picture: bool
) -> None:
    assert compared_in_int8(moves(1, 1.006), here=here, **own).agrees is not every_picture
    assert compared_in_int8(moves(6, 1.004), here=here, **own).agrees


@pytest.mark.parametrize(
    ("architecture", "flags", "name"),
    [
        ("x86_64", ("avx2", "avx512_vnni", "amx_int8"), "AMX"),
        ("x86_64", ("avx2", "avx_vnni"), "VNNI"),
        ("AMD64", ("avx2",), "sums in 16 bits"),
        ("aarch64", ("asimddp",), "aarch64"),
    ],
)
def test_what_int8_is_computed_with(architecture: str, flags: tuple[str, ...], name: str) -> None:
    machine = replace(look_at_machine(), architecture=architecture, processor_flags=flags)
    assert machine.int8_arithmetic == name


def test_other_precisions_have_no_levels_to_round_to() -> None:
    assert not compared_in_int8(moves(1, 1.006), precision=Precision.FP16).agrees
    assert not compared_in_int8(moves(1, 1.006), precision=Precision.FP32).agrees


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_one_picture_never_agrees_in_int8(broken: float) -> None:
    for spoilt in (moves(1, broken), lambda found: Outputs(moves(1, broken)(found).maps, found.scores)):
        with np.errstate(invalid="ignore"):
            assert not compared_in_int8(spoilt).agrees


def test_int8_of_an_earlier_version_has_wider_tolerances_on_a_processor_that_saturates() -> None:
    of_all = times(1 + SATURATING_TOLERANCE * 0.9)
    assert not compared_in_int8(of_all, saturating_sums=False).agrees
    assert compared_in_int8(of_all, saturating_sums=False, here=NEITHER).agrees
    assert compared_in_int8(of_all, saturating_sums=True).agrees
    of_one = moves(1, 1.1 + SATURATING_TOLERANCE * 0.9)
    assert not compared_in_int8(of_one, saturating_sums=False).agrees
    assert compared_in_int8(of_one, saturating_sums=False, here=NEITHER).agrees
    assert not compared_in_int8(moves(1, 1.1 + SATURATING_TOLERANCE * 1.1), saturating_sums=True).agrees


def test_int8_is_the_same_with_all_instructions_of_x86_in_bundles_that_are_exported_now() -> None:
    for here in (AMX, VNNI, NEITHER):
        assert compared_in_int8(moves(6, 1.004), int8_arithmetic="x86", here=here).agrees
        assert not compared_in_int8(moves(1, 1.006), int8_arithmetic="x86", here=here).agrees


@pytest.mark.parametrize("target", TARGETS)
def test_a_whole_bundle_opens_with_a_check(tmp_path: Path, target: Target) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(str(target), str(target)))
    bundle = make_bundle(tmp_path / "toy", target)
    with Detector.open(bundle, device="cpu", check=True) as detector:
        check = detector.check_references()
        assert check.agrees
        assert check.n_images == 6
        assert check.ran_on == f"{detector.backend.version} on cpu"


def other_model(bundle: Bundle, out: Path) -> Path:
    """A bundle whose toy looks at red twice as much, and whose hashes are right."""
    from onnx import load_from_string, numpy_helper

    def change(content: bytes) -> bytes:
        model = load_from_string(content)
        kernel = next(each for each in model.graph.initializer if each.name == "kernel")
        values = numpy_helper.to_array(kernel).copy()
        values[:, 0] *= 1.05
        kernel.CopyFrom(numpy_helper.from_array(values, "kernel"))
        return bytes(model.SerializeToString())

    return hostile_bundle(bundle, out, files={"model.onnx": change})


def test_another_model_is_refused_where_a_check_is_asked_for(onnx_bundle: Bundle, tmp_path: Path) -> None:
    folder = other_model(onnx_bundle, tmp_path / "other")
    Detector.open(folder).close()
    with pytest.raises(ParityError, match=r"other does not give its reference outputs with ONNX Runtime"):
        Detector.open(folder, check=True)
    with Detector.open(folder) as detector:
        assert not detector.check_references().agrees
        before = (folder / MANIFEST_FILE).read_bytes()
        with pytest.raises(ParityError):
            detector.refit_thresholds([dark_image(0)])
    assert (folder / MANIFEST_FILE).read_bytes() == before


def test_without_a_check_the_file_is_not_read(onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(onnx_bundle.folder, check_files=False)
    (bundle.folder / REFERENCES_FILE).chmod(0)
    monkeypatch.setitem(sys.modules, "vae_edge.references", None)
    with Detector.open(bundle) as detector:
        detector.predict(dark_image(0))


def test_verify_needs_no_data_and_prints_a_line_for_each_measure(command: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle = make_bundle(tmp_path / "toy", verified=False)
    code, out, err = command("verify", bundle.folder)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("References: 6 dark and spotted noise; run with ONNX Runtime")
    assert lines[1] == "  verdicts: 6 of 6 are the trained model's"
    assert sum("(at most " in line for line in lines) == 4
    manifest = Bundle.open(bundle.folder).manifest
    assert manifest.verified
    assert str(manifest.verified_by).startswith("ONNX Runtime")
    assert manifest.not_verified_because is None
    assert manifest.thresholds == bundle.manifest.thresholds
    before = (bundle.folder / MANIFEST_FILE).stat().st_mtime_ns
    assert command("verify", bundle.folder)[0] == 0
    assert (bundle.folder / MANIFEST_FILE).stat().st_mtime_ns == before  # Nothing new to write.


def test_verify_withdraws_what_another_model_no_longer_deserves(
    command: Run, onnx_bundle: Bundle, tmp_path: Path
) -> None:
    folder = other_model(onnx_bundle, tmp_path / "other")
    assert Bundle.open(folder).manifest.verified
    write_image(tmp_path / "normals" / "0.png", dark_image(0))
    for arguments in ((), ("--data", tmp_path / "normals")):
        code, out, err = command("verify", folder, *arguments)
        assert code == 3
        assert "error: " in err
        assert "does not give its reference outputs" in err
        assert "image threshold" not in out
        manifest = Bundle.open(folder).manifest
        assert not manifest.verified
        assert "did not give its reference outputs" in str(manifest.not_verified_because)
        assert manifest.thresholds == onnx_bundle.manifest.thresholds
    code, out, err = command("inspect", folder)
    assert code == 0
    assert "did not give its reference outputs" in " ".join(err.split())


@pytest.mark.parametrize(
    "option", [["--false-alarm-rate", 0.1], ["--abnormal", "bad"], ["--method", "f1-optimal"], ["--recursive"]]
)
def test_options_of_a_fit_are_refused_without_data(command: Run, onnx_bundle: Bundle, option: list[object]) -> None:
    code, _, err = command("verify", onnx_bundle.folder, *option)
    assert code == 2
    assert "--data" in err or "--abnormal" in err


def test_inspect_shows_the_references(command: Run, onnx_bundle: Bundle) -> None:
    _, out, _ = command("inspect", onnx_bundle.folder)
    text = " ".join(out.split())
    assert "6 pictures" in text
    assert "they show no part" in text
    assert "scores within 0.100%, maps within 0.100% of NumPy" in text
    assert "of its own at export, NumPy on cpu" in text


class TestOlderBundles:
    def test_one_of_the_second_schema_opens_and_is_never_verified(
        self, command: Run, onnx_bundle: Bundle, tmp_path: Path
    ) -> None:
        folder = hostile_bundle(onnx_bundle, tmp_path / "old", manifest=as_second_schema)
        manifest = Bundle.open(folder).manifest
        assert (manifest.verified, manifest.not_verified_because) == (False, NEVER_VERIFIED[2])
        with Detector.open(folder) as detector:
            detector.predict(dark_image(0))
        write_image(tmp_path / "normals" / "0.png", dark_image(0))
        code, out, err = command("verify", folder, "--data", tmp_path / "normals")
        assert code == 0
        assert " ".join(err.split()).count(NEVER_VERIFIED[2]) == 1
        assert "is verified now" not in " ".join(out.split())
        assert Bundle.open(folder).manifest.schema_version == 2
        assert not Bundle.open(folder).manifest.verified

    def test_there_is_nothing_to_check(self, command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
        folder = hostile_bundle(onnx_bundle, tmp_path / "old", manifest=as_second_schema)
        code, _, err = command("verify", folder)
        assert code == 1
        assert "has no references (its manifest has schema 2): export it again" in " ".join(err.split())
        with pytest.raises(BundleError, match="has no references"):
            Detector.open(folder, check=True)

    @pytest.mark.parametrize("version", ["0.3.0", "0.3.0.dev1", "0.10.0", "1.0.0", "0.20", ""])
    def test_a_later_one_that_was_stripped_down_is_refused(
        self, onnx_bundle: Bundle, tmp_path: Path, version: str
    ) -> None:
        def strip(content: dict[str, Any]) -> None:
            as_second_schema(content)
            content["provenance"]["vae_edge_version"] = version

        with pytest.raises(
            BundleError, match=r"was changed: it has schema 2 but was written by vae-edge .* with a later"
        ):
            Bundle.open(hostile_bundle(onnx_bundle, tmp_path / "out", manifest=strip))


def update(path: tuple[str, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("references"), "its references are missing"),
        (update(("references",), None), "its references are missing"),
        (lambda content: content["files"].pop(), r"references\.safetensors, are missing"),
        (update(("references", "file"), "model.onnx"), r"references\.safetensors, are missing"),
        (update(("references", "file"), "../x"), r"references\.file"),
        (update(("references", "n_images"), 5), r"references\.n_images"),
        (update(("references", "n_images"), 33), r"references\.n_images"),
        (update(("references", "n_picture_bytes"), 2**40), r"references\.n_picture_bytes"),
        (update(("references", "score_tolerance"), 0.002), "exceeds that of FP32"),
        (update(("references", "map_tolerance"), 1e30), r"references\.map_tolerance"),
        (update(("references", "map_scale"), 0), r"references\.map_scale"),
        (update(("references", "more"), 1), r"references\.more"),
        (update(("schema_version",), 2), "schema 2 has no references"),
        (update(("schema_version",), SCHEMA_VERSION + 1), "pip install --upgrade"),
    ],
)
def test_a_manifest_that_says_something_else_of_them_is_refused(
    onnx_bundle: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(hostile_bundle(onnx_bundle, tmp_path / "out", manifest=change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (update(("references", "n_images"), 7), "its record says"),
        (update(("references", "n_picture_bytes"), 100), "its record says"),
        (update(("references", "own"), None), "its record says"),
    ],
)
def test_a_file_that_does_not_fit_its_manifest_is_one_clear_sentence(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = hostile_bundle(onnx_bundle, tmp_path / "out", manifest=change)
    with pytest.raises(BundleError, match=message):
        Detector.open(folder, check=True)
    code, _, err = command("verify", folder)
    assert code == 1
    assert err.count("error: ") == 1


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_file_that_is_gone_or_changed_is_named(onnx_bundle: Bundle, tmp_path: Path) -> None:
    spoilers: list[Callable[[Path], None]] = [Path.unlink, _cut]
    for number, spoil in enumerate(spoilers):
        folder = shutil.copytree(onnx_bundle.folder, tmp_path / str(number))
        spoil(folder / REFERENCES_FILE)
        with pytest.raises(BundleError, match=r"references\.safetensors (is missing|was changed)"):
            Bundle.open(folder)


def test_a_file_that_changes_after_the_bundle_was_opened_is_noticed(onnx_bundle: Bundle) -> None:
    whole = toy_references()
    assert whole.file.trained is not None
    with Detector.open(onnx_bundle) as detector:
        scores = whole.file.trained.scores * np.float32(2)
        replace(whole.file, trained=replace(whole.file.trained, scores=scores)).write(
            onnx_bundle.folder / REFERENCES_FILE
        )
        with pytest.raises(BundleError, match="was replaced or changed since it was opened"):
            detector.check_references()
