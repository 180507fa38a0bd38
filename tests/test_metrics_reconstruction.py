"""Reconstruction by hand, and files that do not belong together."""

import json

import numpy as np
import pyarrow as pa
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.visits import RECONSTRUCT_SCHEMA, check_visits, with_empty_columns, write_visits
from cohortloom.evaluation.reconstruction import reconstruction
from evaluate_reconstruction import evaluate_reconstruction
from metric_tables import named, visits_of

TEST = visits_of([["a b c d", "a b"], ["e f"], ["a c e g"]])
WRITTEN = [  # revealed, written
    ("a b", "a b c x"),  # one of two hidden codes, one wrong guess; 3 of 5
    ("", "a b"),  # both hidden codes; 2 of 2
    ("e", "e"),  # nothing guessed; 1 of 2
    ("c e", "c e x y z"),  # two hidden missed, three wrong; 2 of 7
]


def table(rows, source: pa.Table = TEST) -> pa.Table:
    lists = RECONSTRUCT_SCHEMA.field("revealed_diagnoses").type
    made = source.select(["visit", "days", "age", "sex"])
    ids = pa.array([f"made-{one}" for one in source["patient_id"].to_pylist()])
    made = made.append_column("patient_id", ids)
    made = made.append_column("diagnoses", pa.array([named(codes) for _, codes in rows], lists))
    made = made.append_column("source_patient_id", source["patient_id"])
    made = made.append_column("source_visit", source["visit"])
    made = made.append_column("revealed_diagnoses", pa.array([named(codes) for codes, _ in rows], lists))
    return check_visits(with_empty_columns(made))


def figures(made: pa.Table, test: pa.Table = TEST) -> dict:
    return {m: e for m, _, e, *_ in reconstruction(made, test, "made.parquet", 0)}


def test_figures_by_hand():
    found = figures(table(WRITTEN))
    expected = {
        "jaccard": (3 / 5 + 2 / 2 + 1 / 2 + 2 / 7) / 4,
        # hidden: 2, 2, 1, 2; guessed: 2, 2, 0, 3; right: 1, 2, 0, 0
        "hidden_recall": 3 / 7,
        "hidden_precision": 3 / 7,
        "hidden_f1": 2 * 3 / 14,
        "hidden_recall_with_history": 1.0,
        "hidden_precision_with_history": 1.0,
        "hidden_f1_with_history": 1.0,
        "hidden_recall_without_history": 1 / 5,
        "hidden_precision_without_history": 1 / 5,
        "hidden_f1_without_history": 2 / 10,
        "guessed_per_hidden_code": 1.0,
    }
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(expected, abs=1e-9)
    assert found["hidden_f1_with_history"].n == 1 and found["hidden_f1"].n == 4


def test_echo_scores_nothing_on_hidden_codes_and_the_truth_scores_all():
    echo = figures(table([(shown, shown) for shown, _ in WRITTEN]))
    assert echo["hidden_recall"].value == 0 and echo["hidden_f1"].value == 0
    assert np.isnan(echo["hidden_precision"].value)
    assert echo["jaccard"].value == pytest.approx((2 / 4 + 0 + 1 / 2 + 2 / 4) / 4, abs=1e-9)
    real = [" ".join(code.split(":")[1] for code in codes) for codes in TEST["diagnoses"].to_pylist()]
    whole = figures(table([(shown, codes) for (shown, _), codes in zip(WRITTEN, real, strict=True)]))
    assert whole["jaccard"].value == whole["hidden_f1"].value == 1


def test_the_order_of_the_patients_does_not_matter():
    made = table(WRITTEN)
    turned = pa.concat_tables([made.slice(3, 1), made.slice(2, 1), made.slice(0, 2)])
    assert figures(turned)["jaccard"].value == pytest.approx(figures(made)["jaccard"].value, abs=1e-12)
    shifted = table([*WRITTEN[1:], WRITTEN[0]])
    assert figures(shifted)["jaccard"].value != pytest.approx(figures(made)["jaccard"].value)


def test_a_file_from_another_test_set_is_refused():
    other = visits_of([["a b", "a"], ["e f"], ["a", "c"]])
    rows = [("a", "a b")] * 5
    with pytest.raises(UserError, match="made.parquet: columns source_patient_id, source_visit: 5 rows"):
        figures(table(rows, other))
    with pytest.raises(UserError, match="2 rows do not match the 4 held-out visits"):
        figures(table(WRITTEN).slice(0, 2))


def test_the_step_writes_records(tmp_path):
    made, test, out = (tmp_path / name for name in ("made.parquet", "test.parquet", "records.json"))
    write_visits(table(WRITTEN), made, {}, RECONSTRUCT_SCHEMA)
    write_visits(TEST, test, {})
    evaluate_reconstruction(reconstruct=made, test=test, records=out, run="x", seed=1)
    found = {r["metric"]: r for r in json.loads(out.read_text())}
    assert found["jaccard"]["mode"] == "reconstruct" and found["jaccard"]["n"] == 4
    assert found["jaccard"]["ci_low"] <= found["jaccard"]["value"] <= found["jaccard"]["ci_high"]
