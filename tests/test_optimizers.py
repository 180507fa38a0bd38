"""Which optimizer moves which weights, and at what rate."""

import pytest

from cohortloom.training.optimizers import ADAGRAD_RATE, ADAMW_RATE, BIAS_RATE, MUON_RATE, make_optimizers
from test_model import world  # noqa: F401


def groups_of(model, scale):
    """The group of optimizer settings that each parameter is in, by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for optimizer in make_optimizers(model, scale):
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert names[id(p)] not in found, "a weight must not move twice"
                found[names[id(p)]] = (type(optimizer).__name__, group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_every_weight_is_moved_once_at_its_rate(world, scale):  # noqa: F811
    model = world[2]
    found = groups_of(model, scale)
    assert set(found) == {name for name, _ in model.named_parameters()}
    rates = {
        "model.shared.weight": ("Adagrad", ADAGRAD_RATE),
        "summary.ending": ("AdamW", BIAS_RATE),
        "summary.repetition": ("AdamW", BIAS_RATE),
        "model.encoder.layers.0.fc1.weight": ("Muon", MUON_RATE),
        "summary.present.weight": ("Muon", MUON_RATE),
        "summary.recurrence": ("AdamW", ADAMW_RATE),
        "sex_predictor.weight": ("AdamW", ADAMW_RATE),
    }
    for name, (optimizer, rate) in rates.items():
        assert found[name][:2] == (optimizer, pytest.approx(scale * rate))
    assert found["model.encoder.layers.0.fc1.bias"][2] == 0.0, "what has one dimension does not decay"
    assert found["sex_predictor.weight"][2] > 0.0
