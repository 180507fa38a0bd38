"""From raw tables to the visits table: what all sources have in common. What differs is sources/<name>.sql.

A source's SQL makes two views over its raw tables, and three more where it needs them:

- visit: visit_id, patient, day (a date, or a number of days), moment (what orders the visits of a patient),
  age in years, sex (F or M; null where the source marks it as unknown, as with age);
- event: visit_id (null: outside any visit), "column" (diagnoses, procedures, medications), system, code as it
  is written, position (order in the visit; null: that of the rows), row;
- refused: "table", row, "column", why: rows that end the step;
- left_out: what, reason, rows: what the source does not select, counted for the account;
- normalized: what, count.

The macros age_at(birth, time) and years_between(birth, time) are there. Rows stay in DuckDB, which keeps to
`memory_mb` and spills the rest into a folder that is removed at the end. They come back sorted, in batches of
whole patients, of which the lists of codes are built.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.visits import MAX_AGE
from cohortloom.sources.audit import Audit
from cohortloom.sources.batches import Arrays, Assembly, in_batches
from cohortloom.sources.declared import Source
from cohortloom.sources.rawtable import RawTable, literal, quoted, sql_type
from cohortloom.sources.spelling import Spelling

SPILL = ".preprocess-spill-"
BATCH = 1 << 16  # visits of a batch, about
MACROS = """
CREATE MACRO years_between(birth, moment) AS
    date_diff('year', CAST(birth AS DATE), CAST(moment AS DATE))
    - CAST(month(moment) * 100 + day(moment) < month(birth) * 100 + day(birth) AS INTEGER);
CREATE MACRO age_at(birth, moment) AS
    CASE WHEN years_between(birth, moment) < 1
         THEN date_diff('day', CAST(birth AS DATE), CAST(moment AS DATE)) / 365.25
         ELSE years_between(birth, moment) END;
