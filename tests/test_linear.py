"""The naive method linear: its closed form, its use of pairs of codes, and the data it is fitted on."""

import numpy as np
import pytest
from scipy import sparse

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json
from cohortloom.data import linear
from cohortloom.data.coded import Coded, encode
from cohortloom.data.guesses import best_threshold, highest
from cohortloom.data.linear import Linear, closed_form, earlier_codes, fit_linear
from cohortloom.data.reveal import revealed_mask
from cohortloom.data.visits import read_visits, write_visits
from cohortloom.generation.naive import TrainingStrata, stratum_of
from generate_naive import generate_naive
from metric_tables import visits_of


def cohort(n: int, seed: int, shuffled: bool = False) -> list[list[str]]:
    """One visit a patient: two of 30 pairs of rare codes, and common codes that go with nothing.

    `shuffled` deals the codes out anew, so that nothing goes with anything.
    """
    rng = np.random.default_rng(seed)
    visits = []
    for _ in range(n):
        codes = [f"common{k}" for k in np.flatnonzero(rng.random(4) < 0.5)]
        pairs = rng.choice(30, 2, replace=False)
        visits.append(codes + [f"{side}{pair}" for pair in pairs for side in ("left", "right")])
    if shuffled:
        lengths = [len(codes) for codes in visits]
        dealt = list(rng.permutation([code for codes in visits for code in codes]))
        visits = [list(dict.fromkeys(dealt.pop() for _ in range(length))) for length in lengths]
    return [[" ".join(codes)] for codes in visits]


def sets(shuffled: bool = False) -> tuple[list[Coded], int]:
    coded, names = encode(
        [visits_of(cohort(n, seed, shuffled)) for n, seed in ((3000, 1), (400, 2), (400, 3))]
    )
    return coded, len(names)


def f1_of(coded: list[Coded], n_codes: int) -> tuple[float, float]:
    """Best F1 on the third set: of linear, and of prevalence."""
    train, validation, test = coded
    shown = revealed_mask(len(test.codes), 0.5, 0)
    of_validation = revealed_mask(len(validation.codes), 0.5, 1)
    by_linear = fit_linear(train, validation, n_codes, of_validation).linear.guesses(test, shown)
    scores = TrainingStrata(train, n_codes).prevalences(stratum_of(test.age, test.sex))
    by_prevalence = highest(scores, test.codes, test.offsets, shown)
    return tuple(best_threshold(guesses, int((~shown).sum()))[1] for guesses in (by_linear, by_prevalence))


def test_the_closed_form_is_each_codes_ridge_regression_on_the_others():
    inputs = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0], [1, 1, 0]], float)
    weights = closed_form(sparse.csr_matrix(inputs, dtype=np.float32), 3, 2.0)
    for j in range(3):
        others = [k for k in range(3) if k != j]
        gram = inputs[:, others].T @ inputs[:, others] + 2.0 * np.eye(2)
        solved = np.linalg.solve(gram, inputs[:, others].T @ inputs[:, j])
        assert weights[others, j] == pytest.approx(solved, abs=1e-6)
        assert weights[j, j] == 0.0
    # By hand: others of the third code are [[4 + 2, 3], [3, 3 + 2]], and they meet it [1, 1] times.
    assert weights[:2, 2] == pytest.approx([2 / 21, 3 / 21], abs=1e-6)
    # rejected: a regression in which a code explains itself
    itself = np.linalg.solve(inputs.T @ inputs + 2.0 * np.eye(3), inputs.T @ inputs)
    assert not np.allclose(weights, itself, atol=0.05)


def test_outputs_are_only_the_first_columns():
    inputs = sparse.csr_matrix((np.random.default_rng(0).random((50, 7)) < 0.4).astype(np.float32))
    whole = closed_form(inputs, 7, 3.0)
    assert closed_form(inputs, 4, 3.0) == pytest.approx(whole[:, :4], abs=1e-6)


def test_linear_uses_pairs_of_codes_where_there_are_any():
    """Of a visit's 3 hidden codes 1 is common and 2 are of pairs, half of them with the partner shown.

    Guessing the 3 common codes that are not shown gives 2 / 6; with the partners of what is shown, 4 / 7.
    """
    by_linear, by_prevalence = f1_of(*sets())
    assert by_linear == pytest.approx(4 / 7, abs=0.03) and by_prevalence == pytest.approx(2 / 6, abs=0.03)
    by_linear, by_prevalence = f1_of(*sets(shuffled=True))
    assert by_linear < by_prevalence + 0.02


