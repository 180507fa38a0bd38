"""Shared by the tests: the repository, a copy of the workflow, and the tiny experiment run once."""

import csv
import functools
import gzip
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dry_runs import dry_run

# Before torch is imported, here and in every process that a test starts: sums over one thread and over two
# differ in the last bit, and the tests compare trainings of two processes bit by bit.
os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = (
    "Snakefile",
    "rules",
    "config",
    "profiles",
    "resources",
    "workflow_scripts",
    "environment.yml",
    "tests/config_tiny.yaml",
)
# Not for the workflow under test: a variable of the developer's own must change nothing.
DROPPED_VARIABLES = ("COHORTLOOM_RAW_DIR", "SNAKEMAKE_PROFILE", "PYTHONPATH")

# Fixtures that take long and are made once -> the group of the files that use them, the longest first.
GROUPS = {"tiny": "tiny", "slurm": "slurm", "prepared": "slurm", "memorised": "memorised"}
SLOW = {"tiny", "fresh", "slurm", "prepared", "memorised", "dataset"}  # that run Snakemake, or to train on


@functools.cache
def group_of(path: Path) -> str:
    """Group of a file of tests: that of the first of GROUPS that a function takes, else one of its own."""
    text = path.read_text(encoding="utf-8")
    groups = (name for fixture, name in GROUPS.items() if re.search(rf"def \w+\([^)]*\b{fixture}\b", text))
    return next(groups, path.name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow; files in the order of GROUPS, then others that have slow tests, then the rest."""
    for item in items:
        if SLOW & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    order = list(dict.fromkeys(GROUPS.values()))

    def place(item: pytest.Item) -> int:
        group = group_of(item.path)
        return order.index(group) if group in order else len(order) + (item.path not in slow)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """pytest -n 2: a group runs in one process. (`--dist loadgroup` has no effect since pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(config.rootpath / nodeid.split("::")[0])

    config.option.loadscopereorder = False  # the order of pytest_collection_modifyitems
    return Groups(config, log)


@dataclass
class Workflow:
    """A workflow folder and a working directory for it, run from a third place."""

    folder: Path
    directory: Path
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess:
        """Run snakemake; stdout and stderr come together in `stdout`."""
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *self._command(arguments)],
            cwd=self.directory.parent,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3000,
        )
        if check:
            assert done.returncode == 0, done.stdout
        return done

    def plan(self, *arguments: str | Path, status: int = 0) -> str:
        """What snakemake --dry-run says; it must end with this status."""
        found, text = dry_run(self._command(arguments), self.directory.parent, self._environment())
        assert found == status, text
        return text

    def jobs(self, *arguments: str | Path) -> set[str]:
        """Jobs that would run, such as {"preprocess", "generate multitask synthesize"}."""
        return listed_jobs(self.plan(*arguments))

    def _command(self, arguments: tuple[str | Path, ...]) -> list[str]:
        command = ["--snakefile", self.folder / "Snakefile"]
        command += ["--max-jobs-per-timespan", "100/1s"]  # ends 4 s sooner than by profiles/default
        command += [*self.options, "--directory", self.directory, "--cores", "2", *arguments]
        return [str(part) for part in command]

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in DROPPED_VARIABLES}
        return kept | self.environment


def listed_jobs(text: str) -> set[str]:
    """Jobs named in Snakemake's output: the rule and the values of its wildcards."""
    found = set()
    for block in re.split(r"\n(?=(?:local)?(?:rule|checkpoint) \w+:\n)", "\n" + text)[1:]:
        rule = re.match(r"(?:local)?(?:rule|checkpoint) (\w+):", block).group(1)
        wildcards = re.search(r"^    wildcards: (.*)$", block, re.MULTILINE)
        values = [part.split("=")[1] for part in wildcards.group(1).split(", ")] if wildcards else []
        found.add(" ".join([rule, *values]))
    return found - {"evaluate_all"}


def copy_workflow(target: Path) -> Path:
    """Copy what the workflow consists of to `target`."""
    for part in PARTS:
        source = REPOSITORY / part
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy2(source, target / part)
    return target


MARKER = "ZQXMARKER"