"""
VIEWS = {  # optional views: their columns
    "refused": ('"table"', "row", '"column"', "why"),
    "left_out": ("what", "reason", "rows"),
    "normalized": ("what", "count"),
}


@dataclass(frozen=True)
class Limits:
    """What may be dropped before the step stops, and how much memory DuckDB may take."""

    max_dropped: float = 0.05  # of the codes of a column
    max_empty: float = 0.2  # of the visits
    memory_mb: int = 2000
    section: str = "cohort"  # of the config, which has the keys of the two shares


@dataclass
class Intake:
    """A source that is being read: its tables, its views, its account."""

    source: Source
    files: Mapping[str, list[Path]]
    columns: tuple[str, ...]
    spill: Path
    audit: Audit
    limits: Limits = Limits()
    tables: dict[str, RawTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.connection = connect(self.spill, self.limits.memory_mb)

    def open_tables(self) -> None:
        """Open, check and account for each table; one that is not there is empty."""
        for name, table in self.source.tables.items():
            if name not in self.files:
                columns = [f"{quoted(c.name)} {sql_type(c)}" for c in table.columns]
                self.connection.execute(f"CREATE TABLE {quoted(name)} ({', '.join(columns)})")
                continue
            condition = self.source.rows.get(name)
            self.tables[name] = RawTable(self.connection, table, self.files[name], self.spill, condition)
            if condition:
                self._count_rows_left_out(name, condition)
        for table in self.tables.values():
            table.drop_copies(self.audit)
        for table in self.tables.values():
            table.check_references(self.tables)
            table.note(self.audit)

    def _count_rows_left_out(self, name: str, condition: str) -> None:
        files = ", ".join(literal(path) for path in self.files[name])
        query = (
            f"SELECT {self.source.named[name]}, count(*) FROM read_parquet([{files}]) WHERE NOT ({condition})"
        )
        for reason, rows in self.connection.execute(f"{query} GROUP BY 1 ORDER BY 2 DESC, 1").fetchall():
            self.audit.left_out[name, reason] += rows

    def run_sql(self) -> None:
        """Make the views of the source, refuse what it refuses, and note what it leaves out."""
        try:
            self.connection.execute(self.source.sql)
        except (duckdb.ProgrammingError, duckdb.NotSupportedError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"sources/{self.source.name}.sql: {reason}; correct the statement") from None
        for view, columns in VIEWS.items():
            with suppress(duckdb.CatalogException):
                rows = self.connection.execute(
                    f"SELECT {', '.join(columns)} FROM {view} LIMIT 1000"
                ).fetchall()
                self._take_note(view, rows)

    def _take_note(self, view: str, rows: list[tuple]) -> None:
        for row in rows:
            if view == "refused":
                first = self.connection.execute(
                    'SELECT row, why FROM refused WHERE "table" = ? AND "column" = ? ORDER BY row LIMIT 1',
                    [row[0], row[2]],
                ).fetchall()[0]
                self.tables[row[0]].refuse(first[0], row[2], first[1])
            elif view == "left_out" and row[2] and (row[0] in self.columns or row[0] not in CODE_COLUMNS):
                self.audit.left_out[row[0], row[1]] += row[2]
            elif view == "normalized" and row[1]:
                self.audit.normalized[row[0]] += row[1]

    def number_visits(self) -> None:
        """Visits in order of patient and time, numbered; patients of unknown sex or age left out."""
        self.connection.execute(
            "CREATE TABLE unknown AS SELECT patient, max(CAST(sex IS NULL AS INTEGER)) AS sex FROM visit"
            " GROUP BY patient HAVING count(sex) < count(*) OR count(age) < count(*)"
        )
        for reason, value in (("sex marked as unknown", 1), ("age marked as unknown", 0)):
            n = self._one(f"SELECT count(*) FROM unknown WHERE sex = {value}")
            if n:
                self.audit.drop("patients", reason, n)
        wrong = self.connection.execute(
            "SELECT sex FROM visit WHERE sex NOT IN ('F', 'M') LIMIT 1"
        ).fetchall()
        if wrong:
            raise UserError(
                f"sources/{self.source.name}.sql: view visit: sex {wrong[0][0]!r} is neither F nor M"
            )
        of_type = dict(row[:2] for row in self.connection.execute("DESCRIBE visit").fetchall())
        day = "date_diff('day', DATE '1970-01-01', day)" if of_type["day"] == "DATE" else "day"
        self.connection.execute(
            "CREATE TABLE numbered AS"
            " SELECT CAST(row_number() OVER (ORDER BY patient, moment, visit_id) - 1 AS INTEGER) AS n,"
            " visit_id,"
            f" CAST(patient AS VARCHAR) AS patient, CAST({day} AS BIGINT) AS day,"
            f" CAST(least(age, {MAX_AGE}) AS DOUBLE) AS age, CAST(sex = 'M' AS TINYINT) AS sex FROM visit"
            " WHERE patient NOT IN (SELECT patient FROM unknown) ORDER BY n"
        )
        if self._one("SELECT count(*) - count(DISTINCT visit_id) FROM numbered"):
            raise UserError(f"sources/{self.source.name}.sql: view visit: a visit_id stands twice")

    def _one(self, query: str):
        return self.connection.execute(query).fetchall()[0][0]

    def spell(self, spelling: Spelling) -> None:
        """Table `spelled`: the public code of each spelling that the events hold."""
        used = ", ".join(literal(column) for column in self.columns)
        found = self.connection.execute(
            f'SELECT "column", system, code, count(*) FROM event WHERE "column" IN ({used}) GROUP BY ALL'
            " ORDER BY ALL"
        ).fetchall()
        rows = spelling.map(found, self.audit)
        self._refuse_cut_files(spelling)
        spelling.check(self.limits.max_dropped, self._key("max_dropped"))
        table = pa.table(
            {
                "column": pa.array([row[0] for row in rows], pa.string()),
                "system": pa.array([row[1] for row in rows], pa.string()),
                "code": pa.array([row[2] for row in rows], pa.string()),
                "id": pa.array([row[3] for row in rows], pa.int32()),
            }
        )
        self.connection.register("spelling", table)
        self.connection.execute("CREATE TABLE spelled AS SELECT * FROM spelling")
        self.connection.unregister("spelling")

    def _refuse_cut_files(self, spelling: Spelling) -> None:
        """A file without a last line end is refused where its last code is in no list: it was cut there."""
        for table in self.tables.values():
            if not table.rows or all(form.ends_with_line for form in table.forms):
                continue
            for column in (column for column in table.columns if column.type == "code"):
                name = quoted(table.table.name)
                row, code = self.connection.execute(
                    f"SELECT rowid, {quoted(column.name)} FROM {name} ORDER BY rowid DESC LIMIT 1"
                ).fetchall()[0]
                if code in spelling.unlisted_spellings:
                    table.refuse(
                        row, column.name, "is no code and ends the file without a line end: it is cut"
                    )

    def batches(self) -> Iterator[tuple[Arrays, Arrays]]:
        """Visits of whole patients, and their codes: arrays by name; `n` of a code is its visit's number."""
        used = ", ".join(literal(column) for column in self.columns)
        places = " ".join(f"WHEN {literal(c)} THEN {i}" for i, c in enumerate(CODE_COLUMNS))
        codes = self.connection.cursor().sql(
            f'SELECT CAST(v.n AS INTEGER) AS n, CAST(CASE e."column" {places} END AS TINYINT) AS kind, s.id,'
            " CAST(coalesce(e.position, -1) AS BIGINT) AS position"
            f' FROM (SELECT * FROM event WHERE "column" IN ({used})) e JOIN numbered v USING (visit_id)'
            ' JOIN spelled s ON s."column" = e."column" AND s.system = e.system AND s.code = e.code'
            " ORDER BY v.n, kind, e.position NULLS LAST, e.row"
        )
        visits = self.connection.cursor().sql("SELECT * EXCLUDE visit_id FROM numbered ORDER BY n")
        yield from in_batches(visits.to_arrow_reader(BATCH), codes.to_arrow_reader(1 << 18))

    def visits(self, spelling: Spelling) -> Iterator[pa.Table]:
        """The visits table in batches of whole patients. Raises UserError where too much is lost."""
        self.number_visits()
        self.spell(spelling)
        assembly = Assembly(list(spelling.names), self.audit)
        for visits, codes in self.batches():
            if (table := assembly.table(visits, codes)) is not None:
                self.audit.add(table)
                yield table
        self._settle(spelling, assembly)

    def _settle(self, spelling: Spelling, assembly: Assembly) -> None:
        """Count what did not arrive, and refuse where it is too much."""
        orphans = Counter()
        lost = spelling.accepted - assembly.read
        if lost:
            unknown = self.connection.execute(
                'SELECT e."column", count(*) FROM event e JOIN visit v USING (visit_id)'
                " JOIN unknown USING (patient) JOIN spelled s"
                ' ON s."column" = e."column" AND s.system = e.system AND s.code = e.code GROUP BY 1'
            ).fetchall()
            orphans = lost - Counter(dict(unknown))
        for column, n in orphans.items():
            self.audit.drop(column, "outside any visit", n)
        self.audit.drop("visits", "no code", assembly.empty)
        patients = self._one("SELECT count(DISTINCT patient) FROM numbered")
        self.audit.drop("patients", "no visit with a code", patients - self.audit.patients)
        if assembly.changing:
            self.audit.normalized["patients whose sex changes between visits"] += assembly.changing
        spelling.check(self.limits.max_dropped, self._key("max_dropped"), orphans)
        if not self.audit.visits:
            raise UserError(
                "no visit with a code is left after cleaning; check that the tables are the full ones"
            )
        if assembly.falling:
            n = len(assembly.falling)
            raise UserError(
                f"the age of {n} patients falls from one visit to a later one; correct ages or dates"
            )
        share = assembly.empty / assembly.visits
        if share > self.limits.max_empty:
            key = self._key("max_empty")
            raise UserError(
                f"{assembly.empty:,} of {assembly.visits:,} visits ({share:.1%}) have no code, more than"
                f" {key} ({self.limits.max_empty:.0%}); check that no table is cut off, or raise"
                f" {key} to go on without them"
            )

    def _key(self, limit: str) -> str:
        return f"{self.limits.section}.{limit}"


def connect(spill: Path, memory_mb: int) -> duckdb.DuckDBPyConnection:
    """A database in the folder `spill`, which takes at most `memory_mb` of memory."""
    connection = duckdb.connect(spill / "rows.duckdb")
    connection.execute(f"SET memory_limit = '{memory_mb}MB'")
    connection.execute(f"SET temp_directory = {literal(spill)}")
    connection.execute("SET enable_progress_bar = false")
    if hasattr(os, "sched_getaffinity"):  # the cores that a cluster's job may use, not all of its node
        connection.execute(f"SET threads = {len(os.sched_getaffinity(0))}")
    connection.execute(MACROS)
    return connection


@contextmanager
def spill_folder(beside: Path) -> Iterator[Path]:
    """A folder beside a file to be written, for rows that do not fit into memory; removed at the end.

    Those rows are real. What a step that was killed left behind is removed by the next one.
    """
    place = beside.parent
    made = [parent for parent in (place, *place.parents) if not parent.exists()]
    place.mkdir(parents=True, exist_ok=True)
    for left in place.glob(f"{SPILL}*"):
        if not _runs(left.name.removeprefix(SPILL)):
            shutil.rmtree(left, ignore_errors=True)
    folder = place / f"{SPILL}{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not beside.exists():
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
