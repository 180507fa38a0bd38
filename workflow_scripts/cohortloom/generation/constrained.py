"""Constrained decoding: codes that the edits forbid for the patient's age and sex cannot be written.

The scores of forbidden codes become minus infinity before a token is drawn, so that the others keep their
proportions. What the model would have given them is added up: the probability mass removed. It is taken from
the scores as the other processors left them (a repeated code has none) and before the temperature.
"""

import numpy as np
import torch
from transformers import LogitsProcessor

from cohortloom.base.errors import UserError
from cohortloom.data.forbidden import age_row
from cohortloom.data.visits import SEXES
from cohortloom.data.vocabulary import END, PAD, Vocabulary


class Constraint:
    """The edits of a vocabulary; `of` makes the processor of one batch."""

    def __init__(self, words: Vocabulary, table: np.ndarray, device: torch.device | str = "cpu"):
        """table: bool [2, 91, vocabulary], see forbidden.forbidden_table."""
        self.words, self.table = words, torch.from_numpy(table).to(device)
        self.barred = table[..., words.first_code :].all(-1)

    def of(self, age: np.ndarray, sex: np.ndarray) -> "ForbiddenCodes":
        """The processor of visits at `age` (years) of `sex` (0 F, 1 M), both [batch].

        Raises UserError for a patient to whom every code of the vocabulary is forbidden.
        """
        years, sex = age_row(age), np.asarray(sex, np.int64)
        if (stuck := self.barred[sex, years]).any():
            first = int(np.flatnonzero(stuck)[0])
            raise UserError(
                f"generate.constrained: all codes are forbidden at age {years[first]}, "
                f"sex {SEXES[sex[first]]}; leave such patients out or set none"
            )
        return ForbiddenCodes(self.table[sex, years], self.words.first_code)


class ForbiddenCodes(LogitsProcessor):
    """Masks forbidden [batch, vocabulary] bool and adds up the mass that it took.

    It touches the restricted codes alone and writes over the scores that it is given: a copy of them would
    cost as much time as all the rest.
    """

    def __init__(self, forbidden: torch.Tensor, first_code: int):
        self.first_code = first_code
        self.columns = forbidden.any(0).nonzero()[:, 0]
        self.weight = forbidden[:, self.columns].float()
        # Sums and products take a third of the time of masked_fill.
        self.bar = torch.zeros_like(self.weight).masked_fill(self.weight > 0, -torch.inf)
        self.removed = torch.zeros((), dtype=torch.float64, device=forbidden.device)
        self.positions = torch.zeros((), dtype=torch.int64, device=forbidden.device)
        self._shares: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [batch, vocabulary] with forbidden codes at minus infinity; input_ids [batch, so far]."""
        last = input_ids[:, -1]
        ended = (last == PAD) | ((last >= END) & (last < self.first_code))  # its further tokens are padding
        if self._shares is None:
            self._shares = torch.empty_like(scores)
        shares = torch.softmax(scores, 1, out=self._shares)
        taken = shares.index_select(1, self.columns).mul_(self.weight).sum(1)
        self.removed += taken.masked_fill(ended, 0.0).sum(dtype=torch.float64)
        self.positions += (~ended).sum()
        restricted = scores.index_select(1, self.columns).add_(self.bar)
        return scores.index_copy_(1, self.columns, restricted)

    def keep_rows(self, kept: torch.Tensor) -> None:
        """Go on with the rows `kept` of the batch alone."""
        self.weight, self.bar, self._shares = self.weight[kept], self.bar[kept], None

    def counts(self) -> dict[str, float | int]:
        """Probability mass removed, summed over positions, and the number of positions."""
        return {"removed_mass": float(self.removed), "constrained_positions": int(self.positions)}
