"""Race or ethnicity of each patient: the one file that reads it, for the audit of its removal alone.

Recorded values are mapped to a few broad groups by a fixed list, so that no recorded value is repeated
anywhere. The result stays in memory and is never stored with patients.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from cohortloom.sources.declared import Column, Table
from cohortloom.sources.locate import declared, find_tables
from cohortloom.sources.rawtable import RawTable, literal

RACES = ("white", "black", "hispanic", "asian", "other")
UNKNOWN = -1
# What begins or holds a recorded value, in the order in which it is tried; anything else is `other`.
WORDS = (
    (r"^(WHITE|PORTUGUESE|CAUCASIAN)", 0),
    (r"^(BLACK|AFRICAN)", 1),
    (r"^(HISPANIC|SOUTH AMERICAN)", 2),
    (r"^ASIAN", 3),
    (r"^0?$|UNKNOWN|UNABLE|DECLINED|NOT SPECIFIED|NOT STATED", UNKNOWN),
)
NHDS2010 = """
SELECT 'nhds2010-'
       || lpad(CAST(rowid + 1 AS VARCHAR), (SELECT length(CAST(count(*) AS VARCHAR)) FROM NHDS)::INT, '0'),
       CASE race WHEN '1' THEN 'WHITE' WHEN '2' THEN 'BLACK' WHEN '4' THEN 'ASIAN' WHEN '9' THEN ''
                 ELSE 'OTHER' END
FROM NHDS
"""


@dataclass(frozen=True)
class Recorded:
    """Where a source records race: the table, its columns, and SQL of patient and value."""

    table: str
    columns: tuple[Column, ...]
    query: str
    condition: str | None = None


def _text(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "text", optional=True) for name in names)


RECORDED = {
    "mimic3": Recorded(
        "ADMISSIONS",
        (Column("SUBJECT_ID", "integer"), *_text("ETHNICITY")),
        "SELECT SUBJECT_ID, ETHNICITY FROM ADMISSIONS",
    ),
    "mimic4": Recorded(
        "admissions",
        (Column("subject_id", "integer"), *_text("race")),
        "SELECT subject_id, race FROM admissions",
    ),
    "eicu": Recorded(
        "patient",
        (Column("uniquepid", "text"), *_text("ethnicity")),
        "SELECT uniquepid, ethnicity FROM patient",
    ),
    "omop": Recorded(
        "person",
        (
            Column("person_id", "integer"),
            *_text("race_concept_id", "race_source_value", "ethnicity_concept_id", "ethnicity_source_value"),
        ),
        "SELECT person_id, CASE WHEN ethnicity_concept_id = '38003563' THEN 'HISPANIC'"
        " WHEN race_concept_id = '8527' THEN 'WHITE' WHEN race_concept_id = '8516' THEN 'BLACK'"
        " WHEN race_concept_id = '8515' THEN 'ASIAN'"
        " ELSE coalesce(nullif(nullif(race_source_value, ''), '0'), ethnicity_source_value) END FROM person",
    ),
    "meds": Recorded(
        "data",
        (Column("subject_id", "integer"), Column("code", "text")),
        "SELECT subject_id, regexp_extract(code, '([^/]*)$', 1) FROM data",
        "regexp_matches(code, '^((MIMIC_IV_)?(RACE|Race)|ETHNICITY|Ethnicity)/')",
    ),
    "nhds2010": Recorded(
        "NHDS",
        _text("race"),
        NHDS2010,
    ),
}


def race_of_patients(source: str, raw_dir: Path) -> dict[str, int] | None:
    """Index into RACES by patient_id, without the patients of unknown race; None if no table records race."""
    name = "mimic3" if source == "simulated" else source
    recorded, tables = RECORDED[name], declared(name)
    table = tables.tables[recorded.table]
    columns = tuple(
        Column(c.name, c.type, c.optional, place=table.removed_places.get(c.name)) for c in recorded.columns
    )
    alone = Table(table.name, columns, files=table.files, file=table.file, width=table.width)
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        files = find_tables(name, raw_dir, ())[table.name]
        raw = RawTable(connection, alone, files, Path(folder), recorded.condition)
        if len(raw.columns) == 1 and not table.width or not raw.rows:
            return None
        cases = " ".join(f"WHEN regexp_matches(value, {literal(words)}) THEN {race}" for words, race in WORDS)
        rows = connection.execute(
            f"SELECT CAST(patient AS VARCHAR), CASE {cases} ELSE {RACES.index('other')} END"
            f" FROM (SELECT patient, upper(coalesce(value, '')) AS value"
            f" FROM ({recorded.query}) AS found(patient, value))"
        ).fetchall()
    race: dict[str, int] = {}
    for patient, number in rows:
        if number != UNKNOWN:
            race.setdefault(patient, number)  # of several rows the first that says it
    return race


def race_of_visits(table: pa.Table, race: dict[str, int]) -> np.ndarray:
    """Race of each visit's patient as an index into RACES, UNKNOWN where there is none; [n_visits]."""
    return np.array([race.get(patient, UNKNOWN) for patient in table["patient_id"].to_pylist()], np.int64)
