"""Every use of a seed has random numbers of its own."""

import numpy as np
import pytest

from cohortloom.base.seeds import generator, seed_of


def test_a_seed_depends_on_purpose_and_numbers():
    uses = [("calibration", 0, 1), ("calibration", 1, 0), ("calibration", 0), ("synthesize", 0, 1)]
    assert len({seed_of(*use) for use in uses}) == len(uses)
    assert seed_of(*uses[0]) == seed_of("calibration", np.int64(0), True)
    assert all(0 <= seed_of(*use) < 2**63 for use in uses)


def test_numbers_that_numpy_pads_give_different_seeds():
    assert np.random.default_rng([5]).random() == np.random.default_rng([5, 0]).random()
    assert generator("split", 5).random() != generator("split", 5, 0).random()


@pytest.mark.parametrize("number", ["x", 1.5j, None])
def test_only_numbers_follow_the_purpose(number):
    with pytest.raises((TypeError, ValueError)):
        seed_of("split", number)
