"""Several visits side by side in a row of tokens: where each lies, and what of the row it may attend to."""

import torch
from torch.nn import functional as F

from cohortloom.data.examples import N_PROMPTS


def own_rows(inside: torch.Tensor) -> torch.Tensor:
    """Visit numbers [rows, length] where each row holds one visit; -1 where not `inside`."""
    row = torch.arange(len(inside), device=inside.device)[:, None]
    return torch.where(inside, row, -1)


def place_in_visit(visit: torch.Tensor) -> torch.Tensor:
    """Place of each token in its visit [rows, length], from 0; that of padding is 0."""
    index = torch.arange(visit.shape[1], device=visit.device).expand_as(visit)
    starts = torch.ones_like(visit, dtype=torch.bool)
    starts[:, 1:] = visit[:, 1:] != visit[:, :-1]
    return (index - torch.where(starts, index, 0).cummax(1).values) * (visit >= 0)


def with_prompts(embedded, visit, place, prompts: torch.Tensor) -> torch.Tensor:
    """embedded [rows, length, d_model] with prompts [visits, 2, d_model] in the first places of visits."""
    number = (N_PROMPTS * visit + place).clamp(0, N_PROMPTS * len(prompts) - 1)
    is_prompt = (place < N_PROMPTS) & (visit >= 0)
    return torch.where(is_prompt[..., None], F.embedding(number, prompts.flatten(0, 1)), embedded)


def additive_mask(allowed: torch.Tensor, visit: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Attention mask [rows, 1, length, read]: 0 where allowed [rows, length, read], else minus infinity.

    Padding attends to everything so that softmax is defined; its output is discarded.
    """
    allowed = allowed | (visit < 0)[:, :, None]
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, -torch.inf)[:, None]
