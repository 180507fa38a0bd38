"""Naive methods: the files of a model, drawn from training alone, with what each keeps and loses."""

import json
from collections import Counter

import numpy as np
import pyarrow.compute as pc
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.coded import encode
from cohortloom.data.reveal import revealed_mask
from cohortloom.data.visits import SCHEMA, code_lists, read_visits, write_visits
from cohortloom.evaluation.fidelity import fidelity, histories
from cohortloom.generation.naive import TrainingStrata, draw_visits, later_ages, stratum_of
from generate_naive import generate_naive
from metric_tables import visits_of

MODES = [
    ("prevalence", "synthesize"),
    ("prevalence", "reconstruct"),
    ("markov", "synthesize"),
    ("markov", "reconstruct"),
    ("copy", "synthesize"),
    ("echo", "reconstruct"),
    ("linear", "reconstruct"),
]


def cohort(n: int, seed: int, extra: str = "") -> list[list[tuple]]:
    """Women with pairs a-b and c-d, men with m codes, some of them twice in hospital."""
    rng = np.random.default_rng(seed)
    patients = []
    for _ in range(n):
        sex = "FM"[rng.integers(2)]
        pair = [["a", "b"], ["c", "d"]][rng.integers(2)] if sex == "F" else ["m1", "m2"]
        rest = [f"{sex}{k}" for k in np.flatnonzero(rng.random(6) < 0.3)]
        codes = " ".join(pair + rest + ([extra] if extra else []))
        visits = [(codes, 0, 50, sex)]
        if rng.random() < 0.3:
            visits.append((codes, int(rng.integers(300, 900)), 51, sex))
        patients.append(visits)
    return patients


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("naive")
    write_visits(visits_of(cohort(600, 1)), folder / "train.parquet", {})
    write_visits(visits_of(cohort(150, 3)), folder / "val.parquet", {})
    write_visits(visits_of(cohort(150, 2, extra="only-in-test")), folder / "test.parquet", {})
    return folder


def make(files, method, mode, seed=0, **keywords):
    made, counts = files / f"{method}-{mode}-{seed}.parquet", files / f"{method}-{mode}.json"
    generate_naive(
        train=files / "train.parquet",
        test=files / "test.parquet",
        synthetic=made,
        counts=counts,
        method=method,
        mode=mode,
        seed=seed,
        val=files / "val.parquet" if method == "linear" else None,
        **keywords,
    )
    return read_visits(made), json.loads(counts.read_text()), made.read_bytes()


@pytest.mark.parametrize(("method", "mode"), MODES)
def test_every_method_writes_what_a_model_writes(files, method, mode):
    table, counts, content = make(files, method, mode)
    train, test = read_visits(files / "train.parquet"), read_visits(files / "test.parquet")
    values, offsets = code_lists(table)
    written = set(pc.unique(values).to_pylist()) - set(pc.unique(code_lists(train)[0]).to_pylist())
    # What is revealed is given, and may be new; what a method adds never is.
    assert written == ({"ICD9CM:only-in-test"} if mode == "reconstruct" else set())
    if mode == "reconstruct":
        for made, shown in zip(
            table["diagnoses"].to_pylist(), table["revealed_diagnoses"].to_pylist(), strict=True
        ):
            assert "ICD9CM:only-in-test" not in made[len(shown) :] and made[: len(shown)] == shown
    assert counts["visits"] == table.num_rows and counts["codes"] == len(values)
    assert counts["patients"] == 150
    assert counts["duplicates"] == counts["invalid_tokens"] == counts["cut_off"] == 0
    assert counts["empty"] == int((np.diff(offsets) == 0).sum())
    real = set(train["patient_id"].to_pylist()) | set(test["patient_id"].to_pylist())
    assert not real & set(table["patient_id"].to_pylist())
    if mode == "synthesize":
        assert table.schema.names == SCHEMA.names
        assert table["patient_id"][0].as_py() == "synthetic-0000001"
    assert make(files, method, mode)[2] == content
    if method != "echo":
        assert make(files, method, mode, seed=1)[2] != content


@pytest.mark.parametrize("method", ["prevalence", "markov", "echo", "linear"])
def test_reconstruct_reveals_the_shared_mask_and_keeps_it(files, method):
    table, *_ = make(files, method, "reconstruct")
    test = read_visits(files / "test.parquet")
    assert table["source_patient_id"].to_pylist() == test["patient_id"].to_pylist()
    assert table["age"].to_pylist() == test["age"].to_pylist()
    values, offsets = code_lists(test)
    mask = revealed_mask(len(values), 0.5, 0)
    for row in range(test.num_rows):
        inside = range(offsets[row], offsets[row + 1])
        expected = [values[i].as_py() for i in inside if mask[i]]
        assert table["revealed_diagnoses"][row].as_py() == expected
        assert table["diagnoses"][row].as_py()[: len(expected)] == expected
    if method == "echo":
        assert table["diagnoses"].to_pylist() == table["revealed_diagnoses"].to_pylist()


