"""The output layer and the loss on it, block by block with the gradient, so that few logits exist at a time.

The output layer makes a number for each position and code: some 50 MB for a small step, and several times as
much with what the loss makes of them, which no cache holds. Here the loss of a block and its gradient are
taken while the block's logits are at hand, and what is kept of them is the gradient, in the precision of the
product.
"""

from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cohortloom.model.layers import product_dtype

CACHE = 1_200_000  # bytes of a block's logits in single precision, on a CPU
MEMORY = 1 << 30  # the same on a GPU, where several times as much is held
LEAST = 32  # rows of a block: below, products are slow


def in_blocks(
    score: Callable, states: torch.Tensor, weight: torch.Tensor, *beside: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of the first result of score over blocks of positions, and its other two for all positions.

    score: takes a slice of positions, the product [rows, vocabulary] of their states [positions, d] with
    weight [vocabulary, d], and those rows of each of `beside` [positions, ...]; gives a loss to add up, two
    vectors [rows] to look at, which carry no gradient, and a function that gives the gradient of the loss for
    the product and for each of `beside`. What it reads besides gets no gradient.
    """
    return _InBlocks.apply(score, torch.is_grad_enabled(), states, weight, *beside)


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, score, graded, states, weight, *beside):
        dtype = product_dtype(weight)
        # On a GPU products are slow where rows begin at odd places: the codes are filled up with zeros.
        codes = len(weight)
        filler = 0 if states.device.type == "cpu" else -codes % 64
        states, weight = states.to(dtype), F.pad(weight.to(dtype), (0, 0, 0, filler))
        room = CACHE if states.device.type == "cpu" else MEMORY
        size = max(LEAST, room // (4 * len(weight)) // LEAST * LEAST)
        gradient = states.new_empty(len(states), len(weight)) if graded else None
        if graded and filler:
            gradient[:, codes:] = 0
        turned = weight.T.contiguous()  # as it lies, products of few rows take twice as long
        total, kept, gradients = torch.zeros((), device=states.device), ([], []), [[] for _ in beside]
        for start in range(0, len(states), size):
            some = slice(start, start + size)
            product = (states[some] @ turned)[:, :codes]
            loss, *looked_at, derive = score(some, product, *(rows[some] for rows in beside))
            if graded:
                gradient[some, :codes], *own = derive()
                for whole, part in zip(gradients, own, strict=True):
                    whole.append(part)
            total += loss
            for whole, part in zip(kept, looked_at, strict=True):
                whole.append(part)
        if graded:
            products = gradient @ weight, (gradient.T @ states)[:codes].float()
            ctx.save_for_backward(*products, *map(torch.cat, gradients))
        looked_at = [torch.cat(whole) for whole in kept]
        ctx.mark_non_differentiable(*looked_at)
        return total, *looked_at

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        return None, None, *(saved * gradient for saved in ctx.saved_tensors)
