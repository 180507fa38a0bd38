"""What moves the weights: Muon for matrices, Adagrad for the table of codes, AdamW for the rest.

Muon (Keller Jordan 2024) makes each step of a matrix as large in every direction. For the same tokens it
reached a lower loss than AdamW alone. Adagrad (Duchi, Hazan and Singer 2011) divides by all gradients that an
entry has had: a rare code's row moves when the code occurs, by less each time, and the small pushes of all
other positions in between stay small. Adam forgets, and so pushed rare codes down in between or, with a long
memory, moved them so far at each occurrence that they were learnt by heart: docs/quality.md.
"""

import torch
from torch import nn


def make_optimizers(
    model: nn.Module,
    learning_rate: float,
    table_learning_rate: float,
    matrix_learning_rate: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """AdamW at `learning_rate`, Muon at `matrix_learning_rate` and Adagrad at `table_learning_rate`.

    Muon takes the matrices of encoder, decoder and summary. The biases on ending and on repeating go at ten
    times `learning_rate`. Every group remembers its own peak rate under `peak`. Only what has two dimensions
    decays, the table of codes excepted.
    """
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and _between_layers(name)]
    tables = [named["model.shared.weight"]]
    # Few numbers, each a log odds for many places: at the rate of the others they would not arrive.
    odds = [named["summary.ending"], named["summary.repetition"]]
    inside = {id(p) for p in (*matrices, *tables, *odds)}
    rest = [p for p in named.values() if id(p) not in inside]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            {"params": odds, "weight_decay": 0.0, "lr": 10 * learning_rate},
        ],
        lr=learning_rate,
        fused=True,
    )
    muon = torch.optim.Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay)
    adagrad = torch.optim.Adagrad(tables, lr=table_learning_rate)
    optimizers = [adamw, muon, adagrad]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    return optimizers


def _between_layers(name: str) -> bool:
    summary = (f"summary.{layer}.weight" for layer in ("earlier", "present", "hidden", "output"))
    return ".layers." in name or name in summary
