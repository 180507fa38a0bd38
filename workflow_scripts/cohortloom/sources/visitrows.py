"""A table of visits: a row a visit in Parquet, a row a visit or a code in a long CSV.

- Parquet, a file or a folder of parts: patient_id, visit, diagnoses (a list of codes) and, where known, days,
  age, sex, procedures, medications (see visits.py);
- a long CSV: id, time, visit_codes and, where known, the same others. Rows of one id and time are one visit;
  a cell holds one code or several (blanks, commas, semicolons or bars between; names of drugs hold blanks,
  so that only a bar separates medications). `time` is a date, with or without a time of day, or a number of
  days; where every patient's times are 0, 1, 2 ... or 1, 2, 3 ... they are numbers of visits and the gaps are
  unknown.

Other usual names of these columns are known (NAMES). A code is SYSTEM:CODE; one without a system is of ICD-9
(diagnoses, procedures) or the name of a drug (medications).
"""

from collections.abc import Collection
from pathlib import Path

import duckdb
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.data.absent import DEMOGRAPHICS
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.sources import rawfile
from cohortloom.sources.declared import Column, Table
from cohortloom.sources.intake import Intake
from cohortloom.sources.rawtable import TIME, RawTable, literal, quoted
from cohortloom.sources.shapes import columns_of
from cohortloom.sources.spelling import OWN

NAMES = {  # what a column is -> what it may be called, the first found is taken
    "id": ("id", "patient_id", "subject_id", "person_id", "patient"),
    "time": ("time", "visit", "visit_num", "visit_number", "date", "admittime"),
    "diagnoses": ("visit_codes", "diagnoses", "codes", "code", "icd9_code", "diagnosis"),
    "procedures": ("procedures", "procedure_codes"),
    "medications": ("medications", "drugs"),
    "days": ("days",),
    "age": ("age",),
    "sex": ("sex", "gender"),
}
NEEDED = ("id", "time", "diagnoses")
WITHOUT_SYSTEM = {"diagnoses": "ICD9CM", "procedures": "ICD9Proc", "medications": "Drug"}
ICD = r"[\s,;|\[\]()'\"]+"  # what may separate the codes of a cell, brackets of a list included
BETWEEN = {"diagnoses": ICD, "procedures": ICD, "medications": r"\s*\|\s*"}
MOST_VISITS = 32_767  # of a patient: the number of a visit is an int16
MOST_DAYS = 100_000  # from a patient's first visit: times beyond are no days
OLDEST = 130  # age in years that a generator may give; it is capped like real ones


