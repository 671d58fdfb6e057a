"""`vae-edge sample`: a synthetic inspection set to try everything on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vae_edge.cli.console import plain_table, results_console
from vae_edge.cli.progress import progress_bar
from vae_edge.errors import UsageError
from vae_edge.train.sample import PRODUCTS, SampleSettings, defect_kinds, write_sample_set
from vae_edge.wording import count

_DEFAULTS = SampleSettings()


def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the products.")],
    product: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(PRODUCTS)} or all; may be given several times.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other images.")] = _DEFAULTS.seed,
    image_size: Annotated[int, typer.Option(help="Height and width in pixels.")] = _DEFAULTS.image_size,
    train: Annotated[int, typer.Option(help="Normal images for training.")] = _DEFAULTS.n_train,
    test_good: Annotated[int, typer.Option(help="Normal images for testing.")] = _DEFAULTS.n_test_good,
    per_defect: Annotated[int, typer.Option(help="Defective images per kind of defect.")] = _DEFAULTS.n_test_per_defect,
) -> None:
    """Draw a synthetic inspection set in MVTec AD layout, with masks; the same settings give the same images.

    Existing sets are kept. The numbers are per product.
    """
    settings = SampleSettings(
        seed=seed, image_size=image_size, n_train=train, n_test_good=test_good, n_test_per_defect=per_defect
    )
    chosen = _chosen(product or ["all"])
    n_drawn = 0
    with progress_bar("drawing") as report:

        def note(done: int, total: int) -> None:
            nonlocal n_drawn
            n_drawn = done
            report(done, total)

        folders = write_sample_set(folder, chosen, settings, progress=note)
    table = plain_table()
    table.add_column("product", style="bold", overflow="fold")
    for heading in ("train", "test good", "test defective"):
        table.add_column(heading, justify="right")
    table.add_column("kinds of defect")
    for name, path in zip(chosen, folders, strict=True):
        kinds = defect_kinds(name)
        numbers = (settings.n_train, settings.n_test_good, settings.n_test_per_defect * len(kinds))
        table.add_row(str(path), *map(str, numbers), ", ".join(kinds))
    console = results_console()
    console.print(table)
    console.print(f"{count(n_drawn, 'image')} drawn." if n_drawn else "Everything already existed.")


def _chosen(words: list[str]) -> list[str]:
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if names == ["all"]:
        return list(PRODUCTS)
    unknown = [name for name in names if name not in PRODUCTS]
    if unknown or not names:
        came = ", ".join(map(repr, unknown)) or "nothing"
        raise UsageError(f"--product is {came}; expected {', '.join(PRODUCTS)} or all")
    return list(dict.fromkeys(names))
