"""The report of a run: one HTML file with the metric table, the training curves, the data and the settings.

The file loads nothing: drawings are inline SVG, style and script are inline, and it follows the reader's light or dark
mode. Values show under the pointer, entries of a legend filter, columns of a table sort.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from python_model.data.schema import Dataset
from python_model.evaluation.evaluate import EvaluationResult, Metrics
from python_model.io.disk import replace_text
from python_model.reporting import charts, interactive
from python_model.reporting.console import format_metric
from python_model.reporting.provenance import provenance
from python_model.training.watch import BASELINE, LOWER_IS_BETTER, PREFIX, TITLES

EXPLANATIONS = {
    "ndcg": "How far up the next item stands when the whole catalogue is ranked; first places count most.",
    "recall": "Share of events whose item is among the first of the whole catalogue.",
    "pairwise_accuracy": "Of two impressions of one user, how often the one with the better feedback scores higher.",
    "next_item_ne": "Log loss of the next item, relative to knowing only how popular items are.",
    "feedback_ne": "Log loss of the feedback, relative to knowing only how frequent each answer is; mean of all tasks.",
    "feedback_auc": "How well feedback is told apart, 0.5 is chance; mean of the yes/no tasks.",
}


VALIDATION_CHARTS = {
    "validation: normalised entropy": ("next_item_ne", "feedback_ne"),
    "validation: ranking of the catalogue": ("ndcg@10", "recall@10"),
    "validation: pairs": ("pair_loss", "pairwise_accuracy"),
}
"""The metrics of each chart. A chart takes 0.09 s, 0.2 % of the demo: one for each metric would be too many."""


@dataclass(frozen=True)
class Stage:
    """The log of one stage of training: its name and one mapping of numbers per logged step."""

    name: str
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recommendations:
    """The last events of one user and the recommended items, in words, best first."""

    user: str
    history: Sequence[str]
    items: Sequence[str]


def write_report(
    out: str | Path, *, title: str, dataset: Dataset, result: EvaluationResult, stages: Sequence[Stage],
    recommendations: Recommendations | None = None,
) -> Path:  # fmt: skip
    """Write the report to `out` (replaced as a whole, never half-written) and return its path."""
    body = [
        f"<header><h1>{escape(title)}</h1><p class=lead>{_summary(dataset, result)}</p></header>",
        _section("How good it is", metric_table(result) + _reading(result) + _against_oracle(result)),
    ]
    if result.details:
        body.append(_section("Discovery and calibration", _details(result)))
    if recommendations is not None:
        body.append(_section("What it recommends", _recommendations(recommendations)))
    body += [_section(f"Learning: {stage.name}", _curves(stage)) for stage in stages if stage.history]
    body.append(_section("The data", _data(dataset)))
    settings = {stage.name: stage.settings for stage in stages if stage.settings}
    if settings:
        body.append(_section("Settings", "".join(_settings(name, values) for name, values in settings.items())))
    body.append(f"<footer class=note>{escape(provenance())}</footer>")
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, _page(title, "\n".join(body)))
    return path


def metric_title(name: str) -> str:
    """A metric's name as a column title."""
    known = {
        "pairwise_accuracy": "pairwise accuracy",
        "next_item_ne": "next-item NE",
        "feedback_ne": "feedback NE",
        "feedback_auc": "feedback AUC",
    }
    return known.get(name, name.replace("ndcg", "NDCG").replace("@", "\u2009@\u2009"))


def best_rows(rows: Mapping[str, Metrics], metric: str) -> set[str]:
    """The rows with the best value of a metric, without the oracle."""
    values = {name: row[metric] for name, row in rows.items() if name != "oracle"}
    defined = [value for value in values.values() if value is not None]
    if not defined:
        return set()
    best = min(defined) if metric in LOWER_IS_BETTER else max(defined)
    return {name for name, value in values.items() if value == best}


