"""Example patients for the report: synthetic ones only, chosen by a rule and not by hand."""

from typing import Any

import numpy as np
import pyarrow as pa

from cohortloom.base.ragged import row_of_value
from cohortloom.data import bands
from cohortloom.data.coded import encode
from cohortloom.data.codes import parts
from cohortloom.data.validity import Rules
from cohortloom.data.visits import code_lists, patient_starts, sex_index, used_columns
from cohortloom.evaluation.neighbours import is_copy
from cohortloom.reporting.sentences import dotted

MAX_VISITS = 4
# The line of time, in units of its picture: width, margin, width of a letter
WIDTH, MARGIN, LETTER = 300, 8, 5.6
NO_TITLE = "no title in the tables here"


def choose_examples(
    synthetic: pa.Table, real: list[pa.Table], titles: dict[str, str], rules: Rules, dated: bool = True
) -> list[dict[str, Any]]:
    """The first patient of each age band and the first with three visits or more, in the order of the file.

    A patient with a visit of five codes or more that equals a real visit is skipped, so that the page shows
    no real row. dated: whether the days are more than placeholders.
    """
    starts = patient_starts(synthetic)
    ends = np.append(starts[1:], synthetic.num_rows)
    (visits, *real_visits), names = encode([synthetic, *real])
    is_real = np.any([is_copy(visits, part, len(names)) for part in real_visits], axis=0)
    has_copy = np.bincount(visits.patient, is_real, len(starts)) > 0
    band = bands.band(synthetic["age"].to_numpy()[starts], bands.BROAD)
    masks = [band == number for number in range(len(bands.BROAD))] + [ends - starts >= 3]
    picks = dict.fromkeys(int(match[0]) for mask in masks if len(match := np.flatnonzero(mask & ~has_copy)))
    return [
        patient_in_words(synthetic.slice(starts[pick], ends[pick] - starts[pick]), titles, rules, dated)
        for pick in picks
    ]


def patient_in_words(
    visits: pa.Table, titles: dict[str, str], rules: Rules, dated: bool = True
) -> dict[str, Any]:
    """One patient in words: a heading, the line of time (None without one), and the visits with their codes
    by column, each marked if it breaks an edit.
    """
    columns = {column: _codes_in_words(visits, column, titles, rules) for column in used_columns(visits)}
    first_visits = [
        {
            "when": _when(visits["days"][number].as_py()) if dated else f"visit {number + 1}",
            "age": age_in_words(visits["age"][number].as_py()),
            "columns": {column: codes[number] for column, codes in columns.items() if codes[number]},
        }
        for number in range(min(MAX_VISITS, visits.num_rows))
    ]
    days, ages = visits["days"].to_pylist(), visits["age"].to_pylist()
    sex = {"F": "Female", "M": "Male"}[visits["sex"][0].as_py()]
    return {
        "id": visits["patient_id"][0].as_py(),
        "who": f"{sex}, {first_visits[0]['age']} at the first visit",
        "time": line_of_time(days, ages) if dated and days[-1] > 0 else None,
        "visits": first_visits,
        "more": visits.num_rows - len(first_visits),
    }


def line_of_time(days: list[int], ages: list[float]) -> dict[str, Any]:
    """A picture of a patient's visits in time: a mark for each at its day, with labels for those listed.

    days and ages of the visits, days from 0 up to more than 0. `marks` have x, and label, start and row of
    the label: it is in the first row in which it touches no other. `words` are the text alternative.
    """
    labels = [f"day {day:,}, {age_in_words(age)}" for day, age in zip(days, ages, strict=True)]
    free: list[float] = []  # where each row of labels is free from
    marks = []
    for number, (day, label) in enumerate(zip(days, labels, strict=True)):
        x = MARGIN + (WIDTH - 2 * MARGIN) * day / days[-1]
        mark = {"x": round(x, 1), "title": label, "label": ""}
        if number < MAX_VISITS:
            length = LETTER * len(label)
            start = min(max(0.0, x - length / 2), WIDTH - length)
            row = next((row for row, end in enumerate(free) if start >= end), len(free))
            free[row : row + 1] = [start + length + LETTER]
            mark |= {"label": label, "start": round(start, 1), "row": row}
        marks.append(mark)
    return {"marks": marks, "rows": len(free), "words": "Visits in time: " + "; ".join(labels)}


def _codes_in_words(
    visits: pa.Table, column: str, titles: dict[str, str], rules: Rules
) -> list[list[dict[str, str]]]:
    """The codes of a column in each visit: code, title and the broken edit. A drug is its own title."""
    values, offsets = code_lists(visits, column)
    row = row_of_value(offsets)
    broken = rules.violations(values, visits["age"].to_numpy()[row], sex_index(visits)[row])
    codes = []
    for code, age, sex in zip(values.to_pylist(), broken.age, broken.sex, strict=True):
        system, name = parts(code)
        words = {"code": "", "title": name.lower()} if system == "Drug" else {"code": dotted(code)}
        codes.append({"title": titles.get(code, NO_TITLE), **words, "broken": _why(age, sex)})
    return [codes[begin:end] for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]


def age_in_words(age: float) -> str:
    """An age in years in words; in months under one year."""
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
