"""What a source's SQL file declares in its comments: which tables and columns it reads, and of which type.

    -- folder hosp
    -- table PATIENTS: SUBJECT_ID integer key, GENDER text, DOB time
    -- table PRESCRIPTIONS? for medications: HADM_ID integer? in ADMISSIONS, DRUG code

The columns are the allow-list: no other is ever parsed. A line goes on in comment lines that are indented by
five blanks.

- `?` behind a table or a column: it may be missing; behind a type: a value may be empty.
- `for COLUMN`: the table serves this column of codes and is left alone where the cohort does not use it.
- Types: integer, time (a date, with or without a time of day), number, text, code (text, but left as it is).
- `key`: no two rows have this value. `in TABLE`: the value must stand in the column of that name there.
- `files GLOB` in front of the colon: a table of several Parquet files.
- `fixed FILE WIDTH` in front of the colon: a table of fixed width; places are FROM-TO, counted from 1, and a
  column with `-` in front is there to be named and is not read.
- `-- folder NAME`: the tables may lie in this folder of raw_dir. `-- days placeholder`: there are no dates.
- `-- rows TABLE: CONDITION` lets in only rows for which the SQL condition holds; the others are counted by
  `-- named TABLE: EXPRESSION`.

Standard library only: the workflow is parsed by it.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent  # of the SQL files
TYPES = ("integer", "time", "number", "text", "code")
_TABLE = re.compile(
    r"table (?P<name>\w+)(?P<optional>\?)?(?: for (?P<column>\w+))?"
    r"(?: files (?P<files>\S+))?(?: fixed (?P<file>\S+) (?P<width>\d+))?: (?P<columns>.+)"
)
_COLUMN = re.compile(
    r"(?P<removed>-)?(?P<name>\w+)(?P<optional>\?)?(?: (?P<first>\d+)(?:-(?P<last>\d+))?)?"
    r"(?: (?P<type>" + "|".join(TYPES) + r")(?P<empty>\?)?)?(?P<key> key)?(?: in (?P<refers>\w+))?"
)


@dataclass(frozen=True)
class Column:
    """A column of the allow-list; `place` is its first character and its width in a table of fixed width."""

    name: str
    type: str
    optional: bool = False
    empty: bool = False
    key: bool = False
    refers: str | None = None
    place: tuple[int, int] | None = None


@dataclass(frozen=True)
class Table:
    """A raw table, the columns that are read and, of fixed width, the names of those that are not."""

    name: str
    columns: tuple[Column, ...]
    optional: bool = False
    column: str | None = None  # of codes, which it serves
    files: str | None = None
    file: str | None = None
    width: int | None = None
    removed: tuple[str, ...] = ()
    removed_places: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A source: its tables by name, the folder in which they may lie, its SQL, and which rows it lets in."""

    name: str
    tables: dict[str, Table]
    sql: str
    folder: str | None = None
    days_are_placeholders: bool = False
    rows: dict[str, str] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)


def read_source(name: str) -> Source:
    """The declaration and the SQL of sources/<name>.sql. Raises ValueError for a line that says nothing."""
    text = (FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    tables, folder, conditions, placeholder = {}, None, {"rows": {}, "named": {}}, False
    for line in _declarations(text):
        word, _, rest = line.partition(" ")
        if word == "folder":
            folder = rest.strip()
        elif word == "days":
            placeholder = True
        elif word in conditions:
            table, _, condition = rest.partition(": ")
            conditions[word][table] = condition
        else:
            table = _table(line)
            tables[table.name] = table
    return Source(name, tables, text, folder, placeholder, conditions["rows"], conditions["named"])


def _declarations(text: str) -> list[str]:
    found: list[str] = []
    for line in text.splitlines():
        if re.match(r"-- (table|folder|days|rows|named) ", line):
            found.append(line[3:].strip())
        elif line.startswith("--     ") and found:
            found[-1] += ("" if found[-1].endswith("|") else " ") + line[2:].strip()
        elif not line.startswith("--"):
            break
    return found


def _table(line: str) -> Table:
    if not (match := _TABLE.fullmatch(line)):
        raise ValueError(f"not a declaration of a table: {line!r}")
    columns, removed = [], {}
    for part in match["columns"].split(","):
        if not (one := _COLUMN.fullmatch(part.strip())):
            raise ValueError(f"not a declaration of a column: {part.strip()!r} in {line!r}")
        first = int(one["first"] or 0)
        place = (first, int(one["last"] or first) - first + 1) if first else None
        if one["removed"]:
            removed[one["name"]] = place
            continue
        columns.append(
            Column(
                one["name"],
                one["type"],
                bool(one["optional"]),
                bool(one["empty"]),
                bool(one["key"]),
                one["refers"],
                place,
            )
        )
    return Table(
        match["name"],
        tuple(columns),
        bool(match["optional"]),
        match["column"],
        match["files"],
        match["file"],
        int(match["width"]) if match["width"] else None,
        tuple(removed),
        removed,
    )
