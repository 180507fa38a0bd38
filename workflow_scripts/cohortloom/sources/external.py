"""Visits that somebody else's generator made, in whichever of three shapes they come.

- Parquet, a file or a folder of parts, a row a visit: patient_id, visit, diagnoses (a list of codes) and,
  where known, days, age, sex (see visits.py);
- a long CSV: id, time, visit_codes, and, where known, age, sex. A row is a visit or one code of it: rows of
  one id and time are one visit, a cell holds one code or several (blanks, commas or semicolons between).
  `time` is a date, with or without a time of day, or a number of days; where every patient's times are 0, 1,
  2 ... or 1, 2, 3 ... they are numbers of visits and the gaps are unknown;
- a folder of MIMIC-III-shaped tables: ADMISSIONS, DIAGNOSES_ICD and, where age and sex are known, PATIENTS.

Other usual names of these columns are known (NAMES). Codes are ICD-9-CM, with or without `ICD9CM:` in front,
and are cleaned as those of real data are: what is normalised or dropped is counted. What is missing is filled
with a placeholder and named, so that no figure is computed from it.
"""

import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.ragged import patient_of_visit
from cohortloom.data.absent import DEMOGRAPHICS
from cohortloom.data.visits import check_visits
from cohortloom.sources import rawfile
from cohortloom.sources.audit import Audit
from cohortloom.sources.declared import Column, Source, Table, read_source
from cohortloom.sources.intake import Intake, Limits
from cohortloom.sources.locate import files_of
from cohortloom.sources.rawtable import TIME, RawTable, literal
from cohortloom.sources.spelling import Spelling

NAMES = {  # what a column is -> what it may be called, the first found is taken
    "id": ("id", "patient_id", "subject_id", "person_id", "patient"),
    "time": ("time", "visit", "visit_num", "visit_number", "date", "admittime"),
    "codes": ("visit_codes", "diagnoses", "codes", "code", "icd9_code", "diagnosis"),
    "days": ("days",),
    "age": ("age",),
    "sex": ("sex", "gender"),
}
NEEDED = ("id", "time", "codes")
BETWEEN = r"[\s,;|\[\]()'\"]+"  # what may separate the codes of a cell, brackets of a list included
MOST_DAYS = 100_000  # from a patient's first visit: times beyond are no days
OLDEST = 130  # age in years that a generator may give; it is capped like real ones


def read(path: Path, audit: Audit) -> tuple[pa.Table, frozenset[str]]:
    """Visits with ids of our own, and which of days, age and sex are missing.

    Raises UserError for a file of another shape, or a value that cannot be.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; correct evaluate.external in the config")
    with tempfile.TemporaryDirectory() as folder:
        spill = Path(folder)
        parts = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
        try:
            if path.is_dir() and not parts:
                intake, absent = _tables(path, spill, audit)
            else:
                intake, absent = _rows(parts, spill, audit)
            table = pa.concat_tables(intake.visits(Spelling()))
        except duckdb.ConversionException as error:
            raise UserError(f"{path}: {str(error).splitlines()[0]}; correct the value") from None
        finally:
            for connection in _OPEN:
                connection.close()
            _OPEN.clear()
    number = patient_of_visit(table["visit"]) + 1
    width = len(str(number[-1]))
    ids = pa.array(np.char.add("external-", np.char.zfill(number.astype(str), width)).tolist(), pa.string())
    return check_visits(table.set_column(0, "patient_id", ids), str(path)), absent


_OPEN: list[duckdb.DuckDBPyConnection] = []


def _intake(source: Source, files: dict[str, list[Path]], spill: Path, audit: Audit) -> Intake:
    # What a generator writes is scored as it is: nothing is too much.
    intake = Intake(source, files, ("diagnoses",), spill, audit, Limits(max_dropped=1.0, max_empty=1.0))
    _OPEN.append(intake.connection)
    return intake


def _tables(folder: Path, spill: Path, audit: Audit) -> tuple[Intake, frozenset[str]]:
    """Tables of MIMIC-III's shape; without PATIENTS each patient is born at the first admission."""
    source = read_source("mimic3")
    files = {name: found[:1] for name, table in source.tables.items() if (found := files_of(table, folder))}
    for name in ("ADMISSIONS", "DIAGNOSES_ICD"):
        if name not in files:
            raise UserError(f"{folder}: table {name} is missing; give {name}.csv or {name}.csv.gz")
    kept = ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD")
    intake = _intake(source, {name: files[name] for name in kept if name in files}, spill, audit)
    intake.open_tables()
    if "PATIENTS" not in files:
        intake.connection.execute(
            "INSERT INTO PATIENTS SELECT SUBJECT_ID, 'F', min(ADMITTIME) FROM ADMISSIONS GROUP BY SUBJECT_ID"
        )
    intake.run_sql()
    return intake, frozenset() if "PATIENTS" in files else DEMOGRAPHICS


