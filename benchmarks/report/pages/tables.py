"""The tables of a report and the sentences around them, for both report.md and report.html.

A cell is text or a `Number`. A function returns a table without rows where nothing of the kind was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps

from vae_edge.benchmarks.measure.statistics import CONFIDENCE
from vae_edge.benchmarks.report.figures import ABSENT, FIGURES, MIB, Number, View, figures, percent, relative, share
from vae_edge.benchmarks.report.figures import three_digits as digits
from vae_edge.benchmarks.report.records.accuracy import EXPLAINED_MOVE, AccuracyRecord, CurveRecord, SimpleMethodRecord
from vae_edge.benchmarks.report.records.report import Report
from vae_edge.benchmarks.report.summary import WIDE_DRIFT, WIDE_SPREAD
from vae_edge.detectability import CONTRASTS, Detectability, found_text
from vae_edge.train.run.metrics import Metrics
from vae_edge.wording import count

Cell = str | Number

LATENCIES = {"engine": "engine alone", "predict": "decoded image to verdict", "file": "file to verdict"}
STAGES = {
    "decode": "decode",
    "resize": "resize",
    "copy_in": "copy in",
    "compute": "compute",
    "copy_out": "copy out",
    "engine": "engine (copies and compute together)",
    "decision": "decision",
}
START_STEPS = {
    "process_s": "process and Python",
    "import_s": "import vae_edge",
    "runtime_import_s": "import the runtime",
    "open_s": "check files, load, compile",
    "first_predict_s": "first verdict",
}

_UNKNOWN = "not available here"
_CURVE_RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Table:
    """A table; its first columns name what the numbers in the others describe."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    n_names: int = 1
    """Number of columns from the left that are text; the others are numbers."""


Rows = Iterator[Sequence[Cell]]


def _table(
    caption: str, *headers: str, n_names: int = 1
) -> Callable[[Callable[[Report], Rows]], Callable[[Report], Table]]:
    """Turn a generator of rows into a function that returns their table."""

    def decorate(rows: Callable[[Report], Rows]) -> Callable[[Report], Table]:
        @wraps(rows)
        def make(report: Report) -> Table:
            return Table(caption, headers, list(rows(report)), n_names)

        return make

    return decorate


def summary(report: Report) -> str:
    """Return a sentence about what ran where."""
    ran = sum(bundle.has_run for bundle in report.bundles)
    machine = report.machine
    place = machine.board or machine.processor or machine.architecture
    return (
        f"{ran} of {count(len(report.bundles), 'bundle')} ran on {place} "
        f"({count(machine.cores_usable, 'core')}), {report.created_utc}, "
        f"vae-edge {machine.vae_edge}{', quick run' if report.settings.quick else ''}. Data: {report.data.source}."
    )


def simple_method_name(record: SimpleMethodRecord) -> str:
    """Return what to call a method without a network."""
    return f"no network: {record.name} {record.height}x{record.width}"


def overview(report: Report, view: View) -> Table:
    """Return the figures of every bundle that a view shows, if at least one bundle has them."""
    shown = [each for each in figures(view) if any(each.find(bundle) is not None for bundle in report.bundles)]
    rows: list[list[Cell]] = []
    for bundle in report.bundles:
        cells = [each.number(bundle) for each in shown]
        if cells and not bundle.has_run:
            cells[0] = Number(None, words="did not run")
        rows.append([bundle.name, *cells])
    for record in report.simple_methods:
        accuracies = [getattr(record.metrics, each.name) if View.ACCURACY in each.views else None for each in shown]
        cells = [Number(value, each.form) for value, each in zip(accuracies, shown, strict=True)]
        rows.append([simple_method_name(record), *cells])
    return Table("All bundles", ["bundle", *(each.heading for each in shown)], rows)


def meanings(report: Report, view: View) -> dict[str, str]:
    """Return what the figures of a view's overview and of the table of accuracy mean, by heading."""
    shown = [each for each in FIGURES.values() if each.views & (view | View.ACCURACY)]
    return {each.heading: each.meaning for each in shown if any(each.find(bundle) for bundle in report.bundles)}


_LATENCY_FIGURES = ("min", "mean", "p50", "p90", "p95", "p99", "max", "std")


