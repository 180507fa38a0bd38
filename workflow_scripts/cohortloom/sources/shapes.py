"""The shapes in which another generator's visits come, told by names of files and of columns.

| shape   | is told by                                                                                    |
|---------|-----------------------------------------------------------------------------------------------|
| mimic3  | ADMISSIONS and DIAGNOSES_ICD with the column ICD9_CODE                                          |
| mimic4  | admissions and diagnoses_icd with the column icd_version, also in hosp/                        |
| omop    | person, visit_occurrence, condition_occurrence, concept                                       |
| eicu    | patient, diagnosis                                                                            |
| meds    | Parquet with subject_id, time and a code such as ICD9CM/401.9, in data/, else anywhere         |
| parquet | other Parquet: a row a visit, a file or a folder of parts                                      |
| csv     | a file that ends in .csv, .csv.gz or .zip: a row a visit, or a row a code                      |
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cohortloom.base.errors import UserError
from cohortloom.sources import rawfile
from cohortloom.sources.declared import read_source
from cohortloom.sources.locate import files_of

NAMES = {
    "mimic3": "tables of MIMIC-III",
    "mimic4": "tables of MIMIC-IV",
    "omop": "tables of OMOP",
    "eicu": "tables of eICU",
    "meds": "MEDS events",
    "parquet": "Parquet of visits",
    "csv": "long CSV",
}
# Shapes of tables -> those that must be there; MIMIC-III and -IV have the same names.
NEEDED = {
    "mimic4": ("admissions", "diagnoses_icd"),
    "omop": ("person", "visit_occurrence", "condition_occurrence", "concept"),
    "eicu": ("patient", "diagnosis"),
}
ENDINGS = (".csv", ".csv.gz", ".zip")
GIVE = (
    "give visits as Parquet or long CSV, or a folder of tables of MIMIC-III, MIMIC-IV, OMOP or eICU, or of"
    " MEDS events (docs/external.md)"
)


@dataclass(frozen=True)
class Shape:
    """What the files are, and the files of each table; of visits those of the table `visits`."""

    name: str
    files: dict[str, list[Path]]
    without_rows: tuple[str, ...] = ()  # tables with a header alone, which are not read


def shape_of(path: Path) -> Shape:
    """The shape of a file or folder. Raises UserError for one that has none, or lacks a table."""
    if not path.exists():
        raise UserError(f"{path}: no such file; correct evaluate.external in the config")
    if path.is_file():
        return _of_parts([path], path)
    parts = sorted(path.glob("data/**/*.parquet")) or sorted(path.glob("**/*.parquet"))
    found = {name: _tables(name, path) for name in NEEDED}
    most = max(found, key=lambda name: len(found[name].keys() & set(NEEDED[name])))
    there = len(found[most].keys() & set(NEEDED[most]))
    if there < 2 and parts:  # a name such as person.parquet alone tells nothing
        return _of_parts(parts, path)
    if not there:
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        holds = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "") if names else "no file"
        raise UserError(f"{path}: no known shape of visits; it holds {holds[:200]}; {GIVE}")
    for name in NEEDED[most]:
        if name not in found[most]:
            has = ", ".join(file.name for files in found[most].values() for file in files)
            shape = "MIMIC-III or -IV" if most == "mimic4" else NAMES[most].removeprefix("tables of ")
            raise UserError(
                f"{path}: table {name} is missing beside {has}, which are of {shape}; add {name}.csv,"
                f" {name}.csv.gz or {name}.parquet"
            )
    return _mimic(found[most]) if most == "mimic4" else _without_empty(most, found[most])


def columns_of(path: Path) -> dict[str, pa.DataType | None]:
    """Columns of a table as written, with their types in Parquet."""
    if rawfile.kind_of(path) != "parquet":
        return dict.fromkeys(rawfile.header(path, path))
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        raise UserError(f"{path}: not a readable parquet file; make it again") from None
    return dict(zip(schema.names, schema.types, strict=True))


def _tables(name: str, folder: Path) -> dict[str, list[Path]]:
    source = read_source(name)
    found = {table: files_of(declared, folder, source.folder) for table, declared in source.tables.items()}
    return {table: files[:1] for table, files in found.items() if files}


def _mimic(files: dict[str, list[Path]]) -> Shape:
    """MIMIC-III or -IV, by the columns of the table of diagnoses."""
    path = files["diagnoses_icd"][0]
    columns = {name.lower() for name in columns_of(path)}
    if "icd_version" in columns:
        return _without_empty("mimic4", files)
    if "icd9_code" not in columns:
        place = "" if rawfile.kind_of(path) == "parquet" else " line 1:"
        raise UserError(
            f"{path}:{place} column ICD9_CODE of MIMIC-III, or icd_code and icd_version of MIMIC-IV, is"
            f" missing; the table has {', '.join(sorted(columns))[:120]}; name the column of the codes so"
        )
    return _without_empty("mimic3", {name.upper(): paths for name, paths in files.items()})


def _without_empty(shape: str, files: dict[str, list[Path]]) -> Shape:
    """Leave out tables that are not needed and have a header alone: exports write them for other readers."""
    tables = read_source(shape).tables
    empty = tuple(
        table for table, paths in files.items() if tables[table].optional and not _has_rows(paths[0])
    )
    return Shape(shape, {name: paths for name, paths in files.items() if name not in empty}, empty)


def _has_rows(path: Path) -> bool:
    if rawfile.kind_of(path) == "parquet":
        return pq.read_metadata(path).num_rows > 0
    return len(list(islice(rawfile.records(path, path), 2))) == 2


def _of_parts(parts: list[Path], given: Path) -> Shape:
    """Visits, or events of MEDS, in one file or in parts."""
    if rawfile.kind_of(parts[0]) != "parquet":
        if not parts[0].name.lower().endswith(ENDINGS):
            raise UserError(f"{given}: neither a readable parquet file nor a .csv; {GIVE}")
        return Shape("csv", {"visits": parts})
    columns = columns_of(parts[0])
    events = {"subject_id", "time", "code"} <= set(columns) and _are_events(parts)
    return Shape("meds", {"data": parts}) if events else Shape("parquet", {"visits": parts})


def _are_events(parts: list[Path]) -> bool:
    """Whether codes are those of MEDS, which name what they are: DIAGNOSIS//ICD//9//4019, ICD9CM/401.9."""
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(1 << 16, columns=["code"]):
            codes = batch.column("code")
            return pa.types.is_string(codes.type) and bool(pc.any(pc.match_substring(codes, "/")).as_py())
    return False
