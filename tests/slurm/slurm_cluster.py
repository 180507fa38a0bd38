"""Helpers of the drills: a cluster of one node, an undisturbed training as the reference, a watched run."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import SoftFileLease
from safetensors.torch import load_file

from conftest import DROPPED_VARIABLES, Workflow

SCRIPT = Path(__file__).with_name("cluster.sh")
MODEL = "results/tiny/models/multitask"
CHECKPOINTS = "results/tiny/checkpoints/multitask"
WEIGHTS = f"{MODEL}/model.safetensors"
# Enough steps that something can happen in the middle of them. One thread, here and on Slurm: sums of floats
# depend on how many there are.
LONG = {
    "runs": {"canaries": None},
    "train": {
        "tokens": 12_000,
        "batch_tokens": 64,
        "evaluations": 12,  # each is a row of the curve, in which a gap or a repeat must show
        "checkpoint_every_minutes": 0.01,
    },
}
EARLY = 1000  # tokens after which a drill begins
ONE_THREAD = ("--set-threads", "train=1")


@dataclass
class Cluster:
    """A running Slurm; `records` holds the last that its controller said of each job."""

    folder: Path
    records: dict[int, dict[str, str]] = field(default_factory=dict)
    first: int = 1

    @property
    def environment(self) -> dict[str, str]:
        """Variables for processes that are to see this cluster, with one thread a process."""
        kept = {key: value for key, value in os.environ.items() if key not in DROPPED_VARIABLES}
        programs = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}"
        return {**kept, "PATH": programs, "OMP_NUM_THREADS": "1"}

    def call(self, *command: str, timeout: float = 10) -> str:
        """Output of a Slurm client; a call that fails or hangs for `timeout` seconds is an error."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=True
        )
        return done.stdout

    def look(self) -> dict[int, dict[str, str]]:
        """All jobs that the controller knows, added to `records`; nothing new where it does not answer."""
        try:
            text = self.call("scontrol", "-o", "-d", "show", "job")
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return self.records
        for line in text.splitlines():
            fields = dict(re.findall(r"(\S+?)=(\S*)", line))
            if int(fields.get("JobId", 0)) >= self.first:
                self.records[int(fields["JobId"])] = fields
        return self.records

    def of_rule(self, rule: str) -> list[dict[str, str]]:
        """Records of the jobs of a rule, oldest first."""
        of = re.compile(rf"rule_{rule}(_wildcards_.*)?$")
        return [job for _, job in sorted(self.records.items()) if of.match(job.get("Comment", ""))]

    def control(self, action: str) -> None:
        """start, stop or restart, by the script in this folder."""
        subprocess.run([SCRIPT, action, self.folder], check=True, timeout=120)

    def forget(self) -> None:
        """Cancel all jobs and remove their records, so that they do not appear in another test."""
        self.call("scancel", "--user", str(os.getuid()))
        wait_until(lambda: not self.call("squeue", "-h", "-t", "PD,R,CG"), 60)
        self.first = max([*self.look(), self.first - 1]) + 1
        self.records.clear()


@contextmanager
def running(nodes: int = 1, port: int = 16817) -> Iterator[Cluster]:
    """A started cluster, ended afterwards. Skips the test where Slurm is not installed."""
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")))  # names of sockets must be short
    start = [SCRIPT, "start", cluster.folder, str(nodes)]
    environment = {**os.environ, "SLURM_TEST_PORT": str(port)}
    try:
        done = subprocess.run(start, capture_output=True, text=True, timeout=120, env=environment)
        if done.returncode == 3:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stdout + done.stderr
        yield cluster
    finally:
        cluster.control("stop")
        shutil.rmtree(cluster.folder)


