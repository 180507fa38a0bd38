"""Curves of hidden codes: guesses by hand, perfect and shuffled scores, and the figures of reconstruction."""

import json

import numpy as np
import pytest

from cohortloom.base.ragged import row_offsets
from cohortloom.data.coded import Coded, as_lists, encode
from cohortloom.data.examples import plain_pairs
from cohortloom.data.guesses import NONE, Guesses, best_threshold, highest
from cohortloom.data.reveal import revealed_mask, revealed_masks, validation_masks
from cohortloom.data.visits import read_visits, write_visits
from cohortloom.evaluation.curve import PER_HIDDEN_CODE, HiddenCodes, curve
from cohortloom.evaluation.reconstruction import reconstruction
from cohortloom.model.scoring import first_code_log_probs, score_teacher_forced
from evaluate_curve import as_scores, evaluate_curve
from generate_naive import generate_naive, reconstructed
from metric_tables import visits_of
from test_linear import cohort
from test_model import world  # noqa: F401


def batches(scores: np.ndarray, size: int = 3):
    for start in range(0, len(scores), size):
        rows = np.arange(start, min(start + size, len(scores)))
        yield rows, scores[rows].copy()


def scored(seed: int = 0) -> tuple[Coded, np.ndarray, np.ndarray, HiddenCodes]:
    """Visits, what is shown of them, random scores of all codes, and the truth."""
    (visits,), names = encode([visits_of(cohort(120, 4))])
    shown = revealed_mask(len(visits.codes), 0.5, 0)
    scores = np.random.default_rng(seed).random((visits.n_visits, len(names))).astype(np.float32)
    group, _ = visits.groups(0)
    return (
        visits,
        shown,
        scores,
        HiddenCodes(visits.lengths, np.diff(row_offsets(shown)[visits.offsets]), group),
    )


def with_truth(visits: Coded, scores: np.ndarray, weight: float) -> np.ndarray:
    scores = scores.copy()
    scores[visits.visit_of_code, visits.codes] += weight
    return scores


def values(figures) -> dict:
    return {(metric, subset): estimate.value for metric, subset, estimate, *_ in figures}


def test_the_highest_scores_of_hidden_codes():
    codes, offsets = np.array([0, 1, 2, 1]), np.array([0, 3, 4])
    shown = np.array([True, False, False, False])
    scores = np.array([[9.0, 0.5, 0.1, 0.4], [0.3, 0.2, NONE, 0.1]], np.float32)
    found = highest([(np.array([0, 1]), scores)], codes, offsets, shown, kept=2).at_least(NONE)
    assert found.visit.tolist() == [0, 0, 1, 1] and found.code.tolist() == [1, 3, 0, 1]
    assert found.right.tolist() == [True, False, False, True]
    assert found.score.tolist() == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_batches_change_nothing_and_what_is_never_guessed_is_not():
    visits, shown, scores, _ = scored()
    scores[:, 5] = NONE
    parts = [highest(batches(scores, size), visits.codes, visits.offsets, shown) for size in (7, 500)]
    assert np.array_equal(parts[0].code, parts[1].code) and not (parts[0].code == 5).any()
    pairs = set(zip(visits.visit_of_code[shown], visits.codes[shown], strict=True))
    assert not pairs & set(zip(parts[0].visit, parts[0].code, strict=True))


def test_the_best_threshold_by_hand():
    def guesses(score, right):
        n = len(score)
        return Guesses(np.arange(n), np.arange(n), np.array(score), np.array(right, bool))

    # F1 of 4 hidden codes: 2/5, 4/6, 4/7, 4/8, 6/9: two guesses are as good as five, and come first
    assert best_threshold(guesses([0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 0, 1]), 4) == (
        0.8,
        pytest.approx(2 / 3),
    )
    # equal scores go together: none is as good as the two that are right
    assert best_threshold(guesses([0.9, 0.5, 0.5, 0.5], [1, 1, 0, 0]), 2)[0] == 0.9
    assert best_threshold(guesses([0.9, 0.8], [0, 0]), 4) == (np.inf, 0.0)


def test_perfect_scores_find_all_at_one_guess_a_hidden_code_and_shuffled_ones_next_to_nothing():
    visits, shown, scores, truth = scored()
    points = (0.5, 1.0)
    perfect = highest(batches(with_truth(visits, scores, 2.0)), visits.codes, visits.offsets, shown)
    found = values(curve(perfect, truth, 1.9, points))
    assert found["curve_f1", "1"] == found["curve_jaccard", "1"] == found["curve_best_f1", ""] == 1.0
    assert found["curve_f1", "0.5"] == pytest.approx(2 * 0.5 / 1.5, abs=0.01)
    rng = np.random.default_rng(1)
    dealt = Guesses(perfect.visit, perfect.code, rng.permutation(perfect.score), perfect.right)
    found = values(curve(dealt, truth, 1.9, points))
    assert found["curve_f1", "1"] < 0.1 and found["curve_jaccard", "1"] < 0.4


