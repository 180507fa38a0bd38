"""Visits that somebody else's generator made, in whichever of three shapes they come.

- a parquet file of visits: patient_id, visit, diagnoses, and, where known, days, age, sex (see visits.py);
- a long CSV: id, time, visit_codes, and, where known, age, sex. A row is a visit or one code of it: rows of
  one id and time are one visit, a cell holds one code or several (blanks, commas or semicolons between).
  `time` is a date or a number of days; where every patient's times are 0, 1, 2 ... or 1, 2, 3 ... they are
  numbers of visits and the gaps are unknown;
- a folder of MIMIC-III-shaped tables: ADMISSIONS, DIAGNOSES_ICD and, where age and sex are known, PATIENTS.

Codes are cleaned as those of real data are: what is normalised or dropped is counted. What is missing is
filled with a placeholder and named, so that no figure is computed from it.
"""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cohortloom.base.errors import UserError
from cohortloom.base.ragged import patient_of_visit, positions_in_rows, row_of_value
from cohortloom.data.absent import DEMOGRAPHICS
from cohortloom.data.visits import SEXES, check_visits, code_lists
from cohortloom.sources import mimic3
from cohortloom.sources.cohort import Audit, assemble, clean_codes
from cohortloom.sources.csvtable import DATE, CsvTable, header
from cohortloom.sources.locate import MIMIC3

NEEDED = ("patient_id", "visit", "diagnoses")
LONG = ("ID", "TIME", "VISIT_CODES")
BETWEEN = r"[\s,;|\[\]()'\"]+"  # what may separate the codes of a cell, brackets of a list included


def read(path: Path, audit: Audit) -> tuple[pa.Table, frozenset[str]]:
    """Visits with ids of our own, and which of days, age and sex are missing.

    Raises UserError for a file of another shape, or a value that cannot be.
    """
    path = Path(path)
    if path.is_dir():
        table, absent = _tables(path, audit)
    elif path.name.lower().endswith((".csv", ".csv.gz")):
        table, absent = _long(path, audit)
    else:
        table, absent = _parquet(path, audit)
    number = patient_of_visit(table["visit"]) + 1
    width = len(str(number[-1]))
    ids = pa.array(np.char.add("external-", np.char.zfill(number.astype(str), width)).tolist(), pa.string())
    return check_visits(table.set_column(0, "patient_id", ids), str(path)), absent


def _parquet(path: Path, audit: Audit) -> tuple[pa.Table, frozenset[str]]:
    try:
        names = pq.read_schema(path).names
        table = pq.read_table(path, partitioning=None)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct evaluate.external in the config") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: neither a readable parquet file nor a .csv ({reason})") from None
    for name in NEEDED:
        if name not in names:
            raise UserError(f"{path}: column {name} is missing; give at least {', '.join(NEEDED)}")
    absent = _absent(path, {"age", "sex", "days"} - set(names))
    values, offsets = code_lists(table)
    ids = table["patient_id"].cast(pa.string()).combine_chunks()
    visit = _whole(path, "visit", table["visit"])
    days = visit if "days" in absent else _whole(path, "days", table["days"])
    age, sex = _demographics(path, absent, table, table.num_rows)
    # In time order whatever the file's; ids in the order in which they first come.
    order = np.lexsort((visit, ids.dictionary_encode().indices.to_numpy()))
    return _joined(ids, days, age, sex, row_of_value(offsets), values.cast(pa.string()), order, audit), absent


def _long(path: Path, audit: Audit) -> tuple[pa.Table, frozenset[str]]:
    columns = header(path)
    known = [name for name in ("AGE", "SEX") if name in columns]
    table = CsvTable("long", path, (*LONG, *known), audit)
    for column in (*LONG[:2], *known):
        table.refuse(
            column, pc.equal(table[column], "").to_numpy(zero_copy_only=False), "is empty; fill it in"
        )
    ids = table["ID"]
    patient = ids.dictionary_encode().indices.to_numpy().astype(np.int64)
    if pc.all(pc.match_substring_regex(table["TIME"], DATE)).as_py():
        when = table.dates("TIME").astype("datetime64[D]").astype(np.int64)
    else:
        when = table.integers("TIME")
    order = np.lexsort((np.arange(table.n), when, patient))
    new = np.r_[True, (np.diff(patient[order]) != 0) | (np.diff(when[order]) != 0)]
    rows = order[new]  # the first row of each visit
    visit_of_row = np.empty(table.n, np.int64)
    visit_of_row[order] = np.cumsum(new) - 1
    absent = {"age", "sex"} - {name.lower() for name in known}
    if _are_numbers_of_visits(patient[rows], when[rows]):
        absent.add("days")
    absent = _absent(path, absent)
    columns = {name.lower(): table[name] for name in known}
    age, sex = _demographics(path, absent, columns, table.n)
    cells = [[code for code in re.split(BETWEEN, cell) if code] for cell in table["VISIT_CODES"].to_pylist()]
    lengths = np.array([len(cell) for cell in cells])
    flat = pa.array([code for cell in cells for code in cell], pa.string())
    owner = np.repeat(visit_of_row, lengths)
    by_visit = np.lexsort((np.arange(len(owner)), owner))
    every = np.arange(len(rows))
    made = _joined(
        ids.take(pa.array(rows)), when[rows], age[rows], sex[rows], owner[by_visit],
        flat.take(pa.array(by_visit)), every, audit,
    )  # fmt: skip
    return made, absent


