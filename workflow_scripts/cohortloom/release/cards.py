"""The cards of a published model and its cohort: Markdown with the YAML front matter that model hubs read.

They hold rates, counts and settings, and no row of a patient.
"""

from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import yaml

from cohortloom.data.visits import SCHEMA
from cohortloom.evaluation.records import is_headline
from cohortloom.release.gates import Limit
from cohortloom.reporting.scorecard import MEANINGFUL_VISITS, REAL, Record, key
from cohortloom.reporting.sentences import NONE, format_number, record_cells

# group in metrics.csv -> heading of its table
GROUPS = {
    "medical validity": "Medical validity",
    "fidelity": "Likeness to real visits",
    "conditioning": "Dependence of codes on age and sex",
    "utility": "Usefulness on real patients",
    "reconstruction": "Hidden codes of held-out visits, half revealed",
}
COHORT_FIGURES = (
    "hard_per_100k_visits",
    "any_per_100k_visits",
    "restricted_share",
    "mean_codes_per_visit",
    "copy_share",
    "membership_auc",
    "attribute_risk",
)
COLUMNS = {
    "patient_id": "synthetic-0000001 and on; no id of a real patient",
    "visit": "0, 1, 2 ... in time order",
    "days": "days since the patient's first visit",
    "age": "completed years at this visit; under one year days / 365.25; newborn 0; at most 90",
    "sex": "F or M",
    "diagnoses": "SYSTEM:CODE in upper case without dot, none twice in a visit",
    "procedures": "the same; empty where the source has none",
    "medications": "the same; empty where the source has none",
}
Metrics = dict[str, dict[str, str]]
TAGS = ["synthetic-data", "electronic-health-records", "icd-9-cm", "medical"]


def model_card(
    template: Path, card: dict[str, Any], metrics: Metrics, limits: list[Limit], **facts: Any
) -> str:
    """README.md of the published model; `facts`: the other variables of the template."""
    run = card["criteria"][0]["run"]
    own = [r for r in card["records"] if r["run"] == run and is_headline(r) and r["value"] is not None]
    order = list(metrics)
    own.sort(key=lambda r: (order.index(str(r["metric"])), str(r["mode"])))

    def rows(group: str) -> list[dict[str, str]]:
        of_group = [r for r in own if metrics[str(r["metric"])]["group"] == group]
        return [_row(r, metrics) for r in of_group if group != "criteria" or r["target"] is not None]

    front = {
        "license": facts["terms"]["license"],
        "library_name": "transformers",
        "tags": [*TAGS, "bart"],
        "model_name": f"cohortloom-{card['experiment']}",
    }
    jaccard = next((r for r in card["criteria"] if r["metric"] == "jaccard"), {})
    return _render(
        template,
        front=_front_matter(front),
        experiment=card["experiment"],
        run=run,
        criteria=rows("criteria"),
        passed=sum(r["pass"] is True for r in card["criteria"]),
        groups={title: rows(group) for group, title in GROUPS.items() if rows(group)},
        privacy=rows("privacy"),
        too_small=(jaccard.get("n") or 0) < MEANINGFUL_VISITS,
        limits=_limits(limits, metrics),
        **facts,
    )


def data_card(
    template: Path, records: list[Record], metrics: Metrics, run: str, limits: list[Limit], **facts: Any
) -> str:
    """README.md of the published cohort from its records (of `run`) and those of `real`."""
    real = {key(r): r for r in records if r["run"] == REAL}
    own = {str(r["metric"]): r for r in records if r["run"] == run and is_headline(r)}
    patients = facts["sizes"]["patients"]
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    front = {
        "license": facts["terms"]["license"],
        "pretty_name": f"Cohortloom: {patients:,} synthetic patients ({facts['experiment']})",
        "size_categories": [next((name for most, name in bounds if patients < most), "n>1M")],
        "tags": TAGS,
        "configs": [{"config_name": "default", "data_files": "visits.parquet"}],
    }
    return _render(
        template,
        front=_front_matter(front),
        columns=[(field.name, _type(field), COLUMNS[field.name]) for field in SCHEMA],
        figures=[_with_real(own[name], real.get(key(own[name])), metrics) for name in COHORT_FIGURES],
        too_small=(own["mean_codes_per_visit"]["n"] or 0) < MEANINGFUL_VISITS,
        limits=_limits([limit for limit in limits if limit.metric in own], metrics),
        **facts,
    )


def _limits(limits: list[Limit], metrics: Metrics) -> list[dict[str, str]]:
    """The limits in words: title, limit and reason of each."""
    rows = []
    for limit in limits:
        unit = metrics[limit.metric]["unit"]
        most = format_number(limit.limit, unit)
        most += " above the lower end of held-out's interval" if limit.above_held_out else ""
        rows.append({"title": metrics[limit.metric]["title"], "most": most, "reason": limit.reason})
    return rows


def _row(record: Record, metrics: Metrics) -> dict[str, str]:
    """A record in words; its unit and remark follow the title in brackets."""
    row = record_cells(record, metrics[str(record["metric"])])
    remark = ", ".join(filter(None, (row["unit"], row["mode"])))
    return row | {"title": f"{row['title']} ({remark})" if remark else row["title"]}


def _with_real(record: Record, real: Record | None, metrics: Metrics) -> dict[str, str]:
    """A record in words with that of `real`, which is not joined to it; attacks have none."""
    row = _row(record, metrics)
    other = _row(real, metrics) if real else dict.fromkeys(row, NONE)
    return row | {"real": other["value"], "real_interval": other["interval"], "real_n": other["n"]}


def _type(field: pa.Field) -> str:
    """The type of a column, named as in the description of the visits table."""
    if pa.types.is_dictionary(field.type):
        return "dictionary of string"
    if pa.types.is_list(field.type):
        return "list of string"
    return "float32" if pa.types.is_float32(field.type) else str(field.type)


def _front_matter(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip()


def _render(template: Path, **values: Any) -> str:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
