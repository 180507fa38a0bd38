"""What moves the weights: Muon for the matrices between layers, AdamW for tables, biases and heads.

Muon (Keller Jordan 2024) makes each step of a matrix as large in every direction. For the same tokens it
reached a lower loss than AdamW alone: docs/quality.md.
"""

import torch
from torch import nn


def make_optimizers(
    model: nn.Module, learning_rate: float, matrix_learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon at `matrix_learning_rate` for the matrices of encoder and decoder, AdamW at `learning_rate`.

    The biases on ending and on repeating go at ten times `learning_rate`.

    Every group remembers its own peak rate under `peak`. Only what has two dimensions decays.
    """
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if ".layers." in name and p.ndim == 2]
    inside = {id(p) for p in matrices}
    # Few numbers, each a log odds for many places: at the rate of the tables they would not arrive.
    odds = [named["summary.ending"], named["summary.repetition"]]
    inside |= {id(p) for p in odds}
    rest = [p for p in named.values() if id(p) not in inside]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            {"params": odds, "weight_decay": 0.0, "lr": 10 * learning_rate},
        ],
        lr=learning_rate,
        betas=(0.9, 0.999),  # a rare code's row must remember its last gradient, or all others push it down
        eps=1e-6,
        fused=True,
    )
    muon = torch.optim.Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay)
    for group in (*adamw.param_groups, *muon.param_groups):
        group["peak"] = group["lr"]
    return [adamw, muon]
