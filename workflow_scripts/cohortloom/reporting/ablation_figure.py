"""The ablation as a picture: a panel a figure, a line an arm."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a cluster
from matplotlib import pyplot as plt  # noqa: E402

PANELS = (
    "any_violation_rate",
    "hard_per_100k_visits",
    "lm_loss",
    "js_distance",
    "bigram_r2",
    "carried_codes",
)
MEAN, SINGLE, REFERENCE = "#D55E00", "#56B4E9", "#0072B2"  # Okabe and Ito's, told apart by the colour-blind


def draw(rows: list[dict[str, Any]], titles: dict[str, str], reference: str, path: Path, kind: str) -> None:
    """Write the figure: each training with its interval over patients (thin), each arm's mean with its t
    interval over seeds (thick), the reference's mean (dashed) and real held-out data (solid).

    An axis spans the trainings' figures and real; an interval that leaves it is cut off. rows are those of
    ablation.table, kind is svg or png. The same rows give the same file.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["seed"] is None))
    settings = {"svg.hashsalt": "cohortloom", "font.size": 8, "axes.spines.top": False}
    with plt.rc_context({**settings, "axes.spines.right": False}):
        figure, axes = plt.subplots(
            1, len(PANELS), sharey=True, figsize=(2.1 * len(PANELS) + 1.2, 0.9 + 0.3 * len(arms))
        )
        for panel, metric in zip(axes, PANELS, strict=True):
            _panel(panel, [row for row in rows if row["metric"] == metric], arms, reference)
            panel.set_title(_wrapped(titles.get(metric, metric)), fontsize=8)
        axes[0].set_yticks(range(len(arms)), arms)
        axes[0].invert_yaxis()
        caption = f"thick: mean over seeds, thin: one training (95%); dashed: {reference}; black: real"
        figure.supxlabel(caption, fontsize=8)
        figure.tight_layout()
        figure.savefig(path, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)


def _panel(axes, rows, arms, reference) -> None:
    shown = [row["value"] for row in rows] + [row["real"] for row in rows if row["real"] is not None]
    for row in rows:
        at = arms.index(row["arm"])
        low, high = (row["value"] if row[k] is None else row[k] for k in ("ci_low", "ci_high"))
        if row["seed"] is None:
            axes.plot([low, high], [at, at], color=MEAN, linewidth=2.2, alpha=0.8, zorder=3)
            axes.plot(row["value"], at, "o", color=MEAN, markersize=4, zorder=4)
            if row["arm"] == reference:
                axes.axvline(row["value"], color=REFERENCE, linestyle="--", linewidth=0.9, zorder=1)
        else:
            seeds = sorted({other["seed"] for other in rows if other["seed"] is not None})
            place = at + 0.16 + 0.2 * seeds.index(row["seed"]) / len(seeds)
            axes.plot([low, high], [place, place], color=SINGLE, linewidth=0.8, zorder=2)
            axes.plot(row["value"], place, "|", color=SINGLE, markersize=4, zorder=2)
        if row["real"] is not None:
            axes.axvline(row["real"], color="#000000", linewidth=0.8, zorder=1)
    if shown:
        margin = 0.12 * (max(shown) - min(shown)) or 0.01
        axes.set_xlim(min(shown) - margin, max(shown) + margin)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.tick_params(axis="x", labelrotation=30)


def _wrapped(title: str, width: int = 24) -> str:
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
