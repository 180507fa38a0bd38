"""Checkpoints of a training, written atomically by one job at a time.

A file is written under another name, flushed to disk and renamed. The two newest are kept: if the last one is
damaged, the one before serves. The name holds the digest of everything that shapes the weights, and a
checkpoint is never resumed under another digest. It holds tensors, numbers, strings, lists and dictionaries
only.

A job claims the folder by a lease: a file that it touches twice a minute. The lease is stale if its owner is
a dead process of this host, or if the waiting job has seen no touch for LEASE seconds by its own clock. So it
works on a shared file system, with clocks that differ, and for owners killed on another node.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import SoftFileLease, Timeout

from cohortloom.base.errors import UserError
from cohortloom.base.files import atomic
from cohortloom.base.step import log

LEASE = 90.0  # seconds
MAX_CHECKPOINTS = 2


class Checkpoints:
    """The checkpoints of one training in a folder; without a folder nothing is saved or resumed."""

    def __init__(self, folder: Path | None, digest: str):
        self.folder, self.digest = folder, digest
        self._lease: SoftFileLease | None = None

    def save(self, tokens: int, content: dict[str, Any]) -> None:
        """Write a checkpoint at `tokens` target tokens, then remove all but the newest two.

        Raises UserError if the disk is full or another job has taken the folder; earlier checkpoints stay.
        """
        if self.folder is None:
            return
        if self._lease is not None and self._lease.compromise is not None:
            raise UserError(
                f"{self.folder}: another job has taken this folder ({self._lease.compromise.reason}), "
                "because this one did not answer; nothing was overwritten; let the other job finish"
            )
        with atomic(self.folder / self._name(tokens)) as temporary, open(temporary, "wb") as file:
            try:
                torch.save({"digest": self.digest, **content}, file)
            except RuntimeError as error:  # torch raises it for a failed write, without the OSError
                if "write" not in str(error) and "unexpected pos" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary)) from error
            file.flush()
            os.fsync(file.fileno())
        newest = self._of_digest()[:MAX_CHECKPOINTS]
        for path in self.folder.glob("checkpoint-*.pt"):
            if path not in newest:
                path.unlink()

    def newest(self) -> dict[str, Any] | None:
        """Content of the newest undamaged checkpoint of this digest, None if there is none."""
        for path in self._of_digest():
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises many kinds for a damaged file
                log.warning("%s: damaged (%s); trying the one before", path, type(error).__name__)
                continue
            if content.get("digest") == self.digest:
                log.info("resuming from %s", path)
                return content
        if self.folder is not None and any(self.folder.glob("checkpoint-*.pt")):
            log.info(
                "%s: no usable checkpoint of these parameters, data and code; starting over", self.folder
            )
        return None

    @contextmanager
    def claimed(self, lease: float = LEASE) -> Iterator[None]:
        """Claim the folder for this job; every job must use the same `lease` (seconds).

        Waits until the claim of another job is released or stale. Raises UserError if that job still lives
        after 2.5 leases.
        """
        if self.folder is None:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"{self.folder}: a file is in the way; name another folder for checkpoints"
            ) from None
        self._lease = SoftFileLease(str(self.folder / "lock"), lease_duration=lease)
        self._acquire(lease)
        try:
            for leftover in self.folder.glob(".checkpoint-*.tmp"):  # of a job that was killed while it saved
                leftover.unlink()
            (self.folder / "owner").write_text(f"{this_job()}\n", encoding="utf-8")
            yield
        finally:
            self._lease.release()

    def _acquire(self, lease: float) -> None:
        lock, started = self.folder / "lock", time.monotonic()
        mark, changed_at, is_logged = _mark(lock), started, False
        while True:
            with suppress(Timeout):
                self._lease.acquire(timeout=lease / 30, poll_interval=lease / 90)
                return
            now = time.monotonic()
            if not is_logged:
                log.warning("%s: claimed by %s; waiting for its end or a stale lease", lock, self._owner())
                is_logged = True
            if _mark(lock) != mark:
                mark, changed_at = _mark(lock), now
            elif now - changed_at > 1.2 * lease:
                self._lease.break_lock()  # on NFS the library may fail to replace a stale claim by its own
            if now - started > 2.5 * lease:
                raise UserError(
                    f"{self.folder}: {self._owner()} trains into this folder; wait for it, or cancel it first"
                )

    def _owner(self) -> str:
        with suppress(OSError):
            return (self.folder / "owner").read_text(encoding="utf-8").strip() or "another job"
        return "another job"

    def _of_digest(self) -> list[Path]:
        """Checkpoints of this digest, newest first."""
        if self.folder is None:
            return []
        return sorted(self.folder.glob(f"checkpoint-{self.digest[:12]}-*.pt"), reverse=True)

    def _name(self, tokens: int) -> str:
        return f"checkpoint-{self.digest[:12]}-{tokens:015d}.pt"


def this_job() -> str:
    """Name of this job for others that wait: the Slurm job or the process, and the host."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{f'Slurm job {job}' if job else f'process {os.getpid()}'} on {socket.gethostname()}"


def _mark(path: Path) -> tuple[int, int] | None:
    """Inode and time of the claim, which change when its owner touches it; None without a claim."""
    with suppress(OSError):
        status = os.stat(path)
        return status.st_ino, status.st_mtime_ns
    return None
