"""Several processes: the losses of one with the same batches; generation in parts: what one job makes."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.nn.functional import gelu

from cohortloom.base.errors import UserError
from cohortloom.data.examples import Examples, collate, plain_pairs
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.generation.synthesize import part_of
from cohortloom.model.initial import make_model
from cohortloom.model.losses import PromptBartOutput, step_losses
from cohortloom.runtime.devices import pick_device
from cohortloom.runtime.processes import (
    options_of,
    own_parts,
    processes_of_a_node,
    shard_of_process,
    torchrun,
)
from generate import generate
from join_shards import join_shards
from test_training import run_train

TERMS = ("lm_loss", "age_loss", "sex_loss", "forbidden_loss", "loss")
COLUMNS = ("lm_loss", "age_loss", "sex_loss", "loss")
# Two processes sum what one sums, in another order. What makes more of it than a last digit is put aside:
# dropout, which each process draws for its own rows, and bf16, which rounds what each process has. A last
# digit that moves a unit across the kink of its ReLU changes a gradient by up to 1e-2, and every further step
# is another chance of that: so the processes run eleven steps, and more are looked at without kinks (a step
# in two halves).
OPTIONS = {
    "tokens": 2000,
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
    assert len(two.losses) > 2 and len(two.momenta) > 4
    assert_same_training(two, still, 2e-6)


@pytest.mark.parametrize("parts, shared", [(1, {"devices": 2}), (3, {"threads": 2})], ids=["one", "three"])
def test_two_processes_share_an_odd_number_of_parts(dataset, tmp_path, parts, shared):
    """Of one part the second process takes a copy that counts nothing."""
    options = {**OPTIONS, **STILL, "parts_per_step": parts, "tokens": 1500}
    one = Trained.by(dataset, tmp_path / "one", **options)
    two = Trained.by(dataset, tmp_path / "two", **options, **shared)
    assert_same_training(two, one, 2e-6)


def in_halves(weigh):
    """step_losses of the parts of each of two processes, added up by `weigh`(its tokens, all tokens)."""

    def losses(model, parts):
        tokens = [int((part["labels"] != -100).sum()) for part in parts]
        total = PromptBartOutput(**dict.fromkeys(TERMS, 0.0))
        for process in range(2):
            mine = own_parts(parts, tokens, process, 2)
            out = step_losses(model, [part for part, _ in mine])
            share = weigh(sum(n for _, n in mine), sum(tokens))
            for name in TERMS:
                setattr(total, name, getattr(total, name) + share * getattr(out, name))
        return total

    return losses


@pytest.mark.parametrize("tokens", [2600, 4000])
def test_a_step_in_two_halves_is_the_step(dataset, tmp_path, monkeypatch, tokens):
    """Over up to 22 steps, with activations that have no kink; with ReLU the shorter one ended 0.4% apart."""
    monkeypatch.setattr("torch.nn.functional.relu", lambda values, **_: gelu(values))
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda _, values: gelu(values))
    options = {**OPTIONS, **STILL, "tokens": tokens}
    whole = Trained.by(dataset, tmp_path / "whole", **options)
    monkeypatch.setattr("cohortloom.model.prompt_bart.step_losses", in_halves(lambda own, every: own / every))
    assert_same_training(Trained.by(dataset, tmp_path / "halves", **options), whole, 2e-6)
    # rejected: a process weighing as much whatever it holds
    monkeypatch.setattr(
        "cohortloom.model.prompt_bart.step_losses", in_halves(lambda own, _: 0.5 if own else 0.0)
    )
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_training(Trained.by(dataset, tmp_path / "alike", **options), whole, 1e-4)


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


def test_gradients_of_parts_in_two_processes_are_those_of_the_step(dataset):
    """The negative control lets every part count alike, however much it holds."""
    words, data = Vocabulary.load(dataset["vocabulary"]), Examples.load(dataset["train"])
    losses = {"age_weight": 0.3, "sex_weight": 0.2, "forbidden_weight": 0.7}
    model = make_model(words, data, "tiny", 0, 0.0, 64, **losses)
    barred = torch.arange(len(words)) == words.first_code
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), 62)
    order = np.argsort(np.diff(data.offsets))
    parts = [order[:1], order[-8:], order[100:103]]  # short visits, long ones
    tokens = [int(pairs.targets(rows).sum()) for rows in parts]

    def inputs(rows):
        batch = {key: torch.from_numpy(value) for key, value in collate(data, pairs, rows).items()}
        return {**batch, "forbidden": barred.expand(len(rows), -1)}

    def of_process(process):
        """All its parts at once, as a step takes them."""
        mine = own_parts(parts, tokens, process, 2)
        model.zero_grad()
        share = sum(n for _, n in mine) / sum(tokens)
        (model(parts=[inputs(rows) for rows, _ in mine]).loss * (2 * share)).backward()
        return torch.cat([p.grad.flatten().clone() for p in model.parameters()])

    def gradient(shares):
        model.zero_grad()
        for rows, share in shares:
            (model(parts=[inputs(rows)]).loss * share).backward()
        return torch.cat([p.grad.flatten().clone() for p in model.parameters()])

    whole = gradient([(rows, n / sum(tokens)) for rows, n in zip(parts, tokens, strict=True)])
    of_processes = [of_process(process) for process in range(2)]
    assert (sum(of_processes) / 2 - whole).norm() < 1e-5 * whole.norm()
    alike = gradient([(rows, 1 / 3) for rows in parts])
    assert (alike - whole).norm() > 0.05 * whole.norm()


def test_every_part_is_taken_once_and_no_process_is_left_out():
    parts, tokens = [np.array([i]) for i in range(5)], [10, 11, 12, 13, 14]
    taken = [own_parts(parts, tokens, process, 2) for process in range(2)]
    assert [[n for _, n in mine] for mine in taken] == [[10, 12, 14], [11, 13]]
    assert own_parts(parts[:1], tokens[:1], 1, 2) == [(parts[0], 0)]  # takes part and counts nothing


def test_a_process_for_each_thread_of_a_cpu():
    assert processes_of_a_node("cpu", None, 2, 8) == 2
    assert processes_of_a_node("cpu", None, 16, 8) == 8
    assert processes_of_a_node("cpu", 1, 16, 8) == 1
    assert processes_of_a_node("cuda", None, 16, 8) == 1
    assert processes_of_a_node("cuda", 4, 16, 8) == 4


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


@pytest.mark.parametrize("mode", ["synthesize", "reconstruct"])
def test_processes_write_what_one_writes(dataset, one, tmp_path, monkeypatch, mode):
    model = next(tmp_path.parent.glob("one*/model"))
    given = {"model": model, "train": dataset["train"], "test": dataset["test"], "mode": mode}
    given |= {"batch_size": 32, "device": "cpu", "patients": 150 if mode == "synthesize" else None}
    monkeypatch.setattr("generate.WORTH", 1)
    made = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have
    for number, seed in ((1, 0), (2, 0), (2, 1)):
        folder = tmp_path / f"{number}-{seed}"
        generate(
            **given,
            synthetic=folder / "visits.parquet",
            counts=folder / "counts.json",
            threads=number,
            seed=seed,
        )
        assert sorted(path.name for path in folder.iterdir()) == ["counts.json", "visits.parquet"]
        made.append([(folder / name).read_bytes() for name in ("visits.parquet", "counts.json")])
    torch.set_num_threads(threads)
    assert made[0] == made[1]
    assert made[2] != made[1], "rejected: another seed"


def test_a_process_that_fails_leaves_nothing_and_says_why(dataset, one, tmp_path, monkeypatch):
    monkeypatch.setattr("generate.WORTH", 1)
    monkeypatch.setattr("generate.requested_patients", lambda *_: (np.full(150, 40.0), np.zeros(150, int)))
    model = next(tmp_path.parent.glob("one*/model"))
    files = {"synthetic": tmp_path / "out" / "visits.parquet", "counts": tmp_path / "out" / "counts.json"}
    ages = tmp_path / "ages.csv"
    ages.write_text("age,sex\nold,F\n")  # read by the processes alone
    with pytest.raises(UserError, match="ages.csv"):
        generate(
            model=model,
            train=dataset["train"],
            test=dataset["test"],
            batch_size=32,
            demographics=str(ages),
            device="cpu",
            threads=2,
            **files,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_process_takes_the_shard_of_its_rank(monkeypatch):
    assert shard_of_process(2, 5) == (2, 5)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert shard_of_process(1, 1) == (2, 3)


def test_keywords_become_options():
    found = options_of({"do_sample": True, "constrained": False, "top_k": 0, "rules": None})
    assert found == ["--do-sample", "--no-constrained", "--top-k=0"]
