"""Planted patients (canaries): invented, known to be in the training, and so a measure of what a model keeps.

Whether a real patient was remembered cannot be told from whether the patient was typical. A canary's codes
are drawn without regard to any patient, so that only a model which saw it can find it likelier than another
one drawn in the same way (Carlini and others, The Secret Sharer, USENIX Security 2019). Canaries live in
memory: training adds them to its visits, the evaluation draws the same ones again from the seed.
"""

import numpy as np

from cohortloom.base.errors import UserError
from cohortloom.base.planting import LEAST_CANARIES
from cohortloom.base.ragged import row_offsets
from cohortloom.base.seeds import generator
from cohortloom.data.examples import Examples
from cohortloom.data.forbidden import age_row, forbidden_table
from cohortloom.data.validity import Rules
from cohortloom.data.vocabulary import END, Vocabulary

FEWEST_CODES, MOST_CODES = 6, 8  # of a canary: long enough that none comes about by chance
STEP = 4  # the numbers of repeats are powers of it
TRIES = 100  # draws of a patient that is not there yet, before the codes are taken to be too few


def invent(
    data: Examples, words: Vocabulary, rules: Rules, seed: int, planted: int, held_out: int = 0
) -> tuple[Examples, Examples]:
    """Two sets of invented patients of one visit each, alike in all but that the first are to be planted.

    Age and sex are those of a random patient of `data`, the real training visits; the 6 to 8 codes are drawn
    uniformly, in random order, out of those of the vocabulary that the full edit of `rules` allows there. No
    two have the same set of codes, and none has that of a visit of `data`. The planted ones do not depend on
    `held_out`. Raises UserError where the vocabulary has too few codes.
    """
    allowed = ~forbidden_table(words, rules)[..., words.first_code :]
    people = np.flatnonzero(data.visit == 0)
    taken = _code_sets(data)
    made = []
    for number, count in enumerate((planted, held_out)):
        rng = generator("canaries", seed, number)
        rows = rng.choice(people, count)
        age, sex = data.age[rows], data.sex[rows]
        codes = [
            _codes(np.flatnonzero(allowed[s, row]) + words.first_code, taken, rng)
            for s, row in zip(sex, age_row(age), strict=True)
        ]
        made.append(
            Examples(
                np.array([one for some in codes for one in some], data.ids.dtype),
                row_offsets(np.array([len(some) for some in codes], np.int64)),
                np.full(count, END, data.terminator.dtype),
                age,
                sex,
                np.zeros(count, data.visit.dtype),
            )
        )
    return made[0], made[1]


def _codes(choices: np.ndarray, taken: set[tuple[int, ...]], rng: np.random.Generator) -> np.ndarray:
    """Ids of a visit whose set is not in `taken`, to which it is added."""
    for _ in range(TRIES if len(choices) >= MOST_CODES else 0):
        codes = rng.choice(choices, rng.integers(FEWEST_CODES, MOST_CODES + 1), replace=False)
        one = tuple(sorted(codes.tolist()))
        if one not in taken:
            taken.add(one)
            return codes
    raise UserError(
        f"canaries: {len(choices)} codes that an age and sex allow are too few to invent so many patients "
        f"of {FEWEST_CODES} to {MOST_CODES} codes; lower train.canaries or dataset.min_patients_per_code"
    )


def _code_sets(data: Examples) -> set[tuple[int, ...]]:
    """Sets of codes of the visits that are as long as a canary's, as sorted ids."""
    lengths = np.diff(data.offsets)
    rows = np.flatnonzero((lengths >= FEWEST_CODES) & (lengths <= MOST_CODES))
    return {tuple(sorted(data.ids[data.offsets[row] : data.offsets[row + 1]].tolist())) for row in rows}


def levels(most: int) -> list[int]:
    """How often canaries are planted: 1, 4, 16 ... up to `most`, which is always among them.

    >>> levels(16), levels(10), levels(1)
    ([1, 4, 16], [1, 4, 10], [1])
    """
    found = [1]
    while found[-1] < most:
        found.append(min(found[-1] * STEP, most))
    return found


def repeats_of(count: int, most: int) -> np.ndarray:
    """How often each of `count` canaries is planted, [count]: the levels in turn.

    Raises UserError for fewer canaries than anything could be told from.
    """
    if most < 1:
        raise UserError(
            f"train.canary_repeats: {most} is below 1; give how often a canary is planted at most"
        )
    if count < max(LEAST_CANARIES, len(levels(most))):
        raise UserError(
            f"train.canaries: {count} are too few to tell anything; give {LEAST_CANARIES} or more, or 0"
        )
    return np.resize(levels(most), count)


def with_canaries(data: Examples, canaries: Examples, repeats: np.ndarray) -> Examples:
    """The visits followed by the canaries [n], each as `repeats` [n] patients."""
    planted = canaries.select(np.repeat(np.arange(len(canaries)), repeats))
    names = ("terminator", "age", "sex", "visit")
    return Examples(
        np.concatenate([data.ids, planted.ids]),
        row_offsets(np.concatenate([np.diff(data.offsets), np.diff(planted.offsets)])),
        *(np.concatenate([getattr(part, name) for part in (data, planted)]) for name in names),
    )
