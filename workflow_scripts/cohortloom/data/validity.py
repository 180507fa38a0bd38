"""Which codes of diagnoses and procedures are impossible or implausible at an age or for a sex.

The tables (resources/validity/, one a code system) have one row a code prefix. The longest prefix that a code
begins with decides, and a row without limits lifts those of a shorter prefix. Codes of a system without a
table, such as all medications, are unconstrained (`Rules.systems` names those with one). The full edit is
what the Medicare Code Editor rejects; the hard edit is what is impossible rather than unlikely. Ages are in
completed years. Visits have no calendar dates: one rule a prefix holds, whatever its valid_from and valid_to.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.files import tables_in
from cohortloom.data.codes import SYSTEMS, parts
from cohortloom.data.visits import SEXES

COLUMNS = (
    "system",
    "prefix",
    "sex",
    "age_min",
    "age_max",
    "hard_sex",
    "hard_age_min",
    "hard_age_max",
    "category",
    "valid_from",
    "valid_to",
    "source",
)
ANY_SEX = -1
NO_LIMIT = 32767


@dataclass(frozen=True)
class CodeRules:
    """Rules of an array of codes, one entry a code: sex -1 any, 0 F, 1 M; limits in completed years."""

    sex: np.ndarray
    age_min: np.ndarray
    age_max: np.ndarray
    hard_sex: np.ndarray
    hard_age_min: np.ndarray
    hard_age_max: np.ndarray
    category: np.ndarray  # newborn, pediatric, maternity, adult, a union by "+", female, male or ""

    @property
    def restricted(self) -> np.ndarray:
        """Whether the full edit limits the code at all."""
        return (self.sex != ANY_SEX) | (self.age_min > 0) | (self.age_max < NO_LIMIT)

    def breaks_sex(self, index: np.ndarray, sex: np.ndarray, hard: bool = False) -> np.ndarray:
        """Whether code `index` is barred for `sex` (0 F, 1 M); both of any shapes that broadcast."""
        only = (self.hard_sex if hard else self.sex)[index]
        return (only != ANY_SEX) & (only != sex)

    def breaks_age(self, index: np.ndarray, age: np.ndarray, hard: bool = False) -> np.ndarray:
        """Whether code `index` is barred at `age` in years; both of any shapes that broadcast."""
        years = completed_years(age)
        low, high = (self.hard_age_min, self.hard_age_max) if hard else (self.age_min, self.age_max)
        return (years < low[index]) | (years > high[index])

    def forbidden(
        self, index: np.ndarray, age: np.ndarray, sex: np.ndarray, hard: bool = False
    ) -> np.ndarray:
        """Whether code `index` breaks any part of the edit."""
        return self.breaks_sex(index, sex, hard) | self.breaks_age(index, age, hard)


@dataclass(frozen=True)
class Violations:
    """One bool a flat code: which part of the edits it breaks, and whether it is restricted at all."""

    sex: np.ndarray
    age: np.ndarray
    any: np.ndarray
    hard: np.ndarray
    restricted: np.ndarray
    category: np.ndarray  # of str, the code's category


class Rules:
    """Validity tables by SYSTEM:PREFIX.

    >>> rules = Rules({"ICD9CM:V30": {"age_max": "0", "category": "newborn"}})
    >>> codes = rules.of(["ICD9CM:V3000", "ICD9CM:4019"])
    >>> codes.breaks_age(np.array([0, 1]), np.array([40.0, 40.0]))
    array([ True, False])
    """

    def __init__(self, rows: dict[str, dict[str, str]]):
        self._rows = rows
        self._longest = max((len(prefix) for prefix in rows), default=0)
        self.systems = frozenset(prefix.split(":")[0] for prefix in rows)

    def row(self, code: str) -> dict[str, str]:
        """Row of the longest prefix of `code`; empty where none matches."""
        for length in range(min(len(code), self._longest), 0, -1):
            if code[:length] in self._rows:
                return self._rows[code[:length]]
        return {}

    def of(self, codes: Sequence[str]) -> CodeRules:
        """Rules of an array of codes (look each up once: pass unique codes)."""
        rows = [self.row(code) for code in codes]

        def sexes(key: str) -> np.ndarray:
            return np.array([SEXES.index(row[key]) if row.get(key) else ANY_SEX for row in rows], np.int8)

        def years(key: str, default: int) -> np.ndarray:
            return np.array([int(row[key]) if row.get(key) else default for row in rows], np.int16)

        names = {"F": "female", "M": "male", "": ""}
        return CodeRules(
            sex=sexes("sex"),
            age_min=years("age_min", 0),
            age_max=years("age_max", NO_LIMIT),
            hard_sex=sexes("hard_sex"),
            hard_age_min=years("hard_age_min", 0),
            hard_age_max=years("hard_age_max", NO_LIMIT),
            category=np.array([row.get("category") or names[row.get("sex", "")] for row in rows], object),
        )

    def apply_to(self, codes: pa.Array) -> np.ndarray:
        """Whether each flat code [n] is of a system that has a table; all others are unconstrained."""
        encoded = codes.dictionary_encode()
        known = np.array([parts(code)[0] in self.systems for code in encoded.dictionary.to_pylist()], bool)
        return known[encoded.indices.to_numpy()]

    def violations(self, codes: pa.Array, ages: np.ndarray, sexes: np.ndarray) -> Violations:
        """Violations of flat codes [n], given the age (years) and sex (0 F, 1 M) of each code's visit [n]."""
        encoded = codes.dictionary_encode()
        rules, index = self.of(encoded.dictionary.to_pylist()), encoded.indices.to_numpy()
        sex, age = rules.breaks_sex(index, sexes), rules.breaks_age(index, ages)
        return Violations(
            sex=sex,
            age=age,
            any=sex | age,
            hard=rules.forbidden(index, ages, sexes, hard=True),
            restricted=rules.restricted[index],
            category=rules.category[index],
        )


