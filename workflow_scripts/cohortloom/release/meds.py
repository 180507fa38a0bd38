"""MEDS 0.4.1 (Medical Event Data Standard): one table of events, sharded by split.

Codes are those of the reference ETL of MIMIC-IV, which readers know: DIAGNOSIS//ICD//9//4019 at discharge,
PROCEDURE//ICD//9//0045, MEDICATION//START//NAME. Codes of other systems are SYSTEM/CODE. Columns beyond the
standard: hadm_id, the visit of an event, and seq_num, the place of a code in its list, for events of one
time have no order.
"""

import datetime
import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cohortloom.base.seeds import generator
from cohortloom.base.version import VERSION

MEDS_VERSION = "0.4.1"
SPLITS = ("train", "tuning", "held_out")
SHARE = 10  # one in so many subjects is for tuning, as many are held out
EVENTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),  # always null; some readers insist on the column
        pa.field("hadm_id", pa.int64()),
        pa.field("seq_num", pa.int64()),
    ]
)
CODES = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("parent_codes", pa.list_(pa.string())),
    ]
)
PLACE = "SYNTHETIC"
NAMED = """
CREATE TABLE named AS
SELECT name, "column", title, dotted,
       CASE system WHEN 'ICD9CM' THEN 'DIAGNOSIS//ICD//9//' || code
                   WHEN 'ICD10CM' THEN 'DIAGNOSIS//ICD//10//' || code
                   WHEN 'ICD9Proc' THEN 'PROCEDURE//ICD//9//' || code
                   WHEN 'ICD10PCS' THEN 'PROCEDURE//ICD//10//' || code
                   WHEN 'Drug' THEN 'MEDICATION//START//' || code
                   ELSE system || '/' || dotted END AS code,
       if(system = 'Drug', NULL, system || '/' || dotted) AS parent
FROM name
"""
# What happens first in a visit has a lower rank; null times are static.
EVENT = f"""
CREATE TABLE event AS
SELECT patient AS subject_id, NULL::TIMESTAMP AS time, 'GENDER//' || sex AS code, NULL::BIGINT AS hadm_id,
       NULL::BIGINT AS seq_num, 0 AS rank FROM patient
UNION ALL
SELECT patient, birth::TIMESTAMP, 'MEDS_BIRTH', NULL, NULL, 0 FROM patient
UNION ALL
SELECT patient, admitted, 'HOSPITAL_ADMISSION//{PLACE}//{PLACE}', visit, NULL, 1 FROM visit
UNION ALL
SELECT v.patient, if(n."column" = 'diagnoses', discharged, admitted), n.code, visit, place,
       CASE n."column" WHEN 'procedures' THEN 2 WHEN 'medications' THEN 3 ELSE 4 END
FROM coded JOIN visit v USING (visit) JOIN named n USING (name)
UNION ALL
SELECT patient, discharged, 'HOSPITAL_DISCHARGE//{PLACE}', visit, NULL, 5 FROM visit
"""
DESCRIPTIONS = {
    "MEDS_BIRTH": "birth; invented, it gives the ages of the visits",
    "GENDER//F": "female",
    "GENDER//M": "male",
    f"HOSPITAL_ADMISSION//{PLACE}//{PLACE}": "begin of a synthetic visit",
    f"HOSPITAL_DISCHARGE//{PLACE}": "end of a synthetic visit",
}


def write(connection: duckdb.DuckDBPyConnection, folder: Path, name: str, seed: int) -> list[str]:
    """Write data/ and metadata/ from the relations of exports.py; return what the format does not hold.

    name: of the data set. `seed` draws the split of the subjects.
    """
    connection.execute(NAMED)
    connection.execute(EVENT)
    subjects = connection.execute("SELECT patient FROM patient ORDER BY patient").fetchnumpy()["patient"]
    split = _split(len(subjects), seed)
    connection.register("registered", pa.table({"subject_id": pa.array(subjects), "split": pa.array(split)}))
    connection.execute("CREATE TABLE split AS SELECT * FROM registered")
    for part, title in enumerate(SPLITS):
        rows = connection.sql(
            "SELECT subject_id, time, code, NULL::FLOAT AS numeric_value, hadm_id, seq_num"
            f" FROM event JOIN split USING (subject_id) WHERE split = {part}"
            " ORDER BY subject_id, time NULLS FIRST, hadm_id NULLS FIRST, rank, seq_num"
        )
        _save(rows.to_arrow_table(), EVENTS, folder / "data" / title / "0.parquet")
    splits = pa.table(
        {
            "subject_id": pa.array(subjects, pa.int64()),
            "split": pa.array(np.array(SPLITS)[split].tolist(), pa.string()),
        }
    )
    metadata = folder / "metadata"
    _save(splits, splits.schema, metadata / "subject_splits.parquet")
    connection.register(
        "described", pa.table({"code": list(DESCRIPTIONS), "text": list(DESCRIPTIONS.values())})
    )
    codes = connection.sql(
        "SELECT code, coalesce(any_value(text), any_value(title), any_value(dotted)) AS description,"
        " coalesce(list(DISTINCT parent) FILTER (WHERE parent <> code), []) AS parent_codes"
        " FROM (SELECT DISTINCT code FROM event) LEFT JOIN named USING (code)"
        " LEFT JOIN described USING (code) GROUP BY code ORDER BY code"
    )
    _save(codes.to_arrow_table(), CODES, metadata / "codes.parquet")
    (metadata / "dataset.json").write_text(json.dumps(_about(name), indent=1) + "\n", encoding="utf-8")
    return [
        "A time for each code: diagnoses have that of the discharge, the others that of the admission.",
        "The order of codes of one time, which is not part of the standard: column `seq_num` holds it.",
    ]


def _split(n: int, seed: int) -> np.ndarray:
    """Number of the split of each of n subjects."""
    out = np.zeros(n, np.int64)
    order = generator("splits of an export", seed).permutation(n)
    out[order[: n // SHARE]] = 1
    out[order[n // SHARE : 2 * (n // SHARE)]] = 2
    return out


def _save(table: pa.Table, schema: pa.Schema, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.cast(schema), path)


def _about(name: str) -> dict:
    """metadata/dataset.json."""
    return {
        "dataset_name": name,
        "dataset_version": VERSION,
        "etl_name": "cohortloom",
        "etl_version": VERSION,
        "meds_version": MEDS_VERSION,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "license": "see README.md",
        "raw_source_id_columns": ["hadm_id"],
        "code_modifier_columns": [],
        "other_extension_columns": ["seq_num"],
    }