def mark_removed(path: Path, allowed: list[str]) -> None:
    """Append MARKER to each value of a raw table whose column may not pass preprocess."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if k in allowed else f"{v} {MARKER}" for k, v in row.items()})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Workflow:
    """The tiny experiment, finished: a copy of the workflow and a working directory elsewhere.

    Tests share it: one that changes it puts it back. What preprocess must remove is marked in the raw tables.
    """
    from cohortloom.sources.declared import read_source

    base = tmp_path_factory.mktemp("tiny")
    folder = copy_workflow(base / "workflow")
    (base / "work").mkdir()
    workflow = Workflow(folder, base / "work", ["--configfile", str(folder / "tests" / "config_tiny.yaml")])
    declared = read_source("mimic3").tables.values()
    tables = {f"raw/tiny/{table.name}.csv.gz": [c.name for c in table.columns] for table in declared}
    workflow.run("--", *tables)
    for name, allowed in tables.items():
        mark_removed(workflow.directory / name, allowed)
    workflow.run("evaluate_all")
    return workflow


@pytest.fixture
def fresh(tmp_path) -> Workflow:
    """The repository's own workflow and an empty working directory."""
    (tmp_path / "work").mkdir()
    return Workflow(REPOSITORY, tmp_path / "work")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Files of a split cohort of a known grammar: train, val, test, vocabulary."""
    from build_dataset import build_dataset
    from cohortloom.data.visits import write_visits
    from grammar import grammar_visits

    folder = tmp_path_factory.mktemp("dataset")
    write_visits(grammar_visits(3000, 0), folder / "visits.parquet", {})
    files = {name: folder / f"{name}.parquet" for name in ("train", "val", "test")}
    build_dataset(visits=folder / "visits.parquet", vocabulary=folder / "vocabulary.json", **files)
    return {**files, "vocabulary": folder / "vocabulary.json"}


@pytest.fixture(scope="session")
def thirds(tmp_path_factory) -> dict[str, Path]:
    """Files of a cohort of 240 patients, a third of them for training: train, val, test, vocabulary."""
    from build_dataset import build_dataset
    from cohortloom.data.visits import write_visits
    from metric_worlds import hospital

    folder = tmp_path_factory.mktemp("thirds")
    write_visits(hospital(240, 2), folder / "visits.parquet", {})
    files = {name: folder / f"{name}.parquet" for name in ("train", "val", "test")}
    files["vocabulary"] = folder / "vocabulary.json"
    shares = {"val_fraction": 0.33, "test_fraction": 0.33, "min_patients_per_code": 1}
    build_dataset(visits=folder / "visits.parquet", **shares, **files)
    return files


# Keywords of train() with which those 80 patients are memorised.
MEMORISING = {
    "preset": "tiny",
    "tokens": 20_000,
    "batch_tokens": 128,
    "learning_rate": 2.0,
    "dropout": 0.0,
    "evaluations": 1,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def memorised(thirds, tmp_path_factory) -> Path:
    """Folder of a model that has memorised the training patients of `thirds`."""
    from train import train

    folder = tmp_path_factory.mktemp("memorised") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.MAX_EPOCHS", 1000)
        train(
            **{name: thirds[name] for name in ("train", "val", "vocabulary")}, model_dir=folder, **MEMORISING
        )
    return folder


@pytest.fixture(scope="session")
def slurm():
    """A Slurm cluster of one node on this machine; tests that ask for it are skipped where it cannot be."""
    from slurm_cluster import running

    if " " in sys.executable:
        pytest.skip("a blank in the interpreter's path, which Snakemake's executor for Slurm does not quote")
    with running() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The tiny cohort and an undisturbed training, made without Slurm."""
    import yaml

    from slurm_cluster import LONG, ONE_THREAD, WEIGHTS

    base = tmp_path_factory.mktemp("prepared")
    folder = copy_workflow(base / "workflow")
    overlay = base / "long.yaml"
    overlay.write_text(yaml.safe_dump(LONG))
    (base / "work").mkdir()
    options = ["--configfile", str(folder / "tests/config_tiny.yaml"), str(overlay)]
    workflow = Workflow(folder, base / "work", options)
    workflow.run(*ONE_THREAD, "--", WEIGHTS)
    return workflow
