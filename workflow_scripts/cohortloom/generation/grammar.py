"""What a generated visit must obey, whatever the model's probabilities: one code at least, and systems that
go together.

The order of the columns is the model's own: it gives other tokens no probability (model/prompt_bart.py).
"""

from functools import lru_cache

import numpy as np
import torch
from transformers import LogitsProcessor

from cohortloom.base.ragged import row_of_value, row_offsets
from cohortloom.data.codes import parts
from cohortloom.data.vocabulary import NOW, Vocabulary


@lru_cache(maxsize=4)
def system_tables(vocabulary: Vocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of the code system of each token [vocabulary], and which systems exclude which, bool [n, n].

    The last number is of all tokens that exclude nothing.
    """
    names = sorted({name for pair in vocabulary.apart for name in pair})
    number = {name: n for n, name in enumerate(names)}
    systems = [number.get(parts(code)[0], len(names)) for code in vocabulary.codes]
    excludes = torch.zeros(len(names) + 1, len(names) + 1, dtype=torch.bool)
    for one, other in vocabulary.apart:
        excludes[number[one], number[other]] = excludes[number[other], number[one]] = True
    return torch.tensor([len(names)] * vocabulary.first_code + systems), excludes


class Grammar(LogitsProcessor):
    """Forbids terminators while a visit needs a code, and codes of systems that the visit's systems exclude.

    Two systems exclude each other where no training visit holds both (`Vocabulary.apart`).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        rows: tuple[np.ndarray, np.ndarray],
        needs_code: bool,
        device: torch.device,
    ):
        """rows: tokens of the encoder, flat, and their lengths [batch]; codes after NOW are revealed.

        needs_code: a visit cannot end without a code.
        """
        encoder, lengths = rows
        self.first_code, self.terminators = vocabulary.first_code, vocabulary.terminators
        self.system, self.excludes = (table.to(device) for table in system_tables(vocabulary))
        row = row_of_value(row_offsets(lengths))
        after_now = np.cumsum(encoder == NOW) > row  # each visit holds one NOW
        revealed = np.flatnonzero(after_now & (encoder >= self.first_code))
        self.may_end = torch.full((len(lengths),), not needs_code, device=device)
        self.may_end[torch.from_numpy(row[revealed]).to(device)] = True
        self.holds = torch.zeros(len(lengths), len(self.excludes), dtype=torch.bool, device=device)
        of_revealed = self.system[torch.from_numpy(encoder[revealed]).to(device)]
        self.holds[torch.from_numpy(row[revealed]).to(device), of_revealed] = True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [batch, vocabulary] with what the visit excludes at minus infinity; changed in place."""
        last = input_ids[:, -1]
        self.may_end |= last >= self.first_code
        self.holds[torch.arange(len(last), device=last.device), self.system[last]] = True
        if not self.may_end.all():
            ends = scores[:, self.terminators]
            scores[:, self.terminators] = ends.masked_fill(~self.may_end[:, None], -torch.inf)
        if self.excludes.any():
            excluded = (self.holds.float() @ self.excludes.float()) > 0  # [batch, systems]
            scores = scores.masked_fill(excluded[:, self.system], -torch.inf)
        return scores

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch."""
        self.may_end, self.holds = self.may_end[rows], self.holds[rows]
