"""Several processes: the losses of one with the same batches; generation in parts: what one job makes."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from cohortloom.base.errors import UserError
from cohortloom.generation.synthesize import shard_batches
from cohortloom.runtime.processes import (
    options_of,
    torchrun,
)
from generate import generate
from join_shards import join_shards
from test_training import run_train

COLUMNS = ("lm_loss", "loss")
# Two processes sum what one sums, in another order. What makes more of it than a last digit is put aside:
# dropout, which each process draws for its own visits; bf16, which rounds what each process has; and the
# heads, whose losses are means over the visits of a process.
OPTIONS = {
    "tokens": 2000,
    "batch_tokens": 256,
    "evaluations": 1,
    "precision": "float32",
    "dropout": 0.0,
    "age_weight": 0.0,
    "sex_weight": 0.0,
}


def curves(history):
    """Losses [rows, 4], and tokens and split of each row."""
    return (
        np.array([[float(row[column]) for column in COLUMNS] for row in history]),
        [(row["tokens"], row["split"], row["step"]) for row in history],
    )


@pytest.fixture(scope="module", autouse=True)
def _any_precision():
    """Accelerate keeps the first precision of a process; a step is one process, these tests are not."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@dataclass
class Trained:
    """What a training left."""

    weights: list[torch.Tensor]
    losses: np.ndarray
    places: list[tuple[str, ...]]

    @classmethod
    def by(cls, dataset, folder, **options):
        AcceleratorState._reset_state()  # it keeps the first precision of a process; a step is one process
        weights, history = run_train(dataset, folder / "model", **options)
        return cls([weights[key] for key in sorted(weights)], *curves(history))


@pytest.fixture(scope="module")
def one(dataset, tmp_path_factory):
    return Trained.by(dataset, tmp_path_factory.mktemp("one"), **OPTIONS)


def distance(one, other):
    """Relative difference of all tensors together."""
    flat = [torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


def assert_same_training(found, expected, tolerance):
    """The same steps, and losses and weights within `tolerance` of each other, as shares."""
    np.testing.assert_allclose(found.losses, expected.losses, rtol=tolerance)
    assert found.places == expected.places
    assert distance(expected.weights, found.weights) < tolerance


def test_two_processes_train_as_one_does(dataset, one, tmp_path):
    """But for last digits, which bf16 inside Muon makes larger."""
    two = Trained.by(dataset, tmp_path, devices=2, **OPTIONS)
    assert_same_training(two, one, 2e-3)


@pytest.mark.parametrize("change", [{"batch_tokens": 512}, {"batch_tokens": 128}, {"seed": 1}], ids=str)
def test_another_training_is_not_the_same(dataset, one, tmp_path, change):
    """As if each of two processes took a whole step; half of one each, not added up; other visits."""
    other = Trained.by(dataset, tmp_path, **{**OPTIONS, **change})
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_training(other, one, 2e-3)


def test_a_mistake_in_a_process_is_reported_in_one_line(dataset, tmp_path):
    (tmp_path / "rules.csv").write_text("code\n042\n")
    with pytest.raises(UserError, match=r"^[^\n]*rules.csv: column system is missing[^\n]*$"):
        run_train(dataset, tmp_path / "model", devices=2, rules=tmp_path / "rules.csv", forbidden_weight=1.0)


def test_several_nodes_need_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="train.nodes: 2 nodes need a Slurm job"):
        torchrun(4, 2)


@pytest.mark.parametrize("batches, shards", [(10, 4), (3, 4), (1, 1), (0, 2), (8, 8)])
def test_shards_are_whole_batches_that_together_are_all(batches, shards):
    parts = [shard_batches(batches, shard, shards) for shard in range(1, shards + 1)]
    assert [number for part in parts for number in part] == list(range(batches))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("mode", ["synthesize", "reconstruct"])
def test_shards_join_to_what_one_job_makes(dataset, one, tmp_path, mode):
    model = next(tmp_path.parent.glob("one*/model"))
    given = {"model_dir": model, "train": dataset["train"], "test": dataset["test"], "mode": mode}
    given |= {"batch_size": 32, "device": "cpu", "patients": 150 if mode == "synthesize" else None}

    def make(name, **shard):
        files = {"synthetic": tmp_path / f"{name}.parquet", "counts": tmp_path / f"{name}.json"}
        generate(**given, **files, **shard)
        return files

    whole = make("whole")
    for shards in (4, 7):
        parts = [make(f"{i}-of-{shards}", shard=i, shards=shards) for i in range(1, shards + 1)]
        joined = {"synthetic": tmp_path / "joined.parquet", "counts": tmp_path / "joined.json"}
        lists = {f"{key}_shards": [part[key] for part in parts] for key in joined}
        join_shards(**lists, **joined)
        assert joined["synthetic"].read_bytes() == whole["synthetic"].read_bytes()
        assert joined["counts"].read_bytes() == whole["counts"].read_bytes()
        lists["synthetic_shards"] = lists["synthetic_shards"][::-1]
        join_shards(**lists, **joined)
        assert joined["synthetic"].read_bytes() != whole["synthetic"].read_bytes()
    assert json.loads(whole["counts"].read_text())["visits"] >= 150


def test_keywords_become_options():
    found = options_of({"fast": True, "constrained": False, "canaries": 0, "rules": None, "val": ["a", "b"]})
    assert found == ["--fast", "--no-constrained", "--canaries=0", "--val=a", "--val=b"]
