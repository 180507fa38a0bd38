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

from cohortloom.data.vocabulary import Vocabulary


class ProbableCodes(LogitsProcessor):
    """Writes the codes of a column by the probabilities at its first position, and then ends it.

    A column ends where no code is left that reaches `threshold`.
    """

    def __init__(self, expected: np.ndarray, threshold: float, vocabulary: Vocabulary):
        """expected [batch, columns]: number of hidden codes expected. threshold: least probability."""
        self.expected = torch.from_numpy(np.log(expected)).float()
        self.threshold, self.first_code = float(np.log(threshold)), vocabulary.first_code
        self.end_of_column = [*vocabulary.boundaries, vocabulary.terminators[0]]
        self.scores: torch.Tensor | None = None  # log probability of being hidden [batch, vocabulary]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [batch, vocabulary]; minus infinity stays, for what other processors forbid."""
        last = input_ids[:, -1]
        if self.scores is None:
            self.scores, self.expected = torch.empty_like(scores), self.expected.to(scores.device)
            starts = torch.ones_like(last, dtype=torch.bool)
            column = torch.zeros_like(last)
        else:  # a boundary opens a column; the boundaries are the ids in front of the codes
            column = last - self.first_code + len(self.end_of_column)
            starts = (column > 0) & (last < self.first_code)
        if starts.any():
            column = column[starts]
            new = scores[starts].log_softmax(-1) + self.expected[starts].gather(1, column[:, None])
            new[:, : self.first_code] = -torch.inf
            ends = torch.tensor(self.end_of_column, device=scores.device)[column]
            self.scores[starts] = new.scatter_(1, ends[:, None], self.threshold)
        return self.scores.masked_fill(scores == -torch.inf, -torch.inf)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch."""
        self.scores, self.expected = self.scores[rows], self.expected[rows]
