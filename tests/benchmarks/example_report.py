"""A complete report with invented numbers, for everything that shows one: plausible, the same every time."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.tiny_bundles import example_detectability
from vae_edge.benchmarks.measure.conditions import MachineFacts
from vae_edge.benchmarks.measure.plan import DataRecord, SuiteSettings
from vae_edge.benchmarks.measure.statistics import Interval, Ratio
from vae_edge.benchmarks.report.records.accuracy import (
    AccuracyRecord,
    Comparison,
    CurveRecord,
    Flip,
    ImageExample,
    PromiseRecord,
    ScoreHistogram,
    SimpleMethodRecord,
)
from vae_edge.benchmarks.report.records.report import (
    BundleResult,
    Judgement,
    Objective,
    Recommendation,
    Report,
    Requirement,
    SamplesFile,
)
from vae_edge.benchmarks.report.records.speed import (
    EnergyRecord,
    Histogram,
    LatencyRecord,
    LatencyStatistics,
    LoadRecord,
    MemoryRecord,
    RoundRecord,
    Stage,
    StageRecord,
    StartFigures,
    StartRecord,
    StreamRecord,
    ThroughputRecord,
)
from vae_edge.targets import Precision, Target
from vae_edge.train.run.metrics import DefectMetrics, Metrics

N_ROUNDS = 10
SPEEDS_MS = {
    ("torch", "fp32"): 21.0,
    ("onnx", "fp32"): 14.0,
    ("onnx", "int8"): 9.0,
    ("openvino", "fp32"): 11.0,
    ("openvino", "int8"): 6.0,
}


def example_report() -> Report:
    """Return five bundles that ran and one that did not; the INT8 one of ONNX Runtime flips two images."""
    bundles = [_bundle(Target(target), Precision(precision), ms) for (target, precision), ms in SPEEDS_MS.items()]
    bundles.append(
        BundleResult(
            name="tile-tensorrt-fp16",
            target=Target.TENSORRT,
            precision=Precision.FP16,
            height=128,
            width=128,
            run="tile",
            run_fingerprint="a" * 64,
            size_bytes=3_600_000,
            not_run_because="target tensorrt needs the package 'tensorrt', which is not installed; "
            'run: pip install "vae-edge[tensorrt]"',
        )
    )
    return Report(
        created_utc="2026-11-01T10:00:00+00:00",
        elapsed_s=312.0,
        reproduce="vae-bench BUNDLES --data sample:tile --report REPORT --rounds 10 --load-fps 30 "
        "--require 'image_auroc>=0.9' --require 'p99_ms<=40' --minimize p50_ms",
        settings=SuiteSettings(rounds=N_ROUNDS, load_fps=(30.0, 60.0), requests=(1, 4), batch_sizes=(1, 4)),
        machine=_machine(),
        data=DataRecord(
            source="sample:tile",
            n_timing_images=32,
            timing_image_sizes=("480x640",),
            n_judged=110,
            judged="test images",
            n_test_normal=40,
            n_test_anomalous=70,
            n_with_mask=70,
            notes=("2 images were left out because their files are damaged",),
        ),
        recommendation=_recommendation(),
        baseline="tile-torch-fp32",
        reference_notes=("tile-torch-fp32 is the reference of the training run aaaaaaaa: the FP32 bundle of torch",),
        bundles=tuple(bundles),
        simple_methods=(
            SimpleMethodRecord(
                name="template",
                description="distance of each pixel from the mean of the good parts, in standard deviations; "
                "no network",
                n_train=220,
                height=128,
                width=128,
                metrics=Metrics(
                    n_normal=40, n_anomalous=70, n_with_mask=70, image_auroc=0.71, pixel_auroc=0.83, aupro=0.41
                ),
            ),
        ),
        examples=example_images(),
        warnings=(
            "tile-onnx-fp32: other programs kept 0.4 cores busy in 2 of 10 rounds; stop them and measure again",
            "the processor's frequency governor is powersave: clocks follow the load; set it to performance to "
            "measure the device at its best",
        ),
    )


def write_example_pictures(folder: Path) -> None:
    """Write the files that `example_report().examples` names into `folder/images`."""
    for name, picture in example_pictures().items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)


def example_pictures() -> dict[str, bytes]:
    """Return the pictures by their file names."""
    rng = np.random.default_rng(5)
    grey = rng.integers(90, 110, (96, 128, 3), dtype=np.uint8)
    spot = np.zeros((96, 128), np.uint8)
    cv2.circle(spot, (70, 40), 12, 255, -1)
    heat = cv2.applyColorMap(cv2.GaussianBlur(spot, (31, 31), 0), cv2.COLORMAP_INFERNO)
    found: dict[str, bytes] = {}
    for example in example_images():
        found[example.input_file] = _encoded(grey if example.defect is None else np.maximum(grey, spot[:, :, None]))
        found[example.map_file] = _encoded(np.asarray(heat, dtype=np.uint8))
        found[example.mask_file] = _encoded(spot)
        if example.truth_file is not None:
            found[example.truth_file] = _encoded(spot)
    return found


def example_images() -> tuple[ImageExample, ...]:
    """Return a hit, a miss, a false alarm and a pass for the reference, and a flip for another bundle."""
    cases = (
        ("tile-torch-fp32", "hit", "crack", 5.1, True),
        ("tile-torch-fp32", "miss", "scratch", 2.1, False),
        ("tile-torch-fp32", "false_alarm", None, 3.2, True),
        ("tile-torch-fp32", "pass", None, 1.4, False),
        ("tile-onnx-int8", "flip", "scratch", 2.8, False),
    )
    return tuple(
        ImageExample.model_validate(
            {
                "bundle": bundle,
                "image": f"test/{defect or 'good'}/{number:03}.png",
                "kind": kind,
                "defect": defect,
                "score": score,
                "threshold": 2.9,
                "p_value": 0.0099 if verdict else 0.2,
                "is_anomalous": verdict,
                "input_file": f"{number:03}-input.jpg",
                "map_file": f"{number:03}-map.jpg",
                "mask_file": f"{number:03}-mask.png",
                "truth_file": f"{number:03}-truth.png" if defect else None,
            }
        )
        for number, (bundle, kind, defect, score, verdict) in enumerate(cases)
    )


def _encoded(picture: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".jpg" if picture.ndim == 3 else ".png", picture)
    assert done
    return bytes(data.tobytes())


def _bundle(target: Target, precision: Precision, engine_ms: float) -> BundleResult:
    name = f"tile-{target}-{precision}"
    is_reference = target is Target.TORCH
    speed = engine_ms / SPEEDS_MS["torch", "fp32"]
    flips = 2 if name == "tile-onnx-int8" else 0
    file = _latency(engine_ms + 3.0, name)
    return BundleResult(
        name=name,
        target=target,
        precision=precision,
        height=128,
        width=128,
        run="tile",
        run_fingerprint="a" * 64,
        model_sha256=f"{len(name) % 16:x}" * 64,
        size_bytes=7_100_000 // (4 if precision is Precision.INT8 else 1),
        device="cpu",
        device_reason="the only one found",
        runtime={"torch": "torch 2.13.0", "onnx": "ONNX Runtime 1.32.0"}.get(str(target), "OpenVINO 2026.4.1"),
        layout="1 request on 4 threads, batch 1",
        start=StartRecord(
            warm=StartFigures(
                n_starts=N_ROUNDS,
                first_result_s=0.9 + speed,
                interval=Interval(low=0.88 + speed, high=0.95 + speed),
                process_s=0.11,
                import_s=0.28,
                runtime_import_s=0.31,
                open_s=0.17 + 0.9 * speed,
                first_predict_s=0.03 + 0.1 * speed,
            ),
            cold=StartFigures(
                n_starts=3,
                first_result_s=1.4 + speed,
                process_s=0.11,
                import_s=0.28,
                runtime_import_s=0.31,
                open_s=0.67 + 0.9 * speed,
                first_predict_s=0.03 + 0.1 * speed,
            ),
        ),
        memory=MemoryRecord(
            peak_resident_bytes=int((90 + 300 * speed) * 2**20), before_open_bytes=40 << 20, n_images=16
        ),
        latency=LatencyRecord(engine=_latency(engine_ms, name), predict=_latency(engine_ms + 0.4, name), file=file),
        stages=StageRecord(
            stages=(
                Stage(name="decode", what="reading and decoding the file", p50_ms=2.3, interval=_about(2.3)),
                Stage(name="resize", what="resizing to the model's size", p50_ms=0.3, interval=_about(0.3)),
                Stage(name="engine", what="`Backend.run`", p50_ms=engine_ms, interval=_about(engine_ms)),
                Stage(name="decision", what="p-value and verdict", p50_ms=0.02, interval=_about(0.02)),
            ),
            sum_ms=engine_ms + 2.62,
            end_to_end_ms=file.p50_ms,
            note="copying in, computing and copying out are together: on a processor there is nothing to copy",
        ),
        throughput=ThroughputRecord(
            default=_stream(1000 / engine_ms * 1.5, None, 1),
            sweep=tuple(
                _stream(1000 / engine_ms * (1 + 0.2 * requests), requests, batch)
                for requests in (1, 4)
                for batch in (1, 4)
            ),
        ),
        load=tuple(
            LoadRecord(
                fps=fps,
                deadline_ms=1000 / fps,
                latency=_latency(engine_ms * (1.1 if engine_ms + 3 < 1000 / fps else 9), name),
                missed_share=0.002 if engine_ms + 3 < 1000 / fps else 0.93,
                missed_interval=Interval(low=0.0, high=0.006) if engine_ms + 3 < 1000 / fps else None,
                keeps_up=engine_ms + 3 < 1000 / fps,
            )
            for fps in (30.0, 60.0)
        ),
        energy=EnergyRecord(
            joules_per_image=0.4 * speed, interval=_about(0.4 * speed), mean_watts=19.0, source="RAPL package-0"
        )
        if target is not Target.TORCH
        else EnergyRecord(not_available_because="no energy counter was found on this machine"),
        rounds=_rounds(engine_ms),
        ratios={}
        if is_reference
        else {
            metric: Ratio(value=speed, interval=_about(speed), n_rounds=N_ROUNDS)
            for metric in ("p50_ms", "p99_ms", "engine_p50_ms")
        },
        accuracy=_accuracy(flips),
        comparison=None if is_reference else _comparison(flips),
        is_reference=is_reference,
        is_baseline=is_reference,
        detectability=example_detectability(),
        samples=SamplesFile(name=f"samples/{name}.json", sha256="b" * 64),
    )


def _about(value: float, share: float = 0.02) -> Interval:
    return Interval(low=value * (1 - share), high=value * (1 + share))


def _latency(p50_ms: float, name: str) -> LatencyStatistics:
    rng = np.random.default_rng(len(name))
    samples = np.sort(p50_ms * (1 + 0.02 * rng.gamma(2.0, 1.0, 900)))
    counts, edges = np.histogram(samples, 40)
    figures = {
        "mean_ms": float(samples.mean()),
        "p50_ms": float(samples[449]),
        "p90_ms": float(samples[809]),
        "p95_ms": float(samples[854]),
        "p99_ms": float(samples[890]),
        "std_ms": float(samples.std(ddof=1)),
    }
    return LatencyStatistics(
        n=900,
        n_rounds=N_ROUNDS,
        min_ms=float(samples[0]),
        max_ms=float(samples[-1]),
        **figures,
        intervals={figure: _about(value) for figure, value in figures.items()},
        round_p50_ms=tuple(float(figures["p50_ms"] * (1 + 0.01 * shift)) for shift in rng.normal(size=N_ROUNDS)),
        histogram=Histogram(edges=tuple(map(float, edges)), counts=tuple(map(int, counts))),
        elapsed_s=float(samples.sum()) / 1e3,
        is_stable=name != "tile-onnx-fp32",
        unstable_because=("the standard deviation is 14% of the mean",) if name == "tile-onnx-fp32" else (),
    )


def _stream(images_per_s: float, requests: int | None, batch_size: int) -> StreamRecord:
    return StreamRecord(
        requests=requests,
        batch_size=batch_size,
        layout=f"{requests or 4} requests on 4 threads, batch 1",
        images_per_s=images_per_s,
        interval=_about(images_per_s),
        round_images_per_s=(images_per_s,) * N_ROUNDS,
        n_images=int(10 * images_per_s),
    )


def _rounds(engine_ms: float) -> tuple[RoundRecord, ...]:
    return tuple(
        RoundRecord(
            number=number,
            begin_s=30.0 * number + engine_ms,
            engine_p50_ms=engine_ms * (1 + 0.004 * number),
            spin_before_ms=10.0 + 0.02 * number,
            spin_after_ms=10.1 + 0.02 * number,
            frequency_mhz=2600.0 - 5 * number,
            temperature_c=51.0 + number,
            foreign_cores=0.4 if number in (3, 4) else 0.03,
            stolen_share=0.001,
        )
        for number in range(1, N_ROUNDS + 1)
    )


def _accuracy(flips: int) -> AccuracyRecord:
    rate = tuple(float(value) for value in np.linspace(0, 1, 101))
    edges = tuple(float(value) for value in np.linspace(1, 8, 29))
    return AccuracyRecord(
        metrics=Metrics(
            n_normal=40,
            n_anomalous=70,
            n_with_mask=70,
            image_auroc=0.94 - 0.01 * flips,
            image_aupr=0.96,
            image_f1_best=0.92,
            image_f1_best_threshold=2.5,
            threshold=2.9,
            image_f1=0.9,
            recall=0.84 - flips / 70,
            false_alarm_rate=0.025,
            pixel_auroc=0.95,
            aupro=0.81,
            per_defect={
                "crack": DefectMetrics(n=35, image_auroc=0.99, recall=0.97, pixel_auroc=0.97),
                "scratch": DefectMetrics(n=35, image_auroc=0.89 - 0.02 * flips, recall=0.71, pixel_auroc=0.93),
            },
        ),
        intervals={
            "image_auroc": Interval(low=0.89 - 0.01 * flips, high=0.98),
            "image_aupr": Interval(low=0.93, high=0.98),
            "image_f1": Interval(low=0.85, high=0.94),
            "pixel_auroc": Interval(low=0.93, high=0.97),
            "aupro": Interval(low=0.77, high=0.85),
            "recall": Interval(low=0.74, high=0.92),
            "false_alarm_rate": Interval(low=0.001, high=0.132),
        },
        promise=PromiseRecord(
            promised_rate=0.01, n_normal=40, n_false_alarms=1, interval=Interval(low=0.001, high=0.132), is_kept=True
        ),
        roc=CurveRecord(false_positive_rate=rate, hit_rate=tuple(value**0.1 for value in rate)),
        pixel_roc=CurveRecord(false_positive_rate=rate, hit_rate=tuple(value**0.08 for value in rate)),
        pro=CurveRecord(false_positive_rate=rate, hit_rate=tuple(value**0.2 for value in rate)),
        scores=ScoreHistogram(
            edges=edges,
            normal=tuple(int(12 * np.exp(-((edge - 1.8) ** 2))) for edge in edges[:-1]),
            anomalous=tuple(int(8 * np.exp(-((edge - 4.5) ** 2) / 3)) for edge in edges[:-1]),
        ),
    )


def _comparison(flips: int) -> Comparison:
    return Comparison(
        reference="tile-torch-fp32",
        same_run=True,
        n_images=110,
        label_flips=flips,
        flips=tuple(
            Flip(
                image=f"test/scratch/{number:03}.png",
                defect="scratch",
                is_anomalous=False,
                reference_margin=0.3,
                margin=-0.05 - 0.2 * number,
                is_explained=False,
            )
            for number in range(flips)
        ),
        max_score_difference=0.31 if flips else 3e-6,
        mean_score_difference=-0.08 if flips else 1e-7,
        reference_score_scale=5.8,
        max_map_difference=0.55 if flips else 8e-6,
        mean_map_difference=0.02 if flips else 4e-7,
        reference_map_scale=10.4,
        score_rank_correlation=0.993 if flips else 1.0,
    )


def _recommendation() -> Recommendation:
    names = [f"tile-{target}-{precision}" for target, precision in SPEEDS_MS]
    speeds = dict(zip(names, SPEEDS_MS.values(), strict=True))
    judgements = [
        Judgement(
            bundle=name,
            fits=True,
            objective_value=speeds[name] + 3.0,
            reasons=() if name == "tile-openvino-int8" else (f"p50_ms is {speeds[name] + 3.0:.1f} instead of 9.0",),
            caveats=("image_auroc >= 0.9 is kept, but its interval goes down to 0.890",),
        )
        for name in names
    ]
    judgements.append(
        Judgement(bundle="tile-tensorrt-fp16", fits=False, reasons=("it did not run: tensorrt is not installed",))
    )
    return Recommendation(
        chosen="tile-openvino-int8",
        rule="of the bundles with image_auroc >= 0.9 and p99_ms <= 40 the one with the smallest p50_ms",
        is_default_rule=False,
        requirements=(
            Requirement(metric="image_auroc", operator=">=", limit=0.9),
            Requirement(metric="p99_ms", operator="<=", limit=40.0),
        ),
        objective=Objective(metric="p50_ms", direction="minimize"),
        why="tile-openvino-int8 has the lowest p50 of the 5 bundles that fit: 9.00 ms (8.80 to 9.20).",
        judgements=tuple(judgements),
    )


def _machine() -> MachineFacts:
    return MachineFacts(
        system="Ubuntu 24.04, Linux 6.8",
        architecture="x86_64",
        processor="An x86 processor",
        cores_usable=4,
        cores_physical=4,
        processor_flags=("avx2", "avx_vnni"),
        frequency_governor="powersave",
        frequency_mhz=2600.0,
        largest_frequency_mhz=3400.0,
        temperature_c=48.0,
        is_virtual=False,
        memory_bytes=8 << 30,
        python="3.12.4",
        vae_edge="0.1.0",
        packages={"numpy": "2.3.0", "onnxruntime": "1.32.0"},
        load_average_start=0.3,
        load_average_end=3.9,
    )
