"""One training on several GPUs, in processes started by torchrun.

They share the visits of each step and train the same weights as one process, except for the heads, whose
losses are means over the visits of a process. `train.devices` processes run on each of `train.nodes` nodes.
The step starts them (by srun on several nodes), passes signals on and waits; they run the same script with
the same keywords.
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
    """Whether this process was started by torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process writes the files: the only process, or that of rank 0."""
    return int(os.environ.get("RANK", 0)) == 0 or not is_worker()


def launch(script: str, keywords: dict[str, Any], devices: int, nodes: int, threads: int = 1) -> None:
    """Run workflow_scripts/<script>.py on `devices` processes of each of `nodes` nodes.

    threads: of each node, shared by its processes. Raises UserError with the error line of a process,
    Interrupted after a signal, and RuntimeError for any other failure, whose output is in the log.
    """
    command = [*torchrun(devices, nodes), str(SCRIPTS / f"{script}.py"), *options_of(keywords)]
    log.info("starting %d processes on %d node%s", devices * nodes, nodes, "" if nodes == 1 else "s")
    threads_each = str(max(1, threads // devices))
    environment = _job_environment() | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads_each)
    message = ""
    with tempfile.TemporaryFile("w+") as errors, Stop() as stop:
        # In a session of their own, so that a signal to the group of this step reaches them once, from here.
        launcher = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=environment
        )
        if nodes == 1:  # srun would kill at SIGTERM; Slurm itself sends the signal to its processes
            stop.then = lambda _: launcher.send_signal(signal.SIGTERM)
        for line in launcher.stdout:
            log.info("%s", line.rstrip())
            message = match.group(1) if (match := re.match(r"(?:error|stopped): (.*)", line)) else message
        status = launcher.wait()
        errors.seek(0)
        output = errors.read()
    if status == 0:
        return
    if stop.requested:
        raise Interrupted(message or f"by {stop.signal.name}")
    if message:
        raise UserError(message)
    log.error("%s", output)
    if nodes > 1 and (lines := re.findall(r"srun: error: (.*)", output)):
        raise UserError(f"train.nodes: {nodes}: srun: {lines[0]}; give the job as many nodes and GPUs")
    raise RuntimeError(f"a process of {script} ended with status {status}; see the log above")


def options_of(keywords: dict[str, Any]) -> list[str]:
    """Keywords of a step as command-line options, one an item of a list; those that are None are left out."""
    named = {key.replace("_", "-"): value for key, value in keywords.items() if value is not None}
    return [
        f"--{'' if value else 'no-'}{key}" if isinstance(value, bool) else f"--{key}={value}"
        for key, values in named.items()
        for value in (values if isinstance(values, list) else [values])
    ]


def torchrun(devices: int, nodes: int) -> list[str]:
    """The command that starts the processes. Raises UserError for several nodes outside a Slurm job."""
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={devices}"]
    if nodes == 1:
        return [*run, "--standalone"]
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(f"train.nodes: {nodes} nodes need a Slurm job; run with --profile profiles/slurm")
    with socket.socket() as listener:  # the system chooses a free port
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    return [
        *("srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
        *("--kill-on-bad-exit=1", "--cpu-bind=none", *run, f"--nnodes={nodes}", f"--rdzv-id={job}"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={socket.gethostname()}:{port}"),
    ]


def _job_environment() -> dict[str, str]:
    """The environment without Slurm's variables of this step, whose one node srun would use for the job."""
    of_job = ("SLURM_JOB_ID", "SLURM_CONF")
    return {
        key: value
        for key, value in os.environ.items()
        if key in of_job or not key.startswith(("SLURM_", "SRUN_", "SLURMD_"))
    }


def any_process(accelerator, *flags: bool) -> list[bool]:
    """Each flag, true if it is true in any process; all processes must call this at the same point."""
    if accelerator.num_processes == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=accelerator.device)
    return (accelerator.reduce(raised, "sum") > 0).tolist()