def metric_table(result: EvaluationResult) -> str:
    """The table of metrics as HTML; the best value of each column, without the oracle, is bold."""
    names = list(next(iter(result.rows.values())))
    best = {metric: best_rows(result.rows, metric) for metric in names}
    head = "".join(f"<th scope=col>{escape(metric_title(metric))}{_arrow(metric)}</th>" for metric in names)
    lines = []
    for row, values in result.rows.items():
        cells = "".join(_cell(row, metric, values[metric], result, row in best[metric]) for metric in names)
        lines.append(f"<tr class={escape(row)}><th scope=row>{escape(row.replace('_', ' '))}</th>{cells}</tr>")
    return (
        f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(row: str, metric: str, value: float | None, result: EvaluationResult, best: bool) -> str:
    text = format_metric(value)
    error = result.standard_errors.get(row, {}).get(metric)
    title = f' title="± {error:.4f} (standard error)"' if error is not None and value is not None else ""
    return f"<td{title}>{f'<b>{text}</b>' if best else text}</td>"


def _arrow(metric: str) -> str:
    return " ↓" if metric in LOWER_IS_BETTER else " ↑"


def _summary(dataset: Dataset, result: EvaluationResult) -> str:
    info, counts = dataset.info, result.counts
    return (
        f"{escape(info.name)}: {info.events:,} events of {info.users:,} users on {info.items:,} items. "
        f"Evaluated ({escape(result.protocol)} split) on {counts['events']:,} events of {counts['users']:,} users "
        f"and {counts['pairs']:,} pairs that no model was trained on."
    )


def _details(result: EvaluationResult) -> str:
    """The discovery metrics as a table, and a calibration curve for each feedback component."""
    discovery, curves = result.details["discovery"], result.details["calibration"]
    names = list(next(iter(discovery.values())))
    head = "".join(f"<th scope=col>{escape(name.replace('_', ' '))}</th>" for name in names)
    lines = [
        f"<tr><th scope=row>{escape(row.replace('_', ' '))}</th>"
        + "".join(f"<td>{format_metric(values[name])}</td>" for name in names) + "</tr>"
        for row, values in discovery.items()
    ]  # fmt: skip
    table = (
        f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    figures = []
    for task in dict.fromkeys(task for row in curves.values() for task in row):
        series = {"perfectly calibrated": (np.array([0.0, 1.0]), np.array([0.0, 1.0]))}
        for row, tasks in curves.items():
            if task in tasks and tasks[task]["events"]:
                error = format_metric(tasks[task]["error"])
                found = np.array(tasks[task]["predicted"]), np.array(tasks[task]["observed"])
                series[f"{row.replace('_', ' ')}, ECE {error}"] = found
        figure = charts.line_chart(series, "predicted probability", "share that happened", smooth=False)
        figures.append(figure.page(f"calibration of {task}"))
    return f"{table}<div class=charts>{''.join(figures)}</div>"


def _reading(result: EvaluationResult) -> str:
    lines = []
    for metric in next(iter(result.rows.values())):
        text = EXPLANATIONS[metric.split("@")[0]]
        lines.append(f"<dt>{escape(metric_title(metric))}</dt><dd>{escape(text)}</dd>")
    if "oracle" in result.rows:
        text = "Knows the probabilities from which the data was drawn: the ceiling, which no model can pass."
        lines.append(f"<dt>oracle</dt><dd>{text}</dd>")
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in result.notes)
    return f"<dl>{''.join(lines)}</dl>{notes}"


def _recommendations(found: Recommendations) -> str:
    history = "".join(f"<li>{escape(line)}</li>" for line in found.history)
    items = "".join(f"<li>{escape(line)}</li>" for line in found.items)
    return (
        f"<div class=pair><div><h3>User {escape(found.user)}, most recent first</h3><ol>{history}</ol></div>"
        f"<div><h3>Recommended</h3><ol>{items}</ol></div></div>"
    )


def _curves(stage: Stage) -> str:
    """Loss curves, one chart per head, since their losses have different scales."""
    logged = list(dict.fromkeys(name for entry in stage.history for name in entry))
    groups = {
        "pairwise loss (nats)": [name for name in logged if name == "pair"],
        "pairwise accuracy": [name for name in logged if name == "pairwise_accuracy"],
        "next-item loss (nats)": [name for name in logged if name == "next_item"],
        "feedback loss (nats)": [name for name in logged if name.startswith("feedback_")],
    }
    figures = []
    for label, names in groups.items():
        if names:
            series = {name.removeprefix("feedback_"): _series(stage.history, name) for name in names}
            figures.append(charts.line_chart(series, "step", label).page(f"{stage.name}: {label}"))
    figures += _validation_charts(stage)
    last = stage.history[-1]
    text = f"{int(last['step']):,} steps, {int(last.get('events', 0)):,} events, {float(last.get('seconds', 0)):.0f} s"
    return f"<p class=note>{text}</p><div class=charts>{''.join(figures)}</div>"


def _validation_charts(stage: Stage) -> list[str]:
    """The metrics of the validation part beside popularity's, those of one scale together; none without validation."""
    charts_of = []
    for label, metrics in VALIDATION_CHARTS.items():
        series = {}
        for metric in metrics:
            steps, values = _series(stage.history, f"{PREFIX}{metric}")
            if len(steps) < 2:
                continue
            series[TITLES[metric]] = steps, values
            baseline = _series(stage.history, f"{BASELINE}{metric}")
            if metric.endswith("_ne"):
                series["popularity"] = steps, np.ones(len(steps))
            elif len(baseline[0]):
                series[f"popularity, {TITLES[metric]}"] = baseline
        if series:
            figure = charts.line_chart(series, "step", label, smooth=False)
            charts_of.append(figure.page(f"{stage.name}: {label}"))
    return charts_of


def _against_oracle(result: EvaluationResult) -> str:
    """How far each model is on the way from popularity to the oracle, by metric; nothing without an oracle."""
    ceiling, floor = result.rows.get("oracle"), result.rows.get("popularity")
    if ceiling is None or floor is None:
        return ""
    names, shares = [], []
    for metric, highest in ceiling.items():
        lowest = floor[metric]
        for row, values in result.rows.items():
            value = values[metric]
            if row in ("oracle", "popularity") or value is None or lowest is None or highest in (None, lowest):
                continue
            assert highest is not None
            names.append(f"{row.replace('_', ' ')}, {metric_title(metric)}")
            shares.append((value - lowest) / (highest - lowest))
    if not names:
        return ""
    text = "share of the way from popularity (0 %) to the oracle (100 %)"
    return f"<div class=charts>{charts.bar_chart(names, shares, text).page(text)}</div>"


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]
    return np.array([x for x, _ in points], np.float64), np.array([y for _, y in points], np.float64)


