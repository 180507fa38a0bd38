"""National Hospital Discharge Survey 2010, public-use file: fixed width, a discharge a line, no person link.

Layout: NHDS 2010 public-use data file documentation, National Center for Health Statistics.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.sources.cohort import Audit, assemble, clean_codes
from cohortloom.sources.rawfile import BOM, read_bytes

N_DIAGNOSES = 15
LAYOUT = {  # column -> (first byte, width); the documentation counts from 1
    "year": (0, 2),
    "newborn": (2, 1),
    "age_unit": (3, 1),
    "age": (4, 2),
    "sex": (6, 1),
    "race": (7, 1),
    "marital_status": (8, 1),
    "discharge_month": (9, 2),
    "discharge_status": (11, 1),
    "days_of_care": (12, 4),
    "same_day": (16, 1),
    "region": (17, 1),
    "beds": (18, 1),
    "ownership": (19, 1),
    "weight": (20, 5),
    "century": (25, 2),
    "diagnoses": (27, 5 * N_DIAGNOSES),
    "procedures": (102, 32),
    "payer": (134, 2),
    "second_payer": (136, 2),
    "drg": (138, 3),
    "admission_type": (141, 1),
    "admission_source": (142, 2),
    "admitting_diagnosis": (144, 5),
}
KEPT = ("newborn", "age_unit", "age", "sex", "diagnoses")
WIDTH = 149
YEARS, MONTHS, DAYS = (ord(unit) for unit in "123")


def read(tables: dict[str, Path], audit: Audit) -> pa.Table:
    """Visits of the file tables["NHDS"], one a patient, and its account in `audit`.

    Raises UserError for a line of another width, an unknown sex or age unit, or an age that is no number.
    """
    path = tables["NHDS"]
    lines, digest = read_lines(path, audit)
    audit.read("NHDS", path, digest, len(lines), KEPT, [name for name in LAYOUT if name not in KEPT])
    columns = {name: lines[:, LAYOUT[name][0] : sum(LAYOUT[name])].copy() for name in KEPT}
    del lines  # from here on only the allowed columns are in memory

    sex, unit = columns["sex"][:, 0], columns["age_unit"][:, 0]
    _refuse(path, "sex", columns["sex"], (sex != ord("1")) & (sex != ord("2")), "is neither 1 (M) nor 2 (F)")
    _refuse(path, "age_unit", columns["age_unit"], (unit < YEARS) | (unit > DAYS), "is none of 1, 2, 3")
    columns["age"][columns["age"][:, 0] == ord(" "), 0] = ord("0")
    digits = columns["age"].astype(np.int16) - ord("0")
    _refuse(
        path, "age", columns["age"], ((digits < 0) | (digits > 9)).any(1), "is not a number of two digits"
    )
    number = digits[:, 0] * 10 + digits[:, 1]
    in_days = np.where(unit == DAYS, number, number * (365.25 / 12))
    age = np.where(unit == YEARS, number, np.minimum(in_days, 365) / 365.25)
    age[columns["newborn"][:, 0] == ord("1")] = 0

    n = len(age)
    fields, used = _codes(columns["diagnoses"])
    codes = clean_codes(fields.filter(pa.array(used)), audit)
    whole = codes.is_valid()
    return assemble(
        pa.array(patient_ids(n), pa.string()),
        np.zeros(n, np.int64),
        age,
        (sex == ord("1")).astype(np.int8),
        np.repeat(np.arange(n), N_DIAGNOSES)[used][whole.to_numpy(zero_copy_only=False)],
        codes.filter(whole),
        audit,
    )


def patient_ids(n: int) -> list[str]:
    """Ids of the patients of n discharges, by the number of the line: the survey has none."""
    return [f"nhds2010-{line:0{len(str(n))}d}" for line in range(1, n + 1)]


def read_lines(path: Path, audit: Audit) -> tuple[np.ndarray, str]:
    """Bytes of the file as [n_lines, WIDTH] uint8, and its sha256."""
    content, digest = read_bytes(path)
    if content.startswith(BOM):
        content = content[len(BOM) :]
        audit.normalized["byte-order marks"] += 1
    if b"\r\n" in content:
        content = content.replace(b"\r\n", b"\n")
        audit.normalized["files with CRLF line ends"] += 1
    content = content.rstrip(b"\n\x1a") + b"\n"
    data = np.frombuffer(content, np.uint8)
    lengths = np.diff(np.r_[-1, np.flatnonzero(data == ord("\n"))]) - 1
    if (lengths != WIDTH).any():
        row = int(np.flatnonzero(lengths != WIDTH)[0])
        raise UserError(
            f"{path}: line {row + 1}: {lengths[row]} characters where the NHDS 2010 layout has {WIDTH};"
            " give the public-use file as NCHS publishes it (NHDS10.PU.txt)"
        )
    return data.reshape(-1, WIDTH + 1)[:, :WIDTH], digest


def _codes(field: np.ndarray) -> tuple[pa.DictionaryArray, np.ndarray]:
    """The diagnosis fields [n, 75] uint8 as n * 15 strings, padding off, and which of them are used."""
    flat = np.ascontiguousarray(field).view("S5").ravel()
    distinct, index = np.unique(flat, return_inverse=True)
    bare = np.array([code.decode("latin-1").rstrip("- ") for code in distinct])
    codes = pa.DictionaryArray.from_arrays(
        pa.array(index.astype(np.int32)), pa.array(bare.tolist(), pa.string())
    )
    return codes, (bare != "")[index]


def _refuse(path: Path, column: str, values: np.ndarray, bad: np.ndarray, what: str) -> None:
    """Raise UserError for the first line that is `bad`."""
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        value = values[row].tobytes().decode("latin-1")
        raise UserError(f"{path}: line {row + 1}: column {column}: {value!r} {what}; fix or remove the line")
