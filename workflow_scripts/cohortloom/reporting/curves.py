"""The report's curves of hidden codes: F1 and Jaccard at every number of guesses."""

from collections.abc import Sequence

from cohortloom.evaluation.records import ALL, HEADLINE
from cohortloom.reporting.figures import COLORS, ORANGE, STYLES, Figures, data_uri, panel
from cohortloom.reporting.scorecard import Record

# metric of the curve -> metric of the generated visits, axis label
CURVES = {
    "curve_f1": ("hidden_f1", "F1 on hidden codes"),
    "curve_jaccard": ("jaccard", "Jaccard, half revealed"),
}
METHODS = ("linear", "prevalence")
GUESSES = "guessed_per_hidden_code"
Point = tuple[float, float]


def hidden_code_figures(records: list[Record], main_id: str) -> Figures:
    """One figure for each curve of the diagnoses: main run and naive methods, with a marker for the generated
    visits.
    """
    values = {
        (r["run"], r["metric"], r["subset"]): r["value"]
        for r in records
        if r["value"] is not None and r["column"] in (ALL, HEADLINE)
    }
    figures = {}
    for metric, (generated, label) in CURVES.items():
        curves = {
            run: sorted(
                (float(subset), value)
                for (of_run, of_metric, subset), value in values.items()
                if (of_run, of_metric) == (run, metric)
            )
            for run in (main_id, *METHODS)
        }
        if curves[main_id]:
            marker = (values.get((main_id, GUESSES, "")), values.get((main_id, generated, "")))
            curves = {run: points for run, points in curves.items() if points}
            names = [f"model ({main_id})" if run == main_id else f"{run} (naive)" for run in curves]
            uri = _draw(names, list(curves.values()), None if None in marker else marker, label)
            figures[metric] = {"uri": uri, "shows": ", ".join(names)}
    return figures


def _draw(names: list[str], curves: Sequence[list[Point]], generated: Point | None, label: str) -> str:
    """One line for each curve of (guesses per hidden code, figure); the first, of the model, is thick."""
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