def _data(dataset: Dataset) -> str:
    counts = np.bincount(dataset.item, minlength=dataset.info.items)
    names, shares = ["organic"], [float(dataset.organic.mean())]
    for task, component in dataset.info.feedback.items():
        labels = dataset.feedback(task)
        labels = labels[labels >= 0]
        called = [f"{task} {dataset.names.label(f'feedback_{task}', index)}" for index in range(component.classes)]
        shown = [(task, 1)] if component.is_binary else [(label, index) for index, label in enumerate(called)]
        names += [name for name, _ in shown]
        shares += [float((labels == index).mean()) if len(labels) else 0.0 for _, index in shown]
    figures = [
        charts.rank_frequency(counts, "items, from the most popular", "events").page("popularity of the items"),
        charts.histogram(np.diff(dataset.offsets), "events of a user", "users").page("lengths of the histories"),
        _activity(dataset).page("events over time"),
        charts.bar_chart(names, shares, "share of the events where it was observed").page("rates of the feedback"),
    ]
    return f"<div class=charts>{''.join(figures)}</div>"


def _activity(dataset: Dataset) -> charts.Chart:
    """Events over the time the data covers, in at most 120 equal spans."""
    time = dataset.time
    days = (time - time.min()) / 86_400.0
    bins = int(min(120, max(1, np.ceil(days.max()))))
    events, edges = np.histogram(days, bins=bins)
    series = {"events": ((edges[:-1] + edges[1:]) / 2, events.astype(np.float64))}
    return charts.line_chart(series, "days since the first event", "events", smooth=False, from_zero=True)


def _settings(name: str, values: Mapping[str, Any]) -> str:
    text = json.dumps(values, indent=2, default=str)
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #e0e3e7; --paper: #fcfcfd; --tint: #f3f5f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a0a6ae; --line: #2e3338; --paper: #14171a; --tint: #1d2125; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 3rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; margin: 3rem 0 .9rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; }
.lead { color: var(--soft); max-width: 46rem; margin: 0; }
.note { color: var(--soft); font-size: .88rem; margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .5rem .75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; font-size: .82rem; }
tbody th { text-align: left; font-weight: 500; }
tr.oracle th, tr.oracle td { color: var(--soft); font-style: italic; }
tr.finetuned th, tr.finetuned td { background: var(--tint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; font-size: .88rem; margin: 1.2rem 0 0; }
dt { font-weight: 500; } dd { margin: 0; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: .6rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; font-size: .93rem; }
ol { margin: 0; padding-left: 1.4rem; }
details { border-top: 1px solid var(--line); padding: .5rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--tint); padding: .8rem 1rem; border-radius: .5rem; font-size: .82rem; }
@media (max-width: 30rem) { .charts { grid-template-columns: 1fr; } dl { grid-template-columns: 1fr; } }
"""


def _page(title: str, body: str) -> str:
    style = _STYLE + interactive.STYLE
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n{body}\n{interactive.script()}\n</body>\n</html>\n"
    )