def _are_numbers_of_visits(patient: np.ndarray, when: np.ndarray) -> bool:
    """Whether the times of every patient are 0, 1, 2 ... or 1, 2, 3 ... and somebody comes twice."""
    counts = np.diff(np.flatnonzero(np.diff(patient, prepend=-1)), append=len(patient))
    offset = when - positions_in_rows(counts)
    return bool(counts.max(initial=0) > 1 and len(np.unique(offset)) == 1 and offset[0] in (0, 1))


def _tables(folder: Path, audit: Audit) -> tuple[pa.Table, frozenset[str]]:
    files = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
    found = {
        name: files[f"{name}{end}".lower()]
        for name in MIMIC3
        for end in (".csv.gz", ".csv")
        if f"{name}{end}".lower() in files
    }
    for name in ("ADMISSIONS", "DIAGNOSES_ICD"):
        if name not in found:
            raise UserError(f"{folder}: table {name} is missing; give {name}.csv or {name}.csv.gz")
    if "PATIENTS" in found:
        return mimic3.read(found, audit), frozenset()
    admissions, diagnoses = (
        CsvTable(name, found[name], mimic3.ALLOWED[name], audit) for name in ("ADMISSIONS", "DIAGNOSES_ICD")
    )
    admissions.drop_copies(audit, "admissions", "HADM_ID")
    subject, admission = admissions.integers("SUBJECT_ID"), admissions.integers("HADM_ID")
    admitted = admissions.dates("ADMITTIME")
    order = np.lexsort((admission, admitted, subject))
    row, codes = mimic3._diagnoses(diagnoses, admission[order], subject[order], audit)
    days = admitted[order].astype("datetime64[D]").astype(np.int64)
    none = np.zeros(len(order))
    ids = pa.array(subject[order]).cast(pa.string())
    return assemble(ids, days, none, none.astype(np.int8), row, codes, audit), DEMOGRAPHICS


def _absent(path: Path, names: set[str]) -> frozenset[str]:
    """What is missing; age and sex come together."""
    if len(names & DEMOGRAPHICS) == 1:
        lacking = next(iter(names & DEMOGRAPHICS))
        raise UserError(f"{path}: column {lacking} is missing; give age and sex, or neither")
    return frozenset(names)


def _demographics(path: Path, absent: frozenset[str], columns, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ages in years and sexes (0 F, 1 M) of n rows; placeholders where they are missing."""
    if DEMOGRAPHICS & absent:
        return np.zeros(n), np.zeros(n, np.int8)
    try:
        age = pc.cast(columns["age"], pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: column age: {str(error).splitlines()[0]}; give years as numbers") from None
    wrong = np.flatnonzero(~((age >= 0) & (age <= 130)))
    if len(wrong):
        raise UserError(f"{path}: row {wrong[0] + 1}: column age: {age[wrong[0]]} is no age in years; fix it")
    written = pc.utf8_upper(columns["sex"].cast(pa.string()))
    sex = pc.fill_null(pc.index_in(written, pa.array(SEXES)), -1).to_numpy()
    wrong = np.flatnonzero(sex < 0)
    if len(wrong):
        value = columns["sex"][int(wrong[0])].as_py()
        raise UserError(f"{path}: row {wrong[0] + 1}: column sex: {value!r} is neither F nor M; fix it")
    return age, sex.astype(np.int8)


def _whole(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    try:
        return pc.cast(column, pa.int64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"{path}: column {name}: not whole numbers; give 0, 1, 2 ...") from None


def _joined(ids, days, age, sex, owner, codes, order, audit: Audit) -> pa.Table:
    """assemble() of visits in the order `order`; owner [n_codes], sorted, numbers the unordered visits."""
    cleaned = clean_codes(codes, audit)
    whole = cleaned.is_valid()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    row = place[owner][whole.to_numpy(zero_copy_only=False)]
    by_visit = np.argsort(row, kind="stable")
    kept = cleaned.filter(whole).take(pa.array(by_visit))
    where = pa.array(order)
    return assemble(ids.take(where), days[order], age[order], sex[order], row[by_visit], kept, audit)
