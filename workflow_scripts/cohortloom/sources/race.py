"""Race or ethnicity of each patient, read from the raw tables for the audit of its removal and for nothing
else.

Values are mapped to a few broad groups by a fixed list, so that nothing written in a table is ever repeated.
What this returns is held in memory only: it is never stored with patients.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.sources import nhds2010
from cohortloom.sources.cohort import Audit
from cohortloom.sources.csvtable import CsvTable
from cohortloom.sources.locate import find_tables
from cohortloom.sources.rawfile import BOM, read_bytes

GROUPS = ("white", "black", "hispanic", "asian", "other")
UNKNOWN = -1
# Beginnings of MIMIC-III's ETHNICITY, in the order in which they are tried; anything else is `other`.
MIMIC3 = (
    (r"^(WHITE|PORTUGUESE)", 0),
    (r"^(BLACK|AFRICAN)", 1),
    (r"^(HISPANIC|SOUTH AMERICAN)", 2),
    (r"^ASIAN", 3),
    (r"^$|UNKNOWN|UNABLE|DECLINED|NOT SPECIFIED|NOT STATED", UNKNOWN),
)
NHDS2010 = {"1": 0, "2": 1, "4": 3, "9": UNKNOWN}  # code of the public-use file; the rest is `other`


def groups_of_patients(source: str, raw_dir: Path) -> dict[str, int] | None:
    """Index into GROUPS by patient_id, UNKNOWN left out; None where the tables tell nothing of it."""
    tables = find_tables(source, raw_dir)
    return _nhds2010(tables["NHDS"]) if source == "nhds2010" else _mimic3(tables["ADMISSIONS"])


def _mimic3(path: Path) -> dict[str, int] | None:
    first = read_bytes(path)[0].removeprefix(BOM).split(b"\n", 1)[0].decode("utf-8", "replace")
    if "ETHNICITY" not in {name.strip().strip('"').upper() for name in first.split(",")}:
        return None
    table = CsvTable("ADMISSIONS", path, ("SUBJECT_ID", "ETHNICITY"), Audit())
    spelled = pc.utf8_upper(table["ETHNICITY"]).dictionary_encode()
    group = np.full(len(spelled.dictionary), GROUPS.index("other"))
    for pattern, number in reversed(MIMIC3):
        group[pc.match_substring_regex(spelled.dictionary, pattern).to_numpy(zero_copy_only=False)] = number
    found: dict[str, int] = {}
    for patient, number in zip(
        table["SUBJECT_ID"].to_pylist(), group[spelled.indices.to_numpy()], strict=True
    ):
        if number != UNKNOWN:
            found.setdefault(str(int(patient)), int(number))  # the first admission that says it
    return found


def _nhds2010(path: Path) -> dict[str, int]:
    lines, _ = nhds2010._lines(path, Audit())
    width = len(str(len(lines)))
    codes = lines[:, nhds2010.LAYOUT["race"][0]]
    found = {}
    for code in np.unique(codes):
        number = NHDS2010.get(chr(code), GROUPS.index("other"))
        if number != UNKNOWN:
            rows = np.flatnonzero(codes == code) + 1
            found.update((f"nhds2010-{row:0{width}d}", number) for row in rows.tolist())
    return found


def groups_of_visits(table: pa.Table, found: dict[str, int]) -> np.ndarray:
    """Group of each visit's patient [n_visits], UNKNOWN where it is not told."""
    return np.array([found.get(one, UNKNOWN) for one in table["patient_id"].to_pylist()], np.int64)
