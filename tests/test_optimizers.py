"""Muon on matrices of one shape together: the step that torch's makes of each; step counts."""

from types import SimpleNamespace

import pytest
import torch

from cohortloom.training.optimizers import Muon, count_on_cpu


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_matrices_together_move_as_one_by_one(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(3, *shape), torch.randn(4, 3, *shape)
    ends = {}
    for together in (False, True):
        matrices = [torch.nn.Parameter(matrix.clone()) for matrix in start]
        muon = Muon(matrices, lr=0.02, weight_decay=0.1)
        for step in gradients:
            for matrix, gradient in zip(matrices, step, strict=True):
                matrix.grad = gradient.clone()
            if together:
                muon.step_together(muon.param_groups[0], matrices)
            else:
                muon.step()  # on a processor it is torch's own
        ends[together] = torch.stack([matrix.detach() for matrix in matrices])
        assert all("momentum_buffer" in muon.state[matrix] for matrix in matrices)
    moved = (ends[False] - start).norm()
    # Both make their products in bf16, not in the same order.
    assert (ends[True] - ends[False]).norm() < 0.02 * moved
    # rejected: the matrices in another order
    assert (ends[True].flip(0) - ends[False]).norm() > 0.2 * moved


def test_only_optimizers_that_count_on_the_gpu_keep_their_counts_there():
    one, two = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    adagrad, fused = torch.optim.Adagrad([one], lr=0.1), torch.optim.AdamW([two], lr=0.1, fused=True)
    on_gpu = SimpleNamespace(cpu=lambda: torch.tensor(3.0))  # stands for a tensor there
    for parameter, optimizer in ((one, adagrad), (two, fused)):
        parameter.grad = torch.ones(2)
        optimizer.step()
        optimizer.state[parameter]["step"] = on_gpu
    count_on_cpu([adagrad, fused])
    assert torch.equal(adagrad.state[one]["step"], torch.tensor(3.0))
    assert fused.state[two]["step"] is on_gpu
