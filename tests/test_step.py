"""The adapter: one function called by a rule, from the command line and by a test."""

import importlib
import inspect
import logging
import os
import re
import runpy
import subprocess
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest

from cohortloom.base import step
from cohortloom.base.errors import UserError
from cohortloom.base.files import replace_own_folder
from cohortloom.base.ranges import check_ranges, ranges_of
from conftest import REPOSITORY
from unlock import unlock


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


def test_only_untracked_keys_are_read_from_the_config():
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


def test_params_of_folders_become_paths():
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


def test_untracked_keys_are_ignored_without_a_section():
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


SCRIPTS = {path.stem: path for path in sorted((REPOSITORY / "workflow_scripts").glob("*.py"))}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script as a program, without the seconds that an interpreter of its own takes to import."""

    def run(script: str, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr."""
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS[script]), *arguments])
        monkeypatch.setattr(logging.root, "handlers", [])  # else the step's own would not be added
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS[script]), run_name="__main__")
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_a_command_line(run, script):
    status, out, err = run(script, "--help")
    assert status == 0 and "--help" in out, err


def test_the_command_line_reports_mistakes_in_one_line(run, tmp_path):
    files = [f"--{name}={tmp_path / name}" for name in ("train", "val", "test", "vocabulary")]
    status, _, err = run("build_dataset", f"--visits={tmp_path / 'none.parquet'}", *files)
    assert status == 1 and "none.parquet: no such file" in err and len(err.splitlines()) == 1
    assert run("build_dataset", "--visit=x")[0] == 2


def test_a_script_is_a_program_of_its_own(tmp_path):
    """In an interpreter that has imported nothing of ours."""
    command = [sys.executable, SCRIPTS["build_dataset"], f"--visits={tmp_path / 'none.parquet'}"]
    command += [f"--{name}={tmp_path / name}" for name in ("train", "val", "test", "vocabulary")]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "none.parquet: no such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("patients", -5, "of at least 1"),
        ("patients", 0, "of at least 1"),
        ("seed", -1, "of at least 0"),
        ("sample_seed", -1, "of at least 0"),
        ("batch_size", 0, "of at least 1 and of at most 65536"),
        ("val_fraction", 1.0, "above 0 and below 1"),
        ("prompt_prob", float("nan"), "of at least 0 and of at most 1"),
        ("show", -1, "of at least 0"),
    ],
)
def test_an_option_out_of_range_is_named_with_its_range(option, value, words):
    name = re.escape(f"--{option.replace('_', '-')}: {value} is out of range; give a number {words}")
    with pytest.raises(UserError, match=f"^{name}$"):
        check_ranges({option: value})


def test_options_in_range_and_those_without_one_pass():
    check_ranges({"patients": 1, "seed": 0, "val_fraction": 0.5, "control": True, "rules": None, "run": "x"})


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_that_a_script_takes_has_a_range(script):
    parameters = inspect.signature(getattr(importlib.import_module(script), script)).parameters.values()
    for parameter in parameters:
        kinds = {parameter.annotation, *typing.get_args(parameter.annotation)}
        assert not kinds & {int, float} or ranges_of(parameter.name), parameter


def test_nothing_is_written_for_an_option_out_of_range(run, tmp_path):
    made = tmp_path / "new" / "visits.parquet"
    status, _, err = run("generate_patients", f"--synthetic={made}", "--patients=0")
    assert status == 1 and len(err.splitlines()) == 1
    assert err.endswith("error: --patients: 0 is out of range; give a number of at least 1\n")
    assert not made.parent.exists()


def test_a_terminal_that_is_not_utf_8_shows_what_it_can(tmp_path):
    script = tmp_path / "show.py"
    script.write_text(
        "from cohortloom.base.step import log, main\n"
        "def show():\n    print('5 years² –')\n    log.info('²')\n"
        "main(show)\n",
        encoding="utf-8",
    )
    folder = str(REPOSITORY / "workflow_scripts")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": folder}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "5 years? ?\n")
    assert done.stderr.endswith(" ?\n") and "Error" not in done.stderr


class Unwritable(Exception):
    """As safetensors raises it: no OSError, the system's number in the message alone."""

    def __init__(self):
        super().__init__("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Unwritable()], ids=type)
def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, error):
    """Neither a temporary folder nor half a model stays behind."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    with (
        pytest.raises(UserError, match=r"model: cannot be written \(No space left on device\); free"),
        replace_own_folder(folder, ["weights"]) as new,
    ):
        (new / "weights").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "weights").read_text() == "old"


def test_an_error_of_another_kind_in_a_folder_keeps_its_traceback(tmp_path):
    with pytest.raises(ValueError, match="bug"), replace_own_folder(tmp_path / "model", []):
        raise ValueError("bug (os error 2)")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Unwritable()], ids=type)
def test_a_full_disk_ends_any_step_in_one_line(caplog, error):
    def fails(*, visits: Path):
        raise error

    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as caught:
        step.main(fails, job(input={"visits": "a.parquet"}))
    assert caught.value.code == 1
    told = [record.getMessage() for record in caplog.records]
    assert told == ["error: disk: No space left on device; free the disk or choose another folder"]


@pytest.fixture
def locked(tmp_path):
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    return lock


def test_the_lock_of_a_killed_run_is_removed(locked, tmp_path):
    unlock(directory=tmp_path)
    assert not locked.exists()
    unlock(directory=tmp_path)  # nothing to do


def test_the_lock_of_a_run_that_works_stays(locked, tmp_path):
    stand_in = tmp_path / "snakemake"
    stand_in.write_text("import time\nprint(1, flush=True)\ntime.sleep(60)\n")
    running = subprocess.Popen([sys.executable, str(stand_in)], cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        running.stdout.readline()
        with pytest.raises(UserError, match=f"process {running.pid} works here"):
            unlock(directory=tmp_path)
        assert locked.exists()
    finally:
        running.kill()
        running.wait()
