"""What moves the weights: Muon for matrices, Adagrad for the table of codes, AdamW for the rest.

Muon (Keller Jordan 2024) makes each step of a matrix as large in every direction. For the same tokens it
reached a lower loss than AdamW alone. Adagrad (Duchi, Hazan and Singer 2011) divides by all gradients that an
entry has had: a rare code's row moves when the code occurs, by less each time, and the small pushes of all
other positions in between stay small. Adam forgets, and so pushed rare codes down in between or, with a long
memory, moved them so far at each occurrence that they were memorised: docs/quality.md.
"""

import torch
from torch import nn

ADAMW_RATE = 1.5e-3  # of biases, prompts and heads
ODDS_RATE = 10 * ADAMW_RATE  # of the few biases on ending and repeating, which would learn too slowly
ADAGRAD_RATE = 0.03  # of the table of codes
# Squared gradients that an entry begins with. From 0 its first step would be as long as the entry itself, and
# what was counted would be lost.
ADAGRAD_START = 1e-5
MUON_RATE = 0.02  # of the matrices of encoder, decoder and summary
WEIGHT_DECAY = 0.01  # of whatever has two dimensions, but for the table of codes and `summary.ending`


def make_optimizers(model: nn.Module, scale: float) -> list[torch.optim.Optimizer]:
    """AdamW, Muon and Adagrad at `scale` times the rates above.

    Every group remembers its own peak rate under `peak`.
    """
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and _between_layers(name)]
    tables = [named["model.shared.weight"]]
    odds = [named["summary.ending"], named["summary.repetition"]]
    elsewhere = {id(p) for p in (*matrices, *tables, *odds)}
    rest = [p for p in named.values() if id(p) not in elsewhere]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            {"params": odds, "weight_decay": 0.0, "lr": scale * ODDS_RATE},
        ],
        lr=scale * ADAMW_RATE,
        fused=True,
    )
    muon = torch.optim.Muon(matrices, lr=scale * MUON_RATE, weight_decay=WEIGHT_DECAY)
    adagrad = torch.optim.Adagrad(tables, lr=scale * ADAGRAD_RATE, initial_accumulator_value=ADAGRAD_START)
    optimizers = [adamw, muon, adagrad]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    return optimizers


def _between_layers(name: str) -> bool:
    summary = (f"summary.{layer}.weight" for layer in ("earlier", "present", "hidden", "output"))
    return ".layers." in name or name in summary
