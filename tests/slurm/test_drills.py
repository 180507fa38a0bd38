"""A training on Slurm that is killed, stopped, requeued or doubled ends as if nothing had happened.

Each drill compares the loss curve and the final weights with those of an undisturbed training on this
machine, and makes sure that its disturbance took place.
"""

import copy
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
import yaml

from conftest import Workflow
from slurm_cluster import (
    CHECKPOINTS,
    EARLY,
    ONE_THREAD,
    WEIGHTS,
    Drill,
    Outcome,
    assert_same,
    has_ended,
    running,
    untrained,
    wait_until,
)

ROUNDING = 2e-3  # of losses and weights, between one process and two (tests/test_parallel.py)
drill = pytest.mark.drill  # the long ones: make drills


@pytest.fixture
def expected(prepared) -> Outcome:
    return Outcome.of(prepared.directory)


@pytest.fixture
def training(slurm, prepared, request):
    made = Drill(slurm, prepared, request.node.name)
    yield made
    made.end()


def damaged(outcome: Outcome):
    """Outcomes that must not pass: a repeat, a gap, another loss, another weight."""
    rows, name = outcome.history, next(iter(outcome.weights))
    other = {**rows[7], "lm_loss": repr(float(rows[7]["lm_loss"]) + 1e-9)}
    yield Outcome(outcome.weights, [*rows[:9], *rows[6:]])
    yield Outcome(outcome.weights, [*rows[:6], *rows[9:]])
    yield Outcome(outcome.weights, [*rows[:7], other, *rows[8:]])
    weights = copy.deepcopy(outcome.weights)
    weights[name].view(-1)[0] += 1e-6
    yield Outcome(weights, rows)


def test_a_damaged_outcome_does_not_pass():
    rows = [{"split": "train", "tokens": str(1000 * k), "lm_loss": repr(7 - k / 10)} for k in range(12)]
    sound = Outcome({"weight": torch.arange(6.0).reshape(2, 3)}, rows)
    assert_same(sound, copy.deepcopy(sound))
    for outcome in damaged(sound):
        with pytest.raises(AssertionError):
            assert_same(outcome, sound)


def test_kill_9_in_the_middle(training, expected):
    run = training.start()
    with training.caught() as process:
        os.kill(process, signal.SIGKILL)
        saved = training.saved()
    training.finish(run)
    assert [job["JobState"] for job in training.cluster.of_rule("train")] == ["FAILED", "COMPLETED"]
    assert saved <= training.resumed_at() <= saved + 600  # at most the interval, and a batch, is lost
    assert_same(Outcome.of(training.directory), expected)


@drill
def test_without_a_checkpoint_the_training_begins_anew(training, expected):
    """What the other drills must notice: damaged checkpoints bring the same weights, but from the start."""
    run = training.start()
    with training.caught() as process:
        os.kill(process, signal.SIGKILL)
        for path in (training.directory / CHECKPOINTS).glob("checkpoint-*.pt"):
            path.write_bytes(path.read_bytes()[:5000])
    training.finish(run)
    with pytest.raises(AssertionError, match="began anew"):
        training.resumed_at()
    assert "damaged" in training.log()
    assert_same(Outcome.of(training.directory), expected)


@drill
def test_a_truncated_newest_checkpoint(training, expected):
    run = training.start()
    with training.caught() as process:
        os.kill(process, signal.SIGKILL)
        newest = max((training.directory / CHECKPOINTS).glob("checkpoint-*.pt"))
        newest.write_bytes(newest.read_bytes()[:-100])
    training.finish(run)
    assert "damaged" in training.log()
    assert 0 < training.resumed_at() < int(newest.stem.split("-")[-1])
    assert_same(Outcome.of(training.directory), expected)


