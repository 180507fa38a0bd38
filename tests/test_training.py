"""Training: a known grammar is learnt, a resumed run equals an uninterrupted one, seeds decide."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cohortloom.base.errors import UserError
from cohortloom.data.examples import Examples
from cohortloom.data.visits import read_visits
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.model.initial import make_model
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from cohortloom.model.scoring import mean_losses
from cohortloom.training import trainer
from cohortloom.training.checkpoints import Checkpoints
from cohortloom.training.trainer import Plan, Trainer
from generate import generate
from grammar import ANAEMIA, FIRST, HYPERTENSION, breaches
from train import train

SCRIPTS = Path(__file__).parent.parent / "workflow_scripts"
BRIEF = {
    "preset": "tiny",
    "tokens": 6000,
    "batch_tokens": 128,
    "evaluations": 2,
    "checkpoint_every_minutes": 0.005,
    "device": "cpu",
}


@pytest.fixture(scope="module", autouse=True)
def _brief():
    """Less to generate at an evaluation, and a line in the log now and then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "SELECTION_PATIENTS", 50)
        patch.setattr(trainer, "LOG_TOKENS", 1000)
        yield


def run_train(dataset, folder, **options):
    given = {key: dataset[key] for key in ("train", "val", "vocabulary")}
    train(**given, model_dir=folder, **{**BRIEF, **options})
    with open(folder / "history.csv", newline="") as file:
        return load_file(folder / "model.safetensors"), list(csv.DictReader(file))


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def brief_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("brief") / "model"


@pytest.fixture(scope="module")
def brief(dataset, brief_folder):
    """Weights and history of an uninterrupted brief run."""
    return run_train(dataset, brief_folder)


def test_losses_are_logged_apart_for_training_and_validation(brief):
    _, history = brief
    assert {row["split"] for row in history} == {"train", "val", "saved"}
    for row in history:
        whole = float(row["lm_loss"]) + 0.3 * float(row["age_loss"]) + 0.2 * float(row["sex_loss"])
        assert float(row["loss"]) == pytest.approx(whole, rel=1e-4)
    lm = [float(row["lm_loss"]) for row in history if row["split"] == "train"]
    assert lm[-1] < lm[0]


def test_the_card_has_the_losses_of_the_saved_weights(dataset, brief, brief_folder):
    """Not those of the last checkpoint, which may not be the best one and was not calibrated."""
    model = PromptBartWithDemographicPrediction.from_pretrained(brief_folder).eval()
    losses = mean_losses(model, Examples.load(dataset["val"]))
    last, saved = brief[1][-2:]
    assert (last["split"], saved["split"]) == ("val", "saved")
    assert float(saved["lm_loss"]) == pytest.approx(losses["lm"], rel=2e-3) != float(last["lm_loss"])
    card = (brief_folder / "README.md").read_text(encoding="utf-8")
    sentences = " ".join(card.split())
    assert f"lm {float(saved['lm_loss']):.4f} nats" in sentences
    assert f"The weights are those at token {saved['tokens']}" in sentences
    assert f"| threads | {torch.get_num_threads()} |" in card and f"| torch | {torch.__version__} |" in card


def test_a_folder_of_the_user_is_not_replaced(dataset, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"thesis.txt|lacks|README"):
        run_train(dataset, tmp_path, tokens=10**9)  # refused before anything is trained
    assert (tmp_path / "README.md").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "thesis.txt"]


def test_same_seed_same_weights_other_seed_others(dataset, brief, tmp_path):
    again, history = run_train(dataset, tmp_path / "again")
    other, _ = run_train(dataset, tmp_path / "other", seed=1)
    assert equal(brief[0], again) and brief[1] == history
    assert not equal(brief[0], other)