def open_visits(intake: Intake, parts: list[Path], own: Collection[str] = ()) -> frozenset[str]:
    """Make the tables visit and event of `intake`; returns what is missing of days, age and sex.

    own: codes of the user's choice (cohort.code_map), which stay as they are. Raises UserError for a missing
    column, a type that cannot hold what it should, and a value that cannot be.
    """
    con, path = intake.connection, parts[0]
    is_parquet = rawfile.kind_of(path) == "parquet"
    called = _called(path, columns_of(path))
    kinds = _kinds(con, path) if is_parquet else dict.fromkeys(called.values(), "VARCHAR")
    if is_parquet:
        _check_kinds(path, kinds, called)
    raw = RawTable(con, Table("long", _columns(called, kinds)), parts, intake.spill)
    raw.note(intake.audit)
    con.execute(
        "CREATE TABLE said AS SELECT rowid AS row, "
        + ", ".join(f"{quoted(name)} AS {what}" for what, name in called.items())
        + " FROM long"
    )

    def refuse(what: str, query: str, why: str) -> None:
        row = con.execute(f"SELECT min(COLUMNS(*)) FROM ({query})").fetchall()[0][0]
        if row is not None:
            raw.refuse(row, called[what], why)

    def refuse_where(what: str, condition: str, why: str) -> None:
        refuse(what, f"SELECT row FROM said WHERE {condition}", why)

    absent = {what for what in ("days", "age", "sex") if what not in called}
    if len(absent & DEMOGRAPHICS) == 1:
        lacking = next(iter(absent & DEMOGRAPHICS))
        raise UserError(f"{path}: column {lacking} is missing; give age and sex, or neither")
    for what in called.keys() - CODE_COLUMNS.keys():
        refuse_where(what, f"{what} = ''", "is empty; fill it in")
    dated, moment = _moment(con)
    why = "is no date of the form 2101-10-20 19:08:00"
    why = why if dated else "is neither a date such as 2101-10-20 nor a whole number"
    refuse_where("time", f"{moment} IS NULL", f"{why}; fix or remove the row")
    timed = "days" if "days" in called else "time"
    day = "moment // 86400" if dated else "moment"
    if timed == "days":
        day = _day_of("days", kinds[called["days"]])
        why = "is neither a whole number of days nor a date; fix or remove the row"
        refuse_where("days", f"{day} IS NULL", why)
    age, sex = "0.0", "'F'"
    if not absent & DEMOGRAPHICS:
        age, sex = "TRY_CAST(age AS DOUBLE)", "upper(left(sex, 1))"
        refuse_where("age", f"{age} IS NULL OR isnan({age})", "is no age in years as a number; fix it")
        refuse_where("age", f"NOT {age} BETWEEN 0 AND {OLDEST}", "is no age in years; fix it")
        refuse_where("sex", "upper(sex) NOT IN ('F', 'M', 'FEMALE', 'MALE')", "is neither F nor M; fix it")
    con.execute(
        "CREATE TABLE moments AS SELECT *, min(row) OVER (PARTITION BY id) AS patient,"
        " min(row) OVER (PARTITION BY id, moment) AS visit_id"
        f" FROM (SELECT *, {moment} AS moment, {age} AS years, {sex} AS f_or_m FROM said)"
    )
    if kinds[called["diagnoses"]].endswith("]"):
        refuse("time", "SELECT row FROM moments WHERE row <> visit_id", "stands twice for its patient")
    before = "lag({0}) OVER (PARTITION BY patient ORDER BY moment, row)"
    other = f"SELECT row FROM moments QUALIFY f_or_m <> {before.format('f_or_m')}"
    refuse("sex", other, "is not that of an earlier visit of the patient; correct the rows")
    lower = f"SELECT row FROM moments QUALIFY years < {before.format('years')}"
    refuse("age", lower, "is lower than at an earlier visit of the patient; correct the rows")
    other = "SELECT row FROM moments QUALIFY years <> min(years) OVER (PARTITION BY visit_id)"
    refuse("age", other, "is not that of another row of the visit; correct the rows")
    con.execute(
        f"CREATE TABLE visit AS SELECT visit_id, patient, {day} AS day, moment, years AS age, f_or_m AS sex"
        " FROM moments WHERE row = visit_id"
    )
    many = f"row_number() OVER (PARTITION BY patient ORDER BY moment) > {MOST_VISITS}"
    why = f"is of a patient with more than {MOST_VISITS:,} visits; give visits, not events"
    refuse("time", f"SELECT visit_id FROM visit QUALIFY {many}", why)
    before = "lag(day) OVER (PARTITION BY patient ORDER BY moment)"
    earlier = f"SELECT visit_id FROM visit QUALIFY day < {before}"
    refuse(timed, earlier, "is before an earlier visit of the patient")
    beyond = f"SELECT visit_id FROM visit QUALIFY day - min(day) OVER (PARTITION BY patient) > {MOST_DAYS}"
    refuse(timed, beyond, "is no number of days; give days or dates")
    if timed == "time" and (dated or not _are_numbers_of_visits(con)):
        absent.discard("days")
    con.register("given", pa.table({"own": pa.array(sorted(own), pa.string())}))
    con.execute("CREATE TABLE own_code AS FROM given")
    con.execute(
        "CREATE VIEW event AS "
        + " UNION ALL ".join(_events(c, kinds[called[c]]) for c in CODE_COLUMNS if c in called)
    )
    return frozenset(absent)


def _moment(con: duckdb.DuckDBPyConnection) -> tuple[bool, str]:
    """Whether times are dates, which the first row tells, and SQL of what orders the visits of a patient."""
    first = f"SELECT regexp_matches(time, {literal(TIME)}) FROM said ORDER BY row LIMIT 1"
    if con.execute(first).fetchall()[0][0]:
        date = f"TRY_CAST(regexp_extract(time, {literal(TIME)}, 1) AS TIMESTAMP)"
        return True, f"CAST(epoch({date}) AS BIGINT)"
    return False, _whole("time")


