"""What a GPU makes beside what the processor makes of the same: skipped where there is none."""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from cohortloom.data.examples import batches, collate, corrupted_pairs
from cohortloom.data.visits import read_visits
from cohortloom.model.initial import make_model
from cohortloom.runtime.devices import pick_device
from generate import generate
from test_model import world  # noqa: F401
from test_training import equal, run_train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")


@pytest.fixture(autouse=True)
def _own_device():
    """Accelerate keeps the device that a process had first: of another test's training, the processor."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.cuda.reset_peak_memory_stats()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.cuda.max_memory_allocated() > 0  # all that is here is made on a GPU


@pytest.fixture
def parts(world):  # noqa: F811
    words, data, _ = world
    pairs = corrupted_pairs(data, words, np.random.default_rng(0), 62, 0.5, 0.1, 0.1, 0.1)
    rows = batches(pairs, 64, np.random.default_rng(0), np.diff(data.offsets) > 0)[:6]
    return [{k: torch.from_numpy(v) for k, v in collate(data, pairs, some).items()} for some in rows]


def gradient(model, parts, device, bf16=False):
    """Losses [5] and the gradient of all parameters, flat, of a copy of the model on `device`."""
    model = copy.deepcopy(model).to(device).train()
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        out = model(parts=[{name: value.to(device) for name, value in part.items()} for part in parts])
    out.loss.backward()
    flat = torch.cat([p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None])
    return out.losses().cpu(), flat


def test_losses_and_gradients_are_those_of_the_processor(world, parts):  # noqa: F811
    words, data, _ = world
    assert pick_device("cuda")[0] == "cuda"  # sets how attention is made there
    model = make_model(words, data, "tiny", 0, 0.0, 64)
    losses, expected = gradient(model, parts, "cpu")
    for bf16, tolerance in ((False, 1e-5), (True, 0.05)):
        found = gradient(model, parts, "cuda", bf16)
        assert torch.allclose(found[0], losses, rtol=0.1 * tolerance + 1e-6)
        assert (found[1] - expected).norm() < tolerance * expected.norm()
    # rejected: one part left out
    assert (gradient(model, parts[1:], "cuda")[1] - expected).norm() > 0.05 * expected.norm()


def test_training_and_generation_repeat_themselves(dataset, tmp_path):
    weights = [run_train(dataset, tmp_path / name, device="cuda")[0] for name in ("one", "two")]
    assert equal(*weights)
    other = run_train(dataset, tmp_path / "other", device="cuda", seed=1)[0]
    assert not equal(weights[0], other)
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        given = {key: dataset[key] for key in ("train", "test")}
        given |= {"synthetic": tmp_path / f"{name}.parquet", "counts": tmp_path / f"{name}.json"}
        generate(model=tmp_path / "one", **given, device="cuda", patients=200, seed=seed)
        made.append(read_visits(given["synthetic"]).to_pydict())
        assert json.loads(given["counts"].read_text())["duplicates"] == 0
    assert made[0] == made[1] and made[0] != made[2]
