"""How near generated validation visits are to the real ones: with the loss, what chooses the checkpoint.

Kept apart from the evaluation, so that a change there does not train the models anew.
"""

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp


def selection_score(
    ids: np.ndarray, lengths: np.ndarray, real_ids: np.ndarray, real_lengths: np.ndarray, size: int
) -> float:
    """Lower is better: Jensen-Shannon distance of code counts (plus one) and KS of codes a visit, added.

    Flat vocabulary ids below `size`; lengths [n_visits]. A score of visits against themselves is 0.
    """
    made, real = (np.bincount(part, minlength=size) + 1.0 for part in (ids, real_ids))
    return float(jensenshannon(made, real)) + float(ks_2samp(lengths, real_lengths).statistic)
