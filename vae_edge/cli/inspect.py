"""`vae-edge inspect`: what a bundle or a single model file is, how it decides and how far it can be trusted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.bundle import Bundle
from vae_edge.cli.console import plain_table, print_warning, results_console, size_text
from vae_edge.cli.inspect_trust import backbone_rows, signature_rows, statement_as_json, statement_rows, trust_rows
from vae_edge.cli.model_file import ModelFileDescription, describe_model_file
from vae_edge.cli.options import (
    JsonOption,
    SourceKind,
    TrustedKeyOption,
    keys_of,
    refuse_idle,
    refuse_others,
)
from vae_edge.cli.run_options import needs_of_targets
from vae_edge.decision import describe_promise, describe_support
from vae_edge.detectability import CONTRASTS, found_text
from vae_edge.detector import Detector, n_stream_workers
from vae_edge.drift import DriftMonitor
from vae_edge.drift_file import DriftRecord, is_drift_file, read_drift
from vae_edge.errors import UsageError, VaeEdgeError
from vae_edge.gate import describe_gate
from vae_edge.manifest import Manifest, TensorSpec
from vae_edge.platform.outside import printable
from vae_edge.sinks.sink import trust_warnings
from vae_edge.targets import Precision
from vae_edge.wording import count


@dataclass(frozen=True)
class _Opened:
    """What a bundle runs with here; the fields are those of `--json`."""

    runs_with: str
    runs_because: str
    predict: str
    stream: str
    notes: tuple[str, ...]


_FILE = SourceKind("a model file, which is not opened", "model files", frozenset({"as_json"}))
_DRIFT = SourceKind("a record of drift", "records of drift", frozenset({"as_json"}))
_BUNDLE = SourceKind("a bundle", "bundles", frozenset({"as_json", "device", "threads", "requests", "trusted_key"}))


def inspect(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|FILE",
            help="A bundle (a folder made by vae-export), a model file without its bundle, or a file of "
            "vae-run --drift.",
        ),
    ],
    device: Annotated[str, typer.Option(help="Device to open the bundle on.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Processor threads to open it with.", show_default="all usable cores")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="Pictures of a stream at the same time.", show_default="the device's best")
    ] = None,
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle's files, show its manifest, who signed it, and which runtime and device would run it here.

    For a model file (.onnx, .xml, .engine, .json, .safetensors): show its metadata, without its runtime. For the file
    of vae-run --drift: show whether the process has drifted.
    """
    if is_drift_file(source):
        refuse_others(context, source, _DRIFT, (_DRIFT, _FILE, _BUNDLE))
        _inspect_drift(read_drift(source), source, as_json)
    elif source.is_file():
        refuse_others(context, source, _FILE, (_FILE, _BUNDLE))
        _inspect_file(describe_model_file(source), as_json)
    else:
        opened = Bundle.open(source, trusted_keys=keys_of(trusted_key))
        refuse_idle(context, needs_of_targets({opened.manifest.target}))
        found = _try_to_open(opened, device, threads, requests)
        _print_bundle(source, opened, found, as_json)


def _print_bundle(folder: Path, opened: Bundle, found: _Opened | str, as_json: bool) -> None:
    manifest = opened.manifest
    if as_json:
        content = {
            "bundle": str(folder),
            "size_bytes": opened.size_bytes,
            **({"runs_with": None, "does_not_run_because": found} if isinstance(found, str) else asdict(found)),
            "signature": {name.replace(" ", "_"): value for name, value in signature_rows(opened)},
            "provenance": statement_as_json(opened),
            "manifest": manifest.model_dump(mode="json"),
        }
        print(json.dumps(content, indent=2))
        return
    _print_sections(_sections(opened, found))
    if manifest.detectability is not None and (blindness := manifest.detectability.blindness()):
        print_warning(blindness)
    for sentence in trust_warnings(opened):
        print_warning(sentence)


