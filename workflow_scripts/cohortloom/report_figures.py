"""What the report's figures show, with captions in plain words; figures.py draws them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom import figures
from cohortloom.errors import UserError
from cohortloom.scorecard import REAL, Record
from cohortloom.visits import code_lists, patient_starts

# column of history.csv (the first that is there) -> title, axis label, caption
LOSSES = {
    ("lm",): (
        "Language-model loss",
        "loss (nats a code)",
        "How surprised the model is by the next code of a visit, in nats: the lower, the better it predicts."
        " Validation patients (solid) were never trained on; when their line rises while training falls,"
        " the model has begun to memorize.",
    ),
    ("age_years2", "age"): (
        "Age loss",
        "squared error (years²)",
        "How far the model's own age head is off, squared. 25 years² is an error of 5 years.",
    ),
    ("sex",): (
        "Sex loss",
        "cross-entropy (nats)",
        "How unsure the model's own sex head is: 0.69 is a coin toss, 0 is certain and right.",
    ),
}


def read_history(path: Path) -> list[dict[str, str]]:
    """Rows of a history.csv; columns step, tokens, split and one a loss, any others are left alone."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the run again") from None


def losses(models: list[Path]) -> list[dict[str, str]]:
    """One figure a loss, all runs in it."""
    histories = {folder.name: read_history(folder / "history.csv") for folder in models}
    made = []
    for columns, (title, ylabel, caption) in LOSSES.items():
        curves = {}
        for run, rows in histories.items():
            for split in dict.fromkeys(row.get("split", "train") for row in rows):
                column = next((c for c in columns if rows and c in rows[0]), None)
                points = [
                    (float(row["tokens"]), float(row[column]))
                    for row in rows
                    if column and row.get("split", "train") == split and row[column]
                ]
                points = [point for point in points if np.isfinite(point[1])]
                if points:
                    tokens, values = np.array(points).T
                    curves[run, split] = tokens, values
        if curves:
            alt = f"{title} over training for the runs {', '.join(dict.fromkeys(r for r, _ in curves))}"
            made.append(_figure(title, figures.loss_curve(curves, ylabel), alt, caption))
    return made


def synthetic(
    made: pa.Table, real: pa.Table, training: pa.Table, methods: dict[str, pa.Table], main_id: str
) -> list[dict[str, str]]:
    """Prevalence (two panels), codes a visit and, where patients come more than once, visits and gaps."""
    known, scored, held = code_shares(training), code_shares(made), code_shares(real)
    codes = sorted(known)
    reference = np.array([known[code] for code in codes])
    floor = 1 / max(1, min(made.num_rows, real.num_rows))
    found = []
    for name, shares, color, n in (
        ("synthetic", scored, figures.SYNTHETIC, made.num_rows),
        ("held-out real", held, "#0072B2", real.num_rows),
    ):
        values = np.array([shares.get(code, 0.0) for code in codes])
        found.append(
            _figure(
                f"How common each diagnosis is: {name} against training",
                figures.prevalence(reference, values, floor, f"share of {name} visits with the code", color),
                f"Scatter of the share of {name} visits with each code over its share of training visits",
                f"Each dot is one diagnosis code; on the line it is as common among the {n:,} {name} visits as in"
                " training. Both axes are logarithmic. "
                + (
                    "Compare the cloud with the one of held-out real visits beside it: that is how wide chance"
                    " alone makes it. Ticks at the bottom are codes that were never drawn."
                    if name == "synthetic"
                    else "These are real patients that no model saw: no honest generator comes closer to the line"
                    " at this size."
                ),
            )
        )
    real_name, made_name = "real, held out", f"synthetic ({main_id})"
    found.append(
        _figure(
            "Diagnoses in a visit",
            figures.histogram(
                {real_name: lengths(real), made_name: lengths(made)}
                | {name: lengths(table) for name, table in methods.items() if name != "copy"},
                "diagnosis codes in a visit",
                real_name,
                made_name,
            ),
            "Share of visits by number of diagnosis codes, real, synthetic and naive methods",
            "Grey bars are real visits; a good generator's line follows their tops. The last point holds all"
            " longer visits.",
        )
    )
    if max(visits_each(real).max(initial=1), visits_each(made).max(initial=1)) > 1:
        found.append(
            _figure(
                "Visits of a patient",
                figures.histogram(
                    {real_name: visits_each(real), made_name: visits_each(made)},
                    "visits of a patient",
                    real_name,
                    made_name,
                ),
                "Share of patients by number of visits, real and synthetic",
                "How often patients come back. Grey bars are real patients, the line synthetic ones.",
            )
        )
    return found


def code_shares(table: pa.Table) -> dict[str, float]:
    """Share of visits that hold each code."""
    counted = pc.value_counts(code_lists(table)[0])
    pairs = zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)
    return {code: count / table.num_rows for code, count in pairs}


def lengths(table: pa.Table) -> np.ndarray:
    """Codes of each visit, [n_visits]."""
    return np.diff(code_lists(table)[1])


def visits_each(table: pa.Table) -> np.ndarray:
    """Visits of each patient, [n_patients]."""
    starts = patient_starts(table)
    return np.diff(np.r_[starts, table.num_rows])


def violations(records: list[Record], main_id: str) -> list[dict[str, str]]:
    """Violations by category: the main run, the naive methods and held-out real visits."""
    return []


def _figure(title: str, uri: str, alt: str, caption: str) -> dict[str, str]:
    return {"title": title, "uri": uri, "alt": alt, "caption": caption}
