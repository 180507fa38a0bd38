"""Reading and writing files; a file that is not finished never has its final name."""

import csv
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cohortloom.base.errors import UserError

# Errors of a disk that is full, read-only, not writable for the user, or over a quota or a size limit.
DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG)


def disk_error(error: BaseException) -> str | None:
    """The reason, in words, why the disk refused a file; None for an error of another kind.

    safetensors gives the number of the system's error only in its message.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(match[1])
    return os.strerror(number) if number in DISK_ERRORS else None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, delete it on any error.

    Raises UserError if the folder or the disk refuses the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (temporary, path, path.parent):
            raise  # of another file, which is being read
        reason = error.strerror or error
        raise UserError(
            f"{path}: cannot be written ({reason}); free the disk or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # if the folder could not be created
            temporary.unlink(missing_ok=True)


def check_own_folder(folder: Path, names: Collection[str]) -> None:
    """Raise UserError unless `folder` is missing, has no file, or has exactly the files `names`.

    names: paths of all files that the step writes, relative to the folder. A folder without files may be
    replaced, because Snakemake creates it before a job. A folder with only some of the files may not: one of
    them, such as README.md, may be the user's.
    """
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder}: is a file or a link, not a folder; name another folder, or remove it")
    files, folders = set(), {str(parent) for name in names for parent in Path(name).parents}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if name not in (folders if is_folder else names):
            raise UserError(
                f"{folder}: holds {name}, which this step does not write; "
                "name another folder, or remove this one yourself"
            )
        if not is_folder:
            files.add(name)
    if files and (missing := sorted(set(names) - files)):
        raise UserError(
            f"{folder}: lacks {missing[0]}, so it is not what this step wrote; "
            "name another folder, or remove this one yourself"
        )


@contextmanager
def replace_own_folder(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """Yield an empty temporary folder for the files `names`; it then replaces `folder`.

    On any error `folder` does not change and the temporary folder is removed. Raises UserError as
    check_own_folder does, before anything is written and again before anything is replaced; ValueError if
    other files than `names` are written.
    """
    folder = Path(folder)
    check_own_folder(folder, names)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror or error}); choose another folder"
        ) from error
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as holder:
        new, old = Path(holder) / "new", Path(holder) / "old"
        new.mkdir()
        try:
            yield new
        except Exception as error:
            elsewhere = getattr(error, "filename", None)
            if (reason := disk_error(error)) is None or (elsewhere and holder not in str(elsewhere)):
                raise
            raise UserError(
                f"{folder}: cannot be written ({reason}); free the disk or choose another folder"
            ) from error
        written = {path.relative_to(new).as_posix() for path in new.rglob("*") if not path.is_dir()}
        if written != set(names):
            raise ValueError(f"{folder}: {sorted(written ^ set(names))}: written or expected, not both")
        check_own_folder(folder, names)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise


def tables_in(paths: Path | Sequence[Path]) -> list[Path]:
    """The files themselves, with each folder replaced by its tables (.csv, .csv.gz) in the order of names.

    Raises UserError for a folder without any.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, Path) else paths:
        found = sorted([*path.glob("*.csv"), *path.glob("*.csv.gz")]) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path}: no table (.csv, .csv.gz) is in this folder; give another")
        files += found
    return files


def read_json(path: Path) -> Any:
    """Parsed JSON of a file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a flat table atomically, one line for each row; null is an empty field, a bool true or false."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: str(v).lower() if isinstance(v, bool) else v for k, v in row.items()})


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in their order, with a final newline."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
