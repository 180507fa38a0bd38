"""Visits that somebody else's generator made, in whichever shape they come (shapes.py).

Tables and events are read by the SQL files of the sources, as preprocess reads real ones, and a table of
visits by visitrows.py. Codes are cleaned as those of real data are: what is normalised or dropped is counted.
What is missing of days, age and sex is filled with a placeholder and named, so that no figure is computed
from it.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.ragged import patient_of_visit
from cohortloom.data.absent import DEMOGRAPHICS
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.visits import check_visits, patient_starts, used_columns, without_empty_visits
from cohortloom.sources import visitrows
from cohortloom.sources.audit import Audit
from cohortloom.sources.declared import Source, read_source
from cohortloom.sources.intake import Intake, Limits
from cohortloom.sources.locate import files_of
from cohortloom.sources.shapes import NAMES, shape_of
from cohortloom.sources.spelling import Spelling

PATIENTS = {"mimic3": ("PATIENTS", "ADMISSIONS"), "mimic4": ("patients", "admissions")}


@dataclass(frozen=True)
class External:
    """What was read: visits with ids of our own, and what they are."""

    shape: str  # in words
    visits: pa.Table  # those with a code of a column that is scored
    absent: frozenset[str]  # of days, age and sex: placeholders
    not_scored: int  # visits without such a code, which are left out
    without_rows: tuple[str, ...]  # tables with a header alone


def read(
    path: Path, audit: Audit, spill: Path, spelling: Spelling | None = None, max_dropped: float = 1.0
) -> External:
    """Read a file or a folder of visits; rows that do not fit into memory go into the folder `spill`.

    Raises UserError for a file of no known shape, a value that cannot be, and where more than `max_dropped`
    of a column's codes are rejected.
    """
    path, spelling = Path(path), spelling or Spelling()
    shape = shape_of(path)
    is_table = shape.name in ("parquet", "csv")
    source = Source("external", {}, "") if is_table else read_source(shape.name)
    # A generator may write empty visits; how many is said, and they are no sign of a table that is cut off.
    limits = Limits(max_dropped=max_dropped, max_empty=1.0, section="evaluate")
    intake = Intake(source, {} if is_table else shape.files, tuple(CODE_COLUMNS), spill, audit, limits)
    with closing(intake.connection):
        try:
            if is_table:
                absent = visitrows.open_visits(
                    intake, shape.files["visits"], frozenset((spelling.code_map or {}).values())
                )
            else:
                absent = _open_tables(intake)
                audit.ignored = _ignored(source, path, shape.files)
            table = pa.concat_tables(intake.visits(spelling))
        except duckdb.ConversionException as error:
            raise UserError(f"{path}: {str(error).splitlines()[0]}; correct the value") from None
        except UserError as error:  # of what all files hold together
            raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None
    scored = without_empty_visits(table)
    visits = check_visits(scored.set_column(0, "patient_id", _own_ids(scored)), str(path))
    return External(NAMES[shape.name], visits, absent, len(table) - len(scored), shape.without_rows)


def in_one_line(path: Path, read: External, audit: Audit) -> str:
    """What was read, what is scored, what is missing and what was dropped."""
    visits = read.visits
    known = f"missing: {', '.join(sorted(read.absent))}" if read.absent else "days, age and sex are known"
    left = f" ({read.not_scored:,} without any are left out)" if read.not_scored else ""
    parts = [
        f"{path}: {read.shape}",
        f"{audit.patients:,} patients, {audit.visits:,} visits, {audit.codes_in_words()}",
        f"scored: the {', '.join(used_columns(visits))} of {len(patient_starts(visits)):,} patients,"
        f" {visits.num_rows:,} visits{left}",
        known,
        f"dropped: {audit.dropped_in_words()}",
    ]
    if read.without_rows:
        parts.append(f"without a row: {', '.join(read.without_rows)}")
    if audit.ignored:
        parts.append(f"beside files not read: {', '.join(audit.ignored)}")
    return "; ".join(parts)


def _open_tables(intake: Intake) -> frozenset[str]:
    """Open the tables of a source; returns what is missing of days, age and sex."""
    intake.open_tables()
    con, name = intake.connection, intake.source.name
    if name in PATIENTS and PATIENTS[name][0] not in intake.files:
        patients, admissions = PATIENTS[name]  # of unknown sex and age
        con.execute(f"INSERT INTO {patients} BY NAME SELECT DISTINCT SUBJECT_ID FROM {admissions}")
    intake.run_sql()
    absent = {"days"} if intake.source.days_are_placeholders else set()
    visits, ages, sexes = con.execute("SELECT count(*), count(age), count(sex) FROM visit").fetchall()[0]
    if visits and not (ages and sexes):
        con.execute("CREATE TABLE visit_as_read AS FROM visit")
        con.execute("DROP VIEW visit")
        con.execute("CREATE VIEW visit AS SELECT * REPLACE (0.0 AS age, 'F' AS sex) FROM visit_as_read")
        absent |= DEMOGRAPHICS
    return frozenset(absent)


def _ignored(source: Source, folder: Path, files: Mapping[str, list[Path]]) -> list[str]:
    """Files that hold a table which is read from another file."""
    return [
        path.name
        for name, read in files.items()
        if not source.tables[name].files
        for path in files_of(source.tables[name], folder, source.folder)
        if path not in read
    ]


def _own_ids(table: pa.Table) -> pa.Array:
    number = patient_of_visit(table["visit"]) + 1
    width = len(str(number[-1]))
    return pa.array(np.char.add("external-", np.char.zfill(number.astype(str), width)).tolist(), pa.string())
