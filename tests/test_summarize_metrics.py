"""resources/metrics.csv keeps step with the evaluations: every metric they emit is explained there."""

import re

import pytest

from cohortloom.data.visits import RECONSTRUCT_SCHEMA, list_column, with_empty_columns, write_visits
from cohortloom.reporting import scorecard
from evaluate_fidelity import evaluate_fidelity
from evaluate_medical_validity import evaluate_medical_validity
from evaluate_reconstruction import evaluate_reconstruction
from summarize_inputs import REAL_VISITS, RESOURCES, SYNTHETIC_VISITS

METRICS = scorecard.read_metrics(RESOURCES / "metrics.csv")
BETTER = {"true": True, "false": False, "": None}


@pytest.fixture(scope="module")
def emitted(tmp_path_factory) -> list[dict]:
    """The records of the evaluations that need no model, on three patients."""
    folder = tmp_path_factory.mktemp("emitted")
    origin = {"source": "test"}
    write_visits(REAL_VISITS, folder / "real.parquet", origin)
    write_visits(SYNTHETIC_VISITS, folder / "synthetic.parquet", origin)
    empty = list_column(REAL_VISITS["diagnoses"].combine_chunks().values.slice(0, 0), [0] * 5)
    rebuilt = (
        REAL_VISITS.append_column("source_patient_id", REAL_VISITS["patient_id"])
        .append_column("source_visit", REAL_VISITS["visit"])
        .append_column("revealed_diagnoses", empty)
    )
    rebuilt = with_empty_columns(rebuilt)
    write_visits(rebuilt, folder / "reconstruct.parquet", origin, RECONSTRUCT_SCHEMA)
    shared = {"run": "multitask", "seed": 1}
    evaluate_medical_validity(
        synthetic=folder / "synthetic.parquet",
        rules=RESOURCES / "validity",
        records=folder / "medical_validity.json",
        **shared,
    )
    evaluate_fidelity(
        synthetic=folder / "synthetic.parquet",
        train=folder / "real.parquet",
        records=folder / "fidelity.json",
        **shared,
    )
    evaluate_reconstruction(
        reconstruct=folder / "reconstruct.parquet",
        test=folder / "real.parquet",
        records=folder / "reconstruction.json",
        **shared,
    )
    return scorecard.read_records(folder.glob("*.json"))


def test_every_emitted_metric_has_a_row(emitted):
    assert {record["metric"] for record in emitted} - set(METRICS) == set()


def test_rows_and_records_agree_on_the_better_side(emitted):
    for record in emitted:
        row = METRICS[record["metric"]]
        assert record["higher_is_better"] is BETTER[row["higher_is_better"]], record["metric"]


def test_a_metric_without_a_row_is_detected(emitted):
    assert {*(record["metric"] for record in emitted), "beauty"} - set(METRICS) == {"beauty"}


@pytest.mark.parametrize("name", METRICS)
def test_a_row_explains_its_metric_and_when_it_misleads(name):
    row = METRICS[name]
    assert len(row["meaning"]) > 30 and len(row["misleads"]) > 30
    assert row["title"] and row["group"] and row["higher_is_better"] in BETTER
    assert bool(row["target"]) == (name in scorecard.CRITERIA)
    assert not row["target"] or re.fullmatch(r"(<|<=|=|>=|>) [\d.]+", row["target"])


def test_titles_are_not_used_twice():
    titles = [row["title"] for row in METRICS.values()]
    assert len(titles) == len(set(titles))


def test_the_tiny_experiment_emits_nothing_unexplained(tiny):
    records = scorecard.read_records((tiny.directory / "results" / "tiny" / "evaluation").glob("*/*.json"))
    assert len({record["metric"] for record in records}) > 30
    for record in records:
        row = METRICS[record["metric"]]
        assert record["higher_is_better"] is BETTER[row["higher_is_better"]], record["metric"]
