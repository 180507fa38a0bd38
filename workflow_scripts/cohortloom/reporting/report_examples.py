"""Example patients for the report: synthetic ones only, chosen by a rule that cannot favour pretty ones."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cohortloom.data import bands
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import code_lists, patient_starts, sex_index
from cohortloom.reporting.wording import dotted

COPY_CODES = 5  # shorter visits coincide by chance
SHOWN_VISITS = 4


def read_titles(path: Path) -> dict[str, str]:
    """Titles in words by code."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row["code"]: row["title"] for row in csv.DictReader(file)}


def choose(synthetic: pa.Table, real: list[pa.Table], titles: Path, validity: Path) -> list[dict[str, Any]]:
    """The first patient of each age band, and the first with three visits or more, by order of the file.

    A patient with a visit of five codes or more whose set equals a real visit's is passed over, so that
    no row of the page is a real one.
    """
    starts = patient_starts(synthetic)
    ends = np.r_[starts[1:], synthetic.num_rows]
    copied = copies(synthetic, real)
    clean = np.add.reduceat(copied, starts) == 0 if len(starts) else np.zeros(0, bool)
    ages = synthetic["age"].to_numpy()[starts]
    picks: list[int] = []
    for number in range(len(bands.BROAD)):
        match = np.flatnonzero(clean & (bands.band(ages, bands.BROAD) == number))
        picks += [int(match[0])] if len(match) else []
    several = np.flatnonzero(clean & (ends - starts >= 3))
    if len(several) and int(several[0]) not in picks:
        picks.append(int(several[0]))
    words, rules = read_titles(titles), load_rules(validity)
    return [
        in_words(synthetic.slice(starts[pick], ends[pick] - starts[pick]), words, rules) for pick in picks
    ]


def copies(synthetic: pa.Table, real: list[pa.Table]) -> np.ndarray:
    """Whether a synthetic visit of five codes or more has the very set of codes of a real one, [n] bool."""
    known = set().union(*(_sets(table) for table in real)) - {None}
    return np.array([codes in known for codes in _sets(synthetic)], bool)


def _sets(table: pa.Table) -> list[tuple[str, ...] | None]:
    values, offsets = code_lists(table)
    flat = values.to_pylist()
    return [
        tuple(sorted(flat[low:high])) if high - low >= COPY_CODES else None
        for low, high in zip(offsets[:-1], offsets[1:], strict=True)
    ]


def in_words(visits: pa.Table, words: dict[str, str], rules) -> dict[str, Any]:
    """One patient in words: head line and visits with their codes, each marked where it breaks an edit."""
    values, offsets = code_lists(visits)
    lengths = np.diff(offsets)
    broken = rules.violations(
        values, np.repeat(visits["age"].to_numpy(), lengths), np.repeat(sex_index(visits), lengths)
    )
    flat = values.to_pylist()
    shown = []
    for row in range(min(SHOWN_VISITS, visits.num_rows)):
        shown.append(
            {
                "when": _when(visits["days"][row].as_py()),
                "age": _age(visits["age"][row].as_py()),
                "codes": [
                    {
                        "code": dotted(flat[i]),
                        "title": words.get(flat[i], "no title in the 2014 edition"),
                        "broken": _why(broken.age[i], broken.sex[i]),
                    }
                    for i in range(offsets[row], offsets[row + 1])
                ],
            }
        )
    sex = {"F": "Female", "M": "Male"}[visits["sex"][0].as_py()]
    return {
        "id": visits["patient_id"][0].as_py(),
        "who": f"{sex}, {_age(visits['age'][0].as_py())} at the first visit",
        "visits": shown,
        "more": visits.num_rows - len(shown),
    }


def _when(days: int) -> str:
    return "first visit" if days == 0 else f"{days:,} day{'s' if days > 1 else ''} after the first visit"


def _age(age: float) -> str:
    if age == 0:
        return "newborn"
    if age < 1:
        return f"{max(1, round(age * 365.25 / 30.44))} months"
    return "90 or older" if age >= 90 else f"{int(age)} year{'s' if age >= 2 else ''}"


def _why(age: bool, sex: bool) -> str:
    found = [name for name, bad in (("age", age), ("sex", sex)) if bad]
    return f"does not fit the patient's {' and '.join(found)}" if found else ""
