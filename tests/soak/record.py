"""What a soak found: the record that is written as JSON, and everything that is shown of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.soak.growth import Growth, Sample
from tests.soak.ledger import Count
from tests.soak.subject import Ending


@dataclass(frozen=True)
class Injected:
    """A fault that was made to happen."""

    name: str
    subject: str
    begin_s: float
    end_s: float


@dataclass
class Soak:
    """One soak."""

    date: str
    vae_edge: str
    minutes: float
    machine: str
    """Processor, cores, system and Python, as one line."""
    counts: dict[str, Count] = field(default_factory=dict)
    """By subject, and `mqtt`: messages that arrived, of those that the watch's lines owe."""
    torn: dict[str, int] = field(default_factory=dict)
    """Pictures that were torn or cut when they were given, and requests that broke off, by subject."""
    injected: list[Injected] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    judged_from_s: float = 0.0
    """The end of the warm-up."""
    left_out: list[str] = field(default_factory=list)
    problems_of_faults: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def problems(self) -> list[str]:
        """Everything that makes it a failure, in words."""
        found = [f"{name}: {problem}" for name, count in self.counts.items() for problem in count.problems]
        found += [each.problem for each in self.endings if each.explained_by is None]
        found += [each.problem for each in self.growths if each.is_too_large]
        found += self.problems_of_faults
        return [*found, "it was interrupted"] if self.interrupted else found

    @property
    def summary(self) -> str:
        """One sentence."""
        n_lines = sum(count.given for count in self.counts.values())
        head = f"{self.minutes:g} minutes, {len(self.injected)} faults, {n_lines:,} verdicts"
        if self.problems:
            return f"{head}: {len(self.problems)} problems."
        return f"{head}: none was lost, nothing grew, and every process ended as its fault explains."


def tables(soak: Soak) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the tables: title, head, rows."""
    verdicts = []
    for name, count in soak.counts.items():
        numbers = (count.owed, count.given, count.doubled, count.lost, count.twice, count.wrong)
        verdicts.append([name, *(f"{n:,}" for n in numbers), f"{soak.torn[name]:,}" if name in soak.torn else ""])
    kinds = dict.fromkeys((each.name, each.subject) for each in soak.injected)
    faults = [
        [name, subject, str(len(found)), f"{max(each.end_s - each.begin_s for each in found):.0f} s"]
        for name, subject in kinds
        if (found := [each for each in soak.injected if (each.name, each.subject) == (name, subject)])
    ]
    endings: dict[tuple[str, int, str], int] = {}
    for each in soak.endings:
        key = (each.subject, each.code, each.explained_by or "nothing explains it")
        endings[key] = endings.get(key, 0) + 1
    growth = [
        [
            each.subject,
            each.what,
            f"{each.median:.1f} {each.unit}".strip(),
            f"{each.gain:+.2f} {each.unit}".strip(),
            f"{each.per_hour:+.2f} {each.unit}".strip(),
            f"{each.allowed:.1f} {each.unit}".strip(),
            f"{each.seconds / 60:.1f} min",
        ]
        for each in soak.growths
    ]
    return [
        ("Verdicts", ["", "owed", "given", "doubled", "lost", "twice", "wrong", "torn"], verdicts),
        ("Faults", ["fault", "of", "times", "until all was well, at most"], faults),
        (
            "Ends of processes",
            ["of", "code", "because", "times"],
            [[subject, str(code), why, str(n)] for (subject, code, why), n in endings.items()],
        ),
        ("Growth after the warm-up", ["of", "what", "median", "gain", "per hour", "allowed gain", "over"], growth),
    ]


def markdown(soak: Soak) -> str:
    """Return everything but the plots as Markdown."""
    parts = [f"**{soak.summary}**", f"{soak.date}, vae-edge {soak.vae_edge}, {soak.machine}"]
    for title, head, rows in tables(soak):
        if rows:
            lines = [" | ".join(head), " | ".join(["---"] * len(head)), *(" | ".join(row) for row in rows)]
            parts.append(f"### {title}\n\n" + "\n".join(f"| {line} |" for line in lines))
    for title, sentences in (("Problems", soak.problems), ("Left out", soak.left_out)):
        if sentences:
            parts.append(f"### {title}\n\n" + "\n".join(f"* {each}" for each in sentences))
    return "\n\n".join(parts) + "\n"


def as_json(soak: Soak) -> dict[str, Any]:
    """Return the record, with what follows from it."""
    from dataclasses import asdict

    return {"schema_version": 1, "ok": not soak.problems, "problems": soak.problems, **asdict(soak)}
