"""What the age and sex heads read.

Kinds of heads (`train.heads`), each a vector [batch, d_model] a visit:
- states: decoder states, averaged over the code positions. They can carry age and sex from the prompt.
- codes: embeddings of the codes of the target, averaged. Nothing but the codes enters, so that the prompt
  cannot leak; the head losses move the model's embeddings and the heads alone.
- expected: embeddings of all codes, weighted by the probability that the model gives them at each position.
  The head losses push on what the model would write.
"""

import torch


def mean_over(vectors: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean [batch, d] of vectors [batch, target, d] by weight [batch, target]; 0 where all weigh nothing."""
    weight = weight.to(vectors.dtype)
    return (vectors * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1e-6)


def expected_embeddings(
    logits: torch.Tensor, row: torch.Tensor, rows: int, table: torch.Tensor, first_code: int
) -> torch.Tensor:
    """Mean embedding [rows, d] of the codes that a visit's positions are expected to write.

    logits [positions, vocabulary]; row [positions], the visit of each; table [vocabulary, d]. A position
    weighs as much as its codes are likely: one that ends the visit says little of its codes.
    """
    likely = logits.float().softmax(-1)[:, first_code:]
    vectors = likely.to(table.dtype) @ table[first_code:]
    sums = vectors.new_zeros(rows, vectors.shape[1]).index_add(0, row, vectors)
    weight = likely.new_zeros(rows).index_add(0, row, likely.sum(1))
    return sums / weight.clamp(min=1e-6)[:, None].to(sums.dtype)
