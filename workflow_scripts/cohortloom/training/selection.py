"""Distance of generated visits from real validation visits; with the loss it selects the checkpoint.

It is not part of the evaluation package, so that a change there does not rerun the training.
"""

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp


def selection_score(
    ids: np.ndarray, lengths: np.ndarray, real_ids: np.ndarray, real_lengths: np.ndarray, size: int
) -> float:
    """Jensen-Shannon distance of code counts (plus one) plus KS statistic of codes a visit; lower is better.

    ids, real_ids: flat vocabulary ids below `size`. lengths, real_lengths [n_visits]: codes of each visit.
    The score of visits against themselves is 0.
    """
    generated, real = (np.bincount(part, minlength=size) + 1.0 for part in (ids, real_ids))
    return float(jensenshannon(generated, real)) + float(ks_2samp(lengths, real_lengths).statistic)
