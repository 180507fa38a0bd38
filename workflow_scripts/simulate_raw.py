"""Write the tables of a simulated MIMIC-III, from aggregated counts of public surveys."""

import gzip
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from cohortloom.base.errors import UserError
from cohortloom.base.files import atomic
from cohortloom.base.ragged import positions_in_rows
from cohortloom.base.seeds import generator
from cohortloom.base.step import main
from cohortloom.sources.simulated import Careers, Cohort, Counts, forbidden
from cohortloom.sources.treatments import Treatments

log = logging.getLogger("cohortloom")
# Values as MIMIC-III spells them, with their rough frequencies there.
ETHNICITY = {
    "WHITE": 60, "BLACK/AFRICAN AMERICAN": 9, "UNKNOWN/NOT SPECIFIED": 8, "HISPANIC OR LATINO": 3, "OTHER": 3,
    "ASIAN": 3, "UNABLE TO OBTAIN": 2, "PATIENT DECLINED TO ANSWER": 1, "ASIAN - CHINESE": 0.6,
    "HISPANIC/LATINO - PUERTO RICAN": 0.5, "BLACK/CAPE VERDEAN": 0.4, "WHITE - RUSSIAN": 0.4,
    "MULTI RACE ETHNICITY": 0.3, "BLACK/HAITIAN": 0.2, "WHITE - OTHER EUROPEAN": 0.2,
    "AMERICAN INDIAN/ALASKA NATIVE": 0.1,
}  # fmt: skip
LANGUAGE = {"ENGL": 50, "": 40, "SPAN": 2, "RUSS": 1.5, "PTUN": 1, "CANT": 1, "*ARM": 0.2}
RELIGION = {"CATHOLIC": 35, "NOT SPECIFIED": 20, "UNOBTAINABLE": 14, "PROTESTANT QUAKER": 12, "JEWISH": 9,
            "OTHER": 5, "": 1}  # fmt: skip
INSURANCE = {"Medicare": 48, "Private": 38, "Medicaid": 10, "Government": 3, "Self Pay": 1}
MARITAL = {"MARRIED": 41, "SINGLE": 22, "WIDOWED": 12, "DIVORCED": 5, "": 17, "SEPARATED": 1}
NULL_CODE, NO_DIAGNOSIS = 0.002, 0.002  # shares of admissions with a null code, and with no diagnosis at all


def simulate_raw(
    *,
    patients_table: Path,
    admissions_table: Path,
    diagnoses_table: Path,
    procedures_table: Path,
    prescriptions_table: Path,
    counts: list[Path],
    rules: list[Path],
    patients: int,
    seed: int,
) -> None:
    """Draw patients from the simulation_*.csv counts and write five tables of MIMIC-III, gzipped."""
    if patients < 1:
        raise UserError(f"cohort: patients: {patients} is out of range; ask for 1 or more")
    rng = np.random.default_rng(seed)
    known = Counts.read(counts)
    cohort = Careers(known, forbidden(rules, known.codes), rng).draw(patients)
    tables = raw_tables(cohort, known.codes, rng)
    # Random numbers of their own: the other tables do not depend on them.
    own = generator("treatments", seed)
    tables += treatment_tables(cohort, known.codes, Treatments.read(counts), tables[1], own)
    paths = (patients_table, admissions_table, diagnoses_table, procedures_table, prescriptions_table)
    for path, table in zip(paths, tables, strict=True):
        write_table(path, table)
    log.info(
        "simulated %d patients, %d admissions, %d diagnoses, %d procedures, %d prescriptions",
        *(table.num_rows for table in tables),
    )


