"""The adapter: one function called by a rule, from the command line and by a test."""

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cohortloom.base import step
from cohortloom.base.errors import UserError
from conftest import REPOSITORY


def job(**parts):
    """A stand-in for the object that Snakemake hands to a script."""
    job = {"rule": "example", "threads": 3, "wildcards": [], "log": []}
    return SimpleNamespace(**{**job, "input": {}, "output": {}, "params": {}, "config": {}, **parts})


def example(
    *, visits: Path, parts: list[Path], records: Path, n: int, device: str = "auto", threads: int = 1
):
    """Stand-in step."""


def test_files_become_paths_and_params_stay():
    found = step.arguments(
        example,
        job(
            input={"visits": "a", "parts": ["b", "c"], "modules": ["x.py"]},
            output={"records": "d"},
            params={"n": 5, "script": "example"},
            config={"train": {"device": "cpu", "nodes": 2}},
        ),
        untracked="train",
    )
    assert found == {
        "visits": Path("a"),
        "parts": [Path("b"), Path("c")],
        "records": Path("d"),
        "n": 5,
        "device": "cpu",
        "threads": 3,
    }


def test_only_untracked_keys_are_taken_from_the_config():
    """A key that a rule forgets would work and never cause a rerun."""

    def forgetful(*, tokens: int = 5, devices: int | None = None):
        pass

    found = step.arguments(forgetful, job(config={"train": {"tokens": 7, "devices": 2}}), untracked="train")
    assert found == {"devices": 2}


def test_an_optional_input_without_a_file_keeps_its_default():
    def edited(*, parts: list[Path], rules: Path | None = None):
        pass

    assert step.arguments(edited, job(input={"rules": [], "parts": []})) == {"parts": []}
    assert step.arguments(edited, job(input={"rules": "a", "parts": ["b"]})) == {
        "rules": Path("a"),
        "parts": [Path("b")],
    }


def test_folders_given_as_params_become_paths():
    found = step.arguments(example, job(params={"visits": "folder", "parts": ["b"]}))
    assert found["visits"] == Path("folder") and found["parts"] == [Path("b")]


def test_a_folder_that_may_be_none_becomes_a_path():
    def optional(*, checkpoints: Path | None = None, demographics: str = "test"):
        pass

    found = step.arguments(optional, job(params={"checkpoints": "folder", "demographics": "train"}))
    assert found == {"checkpoints": Path("folder"), "demographics": "train"}


def test_settings_are_params():
    found = step.arguments(example, job(params={"settings": {"visits": "folder", "n": 5}, "device": "fast"}))
    assert found == {"visits": Path("folder"), "n": 5, "device": "fast", "threads": 3}


@pytest.mark.parametrize("params", [{"m": 1}, {"settings": {"m": 1}}])
def test_a_param_that_the_step_does_not_take_is_refused(params):
    with pytest.raises(TypeError, match="passes the param m, which example does not take"):
        step.arguments(example, job(params=params))


def test_untracked_keys_are_left_alone_where_none_is_named():
    assert "speed" not in step.arguments(example, job(config={"train": {"speed": "fast"}}))


def test_a_users_mistake_ends_in_one_line(tmp_path, caplog):
    def fails(*, visits: Path):
        raise UserError(f"{visits}: no such file")

    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as caught:
        step.main(fails, job(input={"visits": "a.parquet"}, log=[str(tmp_path / "log")]))
    assert caught.value.code == 1
    assert [record.getMessage() for record in caplog.records] == ["error: a.parquet: no such file"]


def test_a_programmers_mistake_keeps_its_traceback():
    def fails(*, visits: Path):
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        step.main(fails, job(input={"visits": "a"}))


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, REPOSITORY / "workflow_scripts" / f"{script}.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


SCRIPTS = sorted(path.stem for path in (REPOSITORY / "workflow_scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_a_command_line(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "--help" in done.stdout, done.stderr


def test_the_command_line_tells_mistakes_in_one_line(tmp_path):
    files = [f"--{name}={tmp_path / name}" for name in ("train", "val", "test", "vocabulary")]
    done = run("build_dataset", f"--visits={tmp_path / 'none.parquet'}", *files)
    assert done.returncode == 1
    assert "none.parquet: no such file" in done.stderr and "Traceback" not in done.stderr
    assert run("build_dataset", "--visit=x").returncode == 2
