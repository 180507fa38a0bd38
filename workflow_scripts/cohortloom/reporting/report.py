"""report.html: one self-contained page from the scorecard, the audit, the losses and the synthetic visits.

It has a part for each of three readers: a physician (can I believe these patients?), a statistician (every
figure, its floor and ceiling, when it misleads) and a data steward (what leaks, what was removed, what may
be shared).

The page holds rates and shares of real data, and rows of synthetic data only: it never opens
reconstruct.parquet, which holds real codes.
"""

from pathlib import Path
from typing import Any

import jinja2

from cohortloom.data.visits import patient_starts, read_visits
from cohortloom.reporting import report_examples, report_figures, report_words, wording
from cohortloom.reporting.scorecard import (
    CRITERIA,
    MEANINGFUL_VISITS,
    NAIVE,
    REAL,
    Record,
    key,
    unequal_sizes,
    voided,
)

GROUPS = {
    "medical validity": "Do ages, sexes and codes fit together?",
    "reconstruction": "Half of the codes of a real visit are shown. Does the model find the hidden rest?",
    "fidelity": "Do the synthetic visits, taken together, look like the real ones?",
    "conditioning": "Do age and sex decide what is written?",
    "utility": "Does a method that learned on synthetic visits work on real ones?",
    "privacy": "What do the synthetic visits, or the model, say about the patients it learned from?",
    "removed columns": "What do the kept columns still tell of race, which was removed?",
    "heads": "What the model's own heads make of age and sex on real test visits.",
    "generation": "What generation put out before anything was written.",
}


def render(
    *,
    card: dict[str, Any],
    metrics: dict[str, dict[str, str]],
    main_id: str,
    runs: list[str],
    models: list[Path],
    audit: dict[str, Any],
    synthetic: Path,
    naive: list[Path],
    train: Path,
    test: Path,
    titles: Path,
    validity: Path,
    template: Path,
    provenance: dict[str, Any],
) -> str:
    """The page as a string; see summarize for the files. Equal inputs give an equal page (no date in it)."""
    made, real, training = read_visits(synthetic), read_visits(test), read_visits(train)
    methods = {path.parent.name: read_visits(path) for path in naive}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["dotted"] = wording.dotted
    environment.filters["count"] = lambda value: wording.number(value, "count")
    marks = unequal_sizes(card["records"])
    records = card["records"]
    figures = {
        "losses": report_figures.losses(models),
        "synthetic": report_figures.synthetic(made, real, training, methods, main_id),
        "violations": report_figures.violations(card["records"], main_id),
        "leaks": report_figures.leaks(card["records"], main_id),
    }
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        experiment=card["experiment"],
        main_id=main_id,
        source=audit.get("source", "unknown"),
        simulated=audit.get("source") == "simulated",
        too_small=real.num_rows < MEANINGFUL_VISITS,
        meaningful=MEANINGFUL_VISITS,
        sizes={
            "training": _size(training),
            "held-out test": _size(real),
            f"synthetic ({main_id})": _size(made),
        },
        criteria=[_row(record, metrics, marks) for record in card["criteria"]],
        passed=sum(record["pass"] is True for record in card["criteria"]),
        runs=_runs(card["records"], metrics, runs),
        groups=_groups(card["records"], metrics, main_id, marks, report_examples.read_titles(titles)),
        methods=_side_by_side(card["records"], metrics, runs),
        audit=audit,
        figures=figures,
        examples=report_examples.choose(made, [training, real], titles, validity),
        meanings=_meanings(card["records"], metrics),
        physician=report_words.sentences(records, main_id, report_words.PHYSICIAN, metrics),
        steward=report_words.sentences(records, main_id, report_words.STEWARD, metrics),
        controls=report_words.sentences(records, REAL, report_words.CONTROLS, metrics),
        planted=report_words.planted_patients(records, metrics),
        removed=report_words.removed_columns(records, main_id, metrics),
        sharing=report_words.SHARING,
        seeds=report_words.seeds_table(card.get("over_seeds", []), metrics),
        void=report_words.void_remarks(voided(records), metrics),
        provenance=provenance,
        settings=_settings(provenance["config"]),
    )


def _size(table) -> dict[str, int]:
    return {"visits": table.num_rows, "patients": len(patient_starts(table))}


def _row(record: Record, metrics: dict[str, dict[str, str]], marks: dict) -> dict[str, Any]:
    """A record in words, for any of the tables."""
    metric = metrics[str(record["metric"])]
    unit = metric["unit"]
    off = marks.get((str(record["run"]), key(record)), [])
    # `copied`, because in a template row.copy is the method of a dict
    cells = {
        cell: wording.number(record[name], unit) + ("†" if name in off else "")
        for cell, name in (("real", "real"), ("copied", "copy"), ("naive", "naive"))
    }
    return {
        "metric": record["metric"],
        "title": metric["title"],
        "unit": "" if unit in ("fraction", "count") else unit,
        "mode": _mode(record, metric),
        "subset": record["subset"] or "",
        "value": wording.number(record["value"], unit),
        "interval": wording.interval(record, unit),
        "target": wording.target(metric["target"], unit) if record["target"] is not None else "",
        "verdict": wording.verdict(record["pass"]),
        "n": wording.number(record["n"], "count"),
        "unequal": bool(off),
        **cells,
    }


