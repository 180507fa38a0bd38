"""Cohorts of one sex, one age or a handful of visits: every evaluation ends and says what it lacks."""

import warnings

import numpy as np
import pytest

from cohortloom.data.coded import encode
from cohortloom.data.validity import load_rules
from cohortloom.evaluation import classifier, conditioning, fidelity, medical_validity, privacy, race, utility
from cohortloom.evaluation.records import TOO_FEW, as_records
from conftest import REPOSITORY
from metric_tables import visits_of

RULES = load_rules(REPOSITORY / "resources" / "validity")
ADULT_CODES = ["401", "250", "V22", "4019", "6500", "7777", "8888"]
COHORTS = {  # ages, sexes, codes, visits
    "women": ([20.0, 50.0, 80.0], "F", ADULT_CODES, 60),
    "newborns": ([0.0], "FM", ["V3000", "7742", "76519"], 60),
    "handful": ([40.0, 70.0], "FM", ADULT_CODES, 3),
    "one visit": ([40.0], "M", ["401"], 1),
    "no codes": ([40.0, 50.0], "FM", [], 20),
}


def cohort(name: str, seed: int):
    ages, sexes, codes, n = COHORTS[name]
    rng = np.random.default_rng(seed)
    drawn = [" ".join(rng.permutation(codes)[: rng.integers(0, len(codes) + 1)]) for _ in range(n)]
    return visits_of([[(one, 0, float(rng.choice(ages)), str(rng.choice([*sexes])))] for one in drawn])


def write(ages, sexes, seed):
    """A model that writes one and the same code."""
    return np.zeros(len(ages), np.int64), np.arange(len(ages) + 1)


def evaluated(train, test, release) -> dict[str, list]:
    """Records of every evaluation of visits, by metric."""
    (known, held_out, made), names = encode([train, test, release])
    n = len(names)
    sides = conditioning.observed_sides(made, 50, 0), conditioning.generated_sides(held_out, write, 50, 0)
    unknown = tuple(np.zeros(part.n_visits, int) for part in (known, held_out))
    figures = [
        *fidelity.fidelity(known, made, n, 0),
        *classifier.two_sample(known, held_out, made, n, 0),
        *conditioning.probes(known, made, n, 0),
        *(figure for side in sides for figure in conditioning.flips(side, max(n, 1), 0)),
        *privacy.membership(known, held_out, made, n, 0, 0.8),
        *privacy.adversarial_accuracy(known, held_out, made, n, 0),
        *privacy.copy_share(known, made, n, 0),
        *privacy.attribute_inference(known, known, held_out, made, n, 0),
        *utility.prediction(known, held_out, made, names, 0),
        *race.audit(known, held_out, made, unknown, ("one", "other"), n, 0, 20, True),
        *medical_validity.medical_validity(release, RULES, 0),
    ]
    found: dict[str, list] = {}
    for row in as_records(figures, "run", 0, "synthesize"):
        found.setdefault(row["metric"], []).append(row)
    return found


@pytest.fixture(scope="module")
def fast_boosting():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(classifier.BOOSTING, "max_iter", 2)
        yield


@pytest.mark.parametrize("released", ["alike", "of everybody", "empty"])
@pytest.mark.parametrize("name", COHORTS)
def test_every_null_has_a_reason_of_its_own(fast_boosting, name, released):
    release = cohort("handful" if released == "of everybody" else name, 3)
    release = release.slice(0, 0) if released == "empty" else release
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluated(cohort(name, 1), cohort(name, 2), release)
    rows = [row for part in found.values() for row in part]
    for row in rows:
        assert (row["value"] is None) == (row["reason"] is not None), row
        assert row["reason"] != TOO_FEW, row
    for metric in ("classifier_auc", "probe_sex_auc", "flip_sex_js", "prediction_auc", "race_auc"):
        assert metric in found


def test_the_reason_names_what_is_missing(fast_boosting):
    women = evaluated(cohort("women", 1), cohort("women", 2), cohort("women", 3))
    assert women["probe_sex_auc"][0]["reason"] == "the training visits are of one sex alone"
    assert women["flip_sex_change"][0]["reason"] == "no woman and man of one band of age to compare"
    assert women["newborn_chronic_rate"][0]["reason"] == "no visit is a birth (V30-V39, Z38)"
    assert women["probe_age_r2"][0]["value"] is not None  # they are of several ages
    newborns = evaluated(cohort("newborns", 1), cohort("newborns", 2), cohort("newborns", 3))
    assert newborns["probe_age_r2"][0]["reason"] == "the scored visits are of one age"
    assert newborns["copy_share"][0]["reason"] == "no released visit has 5 codes or more"
    assert newborns["probe_sex_auc"][0]["value"] is not None
    assert newborns["prediction_auc"][0]["value"] is not None  # of three codes; age and sex are none


def test_a_model_generates_nothing_without_pairs():
    def refuses(ages, sexes, seed):
        raise AssertionError("asked to write no visit")

    (women,), _ = encode([cohort("women", 1)])
    alone = np.flatnonzero(women.age < 45)
    (young,), _ = encode([cohort("women", 1).take(alone)])
    sides = list(conditioning.generated_sides(young, refuses, 50, 0))
    assert [name for name, *_ in sides] == ["same_seed_sex", "sex", "none", "same_seed_age", "age"]
    assert all(len(offsets) == 1 for _, *parts in sides for _, offsets in parts)
