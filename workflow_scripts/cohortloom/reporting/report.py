"""report.html: one self-contained page from the scorecard, the audit, the losses and the synthetic visits.

It has a part for each of three readers: a physician (are these patients plausible?), a statistician (every
figure, its floor and ceiling, when it misleads) and a data steward (what leaks, what is removed, what may be
shared). Its text is in resources/report.html.j2 and resources/metrics.csv; this module fills it in.

The page shows rates and shares of real data, and rows of synthetic data only. reconstruct.parquet, which
holds real codes, is not an input.
"""

import base64
import hashlib
import math
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from cohortloom.data.visits import patient_starts, used_columns
from cohortloom.evaluation.records import ALL, HEADLINE, NOT_TRAINED
from cohortloom.reporting.scorecard import (
    AGES_OF_TRAINING,
    MEANINGFUL_VISITS,
    NAIVE,
    REAL,
    VOID_UNLESS,
    Key,
    Record,
    failed_controls,
    key,
    unequal_sizes,
)
from cohortloom.reporting.sentences import (
    NONE,
    against_naive,
    column_order,
    dotted,
    format_number,
    record_cells,
    sentences,
)

Metrics = dict[str, dict[str, str]]


def render_report(
    template: Path,
    *,
    card: dict[str, Any],
    metrics: Metrics,
    main_id: str,
    runs: list[str],
    audit: dict[str, Any],
    provenance: dict[str, Any],
    visits: dict[str, pa.Table],
    figures: dict[str, dict[str, str]],
    examples: list[dict[str, Any]],
    titles: dict[str, str],
) -> str:
    """The page as a string; equal inputs give an equal page, without a date.

    card: content of scorecard.json. visits: the sets training, test and synthetic. figures: of
    figures.report_figures. examples: of examples.choose_examples. titles: title of each code.
    """
    records = card["records"]
    sizes = {name: {"visits": t.num_rows, "patients": len(patient_starts(t))} for name, t in visits.items()}
    marks = unequal_sizes(records)
    methods = [*runs, *(name for name in ("copy", *NAIVE, REAL) if any(r["run"] == name for r in records))]
    emitted = {record["metric"] for record in records}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": lambda value: format_number(value, "count"), "sha256": _sha256}
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        experiment=card["experiment"],
        main_id=main_id,
        simulated=audit.get("source") == "simulated",
        too_small=sizes["test"]["visits"] < MEANINGFUL_VISITS,
        meaningful=MEANINGFUL_VISITS,
        sizes=sizes,
        criteria=[_row(record, metrics, marks) for record in card["criteria"]],
        passed=sum(record["pass"] is True for record in card["criteria"]),
        runs=runs,
        criteria_by_run=_by_run([r for r in records if r["target"] is not None], runs, metrics),
        measures=measures([r for r in records if r["run"] == main_id], metrics, marks, titles),
        methods=methods,
        by_method=_by_run(records, methods, metrics),
        audit=audit,
        figures=figures,
        examples=examples,
        columns=used_columns(*visits.values()),
        meanings=[metric for name, metric in metrics.items() if name in emitted],
        physician=sentences(records, main_id, "physician", metrics),
        twice=any(r["run"] == main_id and r["subset"] == AGES_OF_TRAINING for r in records),
        steward=sentences(records, main_id, "steward", metrics),
        controls=sentences(records, REAL, "control", metrics),
        planted=planted_patients(records, metrics),
        removed=_removed_columns(records, main_id, metrics),
        seeds=_over_seeds(card.get("over_seeds", []), metrics),
        against_naive=against_naive(records, main_id, metrics),
        void=[
            {
                "title": metrics[metric]["title"],
                "control": VOID_UNLESS[metric],
                "value": format_number(value, ""),
            }
            for (_, metric, _), value in failed_controls(records)
        ],
        provenance=provenance,
        settings=_settings(provenance["config"]),
    )


_REFERENCES = {"real": "real", "naive": "naive"}  # cell of a row -> field of a record


def _row(record: Record, metrics: Metrics, marks: dict[tuple[str, Key], list[str]]) -> dict[str, Any]:
    """A record in words; a reference with another number of cases gets a dagger."""
    row = record_cells(record, metrics[str(record["metric"])])
    unequal = marks.get((str(record["run"]), key(record)), [])
    row |= {cell: row[cell] + "†" for cell, name in _REFERENCES.items() if name in unequal}
    return {**row, "unequal": bool(unequal)}


def _ordered(records: list[Record], metrics: Metrics) -> list[Record]:
    """Records in the order of metrics.csv, then by mode, column and subset, `decile 10` after `decile 9`."""
    order = {name: number for number, name in enumerate(metrics)}

    def sort_key(record: Record) -> tuple:
        stem, _, last = str(record["subset"] or "").rpartition(" ")
        part = (stem, int(last), "") if last.isdigit() and stem else (str(record["subset"]), 0, last)
        return order[record["metric"]], record["mode"] == "reconstruct", column_order(record), part

    return sorted(records, key=sort_key)