@_table("Latencies in ms, with 95 % intervals", "bundle", "what", "n", "rounds", *_LATENCY_FIGURES, "stable", n_names=2)
def latencies(report: Report) -> Rows:
    """Every latency with its figures."""
    for bundle in report.bundles:
        for what, title in LATENCIES.items() if bundle.latency else ():
            found = getattr(bundle.latency, what)
            names = [f"{name}_ms" for name in _LATENCY_FIGURES]
            cells = [Number(getattr(found, name), digits, found.intervals.get(name)) for name in names]
            yield bundle.name, title, str(found.n), str(found.n_rounds), *cells, "yes" if found.is_stable else "no"


def stages(report: Report) -> Table:
    """Return where the time goes between a file and its verdict."""
    found = [(bundle.name, bundle.stages) for bundle in report.bundles if bundle.stages is not None]
    present = [name for name in STAGES if any(name == stage.name for _, record in found for stage in record.stages)]
    rows: list[Sequence[Cell]] = []
    for name, record in found:
        by_name = {str(stage.name): Number(stage.p50_ms, digits, stage.interval) for stage in record.stages}
        cells = [by_name.get(stage, Number(None)) for stage in present]
        rows.append([name, *cells, Number(record.sum_ms), Number(record.end_to_end_ms)])
    headers = ["bundle", *(STAGES[name] for name in present), "sum", "file to verdict"]
    return Table("Median of each stage alone, ms", headers, rows)


@_table(
    "Verdicts per second by requests and batch size",
    *("bundle", "asked for", "what the runtime used", "images/s"),
    n_names=3,
)
def throughput(report: Report) -> Rows:
    """Verdicts per second in every configuration that was tried."""
    for bundle in report.bundles:
        for each in (bundle.throughput.default, *bundle.throughput.sweep) if bundle.throughput else ():
            rate = Number(each.images_per_s, digits, each.interval)
            yield bundle.name, configuration(each.requests, each.batch_size), each.layout, rate


def configuration(requests: int | None, batch_size: int) -> str:
    """Describe the requested configuration of a stream."""
    if requests is None and batch_size == 1:
        return "default"
    words = "default requests" if requests is None else f"{requests} request{'s' * (requests != 1)}"
    return f"{words}, batch {batch_size}"


@_table(
    "Images at a fixed rate, from the due time to the verdict",
    *("bundle", "images/s", "deadline ms", "missed", "p50 ms", "p99 ms", "keeps up"),
)
def loads(report: Report) -> Rows:
    """How well bundles kept up with images at a fixed rate; latency counts from when an image was due."""
    for bundle in report.bundles:
        for load in bundle.load:
            found = load.latency
            middle, tail = (
                Number(getattr(found, name), digits, found.intervals.get(name)) for name in ("p50_ms", "p99_ms")
            )
            missed = Number(load.missed_share, percent, load.missed_interval)
            keeps_up = "yes" if load.keeps_up else "no"
            yield bundle.name, f"{load.fps:g}", Number(load.deadline_ms), missed, middle, tail, keeps_up


@_table(
    "Time to the first verdict, medians of each step, s",
    *("bundle", "start", "starts", *START_STEPS.values(), "start to first verdict"),
    n_names=2,
)
def starts(report: Report) -> Rows:
    """The time to the first verdict, step by step."""
    for bundle in report.bundles:
        for kind, found in (("warm", bundle.start.warm), ("cold", bundle.start.cold)) if bundle.start else ():
            if found is not None:
                steps = [Number(getattr(found, step)) for step in START_STEPS]
                total = Number(found.first_result_s, digits, found.interval)
                yield bundle.name, kind, str(found.n_starts), *steps, total


def judged(report: Report) -> list[tuple[str, AccuracyRecord]]:
    """Return the bundles whose accuracy was measured, with it."""
    return [(bundle.name, bundle.accuracy) for bundle in report.bundles if bundle.accuracy is not None]


def judged_on(report: Report) -> str:
    """Return what accuracy was measured on, or why it was not."""
    data = report.data
    if not judged(report):
        return f"Not measured: {data.no_accuracy_because or 'no bundle ran'}."
    return (
        f"{data.n_test_normal} good and {data.n_test_anomalous} defective test images, {data.n_with_mask} of them with "
        "masks. F1, recall and false alarms are at each bundle's own threshold, which was fitted on other images."
    )