@drill
def test_the_time_limit_is_reached(training, expected):
    """A limit of two minutes, and the signal a minute before it, or up to half a minute earlier."""
    run = training.start(
        *("--set-resources", "train:runtime=2", "train:mem_mb=64000", "train:gpu=1"),
        *("train:slurm_extra='--signal=TERM@60'", "--retries", "5"),  # the last option takes one value alone
    )
    with training.caught() as process:
        wait_until(lambda: has_ended(process), 240)
    training.finish(run, 600)
    jobs = training.cluster.of_rule("train")
    assert {job["TimeLimit"] for job in jobs} == {"00:02:00"}
    assert len(jobs) > 1 and {job["JobState"] for job in jobs[:-1]} <= {"FAILED", "TIMEOUT"}
    assert any("stopped: by SIGTERM at token" in text for text in training.slurm_logs()[:-1])
    assert training.resumed_at() >= EARLY
    assert_same(Outcome.of(training.directory), expected)


@drill
def test_a_requeue(training, expected):
    run = training.start()
    with training.caught() as process:
        (job,) = training.cluster.of_rule("train")
        training.cluster.call("scontrol", "requeue", job["JobId"])
        wait_until(lambda: has_ended(process), 60)
    training.finish(run, 600)
    (job,) = training.cluster.of_rule("train")
    assert job["Restarts"] == "1" and job["JobState"] == "COMPLETED"
    assert training.resumed_at() > 0
    assert_same(Outcome.of(training.directory), expected)


@drill
def test_preemption(training, expected):
    """A job of a partition of higher priority takes both GPUs; the training ends within its grace of 20 s."""
    run = training.start()
    with training.caught() as process:
        training.cluster.call(
            "sbatch", "--partition=urgent", "--gpus=2", "--mem=100", "--output=/dev/null", "--wrap=sleep 10"
        )
        wait_until(lambda: has_ended(process), 60)
    training.finish(run, 600)
    first, second = training.cluster.of_rule("train")
    assert first["PreemptTime"] != "None" and second["JobState"] == "COMPLETED"
    assert "stopped: by SIGTERM at token" in training.slurm_logs()[0]
    assert training.resumed_at() >= EARLY
    assert_same(Outcome.of(training.directory), expected)


@drill
def test_a_second_snakemake_on_the_same_results(training, expected):
    """The first snakemake is killed, its job trains on; the job of the second one waits for it."""
    first = training.start()
    with training.caught():
        first.kill()
        first.wait()
        locked = training.start()
        assert locked.wait(120) == 1 and "--unlock" in (training.directory / "snakemake-1.txt").read_text()
        subprocess.run(
            training.command("--unlock"), cwd=training.directory, env=training.cluster.environment, check=True
        )
        second = training.start()
        wait_until(lambda: (training.cluster.look(), len(training.cluster.of_rule("train")) == 2)[1], 120)
        one, two = (int(job["JobId"]) for job in training.cluster.of_rule("train"))
        wait_until(lambda: "claimed by Slurm job" in training.slurm_logs()[-1], 120)
        assert f"claimed by Slurm job {one} on" in training.slurm_logs()[-1]
        records = training.cluster.look()
        assert records[one]["JobState"] == records[two]["JobState"] == "RUNNING"
    training.finish(second)
    assert [training.cluster.records[job]["JobState"] for job in (one, two)] == ["COMPLETED"] * 2
    assert training.resumed_at() == int(expected.history[-1]["tokens"])  # nothing was left to train
    assert_same(Outcome.of(training.directory), expected)


@drill
def test_the_controller_is_restarted(training, expected):
    run = training.start()
    with training.caught():
        (before,) = training.cluster.of_rule("train")
        training.cluster.control("restart")
    training.finish(run)
    (job,) = training.cluster.of_rule("train")
    assert (job["JobId"], job["JobState"]) == (before["JobId"], "COMPLETED")
    assert "resumed" not in training.log()  # the job itself was not disturbed
    assert_same(Outcome.of(training.directory), expected)


