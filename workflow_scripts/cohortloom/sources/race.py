"""Race or ethnicity of each patient: the one file that reads it, for the audit of its removal alone.

Recorded values are mapped to a few broad groups by a fixed list, so that no recorded value is repeated
anywhere. The result stays in memory and is never stored with patients.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.sources import nhds2010
from cohortloom.sources.cohort import Audit
from cohortloom.sources.csvtable import CsvTable, header
from cohortloom.sources.locate import find_tables

RACES = ("white", "black", "hispanic", "asian", "other")
UNKNOWN = -1
# Prefixes of MIMIC-III's ETHNICITY, in the order in which they are tried; anything else is `other`.
MIMIC3 = (
    (r"^(WHITE|PORTUGUESE)", 0),
    (r"^(BLACK|AFRICAN)", 1),
    (r"^(HISPANIC|SOUTH AMERICAN)", 2),
    (r"^ASIAN", 3),
    (r"^$|UNKNOWN|UNABLE|DECLINED|NOT SPECIFIED|NOT STATED", UNKNOWN),
)
NHDS2010 = {"1": 0, "2": 1, "4": 3, "9": UNKNOWN}  # code of the public-use file; the rest is `other`


def race_of_patients(source: str, raw_dir: Path) -> dict[str, int] | None:
    """Index into RACES by patient_id, without the patients of unknown race; None if no table records race."""
    tables = find_tables(source, raw_dir)
    recorded = _nhds2010(tables["NHDS"]) if source == "nhds2010" else _mimic3(tables["ADMISSIONS"])
    if recorded is None:
        return None
    race: dict[str, int] = {}
    for patient, number in zip(*recorded, strict=True):
        if number != UNKNOWN:
            race.setdefault(patient, number)  # of several admissions the first that says it
    return race


def race_of_visits(table: pa.Table, race: dict[str, int]) -> np.ndarray:
    """Race of each visit's patient as an index into RACES, UNKNOWN where there is none; [n_visits]."""
    return np.array([race.get(patient, UNKNOWN) for patient in table["patient_id"].to_pylist()], np.int64)


def _mimic3(path: Path) -> tuple[list[str], list[int]] | None:
    """Patient and race of each admission."""
    if "ETHNICITY" not in header(path):
        return None
    table = CsvTable("ADMISSIONS", path, ("SUBJECT_ID", "ETHNICITY"), Audit())
    spelled = pc.utf8_upper(table["ETHNICITY"]).dictionary_encode()
    race = np.full(len(spelled.dictionary), RACES.index("other"))
    for pattern, number in reversed(MIMIC3):
        race[pc.match_substring_regex(spelled.dictionary, pattern).to_numpy(zero_copy_only=False)] = number
    patients = [str(number) for number in table.integers("SUBJECT_ID").tolist()]
    return patients, race[spelled.indices.to_numpy()].tolist()


def _nhds2010(path: Path) -> tuple[list[str], list[int]]:
    """Patient and race of each discharge."""
    lines, _ = nhds2010.read_lines(path, Audit())
    recorded = [chr(code) for code in lines[:, nhds2010.LAYOUT["race"][0]].tolist()]
    race = [NHDS2010.get(code, RACES.index("other")) for code in recorded]
    return nhds2010.patient_ids(len(lines)), race
