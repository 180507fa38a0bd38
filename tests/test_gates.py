"""The limits of publishing: each alone stops a model that memorised, and few patients stop any."""

import numpy as np
import pyarrow as pa
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.coded import encode, sample_patients
from cohortloom.evaluation import privacy
from cohortloom.evaluation.records import as_records, of_column
from cohortloom.release.gates import check_limits, read_limits
from cohortloom.reporting.scorecard import read_metrics
from conftest import REPOSITORY
from metric_worlds import CODES, copied, table_of
from summarize_inputs import figure

RESOURCES = REPOSITORY / "resources"
LIMITS = {limit.metric: limit for limit in read_limits(RESOURCES / "publication_limits.csv")}
UNITS = {name: row["unit"] for name, row in read_metrics(RESOURCES / "metrics.csv").items()}
OF_VISITS = ("copy_share", "membership_auc", "attribute_risk")


def refusal(records: list[dict], run: str, *metrics: str) -> str | None:
    """What publish says, or None where these limits let the run pass."""
    try:
        check_limits(records, run, [LIMITS[name] for name in metrics], UNITS, "here")
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def patients(n: int, seed: int, tag: str) -> pa.Table:
    """Visits of a dozen codes each, too many to recur by chance, with age and sex."""
    rng = np.random.default_rng(seed)
    age, sex = rng.integers(18, 90, n).astype(float), rng.integers(0, 2, n)
    return table_of(rng.random((n, len(CODES))) < 0.2, age, sex, np.ones(n, int), tag)


def records_of(attacked_patients: int) -> list[dict]:
    """Attacks on an honest release, on copies of training patients and on other held-out patients (real)."""
    train, test = patients(9000, 11, "t"), patients(8000, 12, "h")
    releases = {
        "honest": patients(3000, 13, "m"),
        "copies": copied(train, 3000, 14),
        "real": patients(3000, 15, "v"),
    }
    found = []
    for run, release in releases.items():
        parts = [train, *(sample_patients(part, attacked_patients, 0) for part in (train, test, release))]
        (training, *sides, made), names = encode(parts)
        figures = [*privacy.copy_share(training, made, len(names), 0)]
        if run != "real":  # of which nothing else is asked
            figures += privacy.membership(*sides, made, len(names), 0, 0.8)
            figures += privacy.attribute_inference(training, *sides, made, len(names), 0)
        found += as_records(of_column("diagnoses", figures), run, 0, "synthesize")
    return found


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    return records_of(8000)


@pytest.mark.parametrize("metric", OF_VISITS)
def test_copies_of_training_patients_are_refused_by_each_limit_alone(measured, metric):
    assert refusal(measured, "honest", metric) is None
    assert refusal(measured, "copies", metric).startswith(f"here: {metric}: ")


@pytest.mark.parametrize("metric", OF_VISITS)
def test_few_patients_open_no_limit(metric):
    """The same release without leaks, with 40 patients in it and 40 attacked ones."""
    assert "hold out more patients" in refusal(records_of(40), "honest", metric)


def test_a_wide_interval_is_refused_where_a_narrow_one_passes():
    for metric, value in (("likelihood_auc", 0.55), ("membership_auc", 0.51), ("attribute_risk", 0.001)):
        mode = LIMITS[metric].mode
        assert refusal([figure("x", metric, value, mode=mode, half=0.005)], "x", metric) is None
        assert "hold out more" in refusal([figure("x", metric, value, mode=mode, half=0.06)], "x", metric)


def test_what_was_not_measured_is_refused():
    records = [figure("real", "copy_share", 0.006, half=0.001)]
    for metric in LIMITS:
        assert "not measured" in refusal(records, "x", metric)
    mine = figure("x", "copy_share", 0.0, half=0.0)
    assert refusal([*records, mine], "x", "copy_share") is None
    assert "not measured" in refusal([mine], "x", "copy_share")  # nothing to compare with
    assert "not measured" in refusal([*records, {**mine, "ci_high": None}], "x", "copy_share")


def test_every_limit_has_a_reason_and_an_empty_table_opens_nothing(tmp_path):
    assert set(LIMITS) == {*OF_VISITS, "likelihood_auc"}
    assert all(len(limit.reason) > 40 for limit in LIMITS.values())
    (tmp_path / "none.csv").write_text("metric,mode,limit,above_held_out,reason\n")
    with pytest.raises(UserError, match="no limit"):
        read_limits(tmp_path / "none.csv")