def _inspect_file(found: ModelFileDescription, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), indent=2))
        return
    facts = [("format", found.format), *((name.replace("_", " "), text) for name, text in found.details.items())]
    if found.bundle is not None:
        same = "unchanged" if found.bundle_match else "NOT the file that its manifest lists"
        facts.append(("of the bundle", f"{found.bundle}, {same}"))
    said = list(found.metadata.items()) or [("nothing", "no metadata of vae-edge, and no manifest next to it")]
    _print_sections(
        {
            f"{printable(Path(found.path).name)}  {size_text(found.size_bytes)}": facts,
            "What it says": said,
        }
    )
    if found.bundle_match is False:
        print_warning(f"{found.path} is not the file that {found.bundle} was exported with")


def _inspect_drift(record: DriftRecord, path: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record.model_dump(mode="json", exclude={"scores", "recent"}), indent=2))
        return
    monitor = DriftMonitor(record)
    shift = monitor.shift_now()
    share = "" if not record.n_parts else f", {record.n_above / record.n_parts:.2%}"
    rows = [
        ("in short", monitor.sentence()),
        ("bundle", record.bundle_name),
        ("false alarms", f"at most {record.alarm_rate:.3g} over all time; one picture for each part"),
        (
            "evidence",
            f"{monitor.martingale:.3g} now, {record.highest:.3g} at most; an alarm is at {1 / record.alarm_rate:.6g}",
        ),
        ("parts", f"{record.n_parts}; {monitor.compared_with()}"),
        ("latest parts", "not known yet" if shift is None else f"median {shift:+.2f} times the spread of the normals"),
        (
            "above the cut",
            f"{record.n_above}{share}, score >= {record.cut:.6g}; up to {record.allowed_share:.0%} is no drift",
        ),
    ]
    _print_sections({f"{printable(path.name)}  drift of the process": rows})


def _print_sections(sections: dict[str, list[tuple[str, str]]]) -> None:
    console = results_console()
    for title, rows in sections.items():
        table = plain_table(title=title, headers=False)
        table.add_column(min_width=18, style="cyan")
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(printable(name), printable(value))
        console.print(table)
        console.print()


def _try_to_open(bundle: Bundle, device: str, threads: int | None, requests: int | None) -> _Opened | str:
    """Open the bundle as a program would, for one image and for a stream; return why it cannot be opened here."""
    try:
        with Detector.open(bundle, device=device, threads=threads, requests=requests, rebuild=False) as detector:
            one, many = detector.backend, detector.stream_backend()
            return _Opened(
                runs_with=f"{one.version} on {one.device.name}",
                runs_because=one.device.reason,
                predict=str(one.layout),
                stream=f"{many.layout}; {count(n_stream_workers(many.layout), 'worker')}",
                notes=one.notes,
            )
    except UsageError:
        raise
    except VaeEdgeError as error:
        return str(error)


def _sections(bundle: Bundle, found: _Opened | str) -> dict[str, list[tuple[str, str]]]:
    manifest = bundle.manifest
    made_by = f"{manifest.runtime.flavour} {manifest.runtime.version}"
    details = ", ".join(f"{key} {value}" for key, value in manifest.runtime.details.items())
    size = manifest.preparation
    model = [
        ("target", f"{manifest.target}, {manifest.precision}"),
        ("made with", f"{made_by} ({details})" if details else made_by),
        ("input", "; ".join(map(_tensor_text, manifest.inputs))),
        ("outputs", "; ".join(map(_tensor_text, manifest.outputs))),
        ("largest batch", "any" if manifest.max_batch is None else str(manifest.max_batch)),
        ("preparation", f"resized to {size.height} x {size.width}; 16-bit white is {size.white_level}"),
        ("scoring", manifest.scoring),
        ("files", "; ".join(f"{file.name} {size_text(file.size_bytes)}" for file in manifest.files) + "; unchanged"),
        *_rows_here(found),
    ]
    return {
        f"{printable(manifest.name)}  {size_text(bundle.size_bytes)}": model,
        "Decision": _decision_rows(bundle),
        **_detectability_section(manifest),
        "Trust": trust_rows(manifest),
        "Signature": signature_rows(bundle),
        "Provenance": [
            ("run", f"{manifest.provenance.run} ({manifest.provenance.run_fingerprint[:12]})"),
            *backbone_rows(manifest.provenance.backbone),
            ("training images", manifest.provenance.data_fingerprint[:12]),
            ("exported", f"{manifest.provenance.created_utc} by vae-edge {manifest.provenance.vae_edge_version}"),
            ("libraries", ", ".join(f"{k} {v}" for k, v in manifest.provenance.library_versions.items()) or "none"),
            *statement_rows(bundle),
        ],
    }


