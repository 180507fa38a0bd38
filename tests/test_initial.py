"""What the model starts from: frequencies by age and sex, what recurs, when a visit ends."""

import numpy as np
import pytest

from cohortloom.data.bands import FINE, group_of
from cohortloom.data.examples import Examples, corrupted_pairs
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.model.initial import ending_bias, recurrence_bias, smoothed_shares, token_counts

END, FIRST = 4, 5  # the one terminator and the first code


def visits(rows: list[tuple[float, int, int, list[int]]]) -> Examples:
    """Age, sex, number of the visit, codes as numbers from 0."""
    age, sex, visit, codes = zip(*rows, strict=True)
    return Examples(
        ids=np.array([FIRST + code for some in codes for code in some], np.int64),
        offsets=np.concatenate([[0], np.cumsum([len(some) for some in codes])]),
        terminator=np.full(len(rows), END, np.int64),
        age=np.array(age, float),
        sex=np.array(sex, np.int64),
        visit=np.array(visit, np.int64),
    )


def test_counts_hold_codes_and_terminators_of_each_group():
    data = visits([(30.0, 0, 0, [0, 1]), (30.0, 1, 0, [1]), (31.0, 1, 0, [1, 2])])
    counts = token_counts(data, 8)
    women, men = group_of(np.array([30.0, 30.0]), np.array([0, 1]))
    assert counts[women].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert counts[men].tolist() == [0, 0, 0, 0, 2, 0, 2, 1]
    assert counts.sum() == 8


def test_shares_are_distributions_and_follow_the_group():
    """Code 0 is of women alone, code 1 of newborns alone, code 2 of all."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(4000):
        sex, age = int(rng.integers(2)), float(rng.choice([0.0, 40.0, 70.0]))
        rows.append((age, sex, 0, [2, *([0] if sex == 0 and age else []), *([1] if age == 0 else [])]))
    shares = smoothed_shares(token_counts(visits(rows), 9))
    assert shares.shape == (2 * len(FINE), 9) and (shares > 0).all()
    assert shares.sum(1) == pytest.approx(1)
    age, sex = np.array([0.0, 40.0, 0.0, 40.0]), np.array([0, 0, 1, 1])
    girl, woman, boy, man = shares[group_of(age, sex)]
    assert woman[FIRST] > 0.3 and boy[FIRST + 1] > 0.3
    assert max(girl[FIRST], boy[FIRST], man[FIRST]) < 1e-3
    assert max(woman[FIRST + 1], man[FIRST + 1]) < 1e-3
    # no patient of 15 in training: shares of the sex at any age
    teenager = shares[group_of(np.array([15.0, 15.0]), np.array([0, 1]))][:, FIRST]
    assert teenager[0] > 0.1 > 0.001 > teenager[1]
    # rejected: one distribution for all would give men the code of women
    assert token_counts(visits(rows), 9).sum(0)[FIRST] / token_counts(visits(rows), 9).sum() > 0.1


def test_where_neither_occurs_a_widespread_code_is_likelier_than_a_frequent_one():
    """Code 0: 300 times at 40. Code 1: twice at each of eleven ages. At 15 neither was seen."""
    ages = [*range(0, 10), 40]
    rows = [(40.0, i % 2, 0, [0]) for i in range(300)]
    rows += [(float(age), sex, 0, [1]) for age in ages for sex in (0, 1)]
    rows += [(15.0, 1, 0, [2])] * 50
    counts = token_counts(visits(rows), 8)
    boy = smoothed_shares(counts)[group_of(np.array([15.0]), np.array([1]))[0]]
    assert counts[group_of(np.array([15.0]), np.array([1]))[0], FIRST : FIRST + 2].sum() == 0
    assert boy[FIRST + 1] > 3 * boy[FIRST]
    # rejected: by how often they occur it is the other way round
    assert counts.sum(0)[FIRST] > 3 * counts.sum(0)[FIRST + 1]


def test_recurring_codes_get_a_larger_bias_than_others():
    """Code 0 returns nine times in ten, code 1 no more often than it occurs at all, code 2 never."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(3000):
        chronic = rng.random() < 0.1
        once = rng.random() < 0.1
        for visit in (0, 1):
            codes = [3 + int(rng.integers(5))]
            codes += [0] if chronic and (visit == 0 or rng.random() < 0.9) else []
            codes += [1] if rng.random() < 0.1 else []
            codes += [2] if once and visit == 0 else []
            rows.append((50.0, 0, visit, codes))
    data = visits(rows)
    factors = recurrence_bias(data, smoothed_shares(token_counts(data, 13)), 62)
    assert factors[FIRST] > 2 and abs(factors[FIRST + 1]) < 0.5 and factors[FIRST + 2] < -1
    assert np.isfinite(factors).all()


def test_the_end_of_a_visit_by_hand():
    found = ending_bias(np.array([1, 2, 2]), 1 / 8, 4)
    # of three visits none ends after 0 codes, one after 1, and the other two after 2
    odds = np.array([0.5 / 3.5, 1.5 / 2.5, 2.5 / 0.5, 1.0])
    assert found == pytest.approx(np.log(odds) - np.log((1 / 8) / (7 / 8)))
    assert np.isfinite(ending_bias(np.zeros(0, int), 1 / 8, 4)).all()


def test_unrevealed_visits_have_all_lengths():
    """If the draw alone decided, a visit of one code would often show nothing, a long one rarely."""
    vocabulary = Vocabulary(tuple(f"ICD9CM:{i:05d}" for i in range(12)), (1,) * 12)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 20_000)
    data = visits([(50.0, 0, 0, list(range(size))) for size in sizes])
    pairs = corrupted_pairs(data, vocabulary, rng, 64)
    lengths = sizes[~pairs.unordered]
    assert abs((~pairs.unordered).mean() - 0.5) < 0.02
    assert abs(lengths.mean() - sizes.mean()) < 0.1
    # rejected: the plain draw, by which short ones are more
    plain = rng.random(len(sizes)) < 0.5 + 0.5 / (sizes + 1)
    assert sizes[plain].mean() < sizes.mean() - 0.15
