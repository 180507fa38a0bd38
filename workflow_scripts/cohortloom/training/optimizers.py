"""The optimizers: Muon for matrices, Adagrad for the embeddings of codes, AdamW for all other weights.

Muon (Keller Jordan 2024) makes the step of a matrix equally large in every direction. With the same number of
tokens it reached a lower loss than AdamW alone.

Adagrad (Duchi, Hazan and Singer 2011) scales the step of an entry by all of its past gradients. The embedding
of a rare code moves when the code occurs, less each time; the small gradients of all other positions move it
little. Adam forgets past gradients. It pushed rare codes down between their occurrences or, with a long
memory, moved them so far at each occurrence that they were memorised: docs/quality.md.
"""

import torch
from torch import nn

ADAMW_RATE = 1.5e-3  # of biases, prompts and heads
BIAS_RATE = 10 * ADAMW_RATE  # of the biases on ending and repetition, which would learn too slowly
ADAGRAD_RATE = 0.03  # of the embeddings of codes
# Initial sum of squared gradients of an entry. With 0 the first step would be as long as the entry itself and
# would destroy what the embeddings start from.
ADAGRAD_START = 1e-5
MUON_RATE = 0.02  # of the matrices of encoder, decoder and summary
WEIGHT_DECAY = 0.01  # of all tensors of two dimensions except the embeddings of codes and `summary.ending`


def make_optimizers(model: nn.Module, scale: float) -> list[torch.optim.Optimizer]:
    """AdamW, Muon and Adagrad at `scale` times the rates above.

    Each parameter group has its peak learning rate under `peak`, which the schedule scales.
    """
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and _is_hidden_matrix(name)]
    embeddings = [named["model.shared.weight"]]
    biases = [named["summary.ending"], named["summary.repetition"]]
    assigned = {id(p) for p in (*matrices, *embeddings, *biases)}
    rest = [p for p in named.values() if id(p) not in assigned]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            {"params": biases, "weight_decay": 0.0, "lr": scale * BIAS_RATE},
        ],
        lr=scale * ADAMW_RATE,
        fused=True,
    )
    muon = torch.optim.Muon(matrices, lr=scale * MUON_RATE, weight_decay=WEIGHT_DECAY)
    adagrad = torch.optim.Adagrad(
        embeddings, lr=scale * ADAGRAD_RATE, initial_accumulator_value=ADAGRAD_START
    )
    optimizers = [adamw, muon, adagrad]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    return optimizers


def _is_hidden_matrix(name: str) -> bool:
    """Whether a parameter of two dimensions maps hidden states to hidden states."""
    summary = (f"summary.{layer}.weight" for layer in ("earlier", "present", "hidden", "output"))
    return ".layers." in name or name in summary