def _rows_here(found: _Opened | str) -> list[tuple[str, str]]:
    if isinstance(found, str):
        return [("here it runs with", f"nothing: {found}")]
    rows = [
        ("here it runs with", f"{found.runs_with} ({found.runs_because})"),
        ("one image", found.predict),
        ("a stream", found.stream),
    ]
    return rows + [("note", note) for note in found.notes]


def _decision_rows(bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    thresholds = manifest.thresholds
    promise = describe_promise(thresholds)
    if thresholds.false_alarm_rate > thresholds.false_alarm_rate_requested:
        promise += f" (asked for {thresholds.false_alarm_rate_requested:.3g}: too few normals)"
    scores = thresholds.calibration_scores
    ignored = [] if manifest.ignored is None else [("ignored", manifest.ignored.describe())]
    return [
        *ignored,
        ("false alarms", promise),
        ("smallest rate", describe_support(thresholds)),
        ("image threshold", f"score > {thresholds.image_threshold:.6g}, {thresholds.method}"),
        (
            "pixel threshold",
            f"map > {thresholds.pixel_threshold:.6g}, "
            f"at most {thresholds.pixel_false_positive_rate:.3g} of normal pixels",
        ),
        ("fitted on", f"{count(thresholds.n_normals, 'normal')}, scores {scores[0]:.4g} to {scores[-1]:.4g}"),
        ("scored by", thresholds.scored_by),
        ("drift (vae-run --drift)", DriftMonitor.for_bundle(bundle).compared_with()),
        *_gate_rows(manifest),
    ]


def _gate_rows(manifest: Manifest) -> list[tuple[str, str]]:
    rows = [("not inspectable", describe_gate(manifest.gate))]
    if manifest.gate is not None and manifest.gate.is_current:
        ranges = ", ".join(f"{each.measure} {each.expected()}" for each in manifest.gate.ranges)
        rows.append(("inspectable where", ranges))
    return rows


def _detectability_section(manifest: Manifest) -> dict[str, list[tuple[str, str]]]:
    found = manifest.detectability
    if found is None:
        return {}
    rows = [
        (found.size_text(size), "; ".join(f"{each} contrast {found_text(found.at(size, each))}" for each in CONTRASTS))
        for size in found.sizes
    ]
    by_kind = (
        (kind, [cell for size in found.sizes if (cell := found.of_kind(kind, size)) is not None])
        for kind in found.kinds
    )
    kinds = [f"{kind} {sum(c.n_found for c in cells)}/{sum(c.n for c in cells)}" for kind, cells in by_kind]
    alone = f"{found.n_false_alarms} of {found.n_normals} {found.normals}, without a defect, called anomalous"
    rows += [("by kind", ", ".join(kinds)), ("in short", found.headline()), ("false alarms", alone)]
    if manifest.precision is not Precision.FP32:
        rows.append(("measured on", "the trained model; what this precision changes is under Trust"))
    return {"Pasted defects found by size": rows}


def _tensor_text(spec: TensorSpec) -> str:
    shape = " x ".join("N" if size is None else str(size) for size in spec.shape)
    return f"{spec.name} {spec.dtype} {shape}"
