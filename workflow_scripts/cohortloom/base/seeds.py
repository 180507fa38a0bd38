"""Seeds that name their purpose, so that no two uses of a run's seed share random numbers.

The simulation of the cohort and the split of patients use the config's seed directly, so the dataset does not
change with other uses of seeds. Samples and groups of evaluations combine the seed with a fixed number, so
figures of different commits are of the same patients.
"""

import hashlib

import numpy as np


def seed_of(purpose: str, *numbers: int) -> int:
    """A seed of 63 bits from a purpose, such as "calibration", and numbers, such as a run's seed."""
    text = " ".join([purpose, *(str(int(number)) for number in numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(purpose: str, *numbers: int) -> np.random.Generator:
    """numpy's generator, seeded by `seed_of`."""
    return np.random.default_rng(seed_of(purpose, *numbers))
