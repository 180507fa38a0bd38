"""The figures of the report, as data URIs, and the one of the ablation, as a file.

One panel for each figure, readable on a phone. Colours are those of Okabe and Ito, which colour-blind readers
can distinguish; line styles and markers differ too. Equal data give an equal file: no date, no random ids.
Titles and captions are in resources/report.html.j2.
"""

import base64
import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.base.errors import UserError
from cohortloom.data.visits import code_lists, patient_starts, used_columns
from cohortloom.evaluation.records import HEADLINE, is_headline
from cohortloom.reporting.scorecard import REAL, Record

matplotlib.use("Agg")  # no display on a cluster
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: E402

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BLUE, ORANGE, BLACK = COLORS[0], COLORS[1], COLORS[6]  # real in scatter plots, the model, real elsewhere
STYLES = ("-", "--", "-.", ":")
_RC = {
    "svg.hashsalt": "cohortloom",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
# column of history.csv -> label of the axis
LOSSES = {
    "lm_loss": "loss (nats a code)",
    "age_loss_years2": "squared error (years²)",
    "sex_loss": "cross-entropy (nats)",
}
VIOLATIONS = "category_per_100k_visits"
ATTACKS = {"membership_auc": "by distance", "likelihood_auc": "by the model"}
# category of resources/validity/ -> in words
KINDS = {
    "newborn": "newborn",
    "pediatric": "child (0-17)",
    "maternity": "maternity",
    "adult": "adult (15 and over)",
    "female": "women only",
    "male": "men only",
}
# The panels of the ablation's figure
ABLATED = (
    *("any_violation_rate", "hard_per_100k_visits", "lm_loss"),
    *("js_distance", "bigram_r2", "carried_codes"),
)
Figures = dict[str, dict[str, str]]  # name -> uri, and `shows`: the compared sets, for the alternative text


def report_figures(
    records: list[Record],
    main_id: str,
    models: list[Path],
    visits: dict[str, pa.Table],
    methods: dict[str, pa.Table],
) -> Figures:
    """All figures of the report; a figure without data is left out.

    models: folders of the runs, for their history.csv. visits: the sets training, test and synthetic.
    methods: visits of the naive methods.
    """
    figures = loss_figures(models) | visit_figures(visits, methods, main_id)
    return figures | violation_figures(records, main_id) | leak_figures(records, main_id)


def loss_figures(models: list[Path]) -> Figures:
    """One figure for each loss with all runs: training dashed, validation solid."""
    histories = {folder.name: read_history(folder / "history.csv") for folder in models}
    figures = {}
    for column, ylabel in LOSSES.items():
        curves = {
            (run, split): curve
            for run, rows in histories.items()
            for split in ("train", "val")
            if len((curve := loss_points(rows, split, column))[0])
        }
        if curves:
            runs = ", ".join(dict.fromkeys(run for run, _ in curves))
            figures[column] = {"uri": _loss_curves(curves, ylabel), "shows": runs}
    return figures


def read_history(path: Path) -> list[dict[str, str]]:
    """Rows of a history.csv: step, tokens, split and one column for each loss."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the run again") from None


def loss_points(rows: list[dict[str, str]], split: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss of the rows of a split with a number, both [n_points]."""
    pairs = [(row["tokens"], row[column]) for row in rows if row.get("split") == split and row.get(column)]
    tokens, loss = np.array(pairs, float).reshape(-1, 2).T
    return tokens[np.isfinite(loss)], loss[np.isfinite(loss)]


def visit_figures(visits: dict[str, pa.Table], methods: dict[str, pa.Table], main_id: str) -> Figures:
    """Of each column of codes: prevalence (synthetic and real) and codes a visit, named <figure>_<column>;
    and, where patients return, visits a patient.
    """
    test, synthetic = visits["test"], visits["synthetic"]
    sets = {"real, held out": test, f"synthetic ({main_id})": synthetic}
    floor = 1 / max(1, min(synthetic.num_rows, test.num_rows))
    naive = {name: table for name, table in methods.items() if name != "copy"}
    figures = {}
    for column in used_columns(*visits.values()):
        shares = code_shares(visits["training"], column)
        parts = ("", "synthetic", synthetic, ORANGE), ("_real", "held-out real", test, BLUE)
        for name, label, table, color in parts:
            uri = _prevalence(shares, code_shares(table, column), floor, label, color)
            figures[f"prevalence{name}_{column}"] = {
                "uri": uri,
                "shows": f"{table.num_rows:,} {label} visits",
            }
        lengths = {name: np.diff(code_lists(table, column)[1]) for name, table in (sets | naive).items()}
        uri = _histogram(lengths, f"{column} in a visit")
        figures[f"codes_per_visit_{column}"] = {"uri": uri, "shows": ", ".join(lengths)}
    returns = {name: visits_per_patient(table) for name, table in sets.items()}
    if max(counts.max(initial=1) for counts in returns.values()) > 1:
        uri = _histogram(returns, "visits of a patient")
        figures["visits_per_patient"] = {"uri": uri, "shows": ", ".join(returns)}
    return figures


def code_shares(table: pa.Table, column: str = HEADLINE) -> dict[str, float]:
    """Share of visits with each code of a column."""
    counts = pc.value_counts(code_lists(table, column)[0])
    pairs = zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)
    return {code: count / table.num_rows for code, count in pairs}