def accuracy(report: Report) -> Table:
    """Return the accuracy of every bundle, and of methods without a network."""
    shown = figures(View.ACCURACY)
    rows: list[list[Cell]] = [
        [bundle.name, *(each.number(bundle) for each in shown)] for bundle in report.bundles if bundle.accuracy
    ]
    for record in report.simple_methods:
        values = [Number(getattr(record.metrics, each.name), each.form) for each in shown]
        rows.append([f"{simple_method_name(record)} ({record.description})", *values])
    return Table("Accuracy with 95 % intervals", ["bundle", *(each.heading for each in shown)], rows)


def defects(report: Report) -> Table:
    """Return how well each class of defects is found."""
    found: list[tuple[str, Metrics]] = [(name, record.metrics) for name, record in judged(report)]
    found += [(simple_method_name(each), each.metrics) for each in report.simple_methods if each.metrics.per_defect]
    rows: list[list[Cell]] = []
    for defect in sorted({defect for _, metrics in found for defect in metrics.per_defect}):
        classes = [metrics.per_defect.get(defect) for _, metrics in found]
        cells: list[Cell] = []
        for each in classes:
            areas = "" if each is None else f"{_share(each.image_auroc)} / {_share(each.pixel_auroc)}"
            cells.append(Number(None if each is None else each.recall, percent, note=areas))
        rows.append([defect, str(next(each.n for each in classes if each is not None)), *cells])
    return Table(
        "Recall at the bundle's own threshold, with AUROC of images / of pixels against all good test images",
        ["defect class", "images", *(name for name, _ in found)],
        rows,
    )


def _share(value: float | None) -> str:
    return ABSENT if value is None else share(value)


def seen(report: Report) -> list[tuple[str, Detectability]]:
    """Return the shares of pasted defects that each training run finds, with its name; its bundles all say the same."""
    runs = {
        (bundle.run or bundle.name, bundle.run_fingerprint): bundle.detectability
        for bundle in report.bundles
        if bundle.detectability is not None
    }
    return [(name, found) for (name, _), found in runs.items()]


def seen_from(report: Report) -> list[str]:
    """Describe for each training run the size from which it finds pasted defects, and where it is blind."""
    return [
        f"{name}: {'; '.join(filter(None, (record.blindness(), record.headline())))}" for name, record in seen(report)
    ]


@_table("Pasted defects found", "training run", "size", *(f"{each} contrast" for each in CONTRASTS), n_names=2)
def detectability(report: Report) -> Rows:
    """The shares of pasted defects that the trained model finds, by size and contrast."""
    for name, record in seen(report):
        for size in record.sizes:
            yield name, record.size_text(size), *(found_text(record.at(size, each)) for each in CONTRASTS)


@_table("Height of the curves at false-positive rates", "bundle", "curve", *map(str, _CURVE_RATES), n_names=2)
def curves(report: Report) -> Rows:
    """The height of each curve at a few false-positive rates: the curve for screen readers."""
    for name, record in judged(report):
        for what, curve in (("images, ROC", record.roc), ("pixels, ROC", record.pixel_roc), ("PRO", record.pro)):
            if curve is not None:
                yield name, what, *(Number(_height(curve, rate), share) for rate in _CURVE_RATES)


def _height(curve: CurveRecord, at: float) -> float:
    """Return the height of a curve, linear between its corners; on a vertical step the upper end."""
    points = list(zip(curve.false_positive_rate, curve.hit_rate, strict=True))
    before = [point for point in points if point[0] <= at]
    after = next((point for point in points if point[0] > at), None)
    if not before:
        return 0.0
    if after is None:
        return before[-1][1]
    (x1, y1), (x2, y2) = before[-1], after
    return y1 + (y2 - y1) * (at - x1) / (x2 - x1)


@_table("Images by score", "bundle", "score", "good", "defective", n_names=2)
def scores(report: Report) -> Rows:
    """How many images have which score."""
    for name, record in judged(report):
        found = record.scores
        for low, high, good, bad in zip(found.edges[:-1], found.edges[1:], found.normal, found.anomalous, strict=True):
            if good or bad:
                yield name, f"{low:.3g} to {high:.3g}", str(good), str(bad)


def compared_on(report: Report) -> str:
    """Return what the bundles were compared with their reference on, and what a flip is."""
    return (
        f"On {report.data.n_judged} {report.data.judged}. A flip is an image that one calls anomalous and the other "
        "does not, each by its own threshold. A margin is the distance to the threshold in standard deviations of the "
        f"good parts' scores; a flip is explained where it moved by less than {EXPLAINED_MOVE:g}: the image lies that "
        "near to the threshold. In brackets the difference as a share of the reference's largest value."
    )


