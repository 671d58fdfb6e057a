"""The process of one step of `check.sh`: `python -m tests.gpu.steps STEP RESULT OUT`, a file and a folder.

A step prints as it likes, for the log. It ran unless it raises: `NotRunError` says that there is nothing to run here,
and every other exception is a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.gpu.check import FAILED, NOT_RUN, RAN

Lines = list[str]
"""What was found, in Markdown: items of a list, or rows of a table."""

SCORES_WITHIN = 2e-4
"""Of a score, or of its threshold where that is larger: what FP32 on another device may be off."""

_BUNDLE_S = 60.0
"""Of one bundle."""

WORKER: tuple[str, ...] = ()
"""The program of what has a process of its own within a step; empty: that of `vae-edge selfcheck`."""

_WORK = "from vae_edge.selfcheck.worker import main; main(*sys.argv[1:])"

_SPEED = ("--presets", "nano,edge", "--sides", "128,256")


class NotRunError(Exception):
    """There is nothing here that the step could check."""


class FailedError(Exception):
    """The step failed.

    Args:
        reason: why.
        lines: what was found nevertheless.
    """

    def __init__(self, reason: str, lines: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.lines = list(lines)


def machine(out: Path) -> Lines:
    """Say what this machine is, and refuse one without a GPU."""
    from vae_edge.backends.cuda.gpus import find_gpus
    from vae_edge.errors import DeviceError
    from vae_edge.selfcheck.machine import look

    try:
        find_gpus()
    except DeviceError as error:
        raise NotRunError(f"no NVIDIA GPU can be used here: {error.__cause__ or error}") from error
    return list(look({}).lines)


def tests(out: Path) -> Lines:
    """Run the tests that are marked `gpu`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/vae_edge"]
        status = subprocess.run([sys.executable, "-m", "pytest", *options], check=False).returncode
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    skipped = Counter(each.attrib["message"] for case in cases for each in case.iter("skipped"))
    failed = [
        case.attrib["name"] for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    n_passed = len(cases) - skipped.total() - len(failed)
    counts = f"{n_passed} passed, {len(failed)} failed, {skipped.total()} not run"
    reasons = [f"not run ({n}): {reason}" for reason, n in skipped.items()]
    if failed or status not in (0, 5):
        raise FailedError(f"pytest ended with {status}; {counts}; {', '.join(failed)}", reasons)
    if not n_passed:
        raise NotRunError("; ".join(reasons) or "no test is marked gpu")
    return [counts, *reasons]


def cuda(adapter: str, out: Path) -> Lines:
    """Copy bytes there and back through one adapter, and end without closing it."""
    from vae_edge.selfcheck.cuda_check import round_trips

    return _checked(round_trips({"adapter": adapter}))


def torch_scores(out: Path) -> Lines:
    """Compare the outputs of the shipped bundles for torch on CUDA with the CPU's, and with their references."""
    torch = _torch_with_cuda()
    lines = [f"torch {torch.__version__} on {torch.cuda.get_device_name()}"]
    with tempfile.TemporaryDirectory() as scratch:
        lines += [_compare_with_cpu(folder) for folder in _unpacked("-torch-", Path(scratch))]
    return lines


def _compare_with_cpu(folder: Path) -> str:
    import numpy as np

    from vae_edge.bundle import Bundle
    from vae_edge.detector import Detector
    from vae_edge.selfcheck.bundle_check import check_references, reference_images

    images = reference_images(Bundle.open(folder))
    found = []
    for device in ("cpu", "cuda"):
        with Detector.open(folder, device=device) as detector:
            found.append([detector.predict(image) for image in images])
    cpu, gpu = (np.array([each.score for each in predictions]) for predictions in found)
    share = float(np.max(np.abs(gpu - cpu) / np.maximum(np.abs(cpu), found[0][0].threshold)))
    same = sum(a.is_anomalous == b.is_anomalous for a, b in zip(*found, strict=True))
    line = f"{folder.name}: scores within {share:.1e} of the CPU's, {same} of {len(images)} verdicts equal"
    if share > SCORES_WITHIN or same < len(images):
        raise FailedError(f"{line}; at most {SCORES_WITHIN:.0e} is allowed")
    _checked(check_references({"folder": str(folder), "device": "cuda"}))
    return line


def training(out: Path) -> Lines:
    """Train on CUDA, export, and run the references on CUDA and on the CPU."""
    _torch_with_cuda()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        settings = ["--preset", "nano", "--image-size", "128", "--tile-size", "none", "--epochs", "20"]
        settings += ["--scoring", "default", "--photometric", "none", "--calibration", "split"]
        _vae_edge("train", "--data", "sample:dial", "--out", f"{folder}/dial", *settings)
        seconds = time.perf_counter() - begun
        record = json.loads(Path(folder, "dial", "training.json").read_text(encoding="utf-8"))
        _vae_edge("export", f"{folder}/dial", "--target", "torch,onnx", "--out", f"{folder}/bundles")
        for arguments in (("torch", "cuda"), ("torch", "cpu"), ("onnx", "cpu")):
            _vae_edge("verify", f"{folder}/bundles/dial-{arguments[0]}-fp32", "--device", arguments[1])
    return [
        f"20 epochs of nano at 128 x 128, {record.get('precision')}: vae-train took {seconds:.0f} s with all around it",
        "the bundles for torch on CUDA, torch on the CPU and ONNX Runtime on the CPU give the references",
    ]


def training_speed(out: Path) -> Lines:
    """Measure the training loop on CUDA and, for comparison, the first rows of it on the CPU."""
    _torch_with_cuda()
    lines = []
    study = (sys.executable, "-m", "vae_edge.benchmarks.studies.training_speed")
    for accelerator, more in (("cuda", ("--steps", "60")), ("cpu", ("--steps", "3", "--rounds", "1"))):
        done = subprocess.run(
            [*study, *_SPEED, *more, "--accelerator", accelerator], stdout=subprocess.PIPE, text=True, check=True
        )
        _say(done.stdout)
        lines += [f"images/s on {accelerator}, 32 in a batch:", "```", *done.stdout.rstrip().splitlines(), "```"]
    return lines


def onnx_runtime(out: Path) -> Lines:
    """Run the shipped ONNX bundles on ONNX Runtime's providers for NVIDIA GPUs."""
    from vae_edge.platform.telemetry import import_onnxruntime

    onnxruntime = _imported(import_onnxruntime)
    providers = onnxruntime.get_available_providers()
    devices = [
        device
        for device, provider in (("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider"))
        if provider in providers
    ]
    if not devices:
        raise NotRunError(
            f"ONNX Runtime {onnxruntime.__version__} here has {', '.join(providers)}; CUDA is in onnxruntime-gpu"
        )
    # TensorRT's libraries are often missing where its provider is there; the self-check tells about that.
    return _references("onnxruntime", "-onnx-", devices[0], out)


def tensorrt(flavour: str, out: Path) -> Lines:
    """Build the shipped bundles' engines with one flavour of TensorRT, run them and time one."""
    from vae_edge.backends.tensorrt.module import FLAVOURS, find_tensorrt
    from vae_edge.errors import MissingDependencyError

    try:
        module = find_tensorrt(flavour)
    except MissingDependencyError as error:
        raise NotRunError(f"{FLAVOURS[flavour].title} is not installed ({error.__cause__ or error})") from error
    # As if the other one were not installed.
    prepare = "; ".join(f"sys.modules[{other!r}] = None" for other in FLAVOURS if other != flavour)
    return [str(module), *_references(FLAVOURS[flavour].extra, "-tensorrt-", "auto", out, prepare)]


def selfcheck(out: Path) -> Lines:
    """Run `vae-edge selfcheck`; its file is kept."""
    from tests.vae_edge.selfcheck.sent_file import read_file
    from vae_edge.selfcheck.record import Verdict

    path = out / "selfcheck.zip"
    path.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, "-m", "vae_edge", "selfcheck", "--out", str(path)], check=False)
    record = read_file(path)
    lines = [", ".join(f"{n} {verdict}" for verdict in Verdict if (n := record.count(verdict)))]
    lines += [f"{step.title}: {step.verdict}: {step.reason}" for step in record.steps if step.verdict is not Verdict.OK]
    lines += [step.lines[0] for step in record.steps if step.key.startswith("timing:") and step.lines]
    if done.returncode:
        raise FailedError(f"vae-edge selfcheck ended with exit code {done.returncode}", lines)
    return lines


