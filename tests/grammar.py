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


# The same visits with procedures and medications, of a hospital that changed from ICD-9 to ICD-10.
LATE = {
    BIRTH: "ICD10CM:Z3800",
    JAUNDICE: "ICD10CM:P599",
    HYPERTENSION: "ICD10CM:I10",
    ANAEMIA: "ICD10CM:D649",
    FIRST["F"]: "ICD10CM:O99893",
    FIRST["M"]: "ICD10CM:N400",
    THIRD["F"]: "ICD10CM:O701",
    THIRD["M"]: "ICD10CM:N390",
    "ICD9Proc:7359": "ICD10PCS:10E0XZZ",
    "ICD9Proc:640": "ICD10PCS:0VTTXZZ",
}
PRESSURE, IRON = "Drug:LISINOPRIL", "Drug:IRON"


def treatments(diagnoses: list[str], sex: str) -> tuple[list[str], list[str]]:
    """Procedures and medications that go with diagnoses of ICD-9: a newborn boy's, a delivery's, for life."""
    procedures = []
    if BIRTH in diagnoses and sex == "M":
        procedures.append("ICD9Proc:640")
    if THIRD["F"] in diagnoses:
        procedures.append("ICD9Proc:7359")
    of_code = {HYPERTENSION: PRESSURE, ANAEMIA: IRON}
    return procedures, [of_code[code] for code in diagnoses if code in of_code]


def whole_visits(n_patients: int, seed: int) -> pa.Table:
    """Visits of the grammar with three columns; about half of the patients are coded in ICD-10."""
    rows = grammar_visits(n_patients, seed).to_pylist()
    late = np.random.default_rng([seed, 1]).random(n_patients) < 0.5
    for row in rows:
        row["procedures"], row["medications"] = treatments(row["diagnoses"], row["sex"])
        if late[int(row["patient_id"][1:])]:
            for column in ("diagnoses", "procedures"):
                row[column] = [LATE[code] for code in row[column]]
    return pa.Table.from_pylist(rows)


def column_breaches(visits: pa.Table) -> dict[str, int]:
    """How many visits break the grammar: of the diagnoses, of systems, of treatments."""
    early, found = {code: old for old, code in LATE.items()}, {"systems": 0, "treatments": 0}
    rows = visits.to_pylist()
    for row in rows:
        systems = {code.split(":")[0] for column in ("diagnoses", "procedures") for code in row[column]}
        found["systems"] += bool(systems & {"ICD9CM", "ICD9Proc"}) and bool(systems & {"ICD10CM", "ICD10PCS"})
        for column in ("diagnoses", "procedures"):
            row[column] = [early.get(code, code) for code in row[column]]
        expected = treatments(row["diagnoses"], row["sex"])
        found["treatments"] += (row["procedures"], row["medications"]) != expected
    return {"diagnoses": breaches(pa.Table.from_pylist(rows)), **found}
