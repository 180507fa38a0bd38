"""The Makefile tells what is missing instead of failing somewhere in pip."""

import re
import shutil
import subprocess
import sys

import pytest

from conftest import REPOSITORY


@pytest.fixture
def make(tmp_path):
    """Run make in a folder that holds the Makefile and the requirements alone."""
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = ["make", "--no-print-directory", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


def interpreter(path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_help_names_every_target(make):
    text = make("help").stdout
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split())
    assert {"demo", "test", "test-fast"} <= targets
    for target in targets - {"help"} | {"TORCH_INDEX"}:
        assert re.search(rf"^(make )?{target}\b", text, re.MULTILINE), target
    assert make().stdout == text


def test_an_old_or_missing_python_is_named(make, tmp_path):
    old = interpreter(tmp_path / "old", "exit 1")
    for python in (old, str(tmp_path / "none")):
        done = make("demo", f"PYTHON={python}")
        assert done.returncode != 0 and f"error: {python} is missing or older than 3.11" in done.stdout
        assert not (tmp_path / ".venv").exists()


def test_a_missing_venv_module_names_the_package_to_install(make, tmp_path):
    lame = interpreter(
        tmp_path / "lame", f'case "$2" in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"'
    )
    done = make("demo", f"PYTHON={lame}")
    assert done.returncode != 0 and "apt install python3-venv" in done.stdout


def test_the_torch_index_reaches_pip(make):
    text = make("--dry-run", ".venv/.installed", "TORCH_INDEX=https://example.org/cpu").stdout
    assert "--extra-index-url https://example.org/cpu" in text
    assert "--extra-index-url" not in make("--dry-run", ".venv/.installed").stdout


def test_a_locked_folder_is_explained(make, tmp_path):
    """A failed run that left no lock is not blamed on one."""
    for name in (".installed", "bin/python"):
        (tmp_path / ".venv" / name).parent.mkdir(parents=True, exist_ok=True)
        interpreter(tmp_path / ".venv" / name, "exit 1")
    done = make("demo", "-o", ".venv/.installed")
    assert done.returncode != 0 and "unlock" not in done.stdout
    lock = tmp_path / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    done = make("demo", "-o", ".venv/.installed")
    assert done.returncode != 0 and "this folder is locked" in done.stdout and "make unlock" in done.stdout
