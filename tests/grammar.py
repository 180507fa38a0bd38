"""A cohort that follows rules small enough to read, and the check of them.

Newborns have one visit: a birth code, jaundice or not. Adults open with a code of their sex, then
hypertension, perhaps a third code; some come back after about a month or a year, with hypertension
again and anaemia.
"""

import numpy as np
import pyarrow as pa

from cohortloom.data.visits import with_empty_columns

BIRTH, JAUNDICE, HYPERTENSION, ANAEMIA = "ICD9CM:V3000", "ICD9CM:7746", "ICD9CM:4019", "ICD9CM:2859"
FIRST = {"F": "ICD9CM:64891", "M": "ICD9CM:60000"}
THIRD = {"F": "ICD9CM:66411", "M": "ICD9CM:5990"}


def grammar_visits(n_patients: int, seed: int) -> pa.Table:
    """Visits of `n_patients` that all follow the grammar."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n_patients):
        name, sex = f"p{number}", "FM"[rng.integers(2)]
        if rng.random() < 0.3:
            rows.append((name, 0, 0, 0.0, sex, [BIRTH] + [JAUNDICE] * bool(rng.random() < 0.5)))
            continue
        age = float(rng.integers(20, 81))
        third = [THIRD[sex]] * bool(rng.random() < 0.5)
        rows.append((name, 0, 0, age, sex, [FIRST[sex], HYPERTENSION, *third]))
        if rng.random() < 0.5:
            days = int(rng.integers(25, 36) if rng.random() < 0.5 else rng.integers(340, 361))
            rows.append((name, 1, days, age, sex, [HYPERTENSION, ANAEMIA]))
    names = ("patient_id", "visit", "days", "age", "sex", "diagnoses")
    columns = zip(names, map(list, zip(*rows, strict=True)), strict=True)
    return with_empty_columns(pa.table(dict(columns)))


def breaches(visits: pa.Table, first: dict[str, str] = FIRST) -> int:
    """How many visits break the grammar in which an adult of a sex opens with the code `first` gives."""
    wrong = 0
    for row in visits.to_pylist():
        codes, adult = row["diagnoses"], row["age"] >= 18
        if not adult:
            valid = row["visit"] == 0 and codes in ([BIRTH], [BIRTH, JAUNDICE])
        elif row["visit"] == 0:
            start = [first[row["sex"]], HYPERTENSION]
            valid = codes in (start, [*start, THIRD[row["sex"]]])
        else:
            valid = row["visit"] == 1 and codes == [HYPERTENSION, ANAEMIA]
        wrong += not valid
    return wrong
