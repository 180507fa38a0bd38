"""Dry runs without the imports: a server imports Snakemake once and forks a process for each dry run."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["snakemake.cli"])
SECONDS = 300


def snakemake(arguments: list[str], directory: str, environment: dict[str, str], output: str) -> None:
    """Body of the process: what `python -m snakemake` does, with its output in a file."""
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    # that of the tests holds our library; the workflow must find its own
    sys.path = [folder for folder in sys.path if not Path(folder, "cohortloom").is_dir()]
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main

    main()


def dry_run(arguments: list[str], directory: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of `snakemake --dry-run` with these arguments, called in `directory`."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        given = (["--dry-run", *arguments], str(directory), environment, output.name)
        process = SERVER.Process(target=snakemake, args=given)
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"snakemake --dry-run {' '.join(arguments)}: no answer in {SECONDS} s")
        return process.exitcode, output.read()
