"""Which token ids the edits forbid at each age and for each sex, as a table to look rows up in."""

import numpy as np

from cohortloom.data.validity import Rules, completed_years
from cohortloom.data.visits import MAX_AGE, SEXES
from cohortloom.data.vocabulary import Vocabulary

AGES = int(MAX_AGE) + 1  # completed years 0 to 90


def forbidden_table(words: Vocabulary, rules: Rules, hard: bool = False) -> np.ndarray:
    """Bool [2, 91, vocabulary]: sex (0 F, 1 M), completed years, token id. Only codes are ever forbidden.

    The full edit, or with `hard` what is impossible rather than implausible.
    """
    codes = rules.of(words.codes)
    table = np.zeros((len(SEXES), AGES, len(words)), bool)
    index, ages, sexes = np.arange(len(words.codes)), np.arange(AGES)[:, None], np.arange(len(SEXES))
    table[..., words.first_code :] = codes.forbidden(index, ages, sexes[:, None, None], hard)
    return table


def age_row(age: np.ndarray) -> np.ndarray:
    """Row of the table of an age in years, taken as the visits table stores it (float32)."""
    return np.clip(completed_years(np.asarray(age, np.float32)), 0, AGES - 1)
