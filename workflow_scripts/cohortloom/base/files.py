"""Reading and writing files so that what is half-written never looks finished."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cohortloom.base.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, delete it on any error.

    Raises UserError where the folder or the disk refuses the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (temporary, path, path.parent):
            raise  # a file that is being read, not this one
        reason = error.strerror or error
        raise UserError(
            f"{path}: cannot be written ({reason}); free the disk or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # where the folder itself could not be made
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Parsed JSON of a file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a flat table atomically, a line a row; null is an empty field, a truth value true or false."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({n: str(v).lower() if isinstance(v, bool) else v for n, v in row.items()})


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted-as-given keys and a final newline, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
