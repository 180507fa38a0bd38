"""Tables in the shape of MIMIC-IV (module hosp) and MIMIC-III, as PyHealth and our own readers take them.

All columns of the releases are there; those that nothing is known of are empty. That holds for race or
ethnicity, language, religion, insurance and marital status too: readers insist on the columns, and nothing
is told.
"""

from pathlib import Path

import duckdb

from cohortloom.release.exports import count, write_csv

HELD4 = {"diagnoses": ("ICD9CM", "ICD10CM"), "procedures": ("ICD9Proc", "ICD10PCS")}
HELD3 = {"diagnoses": ("ICD9CM",), "procedures": ("ICD9Proc",)}
FIRST_ID = 1_000_000_000  # above all ids of the real releases, so that no synthetic patient has a real one's
OVER_89 = 91  # what MIMIC-IV writes as anchor_age of patients over 89
# Table -> its columns in the order of the release.
MIMIC4 = {
    "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
    "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id"
    " admission_location discharge_location insurance language marital_status race edregtime edouttime"
    " hospital_expire_flag",
    "hosp/diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
    "hosp/procedures_icd": "subject_id hadm_id seq_num chartdate icd_code icd_version",
    "hosp/prescriptions": "subject_id hadm_id pharmacy_id poe_id poe_seq order_provider_id starttime stoptime"
    " drug_type drug formulary_drug_cd gsn ndc prod_strength form_rx dose_val_rx dose_unit_rx form_val_disp"
    " form_unit_disp doses_per_24_hrs route",
    "icu/icustays": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los",
}
MIMIC3 = {
    "PATIENTS": "ROW_ID SUBJECT_ID GENDER DOB DOD DOD_HOSP DOD_SSN EXPIRE_FLAG",
    "ADMISSIONS": "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME ADMISSION_TYPE ADMISSION_LOCATION"
    " DISCHARGE_LOCATION INSURANCE LANGUAGE RELIGION MARITAL_STATUS ETHNICITY EDREGTIME EDOUTTIME DIAGNOSIS"
    " HOSPITAL_EXPIRE_FLAG HAS_CHARTEVENTS_DATA",
    "DIAGNOSES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
    "PROCEDURES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
    "PRESCRIPTIONS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID STARTDATE ENDDATE DRUG_TYPE DRUG DRUG_NAME_POE"
    " DRUG_NAME_GENERIC FORMULARY_DRUG_CD GSN NDC PROD_STRENGTH DOSE_VAL_RX DOSE_UNIT_RX FORM_VAL_DISP"
    " FORM_UNIT_DISP ROUTE",
    "ICUSTAYS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID DBSOURCE FIRST_CAREUNIT LAST_CAREUNIT FIRST_WARDID"
    " LAST_WARDID INTIME OUTTIME LOS",
}
CODED = f"""
FROM (SELECT patient + {FIRST_ID} AS subject, visit + {FIRST_ID} AS stay, admitted, discharged, place,
             system, code
      FROM coded JOIN name USING (name) JOIN visit USING (visit, patient) WHERE "column" = '{{column}}')
ORDER BY stay, place
"""
NDC = "if(system = 'NDC', code, '0')"  # 0 is MIMIC's word for none


