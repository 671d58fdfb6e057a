"""Which defects a model sees at its threshold: shares of pasted defects found, by size, contrast and kind.

`vae-train` measures them (`vae_edge.train.run.detectability`), a bundle's manifest holds them, and what they say in
words is here, for every command alike.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vae_edge.records import Record

Contrast = Literal["low", "medium", "high"]
"""Change where a defect is strongest: an eighth, a quarter and half of the light that comes from the place."""

CONTRASTS: tuple[Contrast, ...] = ("low", "medium", "high")

FOUND = 0.5
"""Share from which defects of a size count as seen."""

LARGEST_UNSEEN = 0.04
"""Defects of this share of the picture's shorter side and larger, at high contrast, are expected to be seen: about
10 pixels of 256. A model that does not is called blind."""


LARGER_RATE = 0.05
"""False-alarm rate that is compared with one that the normals hardly support."""


class FoundBySize(Record):
    """Pasted defects of one size and contrast, of all kinds."""

    size: float = Field(gt=0, le=1)
    """Extent as a share of the picture's shorter side."""
    contrast: Contrast
    n: int = Field(ge=1)
    n_found: int = Field(ge=0)


class FoundByKind(Record):
    """Pasted defects of one kind and size, of all contrasts."""

    kind: str
    size: float = Field(gt=0, le=1)
    n: int = Field(ge=1)
    n_found: int = Field(ge=0)


class FoundAtRate(Record):
    """What another false-alarm rate than the one in force would find."""

    false_alarm_rate: float = Field(gt=0, lt=1)
    threshold: float
    """Which the same normals' scores give for it."""
    n_found: int = Field(ge=0)
    """Of all pasted defects."""


class Detectability(Record):
    """Shares of pasted defects that the trained model finds at its threshold.

    They are defects that a program drew on pictures of good parts: what they say is at which size and contrast this
    model on these pictures goes blind, not which share of a product's own defects it finds.
    """

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    """Of the picture that the model sees, in pixels."""
    threshold: float
    """The one in force: a score above it counts as found."""
    normals: str
    """What the defects are pasted on, in words."""
    n_normals: int = Field(ge=1)
    n_false_alarms: int = Field(ge=0)
    """Of these, without any defect, above the threshold."""
    by_size: tuple[FoundBySize, ...]
    by_kind: tuple[FoundByKind, ...]
    n_found_at_requested_rate: int | None = Field(default=None, ge=0)
    """Of all defects, at the threshold that the false-alarm rate asked for would need, estimated; None where it is the
    one in force."""
    at_larger_rate: FoundAtRate | None = None
    """Where the rate in force is the smallest that the normals support, so that one of their scores is the threshold:
    what a rate of `LARGER_RATE` would find. None elsewhere, and where that rate is no larger."""

    @model_validator(mode="after")
    def _check_counts(self) -> Detectability:
        counts = [(cell.n_found, cell.n) for cell in self.by_size] + [(cell.n_found, cell.n) for cell in self.by_kind]
        if any(n_found > n for n_found, n in counts):
            raise ValueError("more defects are found than there are")
        if self.n_false_alarms > self.n_normals:
            raise ValueError("there are more false alarms than normals")
        return self

    @property
    def sizes(self) -> tuple[float, ...]:
        """The sizes, ascending."""
        return tuple(sorted({cell.size for cell in self.by_size}))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds, in order of appearance."""
        return tuple(dict.fromkeys(cell.kind for cell in self.by_kind))

    @property
    def n(self) -> int:
        """Number of pasted defects."""
        return sum(cell.n for cell in self.by_size)

    @property
    def n_found(self) -> int:
        """How many of them are found."""
        return sum(cell.n_found for cell in self.by_size)

    def at(self, size: float, contrast: Contrast) -> FoundBySize | None:
        """Return the cell of a size and contrast, None where there is none."""
        return next((cell for cell in self.by_size if (cell.size, cell.contrast) == (size, contrast)), None)

    def of_kind(self, kind: str, size: float) -> FoundByKind | None:
        """Return the cell of a kind and size, None where there is none."""
        return next((cell for cell in self.by_kind if (cell.kind, cell.size) == (kind, size)), None)

    def seen_from(self, contrast: Contrast) -> float | None:
        """Return the smallest size from which at least half are found, at it and at all larger ones; None: at none."""
        seen: float | None = None
        for size in reversed(self.sizes):
            cell = self.at(size, contrast)
            if cell is not None and cell.n_found < FOUND * cell.n:
                break
            seen = size
        return seen

    @property
    def is_blind(self) -> bool:
        """Whether less than half of the high-contrast defects of some size from `LARGEST_UNSEEN` on are found."""
        seen = self.seen_from("high")
        return seen is None or seen > LARGEST_UNSEEN

    def size_text(self, size: float) -> str:
        """Return a size in words: `2 % (5 px)`."""
        pixels = size * min(self.height, self.width)
        return f"{100 * size:g} % ({pixels:.0f} px)" if pixels >= 1.5 else f"{100 * size:g} % (1 px)"

    def headline(self) -> str:
        """Say from which size on defects are seen, for each contrast."""
        parts = []
        for contrast in reversed(CONTRASTS):
            seen = self.seen_from(contrast)
            parts.append(
                f"{'at no size' if seen is None else f'from {self.size_text(seen)} on'} at {contrast} contrast"
            )
        return f"at least half of the pasted defects are found {', '.join(parts)}; sizes of the shorter side"

    def blindness(self) -> str | None:
        """Say which size is invisible, where the model is blind."""
        if not self.is_blind:
            return None
        seen = self.seen_from("high")
        which = (
            f"even defects of {self.size_text(self.sizes[-1])} of the shorter side"
            if seen is None
            else f"defects below {self.size_text(seen)} of the shorter side"
        )
        return f"{which} are invisible: of those pasted at high contrast fewer than half are found at this threshold"


def found_text(cell: FoundBySize | FoundByKind | None) -> str:
    """Return a cell as text: `42 % (5/12)`; a dash where there is none."""
    return "-" if cell is None else f"{cell.n_found / cell.n:.0%} ({cell.n_found}/{cell.n})".replace("%", " %")