def _mode(record: Record, metric: dict[str, str]) -> str:
    """A remark where a figure that one expects of synthesize is of the other mode."""
    expected = metric["group"] == "reconstruction" or CRITERIA.get(metric["metric"], "") in (
        None,
        "reconstruct",
    )
    return "half revealed" if record["mode"] == "reconstruct" and not expected else ""


def _runs(records: list[Record], metrics: dict, runs: list[str]) -> dict[str, Any]:
    """The six criteria of every model, a column a run."""
    rows = []
    for name, mode in CRITERIA.items():
        found = {
            r["run"]: r
            for r in records
            if r["metric"] == name and not r["subset"] and mode in (None, r["mode"])
        }
        unit = metrics[name]["unit"]
        cells = [
            {
                "value": wording.number(found[run]["value"], unit),
                "verdict": wording.verdict(found[run]["pass"]),
            }
            if run in found
            else {"value": wording.NONE, "verdict": wording.verdict(None)}
            for run in runs
        ]
        rows.append({"title": metrics[name]["title"], "cells": cells})
    return {"names": runs, "rows": rows}


def _ordered(records: list[Record], metrics: dict) -> list[Record]:
    """Records in the order of metrics.csv, then by mode and subset."""
    order = {name: number for number, name in enumerate(metrics)}
    return sorted(
        records,
        key=lambda r: (order[r["metric"]], r["mode"] == "reconstruct", _natural(str(r["subset"] or ""))),
    )


def _natural(subset: str) -> tuple:
    """Sort key that puts `decile 10` behind `decile 9`."""
    digits = "".join(c for c in subset if c.isdigit())
    return (subset.rstrip("0123456789"), int(digits) if digits and len(digits) < 6 else 0, subset)


def _groups(
    records: list[Record], metrics: dict, main_id: str, marks: dict, titles: dict[str, str]
) -> list[dict[str, Any]]:
    """The main run's records by group: whole figures, and those of a subset apart. Criteria join in."""
    mine = _ordered([r for r in records if r["run"] == main_id], metrics)
    found: dict[str, dict[str, Any]] = {}
    for record in mine:
        name = metrics[str(record["metric"])]["group"]
        if name == "criteria":  # those that are not among the six, such as the same rate in the other mode
            name = "generation" if record["metric"] == "duplicate_rate" else "medical validity"
            if record["target"] is not None:
                continue
        group = found.setdefault(
            name, {"name": name, "question": GROUPS.get(name, ""), "rows": [], "subsets": []}
        )
        if all(record[field] is None for field in ("value", "real", "naive")):
            continue  # such as gaps between visits where nobody came twice
        row = _row(record, metrics, marks)
        if row["subset"] in titles:
            row["subset"] = f"{wording.dotted(row['subset'])} {titles[row['subset']]}"
        group["subsets" if record["subset"] else "rows"].append(row)
    for group in found.values():
        rows = group["rows"] + group["subsets"]
        group["judged"] = any(row["real"] != wording.NONE for row in rows)
        group["compared"] = any(row["naive"] != wording.NONE for row in rows)
    known = [found[name] for name in GROUPS if name in found]
    return known + [group for name, group in found.items() if name not in GROUPS]


def _side_by_side(records: list[Record], metrics: dict, runs: list[str]) -> dict[str, Any]:
    """Every whole figure of every run, naive method and real data: a row a metric, a column a method."""
    columns = [*runs, *(name for name in ("copy", *NAIVE, REAL) if any(r["run"] == name for r in records))]
    values = {(r["run"], key(r)): r for r in records if not r["subset"]}
    rows = []
    for record in _ordered(list({key(r): r for r in values.values()}.values()), metrics):
        metric, there = metrics[str(record["metric"])], [(name, key(record)) for name in columns]
        if all(values[place]["value"] is None for place in there if place in values):
            continue
        cells = [
            wording.number(values[place]["value"], metric["unit"]) if place in values else ""
            for place in there
        ]
        rows.append({"title": metric["title"], "mode": _mode(record, metric), "cells": cells})
    return {"names": columns, "rows": rows}


def _meanings(records: list[Record], metrics: dict) -> list[dict[str, str]]:
    """What each emitted metric means, in the order of metrics.csv."""
    emitted = {r["metric"] for r in records}
    better = {"true": "higher is better", "false": "lower is better", "": "neither side is better"}
    return [
        {**metric, "better": better[metric["higher_is_better"]]}
        for name, metric in metrics.items()
        if name in emitted
    ]


def _settings(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The config as (path, value) pairs; where the raw data lie is nobody else's business."""
    found = []
    for name, value in config.items():
        if isinstance(value, dict):
            found += _settings(value, f"{prefix}{name}.")
        elif name != "raw_dir":
            found.append(
                (f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            )
    return found
