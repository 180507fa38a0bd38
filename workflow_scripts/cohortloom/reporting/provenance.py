"""Provenance of an experiment's figures: config, versions, commit, hardware, seeds, inputs."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "transformers", "accelerate", "safetensors", "numpy", "pandas", "pyarrow", "scipy"),
    *("scikit-learn", "matplotlib", "jinja2", "snakemake"),
)
WORKFLOW = Path(__file__).resolve().parents[3]


def collect(config: dict[str, Any], audit: dict[str, Any]) -> dict[str, Any]:
    """The content of provenance.json; the hardware is that of the machine that runs this step."""
    return {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "snakemake evaluate_all",
        "config": config,
        "seeds": seeds(config),
        "inputs_sha256": {table["file"]: table["sha256"] for table in audit["tables"]},
        "git": git(WORKFLOW),
        "versions": versions(),
        "hardware": hardware(),
    }


def seeds(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Path -> value of every key `seed` or `seeds` of the config, such as dataset.seed."""
    by_path = {}
    for name, value in config.items():
        if isinstance(value, dict):
            by_path |= seeds(value, f"{prefix}{name}.")
        elif name in ("seed", "seeds"):
            by_path[f"{prefix}{name}"] = value
    return by_path


def git(folder: Path) -> dict[str, Any] | None:
    """Commit of a checkout and whether files differ from it; None if the folder is not a checkout."""
    try:
        commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
        changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(changes)}


def versions() -> dict[str, str | None]:
    """Version of Python and of each of PACKAGES; None if it is not installed."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB and the names of GPUs, without importing torch."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory, 1),
        "gpus": _gpus(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        return _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