def test_prevalence_fills_in_the_most_frequent_codes_to_the_true_length(files):
    table, *_ = make(files, "prevalence", "reconstruct", true_length=True)
    train, test = read_visits(files / "train.parquet"), read_visits(files / "test.parquet")
    for sex in "FM":
        counts = Counter(
            code
            for codes, one in zip(train["diagnoses"].to_pylist(), train["sex"].to_pylist(), strict=True)
            if one == sex
            for code in codes
        )
        for row in np.flatnonzero(np.array(test["sex"].to_pylist()) == sex):
            shown, made = table["revealed_diagnoses"][row].as_py(), table["diagnoses"][row].as_py()
            added = made[len(shown) :]
            assert len(made) == min(len(test["diagnoses"][row]), len(counts))
            left = [n for code, n in counts.most_common() if code not in shown]
            assert [counts[code] for code in added] == left[: len(added)]


def test_the_guessed_length_suits_the_number_revealed(files):
    (known, test), names = encode([read_visits(files / f"{part}.parquet") for part in ("train", "test")])
    training, rng = TrainingStrata(known, len(names)), np.random.default_rng(0)
    key = np.full(4000, stratum_of(np.array([50.0]), np.array([0]))[0])
    lengths = known.lengths[(known.sex == 0) & (known.age < 55)]
    true = rng.choice(lengths, 4000)
    revealed = rng.binomial(true, 0.5)
    guessed = training.guess_lengths(key, revealed, 0.5, rng)
    assert (guessed >= revealed).all() and guessed.min() >= 1
    assert abs(guessed.mean() - true.mean()) < 0.1
    assert abs(np.corrcoef(guessed, revealed)[0, 1] - np.corrcoef(true, revealed)[0, 1]) < 0.05
    # Drawing from all lengths that are long enough, as if the number said nothing more, guesses too long.
    naive = np.array([rng.choice(lengths[lengths >= least]) for least in np.maximum(revealed, 1)])
    assert naive.mean() - true.mean() > 0.1
    beyond = training.guess_lengths(key[:1], np.array([40]), 0.5, rng)
    assert beyond.tolist() == [40]


def test_prevalence_keeps_codes_and_loses_pairs_that_markov_keeps(files):
    train = read_visits(files / "train.parquet")
    scores = {}
    for method in ("prevalence", "markov", "copy"):
        made, *_ = make(files, method, "synthesize")
        (known, scored), names = encode([train, made])
        found = [*fidelity(known, scored, len(names), 0), *histories(known, scored, 0)]
        scores[method] = {m: e.value for m, s, e, *_ in found if not s}
    assert scores["copy"]["bigram_r2"] > 0.8
    assert scores["markov"]["bigram_r2"] > scores["prevalence"]["bigram_r2"] + 0.2
    for method in scores:
        assert scores[method]["unigram_r2"] > 0.5
        assert scores[method]["ks_codes_per_visit"] < 0.17
        assert scores[method]["ks_visits_per_patient"] < 0.17
        assert scores[method]["ks_gap_days"] < 0.3
    made, *_ = make(files, "prevalence", "synthesize")
    for codes, sex in zip(made["diagnoses"].to_pylist(), made["sex"].to_pylist(), strict=True):
        assert not any(
            code.split(":")[1].startswith("m" if sex == "F" else ("a", "b", "c", "d")) for code in codes
        )


def test_a_visit_never_holds_a_code_twice_even_if_it_holds_all():
    (known,), names = encode([visits_of([["a b c"], ["a b"]])])
    training = TrainingStrata(known, len(names))
    key = stratum_of(np.full(50, 50.0), np.zeros(50, int))
    shown = np.array([0] * 50), np.arange(51)
    for method in ("prevalence", "markov"):
        values, offsets = draw_visits(method, training, key, np.full(50, 9), shown, np.random.default_rng(1))
        sets = [values[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        assert all(len(set(one)) == len(one) for one in sets)
        assert all(one[0] == 0 for one in sets) and max(map(len, sets)) == 3


def test_copies_are_whole_training_patients(files):
    made, *_ = make(files, "copy", "synthesize")
    train = read_visits(files / "train.parquet")

    def patients(table):
        rows = zip(
            *(table[c].to_pylist() for c in ("patient_id", "days", "age", "sex", "diagnoses")), strict=True
        )
        out = {}
        for one, *rest in rows:
            out.setdefault(one, []).append(str(rest))
        return list(out.values())

    real = patients(train)
    assert all(one in real for one in patients(made))
    other, *_ = make(files, "prevalence", "synthesize")
    assert not all(one in real for one in patients(other))


def test_ages_follow_the_days():
    ages = later_ages(np.array([0.0, 0.0, 40.0, 40.0, 90.0, 0.5]), np.array([0, 100, 300, 800, 4000, 400]))
    assert ages.tolist() == pytest.approx([0, 100 / 365.25, 40, 42, 90, 1.0], abs=1e-6)


def test_a_mode_that_a_method_has_not_is_refused(files):
    with pytest.raises(UserError, match="method echo has no mode synthesize; it has reconstruct"):
        make(files, "echo", "synthesize")
