"""Which raw files a source reads, and where they are. Standard library only: the workflow is parsed by it."""

from collections.abc import Sequence
from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.sources.declared import Source, Table, read_source

SOURCES = ("simulated", "mimic3", "mimic4", "eicu", "omop", "meds", "nhds2010")
ENDINGS = (".csv", ".csv.gz", ".parquet", ".csv.zip", ".zip")
PACKED = ("", ".bz2", ".gz", ".zip")  # endings of a file whose whole name is declared
REMEDY = (
    "set raw_dir in the config, by --config raw_dir=DIR or by the environment variable COHORTLOOM_RAW_DIR"
)


def declared(source: str) -> Source:
    """The declaration of a source; the simulated hospital's tables are those of MIMIC-III."""
    if source not in SOURCES:
        raise UserError(f"source {source!r} is unknown; choose one of {', '.join(SOURCES)}")
    try:
        return read_source("mimic3" if source == "simulated" else source)
    except ValueError as error:
        raise UserError(f"sources/{source}.sql: {error}; see sources/declared.py") from None


def find_tables(
    source: str, raw_dir: Path | str | None, columns: Sequence[str] | None = None
) -> dict[str, list[Path]]:
    """Table name -> its files for `source`, names and endings in either case.

    `columns` are the columns of codes that the cohort uses, None for all. Tables that serve others are left
    out, and so are optional ones that are not there; one that serves a column of `columns` must be there.
    raw_dir is the folder of the tables or, of a source with one file, that file. Raises UserError that names
    the missing table, the folder and the remedy.
    """
    tables = declared(source)
    if raw_dir is None or str(raw_dir) == "":
        raise UserError(f"the source {source} needs the folder of its raw tables; {REMEDY}")
    folder = Path(raw_dir)
    if folder.is_file() and len(tables.tables) == 1:
        return {name: [folder] for name in tables.tables}
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of raw tables; {REMEDY}")
    found, missing = {}, {}
    for table in tables.tables.values():
        if table.column and columns is not None and table.column not in columns:
            continue
        if candidates := files_of(table, folder, tables.folder):
            found[table.name] = candidates if table.files else candidates[:1]
        else:
            missing[table.name] = table
    served = {tables.tables[name].column for name in found}
    for table in missing.values():
        asked = columns is not None and table.column and table.column not in served
        if asked or not table.optional:
            names = table.files or " or ".join(_names(table))
            raise UserError(
                f"{folder}: table {table.file or table.name} is missing (looked for {names}); {REMEDY}"
            )
    return found


def files_of(table: Table, folder: Path, inner: str | None = None) -> list[Path]:
    """Files that may hold a table, the one to be read first; all parts of a table of several files."""
    if table.files:
        return sorted(path for path in folder.glob(table.files) if path.is_file())
    for place in (folder, *([folder / inner] if inner else [])):
        files = (
            {path.name.lower(): path for path in sorted(place.iterdir()) if path.is_file()}
            if place.is_dir()
            else {}
        )
        if candidates := [files[name.lower()] for name in _names(table) if name.lower() in files]:
            return candidates
    return []


def _names(table: Table) -> list[str]:
    if table.file:
        return [table.file + ending for ending in PACKED]
    return [table.name + ending for ending in ENDINGS]


def ignored_files(source: str, raw_dir: Path | str, found: dict[str, list[Path]]) -> list[str]:
    """Names of files that hold a table which is read from another file, such as X.csv.gz beside X.csv."""
    tables, folder = declared(source), Path(raw_dir)
    if not folder.is_dir():
        return []
    names = []
    for name, read in found.items():
        table = tables.tables[name]
        if not table.files:
            names += [path.name for path in files_of(table, folder, tables.folder) if path not in read]
    return names
