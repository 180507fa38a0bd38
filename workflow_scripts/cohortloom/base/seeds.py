"""Seeds that name their purpose, so that no two uses of a run's seed share random numbers.

The cohort's simulation and the split of patients take the config's seed as it is: a dataset stays the same
when anything else about seeds changes. Samples and groups of evaluations have a number of their own beside
the seed, so that figures of different commits rest on the same patients.
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