def completed_years(age: np.ndarray) -> np.ndarray:
    """Whole years of ages that hold fractions under 1 year."""
    return np.floor(np.asarray(age, np.float64)).astype(np.int64)


def load_rules(tables: Path | Sequence[Path]) -> Rules:
    """Read validity tables, given as files or as the folder that holds them.

    Raises UserError naming the file, the line and the value that is wrong.
    """
    rows: dict[str, dict[str, str]] = {}
    for path in tables_in(tables):
        _read_table(path, rows)
    return Rules(rows)


def _read_table(path: Path, rows: dict[str, dict[str, str]]) -> None:
    """Add the rows of one table to `rows`, by SYSTEM:PREFIX."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
                raise UserError(
                    f"{path}: column {missing[0]} is missing; the columns are {', '.join(COLUMNS)}"
                )
            for row in reader:
                _check(path, reader.line_num, row)
                prefix = f"{row['system']}:{row['prefix']}"
                if prefix in rows:
                    where = f"{path}: line {reader.line_num}: column prefix"
                    raise UserError(f"{where}: {row['prefix']!r} stands twice; keep one")
                rows[prefix] = row
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; rebuild it by resources/build_code_tables.py") from None


def _check(path: Path, line: int, row: dict[str, str]) -> None:
    where = f"{path}: line {line}: column"
    if row["system"] not in SYSTEMS:
        raise UserError(f"{where} system: {row['system']!r} is no code system; use {', '.join(SYSTEMS)}")
    if not row["prefix"]:
        raise UserError(f"{where} prefix: '' is not a code prefix; give one or delete the line")
    for key in ("sex", "hard_sex"):
        if row[key] not in ("", *SEXES):
            raise UserError(f"{where} {key}: {row[key]!r} is not a sex; use F, M or nothing")
    for key in ("age_min", "age_max", "hard_age_min", "hard_age_max"):
        if row[key] and not (row[key].isdecimal() and int(row[key]) < NO_LIMIT):
            raise UserError(f"{where} {key}: {row[key]!r} is not an age; use completed years or nothing")
    for key in ("valid_from", "valid_to"):
        try:
            date.fromisoformat(row[key] or "2000-01-01")
        except ValueError:
            raise UserError(
                f"{where} {key}: {row[key]!r} is not a date; write it as 2015-10-01 or leave it out"
            ) from None
