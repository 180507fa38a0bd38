"""Made-up hospitals of which everything is known, and generators that are wrong in one way each."""

import numpy as np
import pyarrow as pa

from cohortloom.data.coded import as_lists
from cohortloom.data.visits import check_visits
from cohortloom.generation.naive import visits_table

WOMEN = [f"ICD9CM:614{k}" for k in range(10)]  # female pelvis
MEN = [f"ICD9CM:{code}" for code in (6010, 6011, 6012, 6013, 6014, 6018, 6019, 6020, 6021, 6022)]  # prostate
ANYBODY, YOUNG, OLD = (
    [f"ICD9CM:{first + k}" for k in range(n)] for first, n in ((100, 20), (140, 10), (150, 10))
)
CODES = [*ANYBODY, *WOMEN, *MEN, *YOUNG, *OLD]  # the age of the young and the old is no edit's


def table_of(held: np.ndarray, age: np.ndarray, sex: np.ndarray, visits: np.ndarray, tag: str) -> pa.Table:
    """Visits from held [n_visits, codes] of bool; age, sex [n_patients]; visits [n_patients] each has."""
    held = held.copy()
    held[~held.any(axis=1), 0] = True
    patient = np.repeat(np.arange(len(visits)), visits)
    number = np.arange(len(patient)) - np.repeat(np.cumsum(visits) - visits, visits)
    offsets = np.r_[0, np.cumsum(held.sum(axis=1))]
    ids = pa.array([f"{tag}{one:06d}" for one in patient])
    columns = {"diagnoses": as_lists(np.nonzero(held)[1], offsets, CODES)}
    made = visits_table(ids, number, 40 * number, age[patient], sex[patient], columns)
    return check_visits(made)


def hospital(n: int, seed: int, tag: str = "p", bundle: float = 0.9) -> pa.Table:
    """n patients: codes by age and sex, and ten pairs of codes that occur together."""
    rng = np.random.default_rng(seed)
    age, sex = rng.integers(18, 90, n).astype(float), rng.integers(0, 2, n)
    visits = 1 + (rng.random(n) < 0.3)
    patient = np.repeat(np.arange(n), visits)
    chance = 0.25 / (1 + np.arange(60) % 10) ** 0.5 * np.ones((len(patient), 1))
    chance[:, 20:30] *= (sex[patient] == 0)[:, None]
    chance[:, 30:40] *= (sex[patient] == 1)[:, None]
    chance[:, 40:50] *= (age[patient] < 50)[:, None]
    chance[:, 50:60] *= (age[patient] >= 50)[:, None]
    held = rng.random(chance.shape) < chance
    # Partners are ten codes apart, so a chain from one code to the next loses them.
    held[:, 10:20] = np.where(held[:, :10], rng.random((len(patient), 10)) < bundle, False)
    return table_of(held, age, sex, visits, tag)


def shuffled(table: pa.Table, seed: int, tag: str = "s") -> pa.Table:
    """Every code keeps how often it occurs and loses its company: columns are permuted over the visits."""
    rng = np.random.default_rng(seed)
    held, age, sex, visits = taken_apart(table)
    for column in range(held.shape[1]):
        held[:, column] = rng.permutation(held[:, column])
    return table_of(held, age, sex, visits, tag)


def permuted_demographics(table: pa.Table, seed: int, tag: str = "d") -> pa.Table:
    """The same visits with the ages and sexes of other patients."""
    held, age, sex, visits = taken_apart(table)
    order = np.random.default_rng(seed).permutation(len(age))
    return table_of(held, age[order], sex[order], visits, tag)


def few_codes(table: pa.Table, kept: int, tag: str = "f") -> pa.Table:
    """The same visits with the most frequent codes alone."""
    held, age, sex, visits = taken_apart(table)
    held[:, np.argsort(-held.sum(axis=0), kind="stable")[kept:]] = False
    return table_of(held, age, sex, visits, tag)


def copied(table: pa.Table, n: int, seed: int, tag: str = "c") -> pa.Table:
    """n patients drawn again from the table, with replacement."""
    held, age, sex, visits = taken_apart(table)
    chosen = np.random.default_rng(seed).integers(0, len(age), n)
    starts = np.cumsum(visits) - visits
    rows = np.concatenate([np.arange(starts[one], starts[one] + visits[one]) for one in chosen])
    return table_of(held[rows], age[chosen], sex[chosen], visits[chosen], tag)


def taken_apart(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of table_of."""
    lists = table["diagnoses"].to_pylist()
    held = np.array([[code in set(codes) for code in CODES] for codes in lists])
    first = table["visit"].to_numpy() == 0
    sex = np.array([one == "M" for one in table["sex"].to_pylist()]).astype(int)
    visits = np.bincount(np.cumsum(first) - 1)
    return held, table["age"].to_numpy()[first].astype(float), sex[first], visits
