"""Results of a GPU compared with those of the CPU; skipped without a GPU."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from cohortloom.data.examples import collate, corrupted_pairs
from cohortloom.data.visits import read_visits
from cohortloom.model.initial import make_model
from cohortloom.model.scoring import as_tensors
from cohortloom.runtime.devices import TRAINING_ATTENTION, pick_device
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


def gradient(world, rows, device, bf16=False):  # noqa: F811
    """Loss and the gradient of all parameters, flat, of a fresh model on `device` for these visits."""
    vocabulary, data, _ = world
    pairs = corrupted_pairs(data, vocabulary, np.random.default_rng(0), 64)
    model = make_model(vocabulary, data, "tiny", 0, 0.0).to(device).train()
    model.set_attn_implementation(TRAINING_ATTENTION[device])
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        out = model(**as_tensors(collate(data, pairs, rows), torch.device(device)))
    out.loss.backward()
    flat = torch.cat([p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None])
    return out.loss.item(), flat


def test_losses_and_gradients_are_those_of_the_processor(world):  # noqa: F811
    assert pick_device("cuda")[0] == "cuda"  # sets how attention is made there
    rows = np.arange(80)
    loss, expected = gradient(world, rows, "cpu")
    for bf16, tolerance in ((False, 1e-4), (True, 0.05)):
        found = gradient(world, rows, "cuda", bf16)
        assert found[0] == pytest.approx(loss, rel=0.1 * tolerance + 1e-6)
        assert (found[1] - expected).norm() < tolerance * expected.norm()
    # rejected: some visits left out
    assert (gradient(world, rows[20:], "cuda")[1] - expected).norm() > 0.05 * expected.norm()


def test_training_and_generation_repeat_themselves(dataset, tmp_path):
    weights = [run_train(dataset, tmp_path / name, device="cuda")[0] for name in ("one", "two")]
    assert equal(*weights)
    other = run_train(dataset, tmp_path / "other", device="cuda", seed=1)[0]
    assert not equal(weights[0], other)
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        given = {key: dataset[key] for key in ("train", "test")}
        given |= {"synthetic": tmp_path / f"{name}.parquet", "counts": tmp_path / f"{name}.json"}
        generate(model_dir=tmp_path / "one", **given, device="cuda", patients=200, seed=seed)
        made.append(read_visits(given["synthetic"]).to_pydict())
        assert json.loads(given["counts"].read_text())["duplicates"] == 0
    assert made[0] == made[1] and made[0] != made[2]