STEPS: dict[str, Callable[[Path], Lines]] = {
    "machine": machine,
    "tests": tests,
    **{f"cuda-{name}": partial(cuda, name) for name in ("driver", "driver-copies", "pycuda", "cuda-bindings")},
    "torch": torch_scores,
    "training": training,
    "training-speed": training_speed,
    "onnxruntime": onnx_runtime,
    "tensorrt": partial(tensorrt, "tensorrt"),
    "tensorrt-rtx": partial(tensorrt, "tensorrt_rtx"),
    "selfcheck": selfcheck,
}


def _references(name: str, part: str, device: str, out: Path, prepare: str = "") -> Lines:
    """Check the references of every shipped bundle of a kind on one device, and time one in FP32, each on its own.

    Args:
        name: of the file that keeps what was found.
        part: of the bundles' names.
        device: where they run.
        out: the folder for that file.
        prepare: what each process does first, in Python.
    """
    from vae_edge.selfcheck.privacy import Redactor
    from vae_edge.selfcheck.record import StepRecord, Verdict
    from vae_edge.selfcheck.runner import Runner
    from vae_edge.selfcheck.steps import Step

    def told(step: StepRecord) -> None:
        _say(f"{step.verdict} {step.title}: {step.reason}", *step.lines, step.messages or "")

    worker = WORKER or (sys.executable, "-c", f"import sys; {prepare}; {_WORK}")
    with tempfile.TemporaryDirectory() as folder:
        bundles = _unpacked(part, Path(folder, "bundles"))
        steps = [Step(each.name, each.name, "references", _on(device, each), _BUNDLE_S) for each in bundles]
        first = next(each for each in bundles if each.name.endswith("-fp32"))
        steps.append(Step("timing", f"timing of {first.name}", "timing", _on(device, first), _BUNDLE_S))
        Path(folder, "scratch").mkdir()
        runner = Runner(out / f"{name}.zip", Redactor({}), on_step=told, worker=worker)
        records = runner.run_steps(steps, Path(folder, "scratch")).steps
    lines = [f"{each.title}: {'; '.join(each.lines[:3])}" for each in records if each.lines]
    problems = [f"{each.title}: {each.reason}" for each in records if each.verdict is not Verdict.OK]
    if problems:
        raise FailedError("; ".join(problems), lines)
    return lines


