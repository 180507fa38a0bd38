"""Constrained decoding: codes that the edits forbid at the patient's age and sex cannot be generated.

The scores of forbidden codes become minus infinity before a token is drawn, so the other codes keep their
proportions. The probability that the model gave to forbidden codes is summed: the probability mass removed.
It is taken after the other logits processors (a repeated code has none left) and before the temperature.
"""

import numpy as np
import torch
from transformers import LogitsProcessor

from cohortloom.base.errors import UserError
from cohortloom.data.forbidden import age_row
from cohortloom.data.visits import SEXES
from cohortloom.data.vocabulary import END, PAD, Vocabulary


class Constraint:
    """The edits of a vocabulary; `processor` makes the logits processor of a batch."""

    def __init__(self, vocabulary: Vocabulary, table: np.ndarray, device: torch.device | str = "cpu"):
        """table: bool [2, 91, vocabulary], see forbidden.forbidden_table."""
        self.table = torch.from_numpy(table).to(device)
        self.first_boundary = vocabulary.first_boundary
        self.is_empty = table[..., vocabulary.first_code :].all(-1)  # [2, 91]: no code is permitted

    def processor(self, age: np.ndarray, sex: np.ndarray) -> "ForbiddenCodes":
        """The logits processor of visits at `age` (years) of `sex` (0 F, 1 M), both [batch].

        Raises UserError for a patient to whom every code of the vocabulary is forbidden.
        """
        years, sex = age_row(age), np.asarray(sex, np.int64)
        if (is_empty := self.is_empty[sex, years]).any():
            first = int(np.flatnonzero(is_empty)[0])
            raise UserError(
                f"generate.constrained: all codes are forbidden at age {years[first]}, "
                f"sex {SEXES[sex[first]]}; leave such patients out or set none"
            )
        return ForbiddenCodes(self.table[sex, years], self.first_boundary)


class ForbiddenCodes(LogitsProcessor):
    """Masks forbidden [batch, vocabulary] bool and sums the probability mass that it removes.

    It changes the scores of restricted codes in place: a copy of all scores would take as long as the rest.
    """

    def __init__(self, forbidden: torch.Tensor, first_boundary: int):
        self.first_boundary = first_boundary
        self.columns = forbidden.any(0).nonzero()[:, 0]
        self.is_forbidden = forbidden[:, self.columns].float()
        # Sums and products take a third of the time of masked_fill.
        self.mask = torch.zeros_like(self.is_forbidden).masked_fill(self.is_forbidden > 0, -torch.inf)
        self.removed_mass = torch.zeros((), dtype=torch.float64, device=forbidden.device)
        self.positions = torch.zeros((), dtype=torch.int64, device=forbidden.device)
        self._probabilities: torch.Tensor | None = None  # memory that is used again at each step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [batch, vocabulary] with forbidden codes at minus infinity; input_ids [batch, length]."""
        last = input_ids[:, -1]
        has_ended = (last == PAD) | ((last >= END) & (last < self.first_boundary))  # only padding follows
        if self._probabilities is None:
            self._probabilities = torch.empty_like(scores)
        probabilities = torch.softmax(scores, 1, out=self._probabilities)
        forbidden_mass = probabilities.index_select(1, self.columns).mul_(self.is_forbidden).sum(1)
        self.removed_mass += forbidden_mass.masked_fill(has_ended, 0.0).sum(dtype=torch.float64)
        self.positions += (~has_ended).sum()
        masked = scores.index_select(1, self.columns).add_(self.mask)
        return scores.index_copy_(1, self.columns, masked)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch."""
        self.is_forbidden, self.mask, self._probabilities = self.is_forbidden[rows], self.mask[rows], None

    def counts(self) -> dict[str, float | int]:
        """Probability mass removed, summed over positions, and the number of positions."""
        return {"removed_mass": float(self.removed_mass), "constrained_positions": int(self.positions)}