def assert_close(found: Outcome, expected: Outcome) -> None:
    """The same steps, losses and weights, as far as the order of sums and bf16 inside Muon allow."""
    losses, tokens = zip(*map(numbers, (found, expected)), strict=True)
    np.testing.assert_allclose(*losses, rtol=ROUNDING)
    assert tokens[0] == tokens[1], "the curves are of other steps"
    flat = [
        torch.cat([part.weights[name].flatten() for name in expected.weights]) for part in (found, expected)
    ]
    assert (flat[0] - flat[1]).norm() < ROUNDING * flat[1].norm(), "the weights differ"


def numbers(outcome: Outcome) -> tuple[list[list[float]], list[int]]:
    """Losses and tokens of the loss curve."""
    losses = [[float(row[name]) for name in ("lm_loss", "loss")] for row in outcome.history]
    return losses, [int(row["tokens"]) for row in outcome.history]


@drill
def test_two_nodes_train_one_model(prepared, tmp_path):
    """Two slurmd on this machine, a process on each, stopped in the middle: the training of one process.

    Put aside is what each process has of its own: dropout, and the head losses, means over its visits. One
    evaluation, or a last digit may decide which weights are taken.
    """
    base = tmp_path / "base.yaml"
    alike = {"dropout": 0.0, "precision": "float32", "age_weight": 0.0, "sex_weight": 0.0}
    brief = {"tokens": 4000, "batch_tokens": 256, "evaluations": 1, "checkpoint_every_minutes": 0.001}
    base.write_text(yaml.safe_dump({"train": alike | brief}))
    halves = tmp_path / "halves.yaml"
    halves.write_text(yaml.safe_dump({"train": {"batch_tokens": 128}}))
    two_nodes = tmp_path / "nodes.yaml"
    two_nodes.write_text(yaml.safe_dump({"train": {"nodes": 2}}))
    profile = tmp_path / "profile"
    profile.mkdir()
    text = (prepared.folder / "profiles/slurm/config.yaml").read_text()
    assert text.count("  nodes: 1") == 1
    (profile / "config.yaml").write_text(text.replace("  nodes: 1", "  nodes: 2"))

    outcomes = []
    for name, overlays in (("one-node", [str(base)]), ("half-steps", [str(base), str(halves)])):
        one = Workflow(prepared.folder, untrained(prepared, name), [*prepared.options, *overlays])
        one.run(*ONE_THREAD, "--", WEIGHTS)
        assert "processes" not in (one.directory / "results/tiny/logs/train.multitask.log").read_text()
        outcomes.append(Outcome.of(one.directory))
    expected, other = outcomes
    assert_close(expected, expected)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):  # as if each took its half for a step
        assert_close(other, expected)

    given = Workflow(prepared.folder, prepared.directory, [*prepared.options, str(base), str(two_nodes)])
    with running(2, 17000) as cluster:
        two = Drill(cluster, given, "two-nodes", profile)
        run = two.start()
        with two.caught() as process:
            (job,) = cluster.of_rule("train")
            assert job["NumNodes"] == "2"
            cluster.call("scancel", "--signal=TERM", job["JobId"])  # as at the time limit
            wait_until(lambda: has_ended(process), 60)
        two.finish(run)
        assert [job["JobState"] for job in cluster.of_rule("train")] == ["FAILED", "COMPLETED"]
    assert "starting 2 processes on 2 nodes" in two.log()
    assert "stopped: by SIGTERM at token" in two.slurm_logs()[0]
    assert two.resumed_at() >= EARLY
    assert_close(Outcome.of(two.directory), expected)


def test_no_option_of_slurm_is_left_behind(slurm):
    assert not os.path.lexists("/etc/slurm/slurm.conf") and "SLURM_CONF" not in os.environ
    assert shutil.which("sbatch", path=slurm.environment["PATH"]) == str(slurm.folder / "bin" / "sbatch")