def write_mimic4(connection: duckdb.DuckDBPyConnection, folder: Path) -> list[str]:
    """Write hosp/ and icu/ from the relations of exports.py; return what the format does not hold."""
    version = "if(system IN ('ICD9CM', 'ICD9Proc'), 9, 10)"
    icd = {
        "subject_id": "subject",
        "hadm_id": "stay",
        "seq_num": "place",
        "icd_code": "code",
        "icd_version": version,
    }
    group = "2008 + 3 * CAST(floor((year(first) - 2008) / 3) AS INTEGER)"  # three years, as 2008 - 2010
    rows = {
        "hosp/patients": (
            {
                "subject_id": f"patient + {FIRST_ID}",
                "gender": "sex",
                "anchor_age": f"if(age >= 90, {OVER_89}, CAST(floor(age) AS INTEGER))",
                "anchor_year": "year(first)",
                "anchor_year_group": f"({group}) || ' - ' || ({group} + 2)",
            },
            "FROM patient ORDER BY patient",
        ),
        "hosp/admissions": (
            {
                "subject_id": f"patient + {FIRST_ID}",
                "hadm_id": f"visit + {FIRST_ID}",
                "admittime": "admitted",
                "dischtime": "discharged",
            },
            "FROM visit ORDER BY visit",
        ),
        "hosp/diagnoses_icd": (icd, CODED.format(column="diagnoses")),
        "hosp/procedures_icd": (
            icd | {"chartdate": "CAST(admitted AS DATE)"},
            CODED.format(column="procedures"),
        ),
        "hosp/prescriptions": (
            {
                "subject_id": "subject",
                "hadm_id": "stay",
                "starttime": "admitted",
                "stoptime": "discharged",
                "drug_type": "'MAIN'",
                "drug": "code",
                "ndc": NDC,
            },
            CODED.format(column="medications"),
        ),
    }
    _write(connection, folder, MIMIC4, rows)
    infants = count(connection, "SELECT count(*) FROM visit WHERE age > 0 AND age < 1")
    return [
        f"Ages under one year: MIMIC-IV has whole years ({infants:,} visits are of age 0 here).",
        f"Ages of 90 and over: they are written as {OVER_89} at the first visit, as MIMIC-IV does.",
        *_of_both(connection),
    ]


def write_mimic3(connection: duckdb.DuckDBPyConnection, folder: Path) -> list[str]:
    """Write the tables from the relations of exports.py; return what the format does not hold."""
    row = {"ROW_ID": "row_number() OVER ()"}
    icd = row | {"SUBJECT_ID": "subject", "HADM_ID": "stay", "SEQ_NUM": "place", "ICD9_CODE": "code"}
    rows = {
        "PATIENTS": (
            row
            | {
                "SUBJECT_ID": f"patient + {FIRST_ID}",
                "GENDER": "sex",
                "DOB": "CAST(birth AS TIMESTAMP)",
            },
            "FROM (FROM patient ORDER BY patient)",
        ),
        "ADMISSIONS": (
            row
            | {
                "SUBJECT_ID": f"patient + {FIRST_ID}",
                "HADM_ID": f"visit + {FIRST_ID}",
                "ADMITTIME": "admitted",
                "DISCHTIME": "discharged",
            },
            "FROM (FROM visit ORDER BY visit)",
        ),
        "DIAGNOSES_ICD": (icd, f"FROM (SELECT * {CODED.format(column='diagnoses')})"),
        "PROCEDURES_ICD": (icd, f"FROM (SELECT * {CODED.format(column='procedures')})"),
        "PRESCRIPTIONS": (
            row
            | {
                "SUBJECT_ID": "subject",
                "HADM_ID": "stay",
                "STARTDATE": "CAST(admitted AS TIMESTAMP)",
                "ENDDATE": "CAST(discharged AS TIMESTAMP)",
                "DRUG_TYPE": "'MAIN'",
                "DRUG": "code",
                "NDC": NDC,
            },
            f"FROM (SELECT * {CODED.format(column='medications')})",
        ),
    }
    _write(connection, folder, MIMIC3, rows)
    return [
        "A shifted birth of patients over 89: births are those of the ages, at most 90 at the first visit.",
        *_of_both(connection),
    ]


def _of_both(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """What neither release has a place for."""
    other = count(
        connection,
        "SELECT count(*) FROM coded JOIN name USING (name)"
        " WHERE \"column\" = 'medications' AND system <> 'Drug'",
    )
    return [
        "The code system of a medication: column drug holds the code alone, and ndc that of an NDC"
        f" ({other:,} codes of medications are no names of drugs here)."
    ]


def _write(
    connection, folder: Path, tables: dict[str, str], rows: dict[str, tuple[dict[str, str], str]]
) -> None:
    """Write each table with all its columns; `rows`: column -> expression, and where the rows come from.

    A table without rows has a header alone.
    """
    for table, columns in tables.items():
        expressions, rest = rows.get(table, ({}, "WHERE false"))
        listed = ", ".join(f"{expressions.get(column, 'NULL')} AS {column}" for column in columns.split())
        write_csv(connection, f"SELECT {listed} {rest}", folder / f"{table}.csv")
