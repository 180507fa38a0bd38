"""Shared by the tests: the repository, a copy of the workflow, and the tiny experiment run once."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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


@dataclass
class Workflow:
    """A workflow folder and a working directory for it, run from a third place."""

    folder: Path
    directory: Path
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run snakemake; stdout and stderr come together in `stdout`."""
        environment = {key: value for key, value in os.environ.items() if key not in DROPPED_VARIABLES}
        environment |= self.environment
        command = [sys.executable, "-m", "snakemake", "--snakefile", self.folder / "Snakefile"]
        command += ["--max-jobs-per-timespan", "100/1s"]  # ends 4 s sooner than by profiles/default
        command += [*self.options, "--directory", self.directory, "--cores", "2", *arguments]
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.directory.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3000,
        )
        if check:
            assert done.returncode == 0, done.stdout
        return done

    def jobs(self, *arguments: str) -> set[str]:
        """Jobs that would run, such as {"preprocess", "generate multitask synthesize"}."""
        return listed_jobs(self.run("--dry-run", *arguments).stdout)


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Workflow:
    """The tiny experiment, finished: a copy of the workflow and a working directory elsewhere."""
    base = tmp_path_factory.mktemp("tiny")
    folder = copy_workflow(base / "workflow")
    (base / "work").mkdir()
    workflow = Workflow(folder, base / "work", ["--configfile", str(folder / "tests" / "config_tiny.yaml")])
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
def slurm():
    """A Slurm cluster of one node on this machine; tests that ask for it are skipped where it cannot be."""
    from slurm_cluster import running

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
