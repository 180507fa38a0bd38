"""Several GPUs at one training, started by torchrun: they share the visits of each step and learn as one,
but for the heads, whose losses are means over the visits of a process.

`train.devices` processes run on each of `train.nodes` nodes. The step starts them (under srun where there are
several nodes), hands the signals on and waits; they run the same script with the same keywords.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from typing import Any

import torch

from cohortloom.base.errors import Interrupted, UserError
from cohortloom.base.imports import SCRIPTS
from cohortloom.base.step import log
from cohortloom.runtime.interrupt import Stop


def is_worker() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process writes the files: the only one, or the one of rank 0."""
    return int(os.environ.get("RANK", 0)) == 0 or not is_worker()


def launch(script: str, keywords: dict[str, Any], devices: int, nodes: int, threads: int = 1) -> None:
    """Run workflow_scripts/<script>.py on `devices` processes of each of `nodes` nodes.

    threads: what the processes of a node share. Raises UserError with the one line that a process ended on,
    Interrupted after a signal, and RuntimeError for any other failure, whose output is in the log.
    """
    command = [*torchrun(devices, nodes), str(SCRIPTS / f"{script}.py"), *options_of(keywords)]
    log.info("starting %d processes on %d node%s", devices * nodes, nodes, "" if nodes == 1 else "s")
    each = str(max(1, threads // devices))
    environment = _outside() | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), each)
    last = ""
    with tempfile.TemporaryFile("w+") as noise, Stop() as stop:
        # A session of its own: a signal to the group of this step reaches them once, from here.
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=noise, text=True, start_new_session=True, env=environment
        )
        if nodes == 1:  # srun would kill at SIGTERM; to its processes Slurm itself sends the signal
            stop.then = lambda _: running.send_signal(signal.SIGTERM)
        for line in running.stdout:
            log.info("%s", line.rstrip())
            last = found.group(1) if (found := re.match(r"(?:error|stopped): (.*)", line)) else last
        status = running.wait()
        noise.seek(0)
        text = noise.read()
    if status == 0:
        return
    if stop.requested:
        raise Interrupted(last or f"by {stop.signal.name}")
    if last:
        raise UserError(last)
    log.error("%s", text)
    if nodes > 1 and (lines := re.findall(r"srun: error: (.*)", text)):
        raise UserError(f"train.nodes: {nodes}: srun: {lines[0]}; give the job as many nodes and GPUs")
    raise RuntimeError(f"a process of {script} ended with status {status}; see the log above")


def options_of(keywords: dict[str, Any]) -> list[str]:
    """Keywords of a step as its command-line options; None is left to the default."""
    named = {key.replace("_", "-"): value for key, value in keywords.items() if value is not None}
    return [
        f"--{'' if value else 'no-'}{key}" if isinstance(value, bool) else f"--{key}={value}"
        for key, value in named.items()
    ]


def torchrun(devices: int, nodes: int) -> list[str]:
    """The command that starts the processes. Raises UserError for several nodes outside a Slurm job."""
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={devices}"]
    if nodes == 1:
        return [*run, "--standalone"]
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(f"train.nodes: {nodes} nodes need a Slurm job; run with --profile profiles/slurm")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return [
        *("srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
        *("--kill-on-bad-exit=1", "--cpu-bind=none", *run, f"--nnodes={nodes}", f"--rdzv-id={job}"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={socket.gethostname()}:{port}"),
    ]


def _outside() -> dict[str, str]:
    """The environment without what Slurm says of this step, whose one node srun would take for the job's."""
    kept = ("SLURM_JOB_ID", "SLURM_CONF")
    return {
        key: value
        for key, value in os.environ.items()
        if key in kept or not key.startswith(("SLURM_", "SRUN_", "SLURMD_"))
    }


def any_process(accelerator, *flags: bool) -> list[bool]:
    """Each flag, true where any process raises it; all processes must ask at the same place."""
    if accelerator.num_processes == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=accelerator.device)
    return (accelerator.reduce(raised, "sum") > 0).tolist()