def visits_per_patient(table: pa.Table) -> np.ndarray:
    """Number of visits of each patient, [n_patients]."""
    return np.diff(patient_starts(table), append=table.num_rows)


def violation_figures(records: list[Record], main_id: str) -> Figures:
    """Codes that break a limit, by kind of limit: held-out real, the main run and the naive methods."""
    records = [r for r in records if r["metric"] == VIOLATIONS and r["column"] == HEADLINE]
    by_key = {(r["run"], r["subset"]): r for r in records}
    kinds = [kind for kind in KINDS if any(subset == kind for _, subset in by_key)]
    runs = [run for run in (REAL, main_id, "prevalence", "markov") if any(name == run for name, _ in by_key)]
    if not kinds or runs[:2] != [REAL, main_id]:
        return {}
    # A set without a code of a kind has no record of it: 0 violations.
    series = {}
    for run in runs:
        rows = [by_key.get((run, kind), {}) for kind in kinds]
        series[_label(run, main_id)] = np.array([[float(row.get(end) or 0) for end in _ENDS] for row in rows])
    uri = _bars([KINDS[kind] for kind in kinds], series, "codes that break a limit, per 100,000 visits")
    return {"violations": {"uri": uri, "shows": ", ".join(series)}}


def leak_figures(records: list[Record], main_id: str) -> Figures:
    """Attacks on the training patients: AUC and interval of the main run, real, copies and naive methods."""
    by_key = {(r["metric"], r["run"]): r for r in records if r["metric"] in ATTACKS and is_headline(r)}
    rows = {
        f"{attack}: {_label(run, main_id)}": [by_key[metric, run][end] for end in _ENDS]
        for metric, attack in ATTACKS.items()
        for run in (main_id, REAL, "copy", "prevalence", "markov")
        if by_key.get((metric, run), {}).get("value") is not None
    }
    if not rows:
        return {}
    uri = _points(list(rows), np.array(list(rows.values()), float), "probability of picking right")
    return {"leaks": {"uri": uri, "shows": ", ".join(rows)}}


