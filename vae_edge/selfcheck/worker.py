"""The process of one step: `python -m vae_edge.selfcheck.worker JOB RESULT`, two files."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vae_edge.doctor import GPU_FIX, Probe, probe
from vae_edge.errors import MissingDependencyError, ParityError, VaeEdgeError, said_by
from vae_edge.platform.atomic import write_text
from vae_edge.selfcheck import machine
from vae_edge.selfcheck.record import StepResult, Verdict

Report = Callable[[StepResult], None]


def main(job_path: str, result_path: str) -> None:
    """Run the step that a job names and write its result."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    report = partial(_write, Path(result_path))
    report(_run(job["kind"], job["arguments"], report))


def _write(path: Path, result: StepResult) -> None:
    write_text(path, result.model_dump_json())


def _run(kind: str, arguments: dict[str, Any], report: Report) -> StepResult:
    """Run a step; whatever goes wrong is in the result, as far as the process survives it."""
    try:
        return _KINDS[kind](arguments, report)
    except ParityError as error:
        traceback.print_exc()
        return StepResult(verdict=Verdict.DIFFERS, reason=str(error))
    except (MissingDependencyError, ModuleNotFoundError) as error:
        missing = getattr(error, "name", None)
        if missing is not None and missing.split(".")[0] == "vae_edge":
            raise
        return StepResult(verdict=Verdict.SKIPPED, reason=str(error))
    except VaeEdgeError as error:
        traceback.print_exc()
        return StepResult(verdict=Verdict.FAILED, reason=str(error))
    except Exception as error:  # noqa: BLE001 - a runtime raises anything, and that is what is to be known
        traceback.print_exc()
        return StepResult(verdict=Verdict.FAILED, reason=f"{type(error).__name__}: {said_by(error)}")


def _machine(arguments: dict[str, Any], report: Report) -> StepResult:
    return machine.look(arguments)


def _runtime(arguments: dict[str, Any], report: Report) -> StepResult:
    found = probe(str(arguments["runtime"]))
    return StepResult(verdict=_verdict_of(found), reason=_reason_of(found), facts=_facts_of(found))


def _cuda(arguments: dict[str, Any], report: Report) -> StepResult:
    from vae_edge.selfcheck.cuda_check import round_trips

    return round_trips(arguments)


def _construct(arguments: dict[str, Any], report: Report) -> StepResult:
    from vae_edge.selfcheck.constructs import check_construct

    return check_construct(arguments)


def _of_bundle(name: str, arguments: dict[str, Any], report: Report) -> StepResult:
    from vae_edge.selfcheck import bundle_check

    function = getattr(bundle_check, name)
    result: StepResult = function(arguments, report) if name == "soak" else function(arguments)
    return result


_KINDS: dict[str, Callable[[dict[str, Any], Report], StepResult]] = {
    "machine": _machine,
    "runtime": _runtime,
    "cuda": _cuda,
    "construct": _construct,
    "references": partial(_of_bundle, "check_references"),
    "build": partial(_of_bundle, "build_only"),
    "start": partial(_of_bundle, "check_start"),
    "timing": partial(_of_bundle, "time_verdicts"),
    "soak": partial(_of_bundle, "soak"),
}
"""What a step can be."""


def _verdict_of(found: Probe) -> Verdict:
    # TensorRT without a GPU is nothing that could be wrong with a device.
    if found.status == "missing" or found.fix == GPU_FIX:
        return Verdict.SKIPPED
    return Verdict.FAILED if found.status == "broken" else Verdict.OK


def _reason_of(found: Probe) -> str | None:
    version = f"{found.version}: " if found.version else ""
    devices = f"; devices: {', '.join(found.devices)}" if found.devices else ""
    return f"{version}{found.notes}{devices}" or None


def _facts_of(found: Probe) -> dict[str, Any]:
    return {
        "status": found.status,
        "version": found.version,
        "devices": list(found.devices),
        "notes": found.notes,
        "fix": found.fix,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