def test_a_cut_has_the_figures_of_the_same_reconstruction():
    """Value and interval alike: the guesses above a threshold are written out and scored as a file."""
    table = visits_of(cohort(120, 4))
    (visits,), names = encode([table])
    _, shown, scores, truth = scored()
    guesses = highest(batches(with_truth(visits, scores, 0.3)), visits.codes, visits.offsets, shown)
    threshold = float(np.sort(guesses.score)[-300])
    chosen = guesses.at_least(threshold)
    assert len(chosen.visit) == 300
    rows = np.concatenate([visits.visit_of_code[shown], chosen.visit])
    order = np.argsort(rows, kind="stable")
    codes = np.concatenate([visits.codes[shown], chosen.code])[order]
    lists = as_lists(codes, row_offsets(np.bincount(rows, minlength=visits.n_visits)), names)
    written = reconstructed(table, {"diagnoses": shown}, {"diagnoses": lists})
    expected = {m: e for m, _, e, *_ in reconstruction(written, table, "made.parquet", 0)}
    figures = list(curve(guesses, truth, threshold, (300 / truth.n_hidden,)))
    for figure, name in zip(figures, ("hidden_f1", "hidden_f1", "jaccard"), strict=True):
        estimate = figure.estimate
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
            (expected[name].value, expected[name].low, expected[name].high), abs=1e-9
        )
        assert estimate.n == visits.n_visits


def test_equal_scores_are_guessed_in_equal_parts():
    visits, shown, scores, truth = scored()
    guesses = highest(batches(np.ones_like(scores)), visits.codes, visits.offsets, shown)
    found = values(curve(guesses, truth, 2.0))
    for point in PER_HIDDEN_CODE:
        right = point * truth.n_hidden * guesses.right.mean()
        expected = 2 * right / (truth.n_hidden * (1 + point))
        assert found["curve_f1", f"{point:g}"] == pytest.approx(expected, abs=1e-9)
    assert found["curve_best_f1", ""] == 0.0


def test_a_point_beyond_the_guesses_has_no_figure():
    visits, shown, scores, truth = scored()
    scores[:, 3:] = NONE
    found = values(curve(highest(batches(scores), visits.codes, visits.offsets, shown), truth, 0.5))
    assert np.isnan(found["curve_f1", "1.1"]) and found["curve_f1", "0.1"] >= 0


def test_without_hidden_codes_figures_have_no_value():
    visits, shown, scores, _ = scored()
    group, _ = visits.groups(0)
    guesses = highest(batches(scores), visits.codes, visits.offsets, shown | True)
    figures = list(curve(guesses, HiddenCodes(visits.lengths, visits.lengths, group), np.inf))
    assert all(np.isnan(figure.estimate.value) for figure in figures)
    assert {figure.reason for figure in figures} == {"no code of the held-out visits is hidden"}


def test_validation_visits_have_a_mask_of_their_own():
    table = visits_of(cohort(300, 0))
    masks = [draw(table, 0.5, 0)["diagnoses"] for draw in (revealed_masks, validation_masks)]
    assert 0.4 < (masks[0] == masks[1]).mean() < 0.6


def test_a_probability_of_the_next_code_times_how_many_are_hidden():
    log_probs = np.log(np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], np.float32))
    expected = np.array([[4.0, 3.0], [2.0, 1.0]])  # of two columns of a code each
    ((rows, scores),) = as_scores([(np.array([1, 0]), log_probs)], 1, expected, np.array([0, 1]))
    assert np.exp(scores) == pytest.approx(np.array([[0.4, 0.7], [1.0, 0.75]]), rel=1e-5)


def test_scores_are_those_of_the_first_code_after_the_revealed_ones(world):  # noqa: F811
    """Its probabilities are those of the first position of the whole teacher-forced sequence."""
    _, data, model = world
    shown = np.random.default_rng(0).random(len(data.ids)) < 0.5

    def asked(mask: np.ndarray) -> np.ndarray:
        found = np.empty((len(data), model.config.vocab_size))
        for rows, log_probs in first_code_log_probs(model, data, mask):
            found[rows] = log_probs
        return found

    expected = np.empty((len(data), model.config.vocab_size))
    for rows, output in score_teacher_forced(model, data, plain_pairs(data, shown, 64)):
        visit, first = np.unique(output.visit.numpy(), return_index=True)
        expected[rows[visit]] = output.logits[first].log_softmax(-1).numpy()
    assert asked(shown) == pytest.approx(expected, abs=0.02)
    assert np.abs(asked(~shown) - expected).max() > 0.2  # rejected: other codes are shown


def test_the_step_scores_methods_of_files(tmp_path):
    for name, n, seed in (("train", 1500, 1), ("val", 200, 2), ("test", 200, 3)):
        write_visits(visits_of(cohort(n, seed)), tmp_path / f"{name}.parquet", {})
    files = {name: tmp_path / f"{name}.parquet" for name in ("train", "val", "test")}
    counts = tmp_path / "counts.json"
    generate_naive(
        **files, synthetic=tmp_path / "made.parquet", counts=counts, method="linear", mode="reconstruct"
    )
    found = {}
    for method, own in (("prevalence", {}), ("linear", {"counts": counts})):
        evaluate_curve(**files, **own, records=tmp_path / "r.json", run=method, method=method)
        records = json.loads((tmp_path / "r.json").read_text())
        assert len(records) == 1 + 2 * len(PER_HIDDEN_CODE)
        assert {(record["mode"], record["column"]) for record in records} == {("reconstruct", "diagnoses")}
        found[method] = {(r["metric"], r["subset"]): r["value"] for r in records}
    for point in PER_HIDDEN_CODE[1:]:
        where = "curve_f1", f"{point:g}"
        assert found["linear"][where] > found["prevalence"][where] + 0.05
    # linear's best threshold is the one that it writes by
    written = {
        m: e.value
        for m, _, e, *_ in reconstruction(
            *(read_visits(tmp_path / name) for name in ("made.parquet", "test.parquet")), "made.parquet", 0
        )
    }
    assert found["linear"]["curve_best_f1", ""] == pytest.approx(written["hidden_f1"], abs=1e-9)
