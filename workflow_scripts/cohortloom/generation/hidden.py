"""Which hidden codes of a visit to add: those whose probability of being hidden is high enough.

The model learns that each hidden code is as good a next one. So its probability of a code as the first one is
the code's expected share of the hidden ones, and times their expected number it comes near to the probability
that the code is hidden. That is the score by which evaluate_curve compares all methods.

Greedy decoding adds a code only while it is more probable than the end of the visit, and finds fewer: F1
0.149 at a Jaccard of 0.539 on NHDS 2010, 0.197 at 0.534 by this rule (docs/trials.md).
"""

import numpy as np
import torch
from transformers import LogitsProcessor


class ProbableCodes(LogitsProcessor):
    """Writes codes by the probabilities of the first position, and ends where none reaches `threshold`."""

    def __init__(self, expected: np.ndarray, threshold: float, terminators: list[int]):
        """expected [batch]: number of hidden codes expected in each visit. threshold: least probability."""
        self.expected = torch.from_numpy(np.log(expected)).float()[:, None]
        self.threshold, self.terminators = float(np.log(threshold)), terminators
        self.scores: torch.Tensor | None = None  # log probability of being hidden [batch, vocabulary]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [batch, vocabulary]; minus infinity stays, for what other processors forbid."""
        if self.scores is None:
            self.scores = scores.log_softmax(-1) + self.expected.to(scores.device)
            self.scores[:, self.terminators] = -torch.inf
            self.scores[:, self.terminators[0]] = self.threshold
        return self.scores.masked_fill(scores == -torch.inf, -torch.inf)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch."""
        self.scores = self.scores[rows]