@_table(
    "Drift from the reference",
    *("bundle", "reference", "flips", "largest score difference", "mean, signed", "largest map difference"),
    *("mean map difference", "rank correlation"),
    n_names=2,
)
def drift(report: Report) -> Rows:
    """How far every bundle is from its reference."""
    for bundle in report.bundles:
        if (found := bundle.comparison) is not None:
            yield (
                bundle.name,
                found.reference if found.same_run else f"{found.reference} (another training run)",
                FIGURES["flips"].number(bundle),
                relative(found.max_score_difference, found.reference_score_scale),
                f"{found.mean_score_difference:+.1e}",
                relative(found.max_map_difference, found.reference_map_scale),
                relative(found.mean_map_difference, None),
                ABSENT if found.score_rank_correlation is None else f"{found.score_rank_correlation:.6f}",
            )


@_table(
    "Images with a different verdict",
    *("image", "bundle", "defect class", "verdict", "margin before", "margin now", "explained"),
    n_names=4,
)
def flips(report: Report) -> Rows:
    """The images that a bundle and its reference judge differently."""
    for bundle in report.bundles:
        for flip in bundle.comparison.flips if bundle.comparison else ():
            defect = flip.defect if flip.defect is not None else "good or not known"
            verdict = "normal, now anomalous" if flip.is_anomalous else "anomalous, now normal"
            margins = f"{flip.reference_margin:+.3f}", f"{flip.margin:+.3f}"
            yield flip.image, bundle.name, defect, verdict, *margins, "yes" if flip.is_explained else "no"


@_table(
    "Parity at export, against the FP32 torch reference",
    *("bundle", "images", "n", "flips", "largest score difference", "largest map difference"),
    n_names=2,
)
def exported(report: Report) -> Rows:
    """What the export found, for comparison with what was found here."""
    for bundle in report.bundles:
        if (found := bundle.exported_parity) is not None:
            score = relative(found.max_score_difference, found.reference_score_scale)
            drift = relative(found.max_map_difference, found.reference_map_scale)
            yield bundle.name, found.images, str(found.n_images), str(found.label_flips), score, drift


@_table("References of each bundle, run here", *("bundle", "agrees", "measures"), n_names=3)
def references(report: Report) -> Rows:
    """Whether each bundle gave the outputs here that it is known to give, and how far it was from them."""
    for bundle in report.bundles:
        if bundle.references_agree is not None:
            yield bundle.name, "yes" if bundle.references_agree else "NO", "; ".join(bundle.references)


@_table(
    "Device, runtime and layout in use",
    *("bundle", "device", "runtime", "requests, threads, batch", "input", "training run", "notes"),
    n_names=7,
)
def running(report: Report) -> Rows:
    """What each bundle actually ran on."""
    for bundle in report.bundles:
        device = f"{bundle.device or 'not known'}{f' ({bundle.device_reason})' if bundle.device_reason else ''}"
        size = f"{bundle.height}x{bundle.width}" if bundle.height else None
        texts = (bundle.runtime, bundle.layout, size, bundle.run, "; ".join(bundle.notes))
        where = device if bundle.has_run else f"did not run: {bundle.not_run_because}"
        yield bundle.name, where, *(text or ABSENT for text in texts)


@_table(
    "Conditions in each round",
    *("bundle", "round", "begin s", "engine p50 ms", "spin before / after ms", "clock MHz", "°C", "throttled"),
    *("foreign cores", "stolen"),
    n_names=2,
)
def rounds(report: Report) -> Rows:
    """The conditions of each round."""
    forms = {
        "frequency_mhz": ".0f",
        "temperature_c": ".0f",
        "n_throttled": "d",
        "foreign_cores": ".2f",
        "stolen_share": ".1%",
    }
    for bundle in report.bundles:
        for each in bundle.rounds:
            spins = f"{digits(each.spin_before_ms)} / {digits(each.spin_after_ms)}"
            seen = [(getattr(each, name), form) for name, form in forms.items()]
            others = [ABSENT if value is None else format(value, form) for value, form in seen]
            yield bundle.name, str(each.number), Number(each.begin_s), Number(each.engine_p50_ms), spins, *others


@_table("Raw samples beside report.json", "bundle", "file", "SHA-256", n_names=3)
def samples(report: Report) -> Rows:
    """The files of raw samples."""
    for bundle in report.bundles:
        if bundle.samples is not None:
            yield bundle.name, bundle.samples.name, bundle.samples.sha256