def _whole(column: str) -> str:
    """SQL of a whole number, such as 12 or 12.0, from text."""
    return f"TRY_CAST(CASE WHEN regexp_full_match({column}, '-?[0-9]+([.]0*)?') THEN {column} END AS BIGINT)"


def _day_of(column: str, kind: str) -> str:
    """SQL of a day number from days since the first visit, or from dates."""
    if kind in ("DATE", "VARCHAR") or kind.startswith("TIMESTAMP"):
        date = f"date_diff('day', DATE '1970-01-01', CAST(TRY_CAST({column} AS TIMESTAMP) AS DATE))"
        return f"coalesce({_whole(column)}, {date})"
    return _whole(column)


def _events(column: str, kind: str) -> str:
    """SELECT of the codes of a column: each element of a list, or each piece of a cell."""
    pieces, some = column, "true"
    if not kind.endswith("]"):
        pieces, some = f"string_split_regex({column}, {literal(BETWEEN[column])})", "piece <> ''"
    systems = "|".join(CODE_COLUMNS[column])
    named = f"regexp_extract(piece, '^({systems}):', 1)"
    return f"""
    SELECT visit_id, '{column}' AS "column",
           CASE WHEN own IS NOT NULL THEN '{OWN}'
                ELSE coalesce(nullif({named}, ''), '{WITHOUT_SYSTEM[column]}') END AS system,
           coalesce(own, regexp_replace(piece, '^({systems}):', '')) AS code,
           NULL AS position, row * 100000 + place AS row
    FROM (SELECT visit_id, row, unnest({pieces}) AS piece, generate_subscripts({pieces}, 1) AS place
          FROM moments) LEFT JOIN own_code ON own = piece
    WHERE {some}
    """


def _columns(called: dict[str, str], kinds: dict[str, str]) -> tuple[Column, ...]:
    """What of the table is read."""
    of_codes = {name: "list" if kinds[name].endswith("]") else "code" for name in kinds}
    return tuple(
        Column(name, of_codes[name] if what in CODE_COLUMNS else "text") for what, name in called.items()
    )


def _kinds(con: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """DuckDB's types of the columns of a Parquet file."""
    return {row[0]: row[1] for row in con.execute(f"DESCRIBE FROM read_parquet({literal(path)})").fetchall()}


def _called(path: Path, names: Collection[str]) -> dict[str, str]:
    """What each kind of column is called in the file."""
    by_name = {name.strip().lower(): name for name in reversed(list(names))}
    called = {}
    for what, usual in NAMES.items():
        found = next((by_name[name] for name in usual if name in by_name), None)
        if found is not None:
            called[what] = found
        elif what in NEEDED:
            rawfile.check_delimiter(path, list(names))
            there = ", ".join(list(names)[:8])
            others = " or ".join(usual[1:])
            raise UserError(
                f"{path}: column {usual[0]} is missing (or {others}); the file has {there[:120]}; give a"
                " patient, a time and codes, and age and sex where they are known"
            )
    return called


def _check_kinds(path: Path, kinds: dict[str, str], called: dict[str, str]) -> None:
    """Refuse columns of types that cannot hold what they should."""
    for column in CODE_COLUMNS:
        codes = kinds[called[column]] if column in called else "VARCHAR"
        if (
            not codes.startswith(("VARCHAR[", "ENUM", '"NULL"')) and codes != "VARCHAR"
        ):  # NULL: none has a code
            raise UserError(
                f"{path}: column {called[column]} is of type {codes}; give lists of text: codes are no"
                " numbers"
            )
    ids = kinds[called["id"]]
    if ids == "BLOB" or ids.endswith("]") or ids.startswith("STRUCT"):
        raise UserError(f"{path}: column {called['id']} is of type {ids}; give ids as text or whole numbers")


def _are_numbers_of_visits(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether the times of every patient are 0, 1, 2 ... or 1, 2, 3 ... and somebody comes twice."""
    most, low, high = con.execute(
        "SELECT max(place), min(moment - place), max(moment - place) FROM"
        " (SELECT moment, row_number() OVER (PARTITION BY patient ORDER BY moment) - 1 AS place FROM visit)"
    ).fetchall()[0]
    return most > 0 and low == high and low in (0, 1)
