"""The page of a self-check: one HTML file without scripts or anything from outside."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from vae_edge.html_page import security_policy, style_sheet, whole_page
from vae_edge.platform.outside import printable
from vae_edge.selfcheck.record import SelfcheckRecord, StepRecord, Verdict

_COLOURS = {"running": ("#8a3ffc", "#be95ff")}
_STYLE = """\
body { margin: 2rem auto; max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; } .dim { color: var(--muted); }
table { width: 100%; }
th { font-weight: 600; color: var(--muted); } tr:nth-child(even) td { background: var(--panel); }
td { overflow-wrap: anywhere; }
td.name { min-width: 14rem; }
.verdict { font-weight: 600; white-space: nowrap; }
.ok { color: var(--good); } .differs { color: var(--warn); } .failed { color: var(--bad); }
.skipped { color: var(--muted); } .running { color: var(--running); }
.counts { display: flex; gap: 1.5rem; margin: 1rem 0; font-size: 1.05rem; }
details { margin: .25rem 0 0; } summary { cursor: pointer; color: var(--muted); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12.5px; margin: .25rem 0; }
"""


def page(record: SelfcheckRecord) -> str:
    """Return the page of a record, UTF-8 HTML."""
    machine = next((step for step in record.steps if step.key == "machine"), None)
    others = [step for step in record.steps if step is not machine]
    parts = [
        f"<h1>Self-check of vae-edge {_text(record.vae_edge)}</h1>",
        f'<p class="dim">Started {_text(record.started_utc)}; {record.seconds:.0f} s, {len(record.steps)} steps.</p>',
        f"<p>{_conclusion(record)}</p>",
        _counts(record),
    ]
    if machine is not None:
        parts += ["<h2>Machine</h2>", _machine(machine)]
    parts += ["<h2>Steps</h2>", _steps(others)]
    soak = next((step for step in others if step.facts.get("samples")), None)
    if soak is not None:
        parts += [f"<h2>{_text(soak.title)}</h2>", _samples(soak)]
    style = style_sheet(_STYLE, _COLOURS)
    return whole_page("vae-edge self-check", style, "\n".join(parts), policy=security_policy(style))


def _conclusion(record: SelfcheckRecord) -> str:
    if not record.is_complete:
        running = next((step.title for step in record.steps if step.verdict is Verdict.RUNNING), None)
        during = "" if running is None else f", while this step was running: {_text(running)}"
        return f'<span class="running verdict">It did not end{during}.</span>'
    if record.problems:
        names = ", ".join(_text(step.title) for step in record.problems)
        return f'<span class="failed verdict">Not everything agrees: {names}.</span>'
    return '<span class="ok verdict">Everything that could run here agrees with the stored answers.</span>'


def _counts(record: SelfcheckRecord) -> str:
    found = [(verdict, record.count(verdict)) for verdict in Verdict]
    items = [f'<span class="{verdict}">{n} {verdict}</span>' for verdict, n in found if n]
    return f'<div class="counts">{"".join(items)}</div>'


def _machine(step: StepRecord) -> str:
    if not step.lines:
        return f"<p>{_verdict(step)} {_text(step.reason or '')}</p>{_messages(step)}"
    rows = []
    for line in step.lines:
        name, _, value = line.partition(": ")
        rows.append(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _steps(steps: Iterable[StepRecord]) -> str:
    rows = []
    for step in steps:
        seconds = "" if step.seconds is None else f"{step.seconds:.1f}"
        rows.append(
            f'<tr><td class="name">{_text(step.title)}</td><td>{_verdict(step)}</td><td class="number">{seconds}</td>'
            f"<td>{_text(step.reason or '')}{_details(step)}{_messages(step)}</td></tr>"
        )
    head = "<tr><th>step</th><th>verdict</th><th>seconds</th><th>what was found</th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _details(step: StepRecord) -> str:
    lines = [line for line in step.lines if line != step.reason]
    return "".join(f'<div class="dim">{_text(line)}</div>' for line in lines)


def _messages(step: StepRecord) -> str:
    if not step.messages:
        return ""
    text = escape(printable(step.messages, keep_lines=True))
    return f"<details open><summary>messages of its process</summary><pre>{text}</pre></details>"


def _samples(step: StepRecord) -> str:
    rows = []
    for sample in step.facts["samples"]:
        found = sample["state"]
        memory = sample.get("memory_bytes")
        values = (
            f"{sample['at_s']:.0f}",
            str(sample["n"]),
            _number(sample.get("p50_ms"), 2),
            _number(found.get("temperature_c"), 0),
            _number(found.get("frequency_mhz"), 0),
            _number(found.get("gpu_frequency_mhz"), 0),
            _number(None if memory is None else memory / 2**20, 0),
        )
        rows.append("<tr>" + "".join(f'<td class="number">{_text(value)}</td>' for value in values) + "</tr>")
    names = ("s", "verdicts", "p50 ms", "°C", "MHz", "GPU MHz", "MiB")
    head = "<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _verdict(step: StepRecord) -> str:
    return f'<span class="verdict {step.verdict}">{step.verdict}</span>'


def _text(text: str) -> str:
    return escape(printable(text))
