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
    muon = Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay)
    adagrad = torch.optim.Adagrad(tables, lr=table_learning_rate)
    optimizers = [adamw, muon, adagrad]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    return optimizers


def count_on_cpu(optimizers: list[torch.optim.Optimizer]) -> None:
    """Bring the step numbers to the processor, unless the optimizer counts on the GPU itself (fused).

    Accelerate moves them to the GPU with the rest, and to read one there is to wait for all its work.
    """
    for optimizer in optimizers:
        if not optimizer.defaults.get("fused"):
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"] = state["step"].cpu()


def _between_layers(name: str) -> bool:
    summary = (f"summary.{layer}.weight" for layer in ("earlier", "present", "hidden", "output"))
    return ".layers." in name or name in summary


class Muon(torch.optim.Muon):
    """torch's, which on a GPU takes the matrices of one shape together.

    One by one they are some 3,000 short kernels a step (preset base), which take longer to start than to run.
    """

    @torch.no_grad()
    def step(self, closure=None):
        every = [p for group in self.param_groups for p in group["params"]]
        if closure is not None or any(p.device.type == "cpu" for p in every):
            return super().step(closure)
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for params in shapes.values():
                self.step_together(group, params)

    @torch.no_grad()
    def step_together(self, group: dict, params: list[torch.Tensor]) -> None:
        """A step of matrices of one shape, as torch's with nesterov and adjust_lr_fn left as they are."""
        rate, (rows, columns) = group["lr"], params[0].shape
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        buffers, gradients = [self.state[p]["momentum_buffer"] for p in params], [p.grad for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        made = orthogonal(torch.stack(updates), group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
        made = made.to(params[0].dtype).unbind()
        torch._foreach_add_(params, list(made), alpha=-rate * max(1, rows / columns) ** 0.5)


def orthogonal(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Newton and Schulz's iteration on matrices [n, rows, columns], in bf16 as torch's Muon has it."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16().contiguous()
    x /= x.flatten(1).norm(dim=1)[:, None, None].clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
