"""What the gate finds and what it costs: `python -m vae_edge.benchmarks.studies.gate`.

Good parts of the sample products teach a gate, as in a training. Then it looks at fresh good parts (of another seed),
at defective parts, which should be judged and not turned away, and at fresh good parts whose pictures were spoilt:
blurred, defocused, darkened, overexposed, moved, or covered in part or whole. What is blurred or covered gets a
sensor's noise afterwards, as in a camera, where noise is not blurred.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from vae_edge.benchmarks.studies import run_study
from vae_edge.cli.console import plain_table, results_console
from vae_edge.cli.progress import step_progress
from vae_edge.errors import InputError
from vae_edge.gate import GateRecord
from vae_edge.gate_fitting import MIN_NORMALS, fit_gate
from vae_edge.gate_measures import measure_picture
from vae_edge.platform.atomic import write_text
from vae_edge.platform.work import StepProgress
from vae_edge.records import Record
from vae_edge.train.data.report import measure_traits
from vae_edge.train.sample.drawing import PRODUCTS, SampleSettings, defect_kinds, draw_defective, draw_normal

Image = NDArray[np.uint8]
Spoil = Callable[[Image, np.random.Generator], Image]

_NOISE = 1.5
"""Standard deviation of the noise that is added, of 255."""
_FRESH_SEED = 7


class GateRow(Record):
    """One product and one number of good parts."""

    product: str
    n_good: int
    n_fresh: int
    n_defective: int
    n_spoilt: int
    """Of each kind of spoiling."""
    rate_proven: float
    rate_expected: float
    n_rejected: int
    """Fresh good parts that are called not inspectable."""
    n_defective_rejected: int
    found: dict[str, int]
    """Spoilt pictures that are called not inspectable, by kind."""
    ms_per_picture: float
    """Smallest of the times that the measures of a picture took."""


def _noisy(image: NDArray[np.generic], rng: np.random.Generator) -> Image:
    noise = rng.normal(0, _NOISE, image.shape)
    return np.clip(np.rint(image.astype(np.float64) + noise), 0, 255).astype(np.uint8)


def _blur(share: float) -> Spoil:
    return lambda image, rng: _noisy(cv2.GaussianBlur(image, (0, 0), share * len(image)), rng)


def _defocus(share: float) -> Spoil:
    def spoil(image: Image, rng: np.random.Generator) -> Image:
        radius = max(1, round(share * len(image)))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.float32)
        return _noisy(cv2.filter2D(image, -1, disc / disc.sum()), rng)

    return spoil


def _expose(gain: float) -> Spoil:
    return lambda image, rng: _noisy(np.clip(image * gain, 0, 255), rng)


def _move(share: float) -> Spoil:
    def spoil(image: Image, rng: np.random.Generator) -> Image:
        # By whole pixels: in between, it would be blurred as well.
        matrix = np.array([[1, 0, round(share * len(image))], [0, 1, round(share * len(image) / 2)]], dtype=np.float32)
        size = (image.shape[1], image.shape[0])
        return np.asarray(cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REFLECT), dtype=np.uint8)

    return spoil


def _cover(share: float, *, dark: bool) -> Spoil:
    def spoil(image: Image, rng: np.random.Generator) -> Image:
        covered = image.copy()
        covered[:, : round(share * image.shape[1])] = 20 if dark else round(float(image.mean()))
        return _noisy(covered, rng)

    return spoil


SPOILT: dict[str, Spoil] = {
    "blur 0.6 %": _blur(0.006),
    "blur 1.2 %": _blur(0.012),
    "blur 2.4 %": _blur(0.024),
    "defocus 0.8 %": _defocus(0.008),
    "defocus 1.6 %": _defocus(0.016),
    "light 0.7": _expose(0.7),
    "light 0.5": _expose(0.5),
    "light 0.25": _expose(0.25),
    "light 1.3": _expose(1.3),
    "light 1.6": _expose(1.6),
    "light 2.5": _expose(2.5),
    "moved 5 %": _move(0.05),
    "moved 10 %": _move(0.10),
    "moved 25 %": _move(0.25),
    "quarter covered, dark": _cover(0.25, dark=True),
    "half covered, dark": _cover(0.5, dark=True),
    "half covered, grey": _cover(0.5, dark=False),
    "all covered, dark": _cover(1, dark=True),
    "all covered, grey": _cover(1, dark=False),
}
"""Ways to spoil a picture: sigma, radius and shift as shares of the side, light as a factor."""


def _draw_defective(product: str, kind: str, index: int, settings: SampleSettings) -> Image:
    return draw_defective(product, kind, index, settings).image


def study_product(
    product: str,
    numbers: list[int],
    *,
    n_fresh: int,
    n_spoilt: int,
    n_per_defect: int,
    image_size: int,
    progress: StepProgress | None = None,
) -> list[GateRow]:
    """Teach a gate on the first good parts of a product, for each number of them, and judge all other pictures.

    Args:
        product: one of the sample products.
        numbers: of good parts.
        n_fresh: fresh good parts.
        n_spoilt: the first of these are spoilt in each way.
        n_per_defect: defective parts of each kind.
        image_size: side of the pictures.
        progress: called with the step, pictures done and in all.
    """

    def drawn(step: str, tasks: Sequence[Callable[[], Image]]) -> Iterator[Image]:
        for done, task in enumerate(tasks, 1):
            yield task()
            if progress is not None:
                progress(f"{product}: {step}", done, len(tasks))

    def normals(n: int, seed: int) -> list[Callable[[], Image]]:
        settings = SampleSettings(seed=seed, image_size=image_size)
        return [partial(draw_normal, product, i, settings) for i in range(n)]

    settings = SampleSettings(seed=0, image_size=image_size)
    good = list(drawn("good parts", normals(max(numbers), 0)))
    is_aligned = measure_traits(np.stack(good[:100])).is_aligned
    looks = [measure_picture(image) for image in good]
    fresh = list(drawn("fresh good parts", normals(n_fresh, _FRESH_SEED)))
    fresh_looks = [measure_picture(image) for image in fresh]
    defective = [
        partial(_draw_defective, product, kind, i, settings)
        for kind in defect_kinds(product)
        for i in range(n_per_defect)
    ]
    defective_looks = [measure_picture(image) for image in drawn("defective parts", defective)]
    rng = np.random.default_rng(0)
    spoilt = {
        name: [measure_picture(spoil(image, rng)) for image in fresh[:n_spoilt]] for name, spoil in SPOILT.items()
    }
    rows = []
    for n in numbers:
        gate = fit_gate(looks[:n], is_aligned=is_aligned)
        if gate is None:
            raise InputError(f"{n} good parts are too few for a gate; expected {MIN_NORMALS} or more")
        rows.append(
            GateRow(
                product=product,
                n_good=n,
                n_fresh=n_fresh,
                n_defective=len(defective_looks),
                n_spoilt=min(n_spoilt, n_fresh),
                rate_proven=gate.rejection_rate,
                rate_expected=min(gate.rejection_rate, gate.rejection_rate_requested),
                n_rejected=sum(bool(gate.problems(look)) for look in fresh_looks),
                n_defective_rejected=sum(bool(gate.problems(look)) for look in defective_looks),
                found={name: sum(bool(gate.problems(look)) for look in some) for name, some in spoilt.items()},
                ms_per_picture=_fastest_ms(gate, fresh[0]),
            )
        )
    return rows


def _fastest_ms(gate: GateRecord, image: Image) -> float:
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        gate.problems(measure_picture(image))
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def study(
    product: Annotated[list[str], typer.Option(help="Product of the sample set; may be repeated.")] = list(PRODUCTS),  # noqa: B006
    good: Annotated[list[int], typer.Option(help="Good parts to learn from; may be repeated.")] = [20, 60, 360],  # noqa: B006
    fresh: Annotated[int, typer.Option(help="Fresh good parts.", min=1)] = 400,
    spoilt: Annotated[int, typer.Option(help="Of these, how many are spoilt in each way.", min=1)] = 40,
    defective: Annotated[int, typer.Option(help="Defective parts of each kind.", min=1)] = 10,
    image_size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 256,
    out: Annotated[Path | None, typer.Option(help="File for the figures, as lines of JSON.")] = None,
) -> None:
    """Measure what the gate finds, and how often it turns good and defective parts away."""
    rows: list[GateRow] = []
    with step_progress() as progress:
        for name in product:
            rows += study_product(
                name,
                good,
                n_fresh=fresh,
                n_spoilt=spoilt,
                n_per_defect=defective,
                image_size=image_size,
                progress=progress,
            )
    table = plain_table()
    table.add_column("", style="cyan")
    for row in rows:
        table.add_column(f"{row.product}, {row.n_good}", justify="right")
    table.add_row("proven rate", *(f"{row.rate_proven:.2%}" for row in rows))
    table.add_row("fresh good parts rejected", *(f"{row.n_rejected} of {row.n_fresh}" for row in rows))
    table.add_row("defective parts rejected", *(f"{row.n_defective_rejected} of {row.n_defective}" for row in rows))
    for name in SPOILT:
        table.add_row(f"{name}: found", *(f"{row.found[name] / row.n_spoilt:.0%}" for row in rows))
    table.add_row("ms per picture", *(f"{row.ms_per_picture:.2f}" for row in rows))
    results_console().print(table)
    if out is not None:
        write_text(out, "".join(row.model_dump_json() + "\n" for row in rows))


if __name__ == "__main__":
    run_study(study)