def _rows(parts: list[Path], spill: Path, audit: Audit) -> tuple[Intake, frozenset[str]]:
    """A table with a row a visit or a code."""
    intake = _intake(Source("external", {}, ""), {}, spill, audit)
    con, path = intake.connection, parts[0]
    is_parquet = rawfile.kind_of(path) == "parquet"
    if not is_parquet and not path.name.lower().endswith((".csv", ".csv.gz", ".zip")):
        raise UserError(f"{path}: neither a readable parquet file nor a .csv; make it again")
    kinds = _kinds(con, path) if is_parquet else {name: "VARCHAR" for name in rawfile.header(path, path)}
    called = _called(path, kinds)
    if is_parquet:
        _check_kinds(path, kinds, called)
    columns = tuple(Column(name, "code" if what == "codes" else "text") for what, name in called.items())
    raw = RawTable(con, Table("long", columns), parts, spill)
    raw.note(audit)
    con.execute(
        "CREATE TABLE said AS SELECT rowid AS row, "
        + ", ".join(f'"{name}" AS "{what}"' for what, name in called.items())
        + "".join(f", NULL AS {what}" for what in NAMES if what not in called)
        + " FROM long"
    )

    def refuse(what: str, condition: str, why: str) -> None:
        row = con.execute(f"SELECT min(row) FROM said WHERE {condition}").fetchall()[0][0]
        if row is not None:
            raw.refuse(row, called[what], why)

    absent = {what for what in ("days", "age", "sex") if what not in called}
    if len(absent & DEMOGRAPHICS) == 1:
        lacking = next(iter(absent & DEMOGRAPHICS))
        raise UserError(f"{path}: column {lacking} is missing; give age and sex, or neither")
    for what in called.keys() - {"codes"}:
        refuse(what, f"{what} = ''", "is empty; fill it in")
    dated = con.execute(
        f"SELECT regexp_matches(time, {literal(TIME)}) FROM said ORDER BY row LIMIT 1"
    ).fetchall()[0][0]
    if dated:
        moment = f"CAST(epoch(TRY_CAST(regexp_extract(time, {literal(TIME)}, 1) AS TIMESTAMP)) AS BIGINT)"
        refuse(
            "time", f"{moment} IS NULL", "is no date of the form 2101-10-20 19:08:00; fix or remove the row"
        )
        day = "moment // 86400"
    else:
        moment = "TRY_CAST(CASE WHEN regexp_full_match(time, '-?[0-9]+([.]0*)?') THEN time END AS BIGINT)"
        refuse("time", f"{moment} IS NULL", "is not a whole number; fix or remove the row")
        day = "moment"
    if "days" in called:
        day = _day_of("days", kinds[called["days"]])
        refuse(
            "days", f"{day} IS NULL", "is neither a whole number of days nor a date; fix or remove the row"
        )
    if not absent & DEMOGRAPHICS:
        years = "TRY_CAST(age AS DOUBLE)"
        refuse("age", f"{years} IS NULL OR isnan({years})", "is no age in years as a number; fix it")
        refuse("age", f"NOT {years} BETWEEN 0 AND {OLDEST}", "is no age in years; fix it")
        refuse("sex", "upper(sex) NOT IN ('F', 'M', 'FEMALE', 'MALE')", "is neither F nor M; fix it")
    con.execute(
        "CREATE TABLE moments AS SELECT *, min(row) OVER (PARTITION BY id) AS patient,"
        f" min(row) OVER (PARTITION BY id, moment) AS visit_id FROM (SELECT *, {moment} AS moment FROM said)"
    )
    if is_parquet and kinds[called["codes"]].endswith("]"):
        _refuse_of(
            con,
            raw,
            called["time"],
            "SELECT row FROM moments WHERE row <> visit_id",
            "stands twice for its patient",
        )
    age = "TRY_CAST(age AS DOUBLE)" if "age" in called else "0"
    sex = "upper(left(sex, 1))" if "sex" in called else "'F'"
    con.execute(
        f"CREATE TABLE visit AS SELECT visit_id, patient, {day} AS day, moment, {age} AS age, {sex} AS sex"
        " FROM moments WHERE row = visit_id"
    )
    before = "lag({0}) OVER (PARTITION BY patient ORDER BY moment)"
    for what, why in (
        ("sex", "is not that of an earlier visit"),
        ("age", "is lower than at an earlier visit"),
    ):
        if what in called:
            sign = "<" if what == "age" else "<>"
            query = f"SELECT visit_id FROM visit QUALIFY {what} {sign} {before.format(what)}"
            _refuse_of(con, raw, called[what], query, f"{why} of the patient; correct the rows")
    query = f"SELECT visit_id FROM visit QUALIFY day < {before.format('day')}"
    _refuse_of(
        con, raw, called.get("days", called["time"]), query, "is before an earlier visit of the patient"
    )
    query = f"SELECT visit_id FROM visit QUALIFY day - min(day) OVER (PARTITION BY patient) > {MOST_DAYS}"
    _refuse_of(
        con, raw, called.get("days", called["time"]), query, "is no number of days; give days or dates"
    )
    if "days" not in called and (dated or not _are_numbers_of_visits(con)):
        absent.discard("days")
    con.execute("CREATE VIEW event AS " + _EVENT)
    return intake, frozenset(absent)


