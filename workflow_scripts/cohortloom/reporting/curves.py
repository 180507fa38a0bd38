"""The report's curves of hidden codes: F1 and Jaccard at every number of guesses."""

from collections.abc import Sequence

from cohortloom.reporting.figures import COLORS, ORANGE, STYLES, Figures, data_uri, panel
from cohortloom.reporting.scorecard import Record

# metric of the curve -> that of what was generated, axis label
CURVES = {
    "curve_f1": ("hidden_f1", "F1 on hidden codes"),
    "curve_jaccard": ("jaccard", "Jaccard, half revealed"),
}
METHODS = ("linear", "prevalence")
GUESSES = "guessed_per_hidden_code"
Point = tuple[float, float]


def of_hidden_codes(records: list[Record], main_id: str) -> Figures:
    """A figure a curve: the main run and the naive methods, with a marker where the main run generates."""
    found = {(r["run"], r["metric"], r["subset"]): r["value"] for r in records if r["value"] is not None}
    figures = {}
    for metric, (generated, label) in CURVES.items():
        curves = {
            run: sorted(
                (float(at), value) for (who, what, at), value in found.items() if (who, what) == (run, metric)
            )
            for run in (main_id, *METHODS)
        }
        if curves[main_id]:
            at = (found.get((main_id, GUESSES, "")), found.get((main_id, generated, "")))
            shown = {run: points for run, points in curves.items() if points}
            names = [f"model ({main_id})" if run == main_id else f"{run} (naive)" for run in shown]
            uri = _drawn(names, list(shown.values()), None if None in at else at, label)
            figures[metric] = {"uri": uri, "shows": ", ".join(names)}
    return figures


def _drawn(names: list[str], curves: Sequence[list[Point]], generated: Point | None, label: str) -> str:
    """A line a curve of (guesses per hidden code, figure), the model's first and thick."""
    figure, axes = panel("guesses for each hidden code", label)
    colors = (ORANGE, COLORS[0], COLORS[2])
    for number, (name, points) in enumerate(zip(names, curves, strict=True)):
        axes.plot(
            *zip(*points, strict=True),
            color=colors[number],
            linestyle=STYLES[number],
            linewidth=2 if number == 0 else 1.4,
            marker="o",
            markersize=3,
            label=name,
        )
    if generated is not None:
        axes.plot(
            *generated,
            "*",
            color=ORANGE,
            markeredgecolor="black",
            markersize=12,
            label="as the model generates",
        )
    axes.legend()
    return data_uri(figure)
