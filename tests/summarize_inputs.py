"""The inputs of summarize, small enough to check by eye: three real patients, two synthetic ones."""

import json
from pathlib import Path

import pyarrow as pa

from cohortloom.data.visits import SCHEMA, with_empty_columns, write_visits
from cohortloom.evaluation.records import record

RESOURCES = Path(__file__).resolve().parents[1] / "resources"
RUNS = ["multitask", "lm_only"]
# metric, mode, higher is better, {run: value}
FIGURES = [
    ("age_head_loss", "teacher_forced", False, {"multitask": 2.4, "lm_only": 81.0}),
    ("sex_head_loss", "teacher_forced", False, {"multitask": 0.01, "lm_only": 0.7}),
    ("jaccard", "reconstruct", True, {"multitask": 0.52, "lm_only": 0.4, "prevalence": 0.46, "echo": 0.53}),
    (
        "age_violation_rate",
        "synthesize",
        False,
        {"multitask": 0.002, "lm_only": 0.03, "prevalence": 0.001, "markov": 0.004, "copy": 0.0, "real": 0.0},
    ),
    (
        "sex_violation_rate",
        "synthesize",
        False,
        {"multitask": 0.0, "lm_only": 0.02, "prevalence": 0.0, "markov": 0.0, "copy": 0.0, "real": 0.0},
    ),
    ("duplicate_rate", "synthesize", False, {"multitask": 0.0, "lm_only": 0.001}),
    (
        "js_distance",
        "synthesize",
        False,
        {
            "multitask": 0.125,
            "lm_only": 0.2,
            "prevalence": 0.122,
            "markov": 0.127,
            "copy": 0.11,
            "real": 0.12,
        },
    ),
    (
        "distinct_codes",
        "synthesize",
        None,
        {"multitask": 6, "lm_only": 2, "prevalence": 9, "markov": 7, "copy": 8, "real": 8},
    ),
]


def figure(run, metric, value, *, mode="synthesize", subset="", n=100, half=0.01, better=False):
    """A record as an evaluation writes it; `half` is half its interval."""
    ends = (None, None) if value is None else (value - half, value + half)
    return record(run, 1, mode, metric, subset, value, *ends, n, 800, better)


def visits(rows: list[tuple[str, int, int, float, str, list[str]]]) -> pa.Table:
    """A table of visits from (patient, visit, days, age, sex, codes)."""
    rows = [(*row[:-1], [f"ICD9CM:{code}" for code in row[-1]]) for row in rows]
    names, columns = SCHEMA.names[: len(rows[0])], list(zip(*rows, strict=True))
    table = pa.table({name: pa.array(list(column)) for name, column in zip(names, columns, strict=True)})
    return with_empty_columns(table).cast(SCHEMA)


REAL_VISITS = visits(
    [
        ("secret-patient-1", 0, 0, 70.0, "M", ["4019", "25000", "42731", "4280", "41401"]),
        ("secret-patient-1", 1, 31, 70.0, "M", ["4019", "0389"]),
        ("secret-patient-2", 0, 0, 0.0, "F", ["V3000"]),
        ("secret-patient-3", 0, 0, 28.0, "F", ["64403", "V270"]),
    ]
)
# The first repeats a real visit of five codes; the second is a newborn with a code that newborns lack.
SYNTHETIC_VISITS = visits(
    [
        ("synthetic-0000001", 0, 0, 70.0, "M", ["25000", "4019", "42731", "4280", "41401"]),
        ("synthetic-0000002", 0, 0, 0.0, "F", ["V3000", "64403"]),
        ("synthetic-0000003", 0, 0, 66.0, "M", ["4019", "<b>"]),
        ("synthetic-0000003", 1, 9, 66.0, "M", ["4019"]),
    ]
)


def write_inputs(folder: Path) -> dict:
    """Write all inputs under `folder`; returns the keywords of summarize."""

    def save(table: pa.Table, name: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_visits(table, path, {"source": "test"})
        return path

    records = []
    for run in dict.fromkeys(run for *_, values in FIGURES for run in values):
        found = [
            figure(run, metric, values[run], mode=mode, better=better)
            for metric, mode, better, values in FIGURES
            if run in values
        ]
        records.append(folder / "evaluation" / run / "all.json")
        records[-1].parent.mkdir(parents=True)
        records[-1].write_text(json.dumps(found), encoding="utf-8")
    for run in RUNS:
        model = folder / "models" / run
        model.mkdir(parents=True)
        rows = ["tokens,step,split,lm_loss,age_loss_years2,sex_loss,learning_rate,selection"]
        rows += [f"{1000 * i},{i},train,{7 - i},{90 - i},0.5,0.001," for i in range(3)]
        rows += [f"{1000 * i},{i},val,{7.1 - i},{91 - i},,0.001,0.4" for i in range(3)]
        (model / "history.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    audit = {
        "source": "mimic3",
        "tables": [
            {
                "table": "ADMISSIONS",
                "file": "ADMISSIONS.csv",
                "sha256": "ab" * 32,
                "rows": 4,
                "columns_kept": ["SUBJECT_ID"],
                "columns_removed": ["ETHNICITY", "RELIGION"],
            }
        ],
        "columns_removed": ["ETHNICITY", "RELIGION"],
        "dropped": [{"what": "diagnoses", "reason": "null code", "rows": 1234}],
        "normalized": [{"what": "codes with a dot", "count": 5}],
    }
    (folder / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    naive = visits([("synthetic-0000001", 0, 0, 70.0, "M", ["4019"])])
    return {
        "records": records,
        "models": [folder / "models" / run for run in RUNS],
        "audit": folder / "audit.json",
        "synthetic": save(SYNTHETIC_VISITS, "synthetic/multitask/synthesize.parquet"),
        "naive": [save(naive, f"synthetic/{name}/synthesize.parquet") for name in ("prevalence", "copy")],
        "train": save(REAL_VISITS, "dataset/train.parquet"),
        "test": save(REAL_VISITS, "dataset/test.parquet"),
        "titles": RESOURCES / "titles",
        "validity": RESOURCES / "validity",
        "metrics": RESOURCES / "metrics.csv",
        "template": RESOURCES / "report.html.j2",
        "scorecard": folder / "scorecard.json",
        "scorecard_csv": folder / "scorecard.csv",
        "report": folder / "report.html",
        "provenance": folder / "provenance.json",
        "experiment": "tiny",
        "main_run": "multitask",
        "runs": RUNS,
        "config": json.dumps(
            {
                "raw_dir": "/secret/place",
                "seeds": 1,
                "train": {"seed": 7, "preset": "tiny"},
                "naive": ["copy"],
            }
        ),
    }
