"""Which raw files a source reads, and where they are. Standard library only: the workflow is parsed by it."""

from pathlib import Path

from cohortloom.base.errors import UserError

MIMIC3 = ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD")
NHDS2010 = "NHDS10.PU.TXT"
SOURCES = ("simulated", "mimic3", "nhds2010")
REMEDY = (
    "set raw_dir in the config, by --config raw_dir=DIR or by the environment variable COHORTLOOM_RAW_DIR"
)


def find_tables(source: str, raw_dir: Path | str | None) -> dict[str, Path]:
    """Table name -> file for `source`, names and suffixes in either case.

    mimic3 and simulated: three tables, .csv before .csv.gz, in the folder raw_dir. nhds2010: the
    public-use file, plain or .bz2/.gz/.zip; raw_dir is its folder or the file itself.
    Raises UserError that names the missing table, the folder and the remedy.
    """
    if source not in SOURCES:
        raise UserError(f"source {source!r} is unknown; choose one of {', '.join(SOURCES)}")
    if raw_dir is None or str(raw_dir) == "":
        raise UserError(f"the source {source} needs the folder of its raw tables; {REMEDY}")
    folder = Path(raw_dir)
    if source == "nhds2010":
        if folder.is_file():
            return {"NHDS": folder}
        return {"NHDS": _find(folder, NHDS2010, ("", ".bz2", ".gz", ".zip"))}
    return {table: _find(folder, table, (".csv", ".csv.gz")) for table in MIMIC3}


def _find(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    """The file `name` + one of `suffixes` in `folder`, in either case; the first suffix wins."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of raw tables; {REMEDY}")
    files = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
    for suffix in suffixes:
        if (name + suffix).lower() in files:
            return files[(name + suffix).lower()]
    wanted = " or ".join(name + suffix for suffix in suffixes)
    raise UserError(f"{folder}: table {name} is missing (looked for {wanted}); {REMEDY}")
