"""Checkpoints of a training: written whole, read back whole, and by one job at a time.

A file is written under another name, flushed to disk and renamed; the two newest are kept, so that a
damaged one leaves the one before. Its name starts with the digest of all that shapes the weights, and it is
never resumed under another digest. Only tensors, numbers, strings, lists and dictionaries go in and out.

The folder is claimed by a lease: a file that its owner touches twice a minute. It is stale where its owner
is a dead process of this host, or has not touched it for LEASE seconds as seen by the one who waits, so
that it works over a shared file system, whatever the clocks say, and for owners killed on another node.
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
KEPT = 2


class Checkpoints:
    """The checkpoints of one training in a folder; without a folder nothing is saved or found."""

    def __init__(self, folder: Path | None, digest: str):
        self.folder, self.digest = folder, digest
        self._lease: SoftFileLease | None = None

    def save(self, tokens: int, content: dict[str, Any]) -> None:
        """Write a checkpoint after `tokens` target tokens, then remove all but the newest two.

        Raises UserError for a full disk and where another job has taken the folder; the earlier
        checkpoints stay.
        """
        if self.folder is None:
            return
        if self._lease is not None and self._lease.compromise is not None:
            raise UserError(
                f"{self.folder}: another job has taken this folder ({self._lease.compromise.reason}), "
                "for this one did not answer; nothing was overwritten; let the other one finish"
            )
        with atomic(self.folder / self._name(tokens)) as temporary, open(temporary, "wb") as file:
            try:
                torch.save({"digest": self.digest, **content}, file)
            except RuntimeError as error:  # what torch makes of a write that failed, the OSError being lost
                if "write" not in str(error) and "unexpected pos" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary)) from error
            file.flush()
            os.fsync(file.fileno())
        kept = self._own()[:KEPT]
        for path in self.folder.glob("checkpoint-*.pt"):
            if path not in kept:
                path.unlink()

    def newest(self) -> dict[str, Any] | None:
        """Content of the newest checkpoint of this digest that can be read; None where there is none."""
        for path in self._own():
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises many kinds for a damaged file
                log.warning("%s: damaged (%s); trying the one before", path, type(error).__name__)
                continue
            if content.get("digest") == self.digest:
                log.info("resuming from %s", path)
                return content
        if self.folder is not None and any(self.folder.glob("checkpoint-*.pt")):
            log.info("%s: no sound checkpoint of these parameters, data and code; begun anew", self.folder)
        return None

    @contextmanager
    def claimed(self, lease: float = LEASE) -> Iterator[None]:
        """Hold the folder alone; every job must use the same `lease` (seconds).

        Waits until a claim is given back or found stale. Raises UserError where its owner still lives after
        2.5 leases.
        """
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lease = SoftFileLease(str(self.folder / "lock"), lease_duration=lease)
        self._acquire(lease)
        try:
            for leftover in self.folder.glob(".checkpoint-*.tmp"):  # of a job that was killed while it saved
                leftover.unlink()
            (self.folder / "owner").write_text(f"{me()}\n", encoding="utf-8")
            yield
        finally:
            self._lease.release()

    def _acquire(self, lease: float) -> None:
        lock, started = self.folder / "lock", time.monotonic()
        mark, changed, told = _mark(lock), started, False
        while True:
            with suppress(Timeout):
                self._lease.acquire(timeout=lease / 30, poll_interval=lease / 90)
                return
            now = time.monotonic()
            if not told:
                log.warning("%s: claimed by %s; waiting for it to end or turn out dead", lock, self._owner())
                told = True
            if _mark(lock) != mark:
                mark, changed = _mark(lock), now
            elif now - changed > 1.2 * lease:
                self._lease.break_lock()  # NFS: the library may not exchange a stale claim for its own there
            if now - started > 2.5 * lease:
                raise UserError(
                    f"{self.folder}: {self._owner()} trains into this folder; wait for it, or cancel it first"
                )

    def _owner(self) -> str:
        with suppress(OSError):
            return (self.folder / "owner").read_text(encoding="utf-8").strip() or "another job"
        return "another job"

    def _own(self) -> list[Path]:
        """Checkpoints of this digest, newest first."""
        if self.folder is None:
            return []
        return sorted(self.folder.glob(f"checkpoint-{self.digest[:12]}-*.pt"), reverse=True)

    def _name(self, tokens: int) -> str:
        return f"checkpoint-{self.digest[:12]}-{tokens:015d}.pt"


def me() -> str:
    """Who this is, for the one who waits: the Slurm job or the process, and the host."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{f'Slurm job {job}' if job else f'process {os.getpid()}'} on {socket.gethostname()}"


def _mark(path: Path) -> tuple[int, int] | None:
    """What changes when the owner touches its claim: inode and time."""
    with suppress(OSError):
        found = os.stat(path)
        return found.st_ino, found.st_mtime_ns
    return None
