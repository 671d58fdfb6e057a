"""Pictures: what each bundle found, missed and called by mistake."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence

from vae_edge.benchmarks.accuracy_records import ExampleKind, ImageExample
from vae_edge.benchmarks.page.markup import Markup, element, join
from vae_edge.benchmarks.page.tables import section
from vae_edge.benchmarks.report import Report

KINDS: dict[ExampleKind, str] = {
    "flip": "Flip: the reference decides otherwise",
    "miss": "Miss",
    "false_alarm": "False alarm",
    "hit": "Hit",
    "pass": "Rightly passed",
}
"""In the order that an engineer asks for them."""

MOST_BYTES = 4 * 1024 * 1024
"""Pictures beyond this much are left out of the page: it is sent by mail and opened on phones."""


def gallery_section(report: Report, images: Mapping[str, bytes], most_bytes: int = MOST_BYTES) -> Markup:
    """Return the section: the recommended bundle's pictures first and open, the others' folded."""
    title = "What they saw"
    examples = [example for example in report.examples if example.input_file in images]
    if not examples:
        return section("images", title, element("p", "There are no pictures in this report."))
    chosen = report.recommendation.chosen if report.recommendation else None
    order = sorted(dict.fromkeys(example.bundle for example in examples), key=lambda name: name != chosen)
    ranked = sorted(examples, key=lambda example: (order.index(example.bundle), list(KINDS).index(example.kind)))
    kept, n_left_out = _within(ranked, images, most_bytes)
    folders = []
    for position, bundle in enumerate(order):
        own = [example for example in kept if example.bundle == bundle]
        if own:
            summary = join(element("span", bundle, class_="name"), f": {_count(len(own))}")
            folders.append(
                element(
                    "details", element("summary", summary), _cards(own, images), open=position == 0, class_="bundle"
                )
            )
    left_out = (
        element(
            "p",
            f"{_count(n_left_out)} more in the report's folder images: with them this page would be too large.",
        )
        if n_left_out
        else None
    )
    legend = (
        "Each row: the picture, the bundle's anomaly map (black up to half the pixel threshold, brightest from twice "
        "the threshold), the pixels above the pixel threshold, and where the defect is, as far as that is known. Of a "
        "bundle that is compared with a reference only what it decides otherwise is shown: it sees nearly the same."
    )
    return section("images", title, element("p", legend), folders, left_out)


def _count(n: int) -> str:
    return "1 image" if n == 1 else f"{n} images"


def _within(
    examples: Sequence[ImageExample], images: Mapping[str, bytes], most_bytes: int
) -> tuple[list[ImageExample], int]:
    """Return the first examples that together are small enough, and how many are left out."""
    kept, total = [], 0
    for example in examples:
        total += sum(len(images.get(file, b"")) * 4 // 3 for file in _files(example))
        if total > most_bytes:
            break
        kept.append(example)
    return kept, len(examples) - len(kept)


def _files(example: ImageExample) -> list[str]:
    files = (example.input_file, example.map_file, example.mask_file, example.truth_file)
    return [file for file in files if file is not None]


def _cards(examples: Sequence[ImageExample], images: Mapping[str, bytes]) -> Markup:
    return element("div", [_card(example, images) for example in examples], class_="gallery")


def _card(example: ImageExample, images: Mapping[str, bytes]) -> Markup:
    label = f"defect: {example.defect}" if example.defect is not None else "good part"
    verdict = "anomalous" if example.is_anomalous else "normal"
    is_right = example.is_anomalous == (example.defect is not None)
    pictures = [
        ("input", example.input_file, f"picture {example.image}, {label}"),
        ("map", example.map_file, f"anomaly map of {example.image} by {example.bundle}"),
        ("mask", example.mask_file, f"pixels of {example.image} above the pixel threshold"),
        ("truth", example.truth_file, f"where the defect {example.defect} is in {example.image}"),
    ]
    shown = [
        element(
            "div",
            element("img", src=_data_uri(images[file]), alt=alt, decoding="async"),
            element("span", title, aria_hidden="true"),
        )
        for title, file, alt in pictures
        if file is not None and file in images
    ]
    return element(
        "figure",
        element("div", shown, class_="pictures"),
        element(
            "figcaption",
            element("strong", KINDS[example.kind], class_="kind"),
            element("span", example.image, class_="name"),
            " - ",
            f"{label}; called ",
            element("strong", verdict, class_="good" if is_right else "bad"),
            f": score {example.score:.4g}, threshold {example.threshold:.4g}, p {example.p_value:.3g}",
        ),
        class_="example",
    )


def _data_uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"