def raw_tables(
    cohort: Cohort, codes: np.ndarray, rng: np.random.Generator
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """PATIENTS, ADMISSIONS and DIAGNOSES_ICD as MIMIC-III shapes them, with its flaws."""
    n, visits = len(cohort.sex), len(cohort.patient)
    subject = 1 + np.sort(rng.choice(3 * n, n, replace=False))
    hadm = 100_000 + rng.permutation(visits)
    last = np.r_[cohort.patient[1:] != cohort.patient[:-1], True]
    died = last & (rng.random(visits) < 0.0005 * cohort.age)
    admitted = cohort.day.astype("datetime64[D]") + rng.integers(0, 86_400, visits).astype("timedelta64[s]")
    discharged = admitted + (cohort.stay * 86_400 + rng.integers(3600, 80_000, visits)).astype(
        "timedelta64[s]"
    )
    death = np.full(n, np.datetime64("NaT"), "datetime64[s]")
    death[cohort.patient[died]] = discharged[died]
    birth = cohort.birth.astype("datetime64[D]")

    def times(values: np.ndarray) -> pa.Array:
        texts = np.char.replace(np.datetime_as_string(values.astype("datetime64[s]")), "T", " ")
        return pa.array(np.where(texts == "NaT", "", texts).tolist(), pa.string())

    def any_of(values: dict[str, float], of: np.ndarray) -> pa.Array:
        """One value a patient, repeated over rows `of`."""
        names, weights = list(values), np.array(list(values.values()), float)
        return pa.array(names).take(pa.array(rng.choice(len(names), n, p=weights / weights.sum())[of]))

    def blank(rows: int) -> pa.Array:
        return pa.array([""] * rows, pa.string())

    patients = pa.table(
        {
            "ROW_ID": np.arange(1, n + 1),
            "SUBJECT_ID": subject,
            "GENDER": pa.array(["F", "M"]).take(pa.array(cohort.sex)),
            "DOB": times(birth),
            "DOD": times(death.astype("datetime64[D]")),
            "DOD_HOSP": times(death.astype("datetime64[D]")),
            "DOD_SSN": blank(n),
            "EXPIRE_FLAG": (~np.isnat(death)).astype(np.int8),
        }
    )
    newborn = cohort.age == 0
    urgent = rng.random(visits) < 0.8
    kind = np.where(newborn, "NEWBORN", np.where(urgent, "EMERGENCY", "ELECTIVE"))
    dead = pa.array(np.where(died, "DEAD/EXPIRED", "HOME").tolist())
    admissions = pa.table(
        {
            "ROW_ID": np.arange(1, visits + 1),
            "SUBJECT_ID": subject[cohort.patient],
            "HADM_ID": hadm,
            "ADMITTIME": times(admitted),
            "DISCHTIME": times(discharged),
            "DEATHTIME": times(np.where(died, discharged, np.datetime64("NaT"))),
            "ADMISSION_TYPE": pa.array(kind.tolist()),
            "ADMISSION_LOCATION": pa.array(
                np.where(urgent, "EMERGENCY ROOM ADMIT", "PHYS REFERRAL/NORMAL DELI")
            ),
            "DISCHARGE_LOCATION": dead,
            "INSURANCE": any_of(INSURANCE, cohort.patient),
            "LANGUAGE": any_of(LANGUAGE, cohort.patient),
            "RELIGION": any_of(RELIGION, cohort.patient),
            "MARITAL_STATUS": any_of(MARITAL, cohort.patient),
            "ETHNICITY": any_of(ETHNICITY, cohort.patient),
            "EDREGTIME": blank(visits),
            "EDOUTTIME": blank(visits),
            "DIAGNOSIS": pa.array(np.where(newborn, "NEWBORN", "SIMULATED, NOT A PATIENT").tolist()),
            "HOSPITAL_EXPIRE_FLAG": died.astype(np.int8),
            "HAS_CHARTEVENTS_DATA": np.ones(visits, np.int8),
        }
    )
    return patients, admissions, _diagnoses(cohort, codes, subject, hadm, rng)


def _diagnoses(
    cohort: Cohort, codes: np.ndarray, subject: np.ndarray, hadm: np.ndarray, rng: np.random.Generator
) -> pa.Table:
    """DIAGNOSES_ICD in order of admission and SEQ_NUM; some admissions have none, some a null code."""
    visits = len(cohort.patient)
    empty = rng.random(visits) < NO_DIAGNOSIS
    visit = np.repeat(np.arange(visits), cohort.length)
    sequence = (positions_in_rows(cohort.length) + 1).astype(str)
    code = codes[cohort.code]
    kept = ~empty[visit]
    null = np.flatnonzero((rng.random(visits) < NULL_CODE) & ~empty)
    visit = np.r_[visit[kept], null]
    order = np.argsort(visit, kind="stable")
    sequence, code = np.r_[sequence[kept], [""] * len(null)], np.r_[code[kept], [""] * len(null)]
    return pa.table(
        {
            "ROW_ID": np.arange(1, len(visit) + 1),
            "SUBJECT_ID": subject[cohort.patient[visit[order]]],
            "HADM_ID": hadm[visit[order]],
            "SEQ_NUM": pa.array(sequence[order].tolist(), pa.string()),
            "ICD9_CODE": pa.array(code[order].tolist(), pa.string()),
        }
    )


def treatment_tables(
    cohort: Cohort,
    codes: np.ndarray,
    treatments: Treatments,
    admissions: pa.Table,
    rng: np.random.Generator,
) -> tuple[pa.Table, pa.Table]:
    """PROCEDURES_ICD and PRESCRIPTIONS of these ADMISSIONS, one row a visit of the cohort."""
    subject, hadm = (admissions[name].combine_chunks() for name in ("SUBJECT_ID", "HADM_ID"))
    visit, procedure = treatments.draw_procedures(cohort, codes, rng)
    place = positions_in_rows(np.bincount(visit, minlength=admissions.num_rows)) + 1
    names = pa.array(treatments.procedures.names, pa.string())
    procedures = pa.table(
        {
            "ROW_ID": np.arange(1, len(visit) + 1),
            "SUBJECT_ID": subject.take(pa.array(visit)),
            "HADM_ID": hadm.take(pa.array(visit)),
            "SEQ_NUM": place,
            "ICD9_CODE": names.take(pa.array(procedure)),
        }
    )
    visit, drug = treatments.draw_drugs(cohort, codes, rng)
    names = pa.array(treatments.drugs.names, pa.string())
    prescriptions = pa.table(
        {
            "ROW_ID": np.arange(1, len(visit) + 1),
            "SUBJECT_ID": subject.take(pa.array(visit)),
            "HADM_ID": hadm.take(pa.array(visit)),
            "STARTDATE": admissions["ADMITTIME"].combine_chunks().take(pa.array(visit)),
            "DRUG_TYPE": pa.array(["MAIN"]).take(pa.array(np.zeros(len(visit), np.int64))),
            "DRUG": names.take(pa.array(drug)),
        }
    )
    return procedures, prescriptions


def write_table(path: Path, table: pa.Table) -> None:
    """Write CSV, gzipped where the name says so; the gzip header bears no time and no name."""
    options = pa.csv.WriteOptions(quoting_style="needed")
    with atomic(path) as temporary, open(temporary, "wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                pa.csv.write_csv(table, packed, options)
        else:
            pa.csv.write_csv(table, file, options)


if __name__ == "__main__":
    main(simulate_raw, globals().get("snakemake"))