def draw_ablation(
    rows: list[dict[str, Any]], titles: dict[str, str], reference: str, path: Path, kind: str
) -> None:
    """Write the ablation's figure: one panel for each metric, one line for each arm; kind is svg or png.

    rows: of ablation.table. Thin: each training with its interval over patients. Thick: the mean of each arm
    with its t interval over seeds. Dashed: the mean of the reference. Solid: real held-out data. An axis
    spans the trainings' figures and real; longer intervals are cut off.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["seed"] is None))
    size = (2.1 * len(ABLATED) + 1.2, 0.9 + 0.3 * len(arms))
    with plt.rc_context(_RC | {"font.size": 8}):
        figure, panels = plt.subplots(1, len(ABLATED), sharey=True, figsize=size)
        for axes, metric in zip(panels, ABLATED, strict=True):
            _arms(axes, [row for row in rows if row["metric"] == metric], arms, reference)
            axes.set_title(textwrap.fill(titles.get(metric, metric), 24), fontsize=8)
        panels[0].set_yticks(range(len(arms)), arms)
        panels[0].invert_yaxis()
        caption = f"thick: mean over seeds, thin: one training (95%); dashed: {reference}; black: real"
        figure.supxlabel(caption, fontsize=8)
        figure.tight_layout()
        figure.savefig(path, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)


def _arms(axes, rows: list[dict[str, Any]], arms: list[str], reference: str) -> None:
    """One panel of the ablation's figure."""
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    for row in rows:
        low, high = (row["value"] if row[end] is None else row[end] for end in _ENDS[1:])
        at, mean = arms.index(row["arm"]), row["seed"] is None
        if not mean:
            at += 0.16 + 0.2 * seeds.index(row["seed"]) / len(seeds)
        color = ORANGE if mean else COLORS[5]
        axes.plot([low, high], [at, at], color=color, linewidth=2.2 if mean else 0.8, zorder=3 if mean else 2)
        axes.plot(row["value"], at, "o" if mean else "|", color=color, markersize=4, zorder=4 if mean else 2)
        if mean and row["arm"] == reference:
            axes.axvline(row["value"], color=BLUE, linestyle="--", linewidth=0.9, zorder=1)
    values = [row["value"] for row in rows] + [row["real"] for row in rows if row["real"] is not None]
    if values:
        margin = 0.12 * (max(values) - min(values)) or 0.01
        axes.set_xlim(min(values) - margin, max(values) + margin)
    for real in {row["real"] for row in rows} - {None}:
        axes.axvline(real, color=BLACK, linewidth=0.8, zorder=1)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="x", labelrotation=30)


_ENDS = ("value", "ci_low", "ci_high")


def _label(run: str, main_id: str) -> str:
    names = {main_id: f"synthetic ({main_id})", REAL: "real, held out", "copy": "copies of training"}
    return names.get(run, f"{run} (naive)")


def panel(xlabel: str, ylabel: str, height: float = 3.5):
    with plt.rc_context(_RC):
        figure, axes = plt.subplots(figsize=(4.6, height))  # inches
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def data_uri(figure) -> str:
    """Close the figure and return it as an SVG data URI."""
    buffer = io.BytesIO()
    with plt.rc_context(_RC):
        figure.tight_layout()
        figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _loss_curves(curves: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]], ylabel: str) -> str:
    """(run, split) -> (target tokens, loss)."""
    figure, axes = panel("training so far (million code tokens)", ylabel)
    runs = list(dict.fromkeys(run for run, _ in curves))
    for (run, split), (tokens, loss) in curves.items():
        validation = split == "val"
        axes.plot(
            tokens / 1e6,
            loss,
            color=COLORS[runs.index(run) % len(COLORS)],
            linestyle="-" if validation else "--",
            linewidth=1.8 if validation else 1.0,
            alpha=1.0 if validation else 0.7,
            marker="o" if validation and len(tokens) < 12 else None,
            markersize=3,
            label=f"{run}, {'validation' if validation else 'training'}",
        )
    losses = np.concatenate([loss for _, loss in curves.values()])
    if losses.min() > 0 and losses.max() / losses.min() > 30:  # the loss of a head spans orders of magnitude
        axes.set_yscale("log")
    axes.legend()
    return data_uri(figure)