def _by_run(records: list[Record], runs: list[str], metrics: Metrics) -> list[dict[str, Any]]:
    """One row for each figure of the whole set; `cells` has the record of each run in words, or None."""
    figures: dict[Key, dict[str, dict[str, str]]] = {}
    for record in _ordered(records, metrics):
        if not record["subset"]:
            cells = record_cells(record, metrics[str(record["metric"])])
            figures.setdefault(key(record), {})[str(record["run"])] = cells
    rows = []
    for by_run in figures.values():
        cells = [by_run.get(run) for run in runs]
        relevant = [c for c in cells if c and (c["value"] != NONE or c["verdict"] == NOT_TRAINED)]
        if relevant:
            rows.append({"title": relevant[0]["title"], "mode": relevant[0]["mode"], "cells": cells})
    return rows


def measures(
    records: list[Record], metrics: Metrics, marks: dict[tuple[str, Key], list[str]], titles: dict[str, str]
) -> list[dict[str, Any]]:
    """Rows of the table of all measures, one a record: its cells, its group, and `numbers`, what the table is
    sorted by. Parts that are codes have their titles.
    """
    rows = []
    for record in _ordered(records, metrics):
        row = _row(record, metrics, marks)
        code = row["subset"]
        row["part"] = f"{dotted(code)} {titles[code]}" if code in titles else code
        row["group"] = metrics[row["metric"]]["group"]
        row["numbers"] = {name: record[name] for name in ("value", "ci_low", "real", "naive", "n")}
        rows.append(row)
    return rows


def planted_patients(records: list[Record], metrics: Metrics) -> dict[str, Any] | None:
    """Figures of planted patients by number of repeats, of the first run with canaries; None without one.

    `rows`: number of repeats -> metric -> its record in words.
    """
    runs = [r["run"] for r in records if r["metric"] == "canary_auc" and r["run"] != REAL]
    rows: dict[int, dict[str, Record]] = {}
    for record in records:
        if record["run"] in runs[:1] and str(record["subset"]).startswith("repeats "):
            rows.setdefault(int(record["subset"].split()[1]), {})[record["metric"]] = record
    if not rows:
        return None
    held_out = next(iter(rows.values()))["canary_auc"]["n_reference"]
    return {
        "run": runs[0],
        "held_out": format_number(held_out, "count"),
        "ceiling": format_number(math.log2(held_out + 1), ""),
        "rows": {
            times: {name: record_cells(record, metrics[name]) for name, record in figures.items()}
            for times, figures in sorted(rows.items())
        },
    }


def _removed_columns(records: list[Record], run: str, metrics: Metrics) -> list[dict[str, Any]]:
    """The audit of race by group: AUC on real visits, predicted share and distance of the run."""
    cells = {
        (r["run"], r["metric"], r["subset"]): record_cells(r, metrics[r["metric"]])
        for r in records
        if r["column"] in (ALL, HEADLINE)
    }
    missing = dict.fromkeys(("value", "real", "n"), NONE)
    return [
        {
            "race": race,
            "auc": auc,
            "share": cells.get((run, "race_predicted_share", race), missing),
            "distance": cells.get((run, "race_js_distance", race), missing),
        }
        for (name, metric, race), auc in cells.items()
        if (name, metric) == (REAL, "race_auc") and race
    ]


def _over_seeds(spread: list[dict[str, Any]], metrics: Metrics) -> list[dict[str, str]]:
    """Rows of the figures of the whole set over the trainings of each run."""
    rows = []
    for entry in _ordered([entry for entry in spread if not entry["subset"]], metrics):
        metric = metrics[entry["metric"]]
        cells = {n: format_number(entry[n], metric["unit"]) for n in ("mean", "sd", "min", "max", "real")}
        passed = "" if entry["passed"] is None else f"{entry['passed']} of {entry['seeds']}"
        mode = "half revealed" if entry["mode"] == "reconstruct" and metric["group"] == "generation" else ""
        mode = mode if entry["column"] in (ALL, HEADLINE) else f"{entry['column']}, {mode}".removesuffix(", ")
        rows.append({"title": metric["title"], "run": entry["run"], "mode": mode, **cells, "passed": passed})
    return rows


def _sha256(text: str) -> str:
    """The digest of a script as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _settings(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The config as (path, value) pairs, without the folder of the raw data."""
    pairs = []
    for name, value in config.items():
        if isinstance(value, dict):
            pairs += _settings(value, f"{prefix}{name}.")
        elif name != "raw_dir":
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            pairs.append((f"{prefix}{name}", text))
    return pairs
