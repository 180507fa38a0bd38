"""Planted patients (canaries): invented patients in the training, which measure what the model memorises.

For a real patient, a high likelihood may mean memorised or merely typical. The codes of a canary are drawn
independently of all patients, so only a model that was trained on it gives it a higher likelihood than other
patients drawn in the same way (Carlini and others, The Secret Sharer, USENIX Security 2019). Canaries are not
stored: training adds them to its visits, and the evaluation draws the same ones from the seed.
"""

import numpy as np

from cohortloom.base.errors import UserError
from cohortloom.base.planting import MIN_CANARIES
from cohortloom.base.ragged import row_offsets
from cohortloom.base.seeds import generator
from cohortloom.data.examples import Examples
from cohortloom.data.forbidden import age_row, forbidden_table
from cohortloom.data.validity import Rules
from cohortloom.data.vocabulary import END, Vocabulary

MIN_CODES, MAX_CODES = 6, 8  # of a canary: too many to arise by chance
FACTOR = 4  # between two levels of repeats
MAX_DRAWS = 100  # of a patient with a new set of codes; then the vocabulary has too few codes


def invent_patients(
    data: Examples, vocabulary: Vocabulary, rules: Rules, seed: int, planted: int, held_out: int = 0
) -> tuple[Examples, Examples]:
    """Two sets of invented patients of one visit each, drawn alike: `planted` and `held_out` are their sizes.

    Age and sex are those of a random patient of `data`, the real training visits. The 6 to 8 codes are drawn
    uniformly, in random order, from the codes that the full edit of `rules` permits at that age and sex. No
    two patients have the same set of codes, and none has the set of a visit of `data`. The planted patients
    do not depend on `held_out`. Raises UserError where the vocabulary has too few codes.
    """
    is_permitted = ~forbidden_table(vocabulary, rules)[..., vocabulary.first_code :]
    first_visits = np.flatnonzero(data.visit == 0)
    used = _code_sets(data)
    invented = []
    for number, count in enumerate((planted, held_out)):
        rng = generator("canaries", seed, number)
        rows = rng.choice(first_visits, count)
        age, sex = data.age[rows], data.sex[rows]
        codes = [
            _draw_codes(np.flatnonzero(is_permitted[s, row]) + vocabulary.first_code, used, rng)
            for s, row in zip(sex, age_row(age), strict=True)
        ]
        invented.append(
            Examples(
                np.array([code for visit in codes for code in visit], data.ids.dtype),
                row_offsets(np.array([len(visit) for visit in codes], np.int64)),
                np.full(count, END, data.terminator.dtype),
                age,
                sex,
                np.zeros(count, data.visit.dtype),
                data.first_ids,
            )
        )
    return invented[0], invented[1]


def _draw_codes(choices: np.ndarray, used: set[tuple[int, ...]], rng: np.random.Generator) -> np.ndarray:
    """Codes of a visit, drawn from `choices`; their set is new, and is added to `used`."""
    for _ in range(MAX_DRAWS if len(choices) >= MAX_CODES else 0):
        codes = rng.choice(choices, rng.integers(MIN_CODES, MAX_CODES + 1), replace=False)
        code_set = tuple(sorted(codes.tolist()))
        if code_set not in used:
            used.add(code_set)
            return codes
    raise UserError(
        f"canaries: the {len(choices)} codes permitted at an age and sex are too few for so many patients "
        f"of {MIN_CODES} to {MAX_CODES} codes; lower train.canaries or dataset.min_patients_per_code"
    )


def _code_sets(data: Examples) -> set[tuple[int, ...]]:
    """Sets of codes, as sorted ids, of the visits whose length a canary can have."""
    lengths = np.diff(data.offsets)
    rows = np.flatnonzero((lengths >= MIN_CODES) & (lengths <= MAX_CODES))
    return {tuple(sorted(data.ids[data.offsets[row] : data.offsets[row + 1]].tolist())) for row in rows}


def repeat_levels(max_repeats: int) -> list[int]:
    """Numbers of repeats: 1, 4, 16 ... up to `max_repeats`, which is always the last.

    >>> repeat_levels(16), repeat_levels(10), repeat_levels(1)
    ([1, 4, 16], [1, 4, 10], [1])
    """
    levels = [1]
    while levels[-1] < max_repeats:
        levels.append(min(levels[-1] * FACTOR, max_repeats))
    return levels


def assign_repeats(count: int, max_repeats: int) -> np.ndarray:
    """Number of repeats of each of `count` canaries, [count]: the levels in turn.

    Raises UserError for fewer canaries than MIN_CANARIES or than levels.
    """
    if max_repeats < 1:
        raise UserError(
            f"train.canary_repeats: {max_repeats} is below 1; give how often a canary is planted at most"
        )
    if count < max(MIN_CANARIES, len(repeat_levels(max_repeats))):
        raise UserError(
            f"train.canaries: {count} are too few for a figure; give {MIN_CANARIES} or more, or 0"
        )
    return np.resize(repeat_levels(max_repeats), count)


def with_canaries(data: Examples, canaries: Examples, repeats: np.ndarray) -> Examples:
    """The visits followed by the canaries [n], each as `repeats` [n] patients."""
    planted = canaries.select(np.repeat(np.arange(len(canaries)), repeats))
    names = ("terminator", "age", "sex", "visit")
    return Examples(
        np.concatenate([data.ids, planted.ids]),
        row_offsets(np.concatenate([np.diff(data.offsets), np.diff(planted.offsets)])),
        *(np.concatenate([getattr(part, name) for part in (data, planted)]) for name in names),
        data.first_ids,
    )
