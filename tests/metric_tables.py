"""Tables of visits written out in a test, small enough to read."""

import numpy as np
import pyarrow as pa

from cohortloom.data.coded import as_lists
from cohortloom.data.visits import SEXES, check_visits
from cohortloom.generation.naive import visits_table


def named(codes: str) -> list[str]:
    """Codes separated by blanks, with their system; of ICD-9-CM where none is written."""
    return [code if ":" in code else f"ICD9CM:{code}" for code in codes.split()]


def visits_of(patients: list[list[tuple]], ages: float = 50.0, sexes: str = "F") -> pa.Table:
    """Patients as lists of visits; a visit is (codes separated by blanks, days, age, sex), the last three
    optional: 30 days apart, 50 years, F."""
    rows = []
    for number, visits in enumerate(patients):
        for visit, content in enumerate(visits):
            codes, *rest = (content,) if isinstance(content, str) else content
            days, age, sex = (*rest, *(30 * visit, ages, sexes)[len(rest) :])
            rows.append((f"p{number:05d}", visit, days, age, SEXES.index(sex), named(codes)))
    ids, visit, days, age, sex, codes = zip(*rows, strict=True)
    names = sorted({code for one in codes for code in one})
    flat = np.array([names.index(code) for one in codes for code in one], int)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in codes])])
    columns = {"diagnoses": as_lists(flat, offsets, names)}
    made = visits_table(pa.array(ids), np.array(visit), np.array(days), np.array(age), np.array(sex), columns)
    return check_visits(made)
