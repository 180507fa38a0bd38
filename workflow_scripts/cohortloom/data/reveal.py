"""Which codes of real visits are revealed in reconstruction: one mask for every method."""

import numpy as np

from cohortloom.base.seeds import generator, seed_of


def revealed_mask(n_codes: int, prompt_prob: float, seed: int) -> np.ndarray:
    """Each of `n_codes` flat codes (file order) is shown with probability `prompt_prob`; [n_codes] bool."""
    return generator("revealed codes", seed).random(n_codes) < prompt_prob


def validation_mask(n_codes: int, prompt_prob: float, seed: int) -> np.ndarray:
    """The same for validation visits, on which thresholds are chosen, with random numbers of its own."""
    return revealed_mask(n_codes, prompt_prob, seed_of("revealed codes of validation visits", seed))