_EVENT = f"""
SELECT visit_id, 'diagnoses' AS "column", 'ICD9CM' AS system, regexp_replace(piece, '^ICD9CM:', '') AS code,
       NULL AS position, row * 1000 + place AS row
FROM (SELECT visit_id, row, unnest(string_split_regex(codes, {literal(BETWEEN)})) AS piece,
             generate_subscripts(string_split_regex(codes, {literal(BETWEEN)}), 1) AS place FROM moments)
WHERE piece <> ''
"""


def _day_of(column: str, kind: str) -> str:
    """SQL of a day number from days since the first visit, or from dates."""
    if kind in ("DATE", "VARCHAR") or kind.startswith("TIMESTAMP"):
        date = f"date_diff('day', DATE '1970-01-01', CAST(TRY_CAST({column} AS TIMESTAMP) AS DATE))"
        whole = (
            f"TRY_CAST(CASE WHEN regexp_full_match({column}, '-?[0-9]+([.]0*)?') THEN {column} END AS BIGINT)"
        )
        return f"coalesce({whole}, {date})"
    return f"TRY_CAST(CASE WHEN regexp_full_match({column}, '-?[0-9]+([.]0*)?') THEN {column} END AS BIGINT)"


def _refuse_of(con: duckdb.DuckDBPyConnection, raw: RawTable, column: str, query: str, why: str) -> None:
    row = con.execute(f"SELECT min(COLUMNS(*)) FROM ({query})").fetchall()[0][0]
    if row is not None:
        raw.refuse(row, column, why)


def _kinds(con: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """Names and types of the columns of a Parquet file."""
    try:
        return {
            row[0]: row[1] for row in con.execute(f"DESCRIBE FROM read_parquet({literal(path)})").fetchall()
        }
    except duckdb.Error:
        raise UserError(f"{path}: neither a readable parquet file nor a .csv; make it again") from None


def _called(path: Path, names) -> dict[str, str]:
    """What each kind of column is called in the file."""
    by_name = {name.strip().lower(): name for name in reversed(list(names))}
    called = {}
    for what, usual in NAMES.items():
        found = next((by_name[name] for name in usual if name in by_name), None)
        if found is not None:
            called[what] = found
        elif what in NEEDED:
            there = ", ".join(list(names)[:8])
            others = " or ".join(usual[1:])
            raise UserError(
                f"{path}: column {usual[0]} is missing (or {others}); the file has {there[:120]}; give a"
                " patient, a time and codes, and age and sex where they are known"
            )
    return called


def _check_kinds(path: Path, kinds: dict[str, str], called: dict[str, str]) -> None:
    """Refuse columns of types that cannot hold what they should."""
    codes, ids = kinds[called["codes"]], kinds[called["id"]]
    if codes not in ("VARCHAR", "VARCHAR[]") and not (
        codes.startswith("VARCHAR[") or codes.startswith("ENUM")
    ):
        raise UserError(
            f"{path}: column {called['codes']} is of type {codes}; give lists of text: codes are no numbers"
        )
    if ids == "BLOB" or ids.endswith("]") or ids.startswith("STRUCT"):
        raise UserError(f"{path}: column {called['id']} is of type {ids}; give ids as text or whole numbers")


def _are_numbers_of_visits(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether the times of every patient are 0, 1, 2 ... or 1, 2, 3 ... and somebody comes twice."""
    most, low, high = con.execute(
        "SELECT max(place), min(moment - place), max(moment - place) FROM"
        " (SELECT moment, row_number() OVER (PARTITION BY patient ORDER BY moment) - 1 AS place FROM visit)"
    ).fetchall()[0]
    return most > 0 and low == high and low in (0, 1)
