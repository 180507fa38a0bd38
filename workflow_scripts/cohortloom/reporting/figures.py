"""The report's figures: small panels that stay readable on a phone, each returned as a data URI.

Colours are Okabe and Ito's, which colour-blind readers tell apart; line styles and markers differ as well.
Every figure is the same file for the same data: no date, no random ids.
"""

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display on a cluster
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: E402

SIZE = (4.6, 3.5)  # inches; one panel a figure, so that panels stack on a phone
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
REAL, SYNTHETIC = "#000000", "#D55E00"
STYLES = ("-", "--", "-.", ":")
_RC = {
    "svg.hashsalt": "cohortloom",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def _panel(xlabel: str, ylabel: str, size: tuple[float, float] = SIZE):
    with plt.rc_context(_RC):
        figure, axes = plt.subplots(figsize=size)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_axisbelow(True)
    return figure, axes


def _uri(figure) -> str:
    """Close the figure and return it as an SVG data URI."""
    buffer = io.BytesIO()
    with plt.rc_context(_RC):
        figure.tight_layout()
        figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def loss_curve(curves: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]], ylabel: str) -> str:
    """One loss over training; curves: (run, split) -> (target tokens, loss). Validation is the solid line."""
    figure, axes = _panel("training so far (million code tokens)", ylabel)
    runs = list(dict.fromkeys(run for run, _ in curves))
    lowest, highest = np.inf, 0.0
    for (run, split), (tokens, loss) in curves.items():
        color = COLORS[runs.index(run) % len(COLORS)]
        solid = split != "train"
        marker = "o" if len(tokens) < 12 and solid else None
        width, alpha = (1.8, 1.0) if solid else (1.0, 0.7)
        axes.plot(
            np.asarray(tokens) / 1e6,
            loss,
            color=color,
            linestyle="-" if solid else "--",
            linewidth=width,
            alpha=alpha,
            marker=marker,
            markersize=3,
            label=f"{run}, {'validation' if solid else 'training'}",
        )
        lowest, highest = min(lowest, np.min(loss)), max(highest, np.max(loss))
    if lowest > 0 and highest / lowest > 30:  # a falling head loss spans decades
        axes.set_yscale("log")
    axes.legend()
    return _uri(figure)


def prevalence(reference: np.ndarray, scored: np.ndarray, floor: float, ylabel: str, color: str) -> str:
    """Share of visits that hold each code, training on x, scored on y, both logarithmic.

    reference, scored [n_codes] shares; codes the scored set never has are drawn on a line below `floor`.
    """
    figure, axes = _panel("share of training visits with the code", ylabel, (4.6, 4.3))
    seen = scored > 0
    lost = floor / 2
    axes.plot([floor / 3, 1], [floor / 3, 1], color="#888888", linewidth=1, label="equal")
    axes.scatter(reference[seen], scored[seen], s=7, color=color, alpha=0.35, linewidths=0, rasterized=True)
    missed = int((~seen).sum())
    axes.scatter(
        reference[~seen], np.full(missed, lost), s=9, marker="|", color="#555555", alpha=0.4, rasterized=True
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(floor, reference[reference > 0].min(initial=1.0)) / 1.5, 1)
    axes.set_ylim(floor / 3, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    if missed:
        axes.text(
            0.97, 0.03, f"{missed:,} codes never occur", transform=axes.transAxes, ha="right", fontsize=8
        )
    axes.legend(loc="upper left")
    return _uri(figure)


def histogram(counts: Mapping[str, np.ndarray], xlabel: str, real: str, synthetic: str) -> str:
    """Shares of visits (or patients) by a whole number; counts: name -> numbers [n]."""
    figure, axes = _panel(xlabel, "share")
    top = int(max(np.quantile(values, 0.995) if len(values) else 1 for values in counts.values())) + 1
    least = min(int(values.min(initial=top)) for values in counts.values())
    others = [name for name in counts if name not in (real, synthetic)]
    for name, values in counts.items():
        share = np.bincount(np.minimum(values, top), minlength=top + 1) / max(1, len(values))
        if name == real:
            axes.bar(np.arange(top + 1), share, width=0.9, color="#bbbbbb", label=name)
            continue
        number = 0 if name == synthetic else 1 + others.index(name)
        axes.plot(
            np.arange(least, top + 1),
            share[least:],
            color=SYNTHETIC if name == synthetic else COLORS[(0, 2, 3, 5)[(number - 1) % 4]],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=2 if name == synthetic else 1.2,
            marker="o" if name == synthetic else None,
            markersize=3,
            label=name,
        )
    axes.set_xlim(least - 0.6, top + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.legend()
    return _uri(figure)


def bars(
    labels: Sequence[str], series: Mapping[str, np.ndarray], xlabel: str, intervals: Mapping[str, np.ndarray]
) -> str:
    """Grouped horizontal bars; series: name -> values [n_labels]; intervals: name -> [n_labels, 2].

    The first series is real data, the second the main run: they keep their colours in all figures.
    """
    figure, axes = _panel(xlabel, "", (4.6, 0.9 + 0.24 * len(labels) * (len(series) + 0.6)))
    height = 0.8 / max(1, len(series))
    hatches = ("", "", "///", "...", "xx")
    for number, (name, values) in enumerate(series.items()):
        color = (REAL, SYNTHETIC, *COLORS[:1], *COLORS[2:])[number % 8]
        low, high = np.asarray(intervals[name], float).T
        errors = np.nan_to_num(np.maximum(0, [values - low, high - values]))
        axes.barh(
            np.arange(len(labels)) + number * height,
            values,
            height,
            xerr=errors,
            color=color,
            ecolor="#555555",
            capsize=2,
            error_kw={"linewidth": 0.8},
            hatch=hatches[number % len(hatches)],
            edgecolor="white",
            linewidth=0.3,
            label=name,
        )
        for row, value in enumerate(values):
            if np.isfinite(value):
                at = value + errors[1][row]
                text = f" {value:,.0f}" if value >= 10 or value == 0 else f" {value:.2g}"
                axes.text(at, row + number * height, text, va="center", fontsize=7)
    axes.set_yticks(np.arange(len(labels)) + height * (len(series) - 1) / 2, labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    axes.legend(loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=2)
    return _uri(figure)


def points(labels: Sequence[str], rows: np.ndarray, xlabel: str, line: float, name: str) -> str:
    """A point and its interval a label; rows [n_labels, 3]: value, low, high. `line` is what chance gives."""
    figure, axes = _panel(xlabel, "", (4.6, 1.1 + 0.27 * len(labels)))
    place = np.arange(len(labels))
    errors = np.nan_to_num(np.abs(rows[:, 1:].T - rows[:, 0]))
    axes.errorbar(rows[:, 0], place, xerr=errors, fmt="o", color=SYNTHETIC, ecolor="#555555", capsize=3)
    axes.axvline(line, color="#555555", linestyle="--", linewidth=1, label=name)
    axes.set_yticks(place, labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.35, 1.0))
    return _uri(figure)


def _percent(value: float, _position: int = 0) -> str:
    text = f"{100 * value:.4f}".rstrip("0").rstrip(".") if value < 0.01 else f"{100 * value:.3g}"
    return f"{text}%"
