"""Several visits side by side in a row of tokens: positions that restart with each, attention masks."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding

from cohortloom.data.examples import N_PROMPTS


class PositionsOfVisits(BartLearnedPositionalEmbedding):
    """Position embeddings that restart with each visit, where BART's count along the row.

    `forward`, which BART calls, adds nothing; the model adds `at` to the embeddings itself.
    """

    def forward(self, *_, **__) -> torch.Tensor:
        return self.weight.new_zeros(1)

    def at(self, position: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., d_model] of positions in a visit."""
        return nn.Embedding.forward(self, position + self.offset)


def one_visit_per_row(is_token: torch.Tensor) -> torch.Tensor:
    """Visit numbers [rows, length] where each row holds one visit; -1 where not `is_token`."""
    row = torch.arange(len(is_token), device=is_token.device)[:, None]
    return torch.where(is_token, row, -1)


def position_in_visit(visit: torch.Tensor) -> torch.Tensor:
    """Position of each token in its visit [rows, length], from 0; that of padding is 0."""
    index = torch.arange(visit.shape[1], device=visit.device).expand_as(visit)
    starts = torch.ones_like(visit, dtype=torch.bool)
    starts[:, 1:] = visit[:, 1:] != visit[:, :-1]
    return (index - torch.where(starts, index, 0).cummax(1).values) * (visit >= 0)


def insert_prompts(embedded, visit, position, prompts: torch.Tensor) -> torch.Tensor:
    """embedded [rows, length, d_model] with prompts [visits, 2, d_model] at the first positions of visits."""
    number = (N_PROMPTS * visit + position).clamp(0, N_PROMPTS * len(prompts) - 1)
    is_prompt = (position < N_PROMPTS) & (visit >= 0)
    return torch.where(is_prompt[..., None], F.embedding(number, prompts.flatten(0, 1)), embedded)


def additive_mask(allowed: torch.Tensor, visit: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Attention mask [rows, 1, queries, keys]: 0 where allowed [rows, queries, keys], else minus infinity.

    visit [rows, queries]: -1 where padded. Padding attends to everything so that softmax is defined; its
    output is discarded.
    """
    allowed = allowed | (visit < 0)[:, :, None]
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, -torch.inf)[:, None]