def machine(report: Report) -> dict[str, str]:
    """Return the facts about the machine that decide how fast a model runs."""
    found = report.machine
    load = [f"{value:g}" for value in (found.load_average_start, found.load_average_end) if value is not None]
    energy = {each.energy.source or each.energy.not_available_because or "" for each in report.bundles if each.energy}
    facts = {
        "Board": found.board,
        "Processor": found.processor or found.architecture,
        "Cores": f"{found.cores_usable} usable"
        + (f", {found.cores_physical} physical" if found.cores_physical else ""),
        "Instruction sets": ", ".join(found.processor_flags),
        "Memory": f"{digits(found.memory_bytes / MIB)} MiB" if found.memory_bytes else _UNKNOWN,
        "GPU": "; ".join(found.gpus) or "none found",
        "System": f"{found.system}, {found.architecture}",
        "Virtual machine": _UNKNOWN if found.is_virtual is None else "yes" if found.is_virtual else "no",
        "Power mode": found.power_mode,
        "Frequency governor": found.frequency_governor or _UNKNOWN,
        "Clock before": _with_unit(found.frequency_mhz, "MHz"),
        "Highest clock": _with_unit(found.largest_frequency_mhz, "MHz"),
        "Temperature before": _with_unit(found.temperature_c, "°C"),
        "Energy": "; ".join(sorted(filter(None, energy))),
        "Load average, start and end": ", ".join(load) or _UNKNOWN,
        "Python": found.python,
        "vae-edge": found.vae_edge,
        "Packages": ", ".join(f"{name} {version}" for name, version in found.packages.items()),
    }
    return {name: value for name, value in facts.items() if value}


def _with_unit(value: float | None, unit: str) -> str:
    return _UNKNOWN if value is None else f"{value:.0f} {unit}"


def method(report: Report) -> Iterator[str]:
    """Return the rules by which the numbers were measured."""
    settings, rules, data = report.settings, report.settings.rules, report.data
    threads = "the runtime's own choice" if settings.threads is None else str(settings.threads)
    yield (
        f"{count(settings.rounds, 'round')}. In each of them every bundle has its turn in fresh processes; each round "
        f"begins with a different bundle. Device {settings.device}, threads: {threads}. The benchmark took "
        f"{report.elapsed_s:.0f} s."
    )
    yield (
        f"Intervals: {CONFIDENCE:.0%}, by resampling whole rounds (samples of one round resemble each other), widened "
        "for their small number; ratios in pairs of rounds. Percentiles with fewer than 10 samples beyond them have "
        "none. Intervals of accuracy: by resampling images; of recall and false alarms: exact (Clopper and Pearson)."
    )
    yield (
        "Latency: one image at a time, synchronous, host array in to host result out, by time.perf_counter_ns, "
        f"{data.n_timing_images} real images ({', '.join(data.timing_image_sizes)}) in rotation. In each round a "
        f"warm-up of {rules.warmup_s:g} s and {rules.warmup_iterations} images, then {rules.round_s:g} s or "
        f"{rules.most_iterations} images, whichever ends first, with {rules.fewest_iterations} images at least."
    )
    yield (
        "Engine: Backend.run of a prepared image. Decoded image: Detector.predict of it. File: Detector.predict of an "
        "image file, end to end."
    )
    yield (
        f"Percentiles by nearest rank. Stable: standard deviation below {WIDE_SPREAD:.0%} of the mean, medians of the "
        f"two halves of the rounds within {WIDE_DRIFT:.0%}."
    )
    yield f"images/s: Detector.stream over image files for {settings.throughput_s:g} s in each round and configuration."
    yield (
        "Start: from before a fresh Python process is created until its verdict on an image file is known; one in each "
        f"round, and {settings.cold_starts} with an empty cache of compiled models; the system's cache of files stays "
        "warm."
    )
    yield (
        "Memory: largest resident memory of these processes after "
        f"{min(settings.n_memory_images, data.n_timing_images)} image files; libraries included, GPU memory excluded."
    )
    if settings.load_fps:
        yield (
            f"Under load: images become due at a fixed rate for {settings.load_s:g} s in each round, and wait where "
            "the detector is behind; latency counts from when an image was due (no coordinated omission)."
        )
    yield f"Data: {data.source}."
    yield from (f"Data: {note}." for note in data.notes)
