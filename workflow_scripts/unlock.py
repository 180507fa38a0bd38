"""Remove the lock that a killed run of Snakemake left, unless another run works in the folder."""

import subprocess
import sys
from pathlib import Path

import psutil

from cohortloom.base.errors import UserError
from cohortloom.base.step import log, main

SNAKEFILE = Path(__file__).resolve().parents[1] / "Snakefile"


def unlock(*, directory: Path = Path(".")) -> None:
    """Unlock the working directory `directory` of the workflow.

    Raises UserError if a run on this machine works there; a run on another machine is not detected.
    """
    locks = directory / ".snakemake" / "locks"
    if not any(locks.glob("*.lock")):
        log.info("%s: not locked", directory.resolve())
        return
    if running := runs_in(directory):
        raise UserError(
            f"{directory.resolve()}: process {running[0]} works here, or may; wait for it, or end it first"
        )
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        SNAKEFILE,
        "--directory",
        directory,
        "--unlock",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{directory.resolve()}: cannot be unlocked: {done.stderr.strip().splitlines()[-1]}")
    log.info("%s: unlocked", directory.resolve())


def runs_in(directory: Path) -> list[int]:
    """Ids of the processes of Snakemake and of its jobs whose working directory is `directory`.

    A process whose working directory this user may not read counts too.
    """
    here = (directory.resolve(), None)
    ids = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        where = process.info["cwd"]
        if is_run(process.info["cmdline"] or []) and (Path(where).resolve() if where else None) in here:
            ids.append(process.pid)
    return ids


def is_run(command: list[str]) -> bool:
    """Whether a command line is that of Snakemake or of one of its scripts.

    >>> is_run(["python", "-m", "snakemake"]), is_run(["python", "/w/.snakemake/scripts/x.train.py"])
    (True, True)
    >>> is_run(["vim", "notes", "on", "the", "snakemake"])
    False
    """
    return any(Path(word).name == "snakemake" or "/.snakemake/scripts/" in word for word in command[:3])


if __name__ == "__main__":
    main(unlock)
