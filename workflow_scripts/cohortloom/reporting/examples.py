"""Example patients for the report: synthetic ones only, chosen by a rule that cannot favour pretty ones."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cohortloom.base.ragged import row_of_value
from cohortloom.data import bands
from cohortloom.data.coded import encode
from cohortloom.data.validity import Rules
from cohortloom.data.visits import code_lists, patient_starts, sex_index
from cohortloom.evaluation.neighbours import copied
from cohortloom.reporting.sentences import dotted

SHOWN_VISITS = 4
NO_TITLE = "no title in the tables here"


def read_titles(path: Path) -> dict[str, str]:
    """Titles in words by SYSTEM:CODE, of a table of ICD-9-CM codes."""
    with open(path, newline="", encoding="utf-8") as file:
        return {f"ICD9CM:{row['code']}": row["title"] for row in csv.DictReader(file)}


def choose(
    synthetic: pa.Table, real: list[pa.Table], titles: dict[str, str], rules: Rules
) -> list[dict[str, Any]]:
    """The first patient of each age band, and the first with three visits or more, by order of the file.

    A patient with a visit of five codes or more whose set equals a real visit's is passed over, so that
    no row of the page is a real one.
    """
    starts = patient_starts(synthetic)
    ends = np.append(starts[1:], synthetic.num_rows)
    (made, *known), names = encode([synthetic, *real])
    repeats = np.any([copied(made, part, len(names)) for part in known], axis=0)
    clean = np.bincount(made.patient, repeats, len(starts)) == 0
    band = bands.band(synthetic["age"].to_numpy()[starts], bands.BROAD)
    wanted = [band == number for number in range(len(bands.BROAD))] + [ends - starts >= 3]
    picks = dict.fromkeys(int(match[0]) for mask in wanted if len(match := np.flatnonzero(clean & mask)))
    return [
        in_words(synthetic.slice(starts[pick], ends[pick] - starts[pick]), titles, rules) for pick in picks
    ]


def in_words(visits: pa.Table, titles: dict[str, str], rules: Rules) -> dict[str, Any]:
    """One patient in words: head line and visits with their codes, each marked where it breaks an edit."""
    values, offsets = code_lists(visits)
    row = row_of_value(offsets)
    broken = rules.violations(values, visits["age"].to_numpy()[row], sex_index(visits)[row])
    codes = [
        {
            "code": dotted(code),
            "title": titles.get(code, NO_TITLE),
            "broken": _why(age, sex),
        }
        for code, age, sex in zip(values.to_pylist(), broken.age, broken.sex, strict=True)
    ]
    shown = [
        {
            "when": _when(visits["days"][number].as_py()),
            "age": age_in_words(visits["age"][number].as_py()),
            "codes": codes[offsets[number] : offsets[number + 1]],
        }
        for number in range(min(SHOWN_VISITS, visits.num_rows))
    ]
    sex = {"F": "Female", "M": "Male"}[visits["sex"][0].as_py()]
    return {
        "id": visits["patient_id"][0].as_py(),
        "who": f"{sex}, {shown[0]['age']} at the first visit",
        "visits": shown,
        "more": visits.num_rows - len(shown),
    }


def age_in_words(age: float) -> str:
    """An age in years as people say it; months under one year."""
    if age == 0:
        return "newborn"
    if age < 1:
        months = max(1, round(age * 365.25 / 30.44))
        return f"{months} month{'s' if months > 1 else ''}"
    return "90 or older" if age >= 90 else f"{int(age)} year{'s' if age >= 2 else ''}"


def _when(days: int) -> str:
    return "first visit" if days == 0 else f"{days:,} day{'s' if days > 1 else ''} after the first visit"


def _why(age: bool, sex: bool) -> str:
    names = [name for name, bad in (("age", age), ("sex", sex)) if bad]
    return f"does not fit the patient's {' and '.join(names)}" if names else ""
