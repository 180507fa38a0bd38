"""Several processes: the losses of one with the same batches; generation in parts: what one job makes."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from cohortloom.devices import pick_device
from cohortloom.errors import UserError
from cohortloom.examples import Examples, collate, plain_pairs
from cohortloom.generation import part_of
from cohortloom.parallel import over_processes, own_rows, torchrun
from cohortloom.presets import make_model
from cohortloom.vocabulary import Vocabulary
from generate import generate
from join_shards import join_shards
from test_training import run_train

COLUMNS = ("lm_loss", "age_loss", "sex_loss", "loss")
# Two processes sum what one sums, in another order. What makes more of it than a last digit is put aside:
# dropout, which each process draws for its own rows, and bf16, which rounds each part by itself.
OPTIONS = {
    "tokens": 4000,
    "batch_tokens": 256,
    "parts_per_step": 2,
    "evaluations": 1,
    "precision": "float32",
    "dropout": 0.0,
}
# Muon multiplies in bf16 whatever the precision is. So the tight comparison lets the matrices stay where they
# began and looks at Muon's momentum, which is all that it has seen of their gradients.
STILL = {"matrix_learning_rate": 1e-12}


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
    """What a training left, Muon's momentum of every matrix included."""

    weights: list[torch.Tensor]
    momenta: list[torch.Tensor]
    losses: np.ndarray
    places: list[tuple[str, ...]]

    @classmethod
    def by(cls, dataset, folder, **options):
        AcceleratorState._reset_state()  # it keeps the first precision of a process; a step is one process
        weights, history = run_train(dataset, folder / "model", checkpoints=folder / "checkpoints", **options)
        newest = torch.load(max((folder / "checkpoints").glob("*.pt")), weights_only=True)
        momenta = [state["momentum_buffer"] for state in newest["optimizers"][1]["state"].values()]
        return cls([weights[key] for key in sorted(weights)], momenta, *curves(history))


@pytest.fixture(scope="module", autouse=True)
def _leave_the_precision_open():
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def one(dataset, tmp_path_factory):
    return Trained.by(dataset, tmp_path_factory.mktemp("one"), **OPTIONS)


@pytest.fixture(scope="module")
def still(dataset, tmp_path_factory):
    return Trained.by(dataset, tmp_path_factory.mktemp("still"), **OPTIONS, **STILL)


def distance(one, other):
    """Relative difference of all tensors together."""
    flat = [torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


def assert_same_training(found, expected, tolerance):
    """The same steps, and losses, weights and momenta within `tolerance` of each other, as shares."""
    assert found.places == expected.places
    np.testing.assert_allclose(found.losses, expected.losses, rtol=tolerance)
    assert distance(expected.weights, found.weights) < tolerance
    assert distance(expected.momenta, found.momenta) < tolerance


def test_two_processes_train_as_one_does(dataset, still, tmp_path):
    two = Trained.by(dataset, tmp_path, devices=2, **OPTIONS, **STILL)
    assert len(two.losses) > 4 and len(two.momenta) > 4
    assert_same_training(two, still, 2e-6)


def test_two_processes_train_as_one_does_with_muon(dataset, one, tmp_path):
    """bf16 inside Muon makes 3e-4 of the last digits; the momenta follow the weights and differ more."""
    two = Trained.by(dataset, tmp_path, devices=2, **OPTIONS)
    two.momenta = one.momenta
    assert_same_training(two, one, 1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_tokens": 512},  # as if each of two processes took a whole batch
        {"batch_tokens": 128},  # as if each took half of one, and the halves were not put together
        {"seed": 1},
        {"precision": "auto"},
        {"dropout": 0.1},
    ],
    ids=str,
)
def test_another_training_is_not_the_same(dataset, still, tmp_path, change):
    if change == {"precision": "auto"} and pick_device("cpu")[1] == "no":
        pytest.skip("this processor has no instructions for bf16")
    other = Trained.by(dataset, tmp_path, **{**OPTIONS, **STILL, **change})
    other.places = still.places  # the losses must tell it by themselves
    assert other.losses.shape == still.losses.shape
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_training(other, still, 1e-4)


class Recorded:
    """An accelerator of two processes that run one after the other: `reduce` sums what was recorded."""

    num_processes = 2

    def __init__(self, parts=()):
        self.parts, self.sent = parts, []

    def reduce(self, tensor, _):
        self.sent.append(tensor)
        return sum(self.parts, torch.zeros_like(tensor))


def test_gradients_of_uneven_parts_are_those_of_the_batch(dataset):
    """The negative control is what DDP does by itself: parts that count alike, however much they hold."""
    words, data = Vocabulary.load(dataset["vocabulary"]), Examples.load(dataset["train"])
    losses = {"age_weight": 0.3, "sex_weight": 0.2, "forbidden_weight": 0.7}
    model = make_model(words, data, "tiny", 0, 0.0, 64, **losses)
    barred = torch.arange(len(words)) == words.first_code
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), 62)
    lengths = np.diff(data.offsets)
    rows = np.concatenate([np.argsort(lengths)[:6], np.argsort(lengths)[-2:]])  # short visits, long ones

    def forward(rows):
        batch = {key: torch.from_numpy(value) for key, value in collate(data, pairs, rows).items()}
        forbidden = barred.expand(len(rows), -1)
        return model(**batch, forbidden=forbidden), int((batch["labels"] != -100).sum())

    def gradient(*losses):
        model.zero_grad()
        for loss in losses:
            (loss / len(losses)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    halves = (rows[:6], rows[6:])
    recorded = Recorded()
    for half in halves:
        over_processes(recorded, model, *forward(half), True)
    shared = Recorded(recorded.sent)
    made = [over_processes(shared, model, *forward(half), True) for half in halves]
    whole, _ = forward(rows)
    expected = gradient(whole.loss)
    assert torch.allclose(made[0][1][-1].float(), whole.loss, rtol=1e-5)
    assert (gradient(*(loss for loss, _ in made)) - expected).norm() < 1e-4 * expected.norm()
    alike = gradient(*(forward(half)[0].loss for half in halves))
    assert (alike - expected).norm() > 0.05 * expected.norm()


def test_a_row_too_few_counts_nothing():
    rows = np.array([7, 8, 9])
    assert [own_rows(rows, i, 2)[0].tolist() for i in range(2)] == [[7, 9], [8]]
    assert own_rows(rows, 3, 4)[0].tolist() == [7] and own_rows(rows, 3, 4)[1] is False


def test_a_mistake_in_a_process_is_told_in_one_line(dataset, tmp_path):
    with pytest.raises(UserError, match=r"^train: the loss or its gradient is not finite[^\n]*$"):
        run_train(
            dataset, tmp_path / "model", devices=2, learning_rate=1e6, max_grad_norm=1e9, warmup_fraction=0.0
        )


def test_several_nodes_need_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="train.nodes: 2 nodes need a Slurm job"):
        torchrun(4, 2)


@pytest.mark.parametrize("batches, shards", [(10, 4), (3, 4), (1, 1), (0, 2), (8, 8)])
def test_shards_are_whole_batches_that_together_are_all(batches, shards):
    parts = [part_of(batches, shard, shards) for shard in range(1, shards + 1)]
    assert [number for part in parts for number in part] == list(range(batches))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("mode", ["synthesize", "reconstruct"])
def test_shards_join_to_what_one_job_makes(dataset, one, tmp_path, mode):
    model = next(tmp_path.parent.glob("one*/model"))
    given = {"model": model, "train": dataset["train"], "test": dataset["test"], "mode": mode}
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
