"""Checkpoints: written whole or not at all, resumed exactly after any end, by one job at a time."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from cohortloom.base.errors import Interrupted, UserError
from cohortloom.training import checkpoints as module
from cohortloom.training.checkpoints import Checkpoints
from cohortloom.training.trainer import Trainer
from test_training import BRIEF, SCRIPTS, equal, run_train

DIGEST = "d" * 64
LEASE = 1.5  # seconds, for tests


@pytest.fixture(scope="module")
def brief(dataset, tmp_path_factory):
    """Weights and history of an uninterrupted brief run."""
    return run_train(dataset, tmp_path_factory.mktemp("brief") / "model")


LONG = {"tokens": 12_000, "checkpoint_every_minutes": 0.002}


@pytest.fixture(scope="module")
def long(dataset, tmp_path_factory):
    """The same, long enough to be caught in the middle from outside."""
    return run_train(dataset, tmp_path_factory.mktemp("long") / "model", **LONG)


def command(dataset, folder, **options):
    """The training as a process of its own."""
    files = {key: dataset[key] for key in ("train", "val", "vocabulary")}
    given = {
        **BRIEF,
        **files,
        "model_dir": folder / "model",
        "checkpoints": folder / "checkpoints",
        **options,
    }
    call = [sys.executable, SCRIPTS / "train.py"]
    call += [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    return subprocess.Popen(
        [str(part) for part in call],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(folder):
    end = time.monotonic() + 120
    while not list((folder / "checkpoints").glob("checkpoint-*.pt")):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_only_the_two_newest_stay_and_other_digests_go(tmp_path):
    other, own = Checkpoints(tmp_path, "e" * 64), Checkpoints(tmp_path, DIGEST)
    other.save(900, {"x": torch.ones(1)})
    for tokens in (100, 200, 300):
        own.save(tokens, {"x": torch.full((1,), float(tokens))})
    assert [int(path.stem.split("-")[-1]) for path in sorted(tmp_path.glob("*.pt"))] == [200, 300]
    assert float(own.newest()["x"]) == 300
    assert other.newest() is None


def test_any_truncated_checkpoint_is_noticed(tmp_path):
    kept = Checkpoints(tmp_path, DIGEST)
    kept.save(1, {"x": torch.arange(1000)})
    kept.save(2, {"x": torch.arange(1000)})
    newest = sorted(tmp_path.glob("*.pt"))[-1]
    whole = newest.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        newest.write_bytes(whole[:length])
        assert kept.newest() is not None and kept._of_digest()[0] == newest
    with_both = sorted(tmp_path.glob("*.pt"))
    for path in with_both:
        path.write_bytes(whole[:100])
    assert kept.newest() is None


def test_a_pickled_checkpoint_is_not_run(tmp_path):
    """torch.load must refuse what would run code."""
    kept = Checkpoints(tmp_path, DIGEST)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"digest": DIGEST, "x": Evil()}, tmp_path / kept._name(5))
    assert kept.newest() is None and not (tmp_path / "ran").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root alone")
@pytest.mark.parametrize("inside", ["", "inside"])
def test_a_file_in_the_way_is_named(tmp_path, inside):
    (tmp_path / "file").write_text("mine")
    refused = pytest.raises(UserError, match="file.*: a file is in the way; name another folder")
    with refused, Checkpoints(tmp_path / "file" / inside, DIGEST).claimed():
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("mount is not allowed here")
    try:
        kept = Checkpoints(disk, DIGEST)
        kept.save(1, {"x": torch.ones(1000)})
        with pytest.raises(UserError, match="cannot be written .*No space left.*free the disk"):
            kept.save(2, {"x": torch.ones(2_000_000)})
        assert [path.name for path in disk.iterdir()] == [kept._name(1)]
        assert float(kept.newest()["x"].sum()) == 1000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_sigterm_saves_and_the_next_run_goes_on_exactly(dataset, long, tmp_path):
    running = command(dataset, tmp_path, **LONG)
    wait_for_checkpoint(tmp_path)
    running.terminate()
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 143, output
    assert "stopped: by SIGTERM" in output and "Traceback" not in output
    assert not (tmp_path / "model").exists() and not (tmp_path / "checkpoints" / "lock").exists()
    weights, history = run_train(dataset, tmp_path / "model", checkpoints=tmp_path / "checkpoints", **LONG)
    assert equal(long[0], weights) and history == long[1]


def test_sigkill_loses_the_interval_at_most(dataset, long, tmp_path, caplog):
    running = command(dataset, tmp_path, **LONG)
    wait_for_checkpoint(tmp_path)
    running.kill()
    running.communicate(timeout=120)
    assert running.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoints" / "lock").exists()  # a dead owner's
    with caplog.at_level("INFO", logger="cohortloom"):
        weights, history = run_train(
            dataset, tmp_path / "model", checkpoints=tmp_path / "checkpoints", **LONG
        )
    assert "resumed at token" in caplog.text
    assert equal(long[0], weights) and history == long[1]


@pytest.mark.parametrize("step", [3, 21, 33])
def test_training_resumes_after_a_signal_in_any_step_or_evaluation(
    dataset, brief, tmp_path, monkeypatch, step
):
    """The signal arrives in the middle of a step; at 21 and 33 others follow, one in an evaluation."""
    run, evaluate = Trainer._step, Trainer._evaluate

    def stopped(self, *batch):
        if self.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, *batch)

    def stopped_too(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    for name, function in (("_step", stopped), ("_evaluate", stopped_too)):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, name, function)
            with pytest.raises(Interrupted, match="by SIGTERM at token .* saved in .*; run it again"):
                run_train(dataset, tmp_path / "model", checkpoints=tmp_path / "checkpoints")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    weights, history = run_train(dataset, tmp_path / "model", checkpoints=tmp_path / "checkpoints")
    assert equal(brief[0], weights) and history == brief[1]


def test_a_lost_random_state_is_noticed_by_these_tests(dataset, tmp_path, monkeypatch):
    """The negative control: with dropout, a resume that forgets torch's generator ends elsewhere."""
    options = {"dropout": 0.3, "tokens": 4000}
    whole, _ = run_train(dataset, tmp_path / "whole", **options)
    for name, forget in (("kept", False), ("forgotten", True)):
        folder = tmp_path / name
        run = Trainer._step

        def stopped(self, *batch, run=run):
            if self.state.step == 15:
                os.kill(os.getpid(), signal.SIGTERM)
            return run(self, *batch)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", stopped)
            with pytest.raises(Interrupted):
                run_train(dataset, folder / "model", checkpoints=folder / "checkpoints", **options)
        with monkeypatch.context() as patch:
            if forget:
                patch.setattr("cohortloom.training.trainer.set_random_state", lambda state: None)
            torch.manual_seed(99)
            again, _ = run_train(dataset, folder / "model", checkpoints=folder / "checkpoints", **options)
        assert equal(whole, again) is not forget