def wait_until(true: Callable[[], object], seconds: float) -> None:
    """Ask twice a second; an error after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.5)


def is_disturbed(pid: int) -> bool:
    """Whether a halted process runs again, is gone, or has SIGTERM waiting for it."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    fields = dict(line.split(":\t", 1) for line in text.splitlines())
    return fields["State"][0] not in "tT" or bool(int(fields["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1)


def has_ended(pid: int) -> bool:
    """Whether there is no such process any more."""
    return not os.path.exists(f"/proc/{pid}")


@dataclass
class Outcome:
    """What a training left: weights by name, and rows of its loss curve."""

    weights: dict
    history: list[dict[str, str]]

    @classmethod
    def of(cls, directory: Path) -> "Outcome":
        with open(directory / MODEL / "history.csv", newline="", encoding="utf-8") as file:
            return cls(load_file(directory / WEIGHTS), list(csv.DictReader(file)))


def assert_same(found: Outcome, expected: Outcome) -> None:
    """The loss curve has neither gap nor repeat nor another value, and the final weights are equal."""
    places = [(row["split"], int(row["tokens"])) for row in found.history]
    assert len(set(places)) == len(places), "a part of the loss curve is repeated"
    assert places == [(row["split"], int(row["tokens"])) for row in expected.history], "the curve has a gap"
    assert found.history == expected.history, "the loss curve differs"
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        assert found.weights[name].equal(weight), f"{name} differs"


def untrained(prepared: Workflow, name: str) -> Path:
    """A copy of the prepared cohort without its model.

    It lies beside the one that was prepared, so that relative names stay what they were.
    """
    directory = prepared.directory.with_name(name)
    shutil.copytree(prepared.directory, directory)
    shutil.rmtree(directory / "results/tiny/models")
    shutil.rmtree(directory / "results/tiny/checkpoints")
    return directory


class Drill:
    """A training of the prepared cohort as a job of the cluster, in a directory of its own."""

    def __init__(self, cluster: Cluster, prepared: Workflow, name: str, profile: Path | None = None):
        """`profile` replaces profiles/slurm."""
        self.directory = untrained(prepared, name)
        self.cluster, self.folder, self.options = cluster, prepared.folder, prepared.options
        self.profile = profile or self.folder / "profiles/slurm"
        self.running: list[subprocess.Popen] = []
        cluster.forget()

    def command(self, *arguments: str) -> list[str]:
        """snakemake with the profile; only the polling is made quicker, for the tests' sake."""
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(self.folder / "Snakefile")),
            *("--profile", str(self.profile), *self.options),
            *("--slurm-init-seconds-before-status-checks", "3", *ONE_THREAD, *arguments),
        ]

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start snakemake for the weights of the run multitask; its output goes to snakemake-<n>.txt."""
        log = self.directory / f"snakemake-{len(self.running)}.txt"
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                self.command(*arguments, "--", WEIGHTS),
                cwd=self.directory,
                env=self.cluster.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.running.append(process)
        return process

    def finish(self, process: subprocess.Popen, seconds: float = 400) -> None:
        """Wait for snakemake, looking at the jobs meanwhile; it must succeed."""
        wait_until(lambda: (self.cluster.look(), process.poll() is not None)[1], seconds)
        number = self.running.index(process)
        assert process.returncode == 0, (self.directory / f"snakemake-{number}.txt").read_text()
        self.cluster.look()

    def saved(self) -> int:
        """Target tokens of the newest checkpoint, 0 without one."""
        found = (self.directory / CHECKPOINTS).glob("checkpoint-*.pt")
        return max((int(path.stem.split("-")[-1]) for path in found), default=0)

    @contextmanager
    def caught(self, seconds: float = 200) -> Iterator[int]:
        """Hold the training in its middle, however fast the machine is; yields its process.

        It is halted, but for a blink every 20 s, in which it touches its claim. Once somebody else has sent
        it SIGTERM or woken it, it is let go, for it has work to save.
        """
        end, over = time.monotonic() + seconds, threading.Event()
        while self.saved() < EARLY:
            assert time.monotonic() < end, f"no checkpoint within {seconds} s"
            time.sleep(0.02)
        pid = self.pid()
        os.kill(pid, signal.SIGSTOP)

        def hold() -> None:
            with suppress(ProcessLookupError):
                while True:
                    until = time.monotonic() + 20
                    done = False
                    while not done and time.monotonic() < until:
                        done = over.wait(0.2) or is_disturbed(pid)
                    os.kill(pid, signal.SIGCONT)
                    if done:
                        return
                    time.sleep(0.05)
                    os.kill(pid, signal.SIGSTOP)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            self.cluster.look()
            yield pid
        finally:
            over.set()
            thread.join()

    def pid(self) -> int:
        """Process that trains: the owner of the claim on the checkpoints."""
        return SoftFileLease(str(self.directory / CHECKPOINTS / "lock"), lease_duration=90.0).pid

    def log(self) -> str:
        """Log of the latest attempt."""
        return (self.directory / "results/tiny/logs/train.multitask.log").read_text()

    def resumed_at(self) -> int:
        """Token at which the latest attempt went on. An error where it began anew."""
        found = re.search(r"resumed at token (\d+)", self.log())
        assert found, f"the training began anew:\n{self.log()}"
        return int(found.group(1))

    def slurm_logs(self) -> list[str]:
        """Slurm's log of each job of the rule train, oldest first."""
        files = (self.directory / "slurm_logs/rule_train").rglob("*.log")
        return [path.read_text() for path in sorted(files, key=lambda path: int(path.stem))]

    def end(self) -> None:
        """Kill what is left of it."""
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        self.cluster.forget()
