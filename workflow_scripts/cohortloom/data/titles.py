"""Codes in words, from one table of titles a code system (resources/titles/SYSTEM.csv or SYSTEM.csv.gz)."""

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.base.files import tables_in
from cohortloom.data.codes import parts


def titles_of(codes: Iterable[str], tables: Path | Sequence[Path]) -> dict[str, str]:
    """Title of each SYSTEM:CODE that has one; only the tables of the codes' systems are read.

    tables: files that are named by their system, or the folder that holds them. Codes retired before the
    version of a table, and all codes of a system without one, have no title.
    """
    wanted = set(codes)
    systems = {parts(code)[0] for code in wanted}
    titles: dict[str, str] = {}
    for path in tables_in(tables):
        system = path.name.split(".")[0]
        if system in systems:
            named = ((f"{system}:{code}", title) for code, title in _rows(path))
            titles.update((name, title) for name, title in named if name in wanted)
    return titles


def _rows(path: Path) -> list[tuple[str, str]]:
    """Code and title of each row of a table."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", newline="", encoding="utf-8") as file:
            return [(row["code"], row["title"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; rebuild it by resources/build_code_tables.py") from None