def _prevalence(
    training: Mapping[str, float], other: Mapping[str, float], floor: float, label: str, color: str
) -> str:
    """Share of visits with each code of training, training on x, the other set on y, both logarithmic.

    Codes that the other set lacks are drawn on a line below `floor`.
    """
    reference, scored = np.array([(training[c], other.get(c, 0)) for c in sorted(training)]).reshape(-1, 2).T
    figure, axes = panel("share of training visits", f"share of {label} visits", 4.3)
    occurs = scored > 0
    n_missing = int((~occurs).sum())
    axes.plot([floor / 3, 1], [floor / 3, 1], color="#888888", linewidth=1, label="equal")
    x, y = reference[occurs], scored[occurs]
    axes.scatter(x, y, s=7, color=color, alpha=0.35, linewidths=0, rasterized=True)
    x, y = reference[~occurs], np.full(n_missing, floor / 2)
    axes.scatter(x, y, s=9, marker="|", color="#555555", alpha=0.4, rasterized=True)
    axes.set(xscale="log", yscale="log", ylim=(floor / 3, 1))
    axes.set_xlim(min(floor, reference[reference > 0].min(initial=1.0)) / 1.5, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    if n_missing:
        words = f"{n_missing:,} codes never occur"
        axes.text(0.97, 0.03, words, transform=axes.transAxes, ha="right", fontsize=8)
    axes.legend(loc="upper left")
    return data_uri(figure)


def _histogram(counts: Mapping[str, np.ndarray], xlabel: str) -> str:
    """Distribution of counts, name -> numbers [n]: first real (bars), then the main run (thick line)."""
    figure, axes = panel(xlabel, "share")
    top = int(max(np.quantile(values, 0.995) if len(values) else 1 for values in counts.values())) + 1
    lowest = min(int(values.min(initial=top)) for values in counts.values())
    colors = (None, ORANGE, COLORS[0], COLORS[2], COLORS[3], COLORS[5])
    for number, (name, values) in enumerate(counts.items()):
        share = np.bincount(np.minimum(values, top), minlength=top + 1) / max(1, len(values))
        if number == 0:
            axes.bar(np.arange(top + 1), share, width=0.9, color="#bbbbbb", label=name)
            continue
        axes.plot(
            np.arange(lowest, top + 1),
            share[lowest:],
            color=colors[number % len(colors)],
            linestyle=STYLES[(number - 1) % len(STYLES)],
            linewidth=2 if number == 1 else 1.2,
            marker="o" if number == 1 else None,
            markersize=3,
            label=name,
        )
    axes.set_xlim(lowest - 0.6, top + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.legend()
    return data_uri(figure)


def _bars(labels: Sequence[str], series: Mapping[str, np.ndarray], xlabel: str) -> str:
    """Grouped horizontal bars; series: name -> value, low, high [n_labels, 3], first real, then the model."""
    figure, axes = panel(xlabel, "", 0.9 + 0.24 * len(labels) * (len(series) + 0.6))
    height = 0.8 / max(1, len(series))
    positions = np.arange(len(labels))
    for number, (name, rows) in enumerate(series.items()):
        values, errors = rows[:, 0], _errors(rows)
        axes.barh(
            positions + number * height,
            values,
            height,
            xerr=errors,
            color=(BLACK, ORANGE, COLORS[0], *COLORS[2:])[number],
            ecolor="#555555",
            capsize=2,
            error_kw={"linewidth": 0.8},
            hatch=("", "", "///", "...", "xx")[number],
            edgecolor="white",
            linewidth=0.3,
            label=name,
        )
        for row, value in enumerate(values):
            text = f" {value:,.0f}" if value >= 10 or value == 0 else f" {value:.2g}"
            axes.text(value + errors[1][row], row + number * height, text, va="center", fontsize=7)
    axes.margins(x=0.12)
    return _labelled(figure, axes, labels, positions + height * (len(series) - 1) / 2)


def _points(labels: Sequence[str], rows: np.ndarray, xlabel: str) -> str:
    """One point with interval for each label, rows [n_labels, 3]: value, low, high; 0.5 is guessing."""
    figure, axes = panel(xlabel, "", 1.1 + 0.27 * len(labels))
    positions = np.arange(len(labels))
    style = {"fmt": "o", "color": ORANGE, "ecolor": "#555555", "capsize": 3}
    axes.errorbar(rows[:, 0], positions, xerr=_errors(rows), **style)
    axes.axvline(0.5, color="#555555", linestyle="--", linewidth=1, label="guessing")
    return _labelled(figure, axes, labels, positions)


def _errors(rows: np.ndarray) -> np.ndarray:
    """Lengths of the error bars [2, n] of value, low, high [n, 3]; 0 without an interval."""
    return np.nan_to_num(np.maximum(0, [rows[:, 0] - rows[:, 1], rows[:, 2] - rows[:, 0]]))


def _labelled(figure, axes, labels: Sequence[str], positions: np.ndarray) -> str:
    """The figure, finished: labelled rows from top to bottom, the legend above."""
    axes.set_yticks(positions, labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=2)
    return data_uri(figure)


def _percent(value: float, _position: int = 0) -> str:
    text = f"{100 * value:.4f}".rstrip("0").rstrip(".") if value < 0.01 else f"{100 * value:.3g}"
    return f"{text}%"
