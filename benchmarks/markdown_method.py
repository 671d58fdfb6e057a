"""The parts of report.md about the machine and about how it was measured."""

from __future__ import annotations

from vae_edge.benchmarks.formats import mebibytes
from vae_edge.benchmarks.latency import WIDE_DRIFT, WIDE_SPREAD
from vae_edge.benchmarks.markdown_tables import bullets, table
from vae_edge.benchmarks.report import Report


def machine_section(report: Report) -> str:
    """Return the facts about the machine that decide how fast a model runs."""
    machine = report.machine
    load = [value for value in (machine.load_average_start, machine.load_average_end) if value is not None]
    runtimes = sorted({f"{b.runtime} on {b.device} ({b.layout})" for b in report.bundles if b.runtime})
    cores = f"{machine.cores_usable} usable" + (
        f", {machine.cores_physical} physical" if machine.cores_physical else ""
    )
    clock = [value for value in (machine.frequency_mhz, machine.largest_frequency_mhz) if value is not None]
    energy = sorted(
        {b.energy.source or b.energy.not_available_because or "" for b in report.bundles if b.energy is not None}
    )
    facts = {
        "board": machine.board,
        "processor": machine.processor,
        "cores": cores,
        "instruction sets": ", ".join(machine.processor_flags),
        "frequency governor": machine.frequency_governor,
        "clock before, at most": ", ".join(f"{value:.0f} MHz" for value in clock),
        "temperature before": None if machine.temperature_c is None else f"{machine.temperature_c:.0f} °C",
        "power mode": machine.power_mode,
        "virtual machine": "yes" if machine.is_virtual else None,
        "memory": f"{mebibytes(machine.memory_bytes)} MiB" if machine.memory_bytes else None,
        "GPU": "; ".join(machine.gpus),
        "energy": "; ".join(filter(None, energy)),
        "system": f"{machine.system}, {machine.architecture}",
        "Python": machine.python,
        "runtimes": "; ".join(runtimes),
        "packages": ", ".join(f"{name} {version}" for name, version in machine.packages.items()),
        "load average, start and end": ", ".join(map(str, load)),
    }
    return table(["fact", "value"], [[name, value] for name, value in facts.items() if value])


def method_section(report: Report) -> str:
    """Return the rules that the numbers were taken by."""
    settings, rules, data = report.settings, report.settings.rules, report.data
    threads = "the runtime's own choice" if settings.threads is None else str(settings.threads)
    lines = [
        f"{settings.rounds} rounds. In each of them every bundle has its turn in a process of its own; device "
        f"`{settings.device}`, threads: {threads}. A round begins with another bundle than the one before.",
        "Intervals: 95 %, by resampling whole rounds (samples of one round resemble each other), widened for their "
        "small number; ratios in pairs of rounds. Intervals of accuracy: by resampling images; of recall and false "
        "alarms: exact (Clopper and Pearson).",
        "Latency: one image at a time, synchronous, host array in to host result out, `time.perf_counter_ns`, "
        f"{data.n_timing_images} real images ({', '.join(data.timing_image_sizes)}) in rotation. In each round a "
        f"warm-up of {rules.warmup_s:g} s and {rules.warmup_iterations} images, then {rules.round_s:g} s or "
        f"{rules.most_iterations} images, whichever ends first.",
        "engine: `Backend.run` of a prepared image. predict: `Detector.predict` of a decoded image. file: "
        "`Detector.predict` of an image file, end to end.",
        f"Percentiles by nearest rank. Stable: standard deviation below {WIDE_SPREAD:.0%} of the mean, medians of the "
        f"two halves of the rounds within {WIDE_DRIFT:.0%}.",
        f"images/s: `Detector.stream` over image files for {settings.throughput_s:g} s in each round.",
        "First verdict: from before a fresh Python process is created until its verdict on an image file is known; one "
        "in each round. Cold: with an empty cache of compiled models; the system's cache of files stays warm.",
        "Peak memory: largest resident memory of these processes after "
        f"{min(settings.n_memory_images, data.n_timing_images)} images; libraries included, a GPU's memory not.",
    ]
    if settings.load_fps:
        lines.append(
            f"Under load: images become due at a fixed rate for {settings.load_s:g} s in each round, and wait where "
            "the detector is behind; latency counts from when an image was due (no coordinated omission)."
        )
    lines += [f"Data: {note}." for note in data.notes]
    return bullets(lines)