def test_a_finished_training_has_nothing_to_train_again(dataset, brief, tmp_path, monkeypatch):
    """The job died after training and before its model was taken: no step is run again."""
    run_train(dataset, tmp_path / "model", checkpoints=tmp_path / "checkpoints")
    monkeypatch.setattr(Trainer, "_step", None)
    weights, history = run_train(dataset, tmp_path / "again", checkpoints=tmp_path / "checkpoints")
    assert equal(brief[0], weights) and history == brief[1]


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(dataset, tmp_path, monkeypatch):
    def explode(self):
        return 1.0 if self.state.step < 20 else 1e30

    options = {"checkpoint_every_minutes": 0.002, "checkpoints": tmp_path / "checkpoints"}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_rate", explode)
        with pytest.raises(UserError, match="not finite at token .* last checkpoint is kept"):
            run_train(dataset, tmp_path / "model", **options)
    for path in (tmp_path / "checkpoints").glob("checkpoint-*.pt"):
        content = torch.load(path, weights_only=True)
        assert all(torch.isfinite(value).all() for value in content["model"].values())


def test_minutes_bring_checkpoints_too(dataset, tmp_path):
    options = {"evaluations": 1}
    saved = {}
    save = Checkpoints.save
    for minutes in (60.0, 1e-9):
        names = saved.setdefault(minutes, [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Checkpoints,
                "save",
                lambda self, tokens, content, names=names: (
                    names.append(tokens) or save(self, tokens, content)
                ),
            )
            folder = tmp_path / str(minutes)
            run_train(
                dataset,
                folder / "model",
                checkpoints=folder / "checkpoints",
                checkpoint_every_minutes=minutes,
                **options,
            )
    assert len(saved[60.0]) == 1 and len(saved[1e-9]) > 40


def test_a_second_living_job_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    first, second = Checkpoints(tmp_path, DIGEST), Checkpoints(tmp_path, DIGEST)
    with (
        first.claimed(LEASE),
        pytest.raises(UserError, match="Slurm job 1234 on .* trains into this folder; wait for it, or"),
        second.claimed(LEASE),
    ):
        raise AssertionError("two jobs hold the folder")
    with second.claimed(LEASE):  # given back
        pass


def test_a_second_job_waits_for_the_first_to_end(tmp_path):
    first, order = Checkpoints(tmp_path, DIGEST), []

    def hold():
        with first.claimed(LEASE):
            order.append("first")
            time.sleep(LEASE)
            order.append("given back")

    thread = threading.Thread(target=hold)
    thread.start()
    while not order:
        time.sleep(0.01)
    with Checkpoints(tmp_path, DIGEST).claimed(LEASE):
        order.append("second")
    thread.join()
    assert order == ["first", "given back", "second"]


@pytest.fixture(params=["exchange", "no exchange"])
def file_system(request, monkeypatch):
    """With and without renameat2, which NFS refuses."""
    if request.param == "no exchange":
        monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
        monkeypatch.setattr("filelock._soft.exchange_supported", lambda: True)


def test_the_claim_of_a_job_killed_on_another_node_runs_out(tmp_path, monkeypatch, file_system):
    """Its process cannot be asked after from here; that it no longer touches its claim tells."""
    with Checkpoints(tmp_path, DIGEST).claimed(LEASE):
        claim = (tmp_path / "lock").read_text()
    host = module.socket.gethostname()
    (tmp_path / "lock").write_text(claim.replace(host, "othernode"))
    began = time.monotonic()
    with Checkpoints(tmp_path, DIGEST).claimed(LEASE):
        assert LEASE <= time.monotonic() - began < 2 * LEASE


def test_whoever_lost_the_folder_saves_no_more(tmp_path):
    first = Checkpoints(tmp_path, DIGEST)
    with first.claimed(LEASE):
        (tmp_path / "lock").unlink()  # as if it had been suspended for longer than the lease
        (tmp_path / "lock").write_text("another's")
        time.sleep(LEASE)
        with pytest.raises(UserError, match="another job has taken this folder"):
            first.save(1, {"x": torch.ones(1)})
    assert not list(tmp_path.glob("checkpoint-*"))
