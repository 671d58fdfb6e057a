"""The trained network as a model that anomalib exports: the same weights on its own road.

The network and its scoring leave this environment as a torch program, which any torch reads without vae-edge; in
anomalib's environment `anomalib_export.py` puts it between anomalib's pre-processor and post-processor.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vae_edge.benchmarks.peers.environments import Environment
from vae_edge.errors import DeviceError
from vae_edge.train.anomaly_graph import AnomalyGraph
from vae_edge.train.run_folder import RunFolder

_EXPORT_TIMEOUT_S = 1200.0


class PixelGraph(AnomalyGraph):
    """The anomaly graph behind a pre-processor: float32 [N, 3, H, W] in [-1, 1] instead of uint8 [N, H, W, 3]."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run all but the scaling of the image's values."""
        anomaly_map, score = self.score(self.reconstruct.of_pixels(image))
        return anomaly_map, score


def save_program(run: RunFolder, path: Path) -> None:
    """Write a run's network and scoring as a torch program with a dynamic batch."""
    graph = PixelGraph(run.load_vae(), run.record.scoring, run.load_constants(), run.record.frame)
    height, width = graph.image_size
    batch = torch.export.Dim("N", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(
            graph, (torch.zeros(2, 3, height, width),), dynamic_shapes={"image": {0: batch}}, strict=False
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)


def export_with_anomalib(
    run: RunFolder,
    environment: Environment,
    files: Sequence[Path],
    input_size: tuple[int, int] | None,
    out: Path,
    *,
    calibration: Sequence[Path] = (),
) -> Path:
    """Let anomalib export a run; what an earlier call left for the same weights is taken as it is.

    Args:
        run: the trained network.
        environment: anomalib's.
        files: images to fit its normalization to.
        input_size: height and width of all images that it will get; None: any, which is anomalib's default.
        out: folder for it.
        calibration: images to quantize it to INT8 with; none: it stays in FP32.

    Returns:
        The `model.xml`.

    Raises:
        DeviceError: the export failed; the message is the reason.
    """
    model, marker = out / "weights/openvino/model.xml", out / "exported.json"
    height, width = run.record.preparation.height, run.record.preparation.width
    job = {
        "program": str(out / "program.pt2"),
        "size": [height, width],
        "input_size": input_size,
        "image_threshold": run.thresholds.image_threshold,
        "pixel_threshold": run.thresholds.pixel_threshold,
        "files": [str(file) for file in files],
        "calibration": [str(file) for file in calibration],
        "out": str(out),
        "declare_operators": environment.declare_operators,
    }
    state = json.dumps([run.fingerprint, environment.versions, job])
    if model.is_file() and marker.is_file() and marker.read_text(encoding="utf-8") == state:
        return model
    save_program(run, out / "program.pt2")
    (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
    script = Path(__file__).with_name("anomalib_export.py").resolve()
    command = [str(environment.python), "-I", str(script), str((out / "job.json").resolve())]
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=out,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_EXPORT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"its export was not done after {_EXPORT_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0 or not model.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise DeviceError(f"its export failed: {lines[-1][:300] if lines else 'it said nothing'}")
    marker.write_text(state, encoding="utf-8")
    return model