def test_earlier_visits_are_inputs_of_their_own():
    """Second visits hold what the first ones held; within a visit the codes are independent."""
    draws = np.random.default_rng(0).random((500, 6)) < 0.5
    held = [" ".join(f"x{k}" for k in np.flatnonzero(row)) for row in draws if row.any()]
    (visits,), names = encode([visits_of([[codes, codes] for codes in held])])
    row, code = earlier_codes(visits)
    second = np.arange(visits.n_visits) % 2 == 1
    assert (row % 2 == 1).all() and np.array_equal(
        np.sort(code), np.sort(visits.codes[second[visits.visit_of_code]])
    )
    model = Linear.learn(visits, len(names), 1.0)
    guesses = model.guesses(visits, np.zeros(len(visits.codes), bool))
    later = second[guesses.visit]

    def difference(of: np.ndarray) -> float:
        return guesses.score[of & guesses.right].mean() - guesses.score[of & ~guesses.right].mean()

    assert difference(later) > 0.7 and abs(difference(~later)) < 0.1  # of first visits nothing is known
    # the blocks are apart: what the visit shows itself is not taken for history
    assert model.weights.shape == (
        len(model.present) + len(model.earlier) + linear.N_GROUPS,
        len(model.present),
    )


def test_only_the_most_frequent_codes_have_a_column(monkeypatch):
    (visits,), names = encode([visits_of([["a b c"]] * 6 + [["a b"]] * 2 + [["a d"]] * 4)])
    names = [name.removeprefix("ICD9CM:") for name in names]
    assert [names[code] for code in Linear.learn(visits, len(names), 1.0).present] == ["a", "b", "c"]
    monkeypatch.setattr(linear, "MAX_CODES", 2)
    model = Linear.learn(visits, len(names), 1.0)
    assert [names[code] for code in model.present] == ["a", "b"]
    guesses = model.guesses(visits, np.zeros(len(visits.codes), bool))
    assert set(guesses.code) == {names.index("a"), names.index("b")}


def test_neither_validation_nor_test_visits_enter_the_weights(tmp_path):
    (train, validation, other), n_codes = sets()
    fits = [
        fit_linear(train, part, n_codes, revealed_mask(len(part.codes), 0.5, 0), (30.0,))
        for part in (validation, other)
    ]
    assert np.array_equal(fits[0].linear.weights, fits[1].linear.weights)
    assert fits[0].threshold != fits[1].threshold
    assert not np.array_equal(fits[0].linear.weights, Linear.learn(validation, n_codes, 30.0).weights)


def chosen(folder, test: list[list[str]], **keywords) -> str:
    """The settings of linear in its counts."""
    for name, visits in (("train", cohort(600, 1)), ("val", cohort(200, 2)), ("test", test)):
        write_visits(visits_of(visits), folder / f"{name}.parquet", {})
    parts = {name: folder / f"{name}.parquet" for name in ("train", "val", "test")}
    out = {"synthetic": folder / "made.parquet", "counts": folder / "made.json"}
    generate_naive(**parts | keywords, **out, method="linear", mode="reconstruct")
    return (folder / "made.json").read_text().split('"penalty"')[1]


def test_penalty_and_threshold_are_the_same_whatever_is_tested(tmp_path):
    first, second = (chosen(tmp_path, cohort(n, seed)) for n, seed in ((100, 5), (150, 6)))
    assert first == second
    made = read_visits(tmp_path / "made.parquet")
    assert any(len(all_codes) > len(shown) for all_codes, shown in zip(*_lists(made), strict=True))


def _lists(made):
    return made["diagnoses"].to_pylist(), made["revealed_diagnoses"].to_pylist()


def test_where_validation_visits_share_no_code_nothing_is_guessed(tmp_path):
    for name, codes in (("train", "a b c"), ("val", "x y"), ("test", "a b c")):
        write_visits(visits_of([[codes]] * 40), tmp_path / f"{name}.parquet", {})
    files = {name: tmp_path / f"{name}.parquet" for name in ("train", "val", "test")}
    counts = tmp_path / "made.json"
    generate_naive(
        **files, synthetic=tmp_path / "made.parquet", counts=counts, method="linear", mode="reconstruct"
    )
    assert read_json(counts)["threshold"] is None
    written, shown = _lists(read_visits(tmp_path / "made.parquet"))
    assert written == shown


def test_without_validation_visits_the_method_is_refused(tmp_path):
    with pytest.raises(UserError, match="method linear guesses above a threshold: give val"):
        chosen(tmp_path, cohort(50, 5), val=None)
