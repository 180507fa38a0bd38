"""MIMIC-III 1.4, full or demo: patients, their admissions in time order, the diagnoses of each.

Column names as in https://mimic.mit.edu/docs/iii/tables. Only the columns named here are parsed; what the
other columns hold (ethnicity, language, religion, insurance, marital status ...) never leaves the file.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.sources.cohort import Audit, assemble, clean_codes
from cohortloom.sources.csvtable import CsvTable

ALLOWED = {
    "PATIENTS": ("SUBJECT_ID", "GENDER", "DOB"),
    "ADMISSIONS": ("SUBJECT_ID", "HADM_ID", "ADMITTIME"),
    "DIAGNOSES_ICD": ("SUBJECT_ID", "HADM_ID", "SEQ_NUM", "ICD9_CODE"),
}
LAST = 2**62  # SEQ_NUM of a diagnosis that has none: after the others
OLDEST = 90  # MIMIC-III shifts the birth of those older than 89 by 300 years


def read(tables: dict[str, Path], audit: Audit) -> pa.Table:
    """Visits of the three tables, sorted by SUBJECT_ID and ADMITTIME, and their account in `audit`.

    Raises UserError for an unknown sex, an unparsable date or number, birth after admission, an admission
    without a patient, or a diagnosis without an admission of its patient.
    """
    patients, admissions, diagnoses = (
        CsvTable(name, tables[name], columns, audit) for name, columns in ALLOWED.items()
    )
    patients.drop_copies(audit, "patients", "SUBJECT_ID")
    admissions.drop_copies(audit, "admissions", "HADM_ID")

    subject, sex, birth = patients.integers("SUBJECT_ID"), _sexes(patients, audit), patients.dates("DOB")
    admission_subject, admission = admissions.integers("SUBJECT_ID"), admissions.integers("HADM_ID")
    admitted = admissions.dates("ADMITTIME")
    of_patient = _positions(subject, admission_subject)
    admissions.refuse("SUBJECT_ID", of_patient < 0, "is no patient of PATIENTS; give tables of one release")
    birth = birth[of_patient]
    early = admitted.astype("datetime64[D]") < birth.astype("datetime64[D]")
    admissions.refuse("ADMITTIME", early, "is before the patient's DOB; fix or remove the row")
    age = ages(birth, admitted)

    order = np.lexsort((admission, admitted, admission_subject))
    row_of_visit, codes = _diagnoses(diagnoses, admission[order], admission_subject[order], audit)
    ids = admission_subject[order]
    table = assemble(
        pa.array(ids).cast(pa.string()),
        admitted[order].astype("datetime64[D]").astype(np.int64),
        age[order],
        sex[of_patient][order],
        row_of_visit,
        codes,
        audit,
    )
    audit.drop(
        "patients",
        "no admission with a diagnosis",
        patients.n - pc.count_distinct(table["patient_id"]).as_py(),
    )
    return table


def ages(birth: np.ndarray, admitted: np.ndarray) -> np.ndarray:
    """Age at each admission from datetime64[s] pairs: completed years by the calendar, at most 90.

    Under one year the days since birth / 365.25, so 0 for a newborn. Whole dates are compared before
    anything is subtracted in nanoseconds, where 300 years overflow.
    """
    born, day = birth.astype("datetime64[D]"), admitted.astype("datetime64[D]")
    years = day.astype("datetime64[Y]").astype(int) - born.astype("datetime64[Y]").astype(int)
    birthday_to_come = _month_and_day(day) < _month_and_day(born)
    years = years - birthday_to_come
    days = (day - born).astype(int)
    return np.where(years < 1, days / 365.25, np.minimum(years, OLDEST))


def _month_and_day(date: np.ndarray) -> np.ndarray:
    month = date.astype("datetime64[M]")
    return (month.astype(int) % 12) * 31 + (date - month.astype("datetime64[D]")).astype(int)


def _sexes(patients: CsvTable, audit: Audit) -> np.ndarray:
    """GENDER as 0 F and 1 M; lower case is normalised and counted."""
    written = patients["GENDER"]
    upper = pc.utf8_upper(written)
    lower = pc.sum(pc.not_equal(upper, written)).as_py() or 0
    if lower:
        audit.normalized["values of GENDER in lower case"] += lower
    sex = pc.index_in(upper, pa.array(["F", "M"])).fill_null(-1).to_numpy()
    patients.refuse("GENDER", sex < 0, "is neither F nor M; fix or remove the patient")
    return sex


def _diagnoses(
    table: CsvTable, admission: np.ndarray, subject: np.ndarray, audit: Audit
) -> tuple[np.ndarray, pa.DictionaryArray]:
    """Row among the ordered admissions and code of each diagnosis, sorted by admission and SEQ_NUM."""
    row = _positions(admission, table.integers("HADM_ID"))
    table.refuse("HADM_ID", row < 0, "is no admission of ADMISSIONS; give tables of one release")
    stranger = subject[row] != table.integers("SUBJECT_ID")
    table.refuse("SUBJECT_ID", stranger, "is not the patient of this admission; give tables of one release")
    table.drop_copies(audit, "diagnoses")
    codes = clean_codes(table.encoded("ICD9_CODE"), audit)
    whole = codes.is_valid().to_numpy(zero_copy_only=False)
    table.filter(whole)  # MIMIC's null codes have no SEQ_NUM either
    row, sequence = _positions(admission, table.integers("HADM_ID")), table.integers("SEQ_NUM", empty=LAST)
    if (sequence == LAST).any():
        audit.normalized["diagnoses without SEQ_NUM set last"] += int((sequence == LAST).sum())
    order = np.lexsort((np.arange(len(row)), sequence, row))
    return row[order], codes.filter(pa.array(whole)).take(pa.array(order))


def _positions(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index in the distinct `keys` of each of `wanted`, -1 where it is not among them."""
    order = np.argsort(keys)
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    found = order[place]
    return np.where(keys[found] == wanted, found, -1)