def _on(device: str, bundle: Path) -> dict[str, str]:
    return {"folder": str(bundle), "device": device}


def _checked(result: Any) -> Lines:
    """Return what a step of `vae-edge selfcheck` found; refuse what it refuses."""
    _say(result.model_dump_json())
    if str(result.verdict) == "skipped":
        raise NotRunError(result.reason)
    if str(result.verdict) != "ok":
        raise FailedError(f"{result.verdict}: {result.reason}", result.lines)
    return list(result.lines)


def _unpacked(part: str, folder: Path) -> list[Path]:
    """Unpack the shipped bundles and return those whose name has this part."""
    from vae_edge.selfcheck.shipped import unpack_bundles

    return [each for each in unpack_bundles(folder) if part in each.name]


def _torch_with_cuda() -> Any:
    def load() -> Any:
        import torch

        return torch

    torch = _imported(load)
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}, and finds no GPU" if torch.version.cuda else "without CUDA"
        raise NotRunError(f"torch {torch.__version__} is built {built}")
    return torch


def _imported(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ImportError as error:
        raise NotRunError(f"{error.name or 'a package'} is not installed ({error})") from error


def _vae_edge(*arguments: str) -> None:
    _say(f"$ vae-edge {' '.join(arguments)}")
    subprocess.run([sys.executable, "-m", "vae_edge", *arguments], check=True)


def _say(*lines: str) -> None:
    """Write lines into the log."""
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


@contextmanager
def _told(result: Path) -> Iterator[Callable[[Lines], None]]:
    """Write what becomes of a step into a file."""

    def write(outcome: str, reason: str, lines: Lines) -> None:
        content = {"outcome": outcome, "reason": " ".join(reason.split()), "lines": lines}
        result.write_text(json.dumps(content), encoding="utf-8")

    from vae_edge.errors import MissingDependencyError

    try:
        yield lambda lines: write(RAN, "", lines)
    except (NotRunError, MissingDependencyError) as error:
        write(NOT_RUN, str(error), [])
    except FailedError as error:
        write(FAILED, str(error), error.lines)
    except Exception as error:  # noqa: BLE001 - that is what is to be known
        traceback.print_exc()
        write(FAILED, f"{type(error).__name__}: {error}", [])


def main(name: str, result: str, out: str) -> None:
    """Run a step and write its result."""
    with _told(Path(result)) as tell:
        tell(STEPS[name](Path(out)))
    _say(f"ended: {name}")


if __name__ == "__main__":
    os.umask(0o022)
    main(*sys.argv[1:])