class Wrapped(torch.nn.Module):
    """As DistributedDataParallel has it: a module around the model, which does not hear of its eval()."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, **given):
        return self.module(**given)


def test_every_step_drops_out_after_an_evaluation_too(dataset, tmp_path, monkeypatch):
    step, wrapping, seen = Trainer._step, [], []

    def look(self, *given):
        wrapping.append(wrapping[0] if wrapping else Wrapped(self.plain_model))
        before = self.plain_model.training
        self.model = wrapping[0]
        found = step(self, *given)
        self.model = self.plain_model
        seen.append((before, self.plain_model.training))
        return found

    monkeypatch.setattr(Trainer, "_step", look)
    run_train(dataset, tmp_path / "model")
    assert all(during for _, during in seen)
    assert sum(not before for before, _ in seen[1:]) == 1  # after the first of the two evaluations


def test_a_weight_of_zero_leaves_the_heads_untrained(dataset, brief, tmp_path):
    lm_only, history = run_train(dataset, tmp_path / "lm_only", age_weight=0.0, sex_weight=0.0)
    assert not equal(brief[0], lm_only)
    assert float(history[-1]["loss"]) == pytest.approx(float(history[-1]["lm_loss"]))


def test_the_whole_loss_takes_the_age_in_its_unit_in_validation_too(dataset, tmp_path):
    _, history = run_train(dataset, tmp_path / "years", age_loss_unit="years", tokens=600, evaluations=1)
    assert {row["split"] for row in history} == {"train", "val", "saved"}
    for row in history:
        parts = [float(row[name]) for name in ("lm_loss", "age_loss_years2", "sex_loss")]
        assert float(row["loss"]) == pytest.approx(parts[0] + 0.3 * parts[1] + 0.2 * parts[2], rel=1e-4)
        # rejected: the age in standard deviations
        assert float(row["loss"]) > 1.5 * (parts[0] + 0.3 * float(row["age_loss"]) + 0.2 * parts[2])


def interrupted(dataset, folder, monkeypatch, after):
    """Start a run and stop it after some steps, as a kill would."""
    step = Trainer._step

    def stop(self, batch, share):
        if self.state.step >= after:
            raise KeyboardInterrupt
        return step(self, batch, share)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_train(dataset, folder / "model", checkpoints=folder / "checkpoints")
    return sorted((folder / "checkpoints").glob("checkpoint-*"))


def test_a_resumed_run_equals_an_uninterrupted_one(dataset, brief, tmp_path, monkeypatch):
    saved = interrupted(dataset, tmp_path, monkeypatch, after=40)
    assert saved and not (tmp_path / "model").exists()
    steps = []
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda *given: steps.append(1) or step(*given))
    weights, history = run_train(dataset, tmp_path / "model", checkpoints=tmp_path / "checkpoints")
    assert len(steps) < int(history[-1]["step"])  # it did resume
    assert equal(brief[0], weights) and history == brief[1]


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(dataset, brief, tmp_path, monkeypatch):
    saved = interrupted(dataset, tmp_path, monkeypatch, after=40)
    assert len(saved) == 2
    saved[-1].write_bytes(saved[-1].read_bytes()[:1000])
    weights, history = run_train(dataset, tmp_path / "model", checkpoints=tmp_path / "checkpoints")
    assert equal(brief[0], weights) and history == brief[1]


def test_a_checkpoint_of_other_parameters_is_not_resumed(dataset, tmp_path, monkeypatch, caplog):
    interrupted(dataset, tmp_path, monkeypatch, after=40)
    run_train(dataset, tmp_path / "model", checkpoints=tmp_path / "checkpoints", learning_rate=1.3)
    fresh, _ = run_train(dataset, tmp_path / "fresh", learning_rate=1.3)
    assert equal(load_file(tmp_path / "model" / "model.safetensors"), fresh)


def test_a_loss_that_is_not_finite_stops_the_run(dataset, tmp_path):
    with pytest.raises(UserError, match="not finite"):
        run_train(dataset, tmp_path / "model", learning_rate=1e12)
    assert not (tmp_path / "model").exists()


def test_a_requested_gpu_that_is_absent_is_an_error(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU is visible"):
        run_train(dataset, tmp_path / "model", device="cuda")


def test_the_script_runs_from_the_command_line(dataset, tmp_path):
    command = [sys.executable, SCRIPTS / "train.py"]
    files = [f"--{key}={dataset[key]}" for key in ("train", "val", "vocabulary")]
    options = [f"--{key.replace('_', '-')}={value}" for key, value in {**BRIEF, "tokens": 500}.items()]
    subprocess.run(
        [*command, *files, f"--model-dir={tmp_path / 'model'}", *options], check=True, capture_output=True
    )
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "vocabulary.json",
        "README.md",
    } <= names
    gone = subprocess.run([*command, *files], capture_output=True, text=True)
    assert gone.returncode == 2 and "--model-dir" in gone.stderr and "Traceback" not in gone.stderr


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A tiny model that has learnt the grammar."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    options = {
        "tokens": 100_000,
        "batch_tokens": 192,
        "dropout": 0.0,
        "evaluations": 1,
    }
    run_train(dataset, folder, **options)
    return folder


def run_generate(trained, dataset, folder, **options):
    given = {"model_dir": trained, "train": dataset["train"], "test": dataset["test"], "device": "cpu"}
    generate(**given, synthetic=folder / "s.parquet", counts=folder / "s.json", **options)
    return read_visits(folder / "s.parquet")


def test_a_known_grammar_is_learnt_and_a_wrong_one_rejected(trained, dataset, tmp_path):
    # Below temperature 1 the last tenths of a percent of a briefly trained tiny model do not count.
    made = run_generate(trained, dataset, tmp_path, temperature=0.5)
    assert made.num_rows >= 300
    assert breaches(made) == 0
    swapped = {"F": FIRST["M"], "M": FIRST["F"]}
    assert breaches(made, swapped) > 0.4 * made.num_rows


def test_no_code_twice_in_a_visit_but_again_in_the_next(trained, dataset, tmp_path):
    made = run_generate(trained, dataset, tmp_path, temperature=0.5).to_pylist()
    assert all(len(set(row["diagnoses"])) == len(row["diagnoses"]) for row in made)
    later = [row for row in made if row["visit"] == 1]
    assert len(later) >= 30
    assert sum(row["diagnoses"] == [HYPERTENSION, ANAEMIA] for row in later) >= 0.95 * len(later)


def test_days_and_ages_follow_the_gaps(trained, dataset, tmp_path):
    made = run_generate(trained, dataset, tmp_path, temperature=0.5).to_pylist()
    days = np.array([row["days"] for row in made if row["visit"] == 1])
    assert (((days >= 25) & (days <= 35)) | ((days >= 340) & (days <= 360))).mean() > 0.9
    first = {row["patient_id"]: row["age"] for row in made if row["visit"] == 0}
    grown = [row["age"] - first[row["patient_id"]] for row in made if row["visit"] == 1]
    assert set(grown) == {0.0, 1.0}


def test_seeds_decide_the_synthetic_file(trained, dataset, tmp_path):
    content = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_generate(trained, dataset, tmp_path, seed=seed)
        content[name] = (tmp_path / "s.parquet").read_bytes()
    assert content["a"] == content["b"] != content["c"]


def test_ids_are_new_and_demographics_are_the_test_patients(trained, dataset, tmp_path):
    made, real = run_generate(trained, dataset, tmp_path), read_visits(dataset["test"])
    assert not set(made["patient_id"].to_pylist()) & set(real["patient_id"].to_pylist())
    wanted, got = (
        [(row["age"], row["sex"]) for row in table.to_pylist() if row["visit"] == 0] for table in (real, made)
    )
    assert wanted == got


def test_reconstruct_keeps_revealed_codes_and_recovers_hidden_ones(trained, dataset, tmp_path):
    made = run_generate(trained, dataset, tmp_path, mode="reconstruct").to_pylist()
    real = {(row["patient_id"], row["visit"]): row for row in read_visits(dataset["test"]).to_pylist()}
    assert len(made) == len(real)
    found = hidden = 0
    for row in made:
        true = set(real[row["source_patient_id"], row["source_visit"]]["diagnoses"])
        assert set(row["revealed_diagnoses"]) <= true and set(row["revealed_diagnoses"]) <= set(
            row["diagnoses"]
        )
        found += len(true & set(row["diagnoses"])) - len(row["revealed_diagnoses"])
        hidden += len(true) - len(row["revealed_diagnoses"])
    assert found > 0.7 * hidden


def test_requested_demographics_are_read_and_checked(trained, dataset, tmp_path):
    wanted = tmp_path / "wanted.csv"
    wanted.write_text("sex,age\nF,30\nM,0\n")
    made = run_generate(trained, dataset, tmp_path, demographics=str(wanted))
    first = [(row["age"], row["sex"]) for row in made.to_pylist() if row["visit"] == 0]
    assert first == [(30.0, "F"), (0.0, "M")]
    wanted.write_text(" Sex ,AGE\n f , 30\nM,0\n")
    assert run_generate(trained, dataset, tmp_path, demographics=str(wanted)).equals(made)
    for text, column, value in (("age,sex\n85,F\n", "age", "'85'"), ("age,sex\n30,X\n", "sex", "'X'")):
        wanted.write_text(text)
        with pytest.raises(UserError, match=f"line 2: column {column}: {value}"):
            run_generate(trained, dataset, tmp_path, demographics=str(wanted))
    wanted.write_text("age\n30\n")
    with pytest.raises(UserError, match="column sex is missing"):
        run_generate(trained, dataset, tmp_path, demographics=str(wanted))


def test_a_repeated_code_is_refused_not_repaired(trained, dataset, tmp_path):
    """Without the ban on repeats and with equal probabilities a code repeats, and nothing is written."""
    with pytest.raises(UserError, match="stands twice"):
        run_generate(trained, dataset, tmp_path, no_repeat_ngram_size=0, temperature=10.0)
    assert not (tmp_path / "s.parquet").exists()


def test_dataset_holds_token_ids(dataset):
    assert {"diagnoses_ids", "terminator"} <= set(pq.read_schema(dataset["train"]).names)


@pytest.fixture
def precision_open():
    """accelerate keeps the precision of the first training in a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_a_step_is_shared_by_target_tokens(dataset, precision_open):
    """What two processes take of a step adds up to the step, whatever each of them holds."""
    vocabulary, data = Vocabulary.load(dataset["vocabulary"]), Examples.load(dataset["train"])
    plan = Plan(seed=0, tokens=10**6, batch_tokens=256, learning_rate=1.0, evaluations=1, precision="float32")
    model = make_model(vocabulary, data, "tiny", 0, 0.0, age_weight=0.0, sex_weight=0.0)
    made = Trainer(model, vocabulary, data, data, plan, Checkpoints(None, ""), "cpu")
    pairs, batches = made._epoch(np.flatnonzero(np.diff(data.offsets) > 0))

    def gradient(rows, processes):
        model.zero_grad()
        made._processes = processes
        tokens = []
        for made._process in range(processes):
            batch, share, n = made._batch(pairs, rows)
            (model(**batch).loss * share).backward()
            tokens.append(n)
        assert set(tokens) == {int(pairs.targets(rows).sum())}
        return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])

    uneven = batches[0][np.argsort(pairs.targets(batches[0]))][:7]
    for rows in (
        batches[0],
        uneven,
        batches[0][:1],
    ):  # of one visit the second process takes a copy for nothing
        whole, shared = (gradient(rows, processes) for processes in (1, 2))
        assert (whole - shared).norm() < 1e-5 * whole.norm()
    # rejected: processes that weigh alike
    weighed = Trainer._batch
    made._batch = lambda pairs, rows: (lambda b, s, n: (b, 0.5, n))(*weighed(made, pairs, rows))
    alike = gradient(uneven, 2)
    assert (gradient(uneven, 1) * 2 - alike).norm() > 1e-3 * alike.norm()
