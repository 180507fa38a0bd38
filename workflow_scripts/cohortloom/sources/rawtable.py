"""A raw table in DuckDB: only the columns that a source declares are parsed, each value as the type it says.

Values are checked by queries over the whole table. A row is known by its number; its line in the file is
looked up by reading the file again, only when there is an error to report.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import duckdb

from cohortloom.base.errors import UserError
from cohortloom.sources import rawfile
from cohortloom.sources.audit import Audit
from cohortloom.sources.declared import Column, Table

# A value that is there and is not of its type, in a column whose values may be empty.
BAD_INTEGER, BAD_TIME = "-9223372036854775807", "TIMESTAMP '0001-01-01'"
BLANKS = "' ' || chr(9) || chr(160)"
# A date with or without a time of day, as the usual exports write them; other zones than UTC are refused.
TIME = r"^(\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2})?)?)(\.\d+)? ?(UTC|Z|\+00(:?00)?)?$"
REMEDIES = {
    "integer": "is not a whole number; fix or remove the row",
    "number": "is not a number; fix or remove the row",
    "time": "is no date of the form 2101-10-20 19:08:00; fix or remove the row",
}


def quoted(name: str) -> str:
    """A name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str | Path) -> str:
    """A string for SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def sql_type(column: Column) -> str:
    """DuckDB's type of a declared column."""
    return {"integer": "BIGINT", "time": "TIMESTAMP", "number": "DOUBLE"}.get(column.type, "VARCHAR")


class RawTable:
    """One table of a source, opened in DuckDB under its declared name.

    Raises UserError for a damaged or empty file, a wrong delimiter, a missing column, a row with another
    number of values, a value that is not of its type, and a table without a row, unless it is optional.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: Table,
        paths: list[Path],
        spill: Path,
        condition: str | None = None,
    ):
        self.table, self.paths, self._connection = table, paths, connection
        self.path = paths[0]
        with ThreadPoolExecutor(1) as pool:  # DuckDB reads a compressed file with one thread
            self._kinds = {rawfile.kind_of(path) for path in paths}
            self._plain = rawfile.unpacked(self.path, spill)
            if self._kinds == {"parquet"}:
                source = self._parquet()
            elif table.width:
                source = self._fixed()
            else:
                source = self._csv()
            forms: list[Future] = [
                pool.submit(rawfile.inspect, path, self._plain if len(paths) == 1 else path) for path in paths
            ]
            self._load(source, condition)
            self.forms: list[rawfile.Form] = [form.result() for form in forms]
        self.rows = self._one(f"SELECT count(*) FROM {quoted(table.name)}")
        if not self.rows and not condition and not table.optional:
            raise UserError(
                f"{self.path}: the table {table.name} has a header but no row; give the full table"
            )
        self._check_types()

    def _parquet(self) -> str:
        names = ", ".join(literal(path) for path in self.paths)
        source = f"read_parquet([{names}])"
        try:
            described = self._connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
        except duckdb.Error:
            raise UserError(f"{self.path}: not a readable parquet file; make or download it again") from None
        self._types = {row[0]: row[1] for row in described}
        self._choose(list(self._types))
        return source

    def _fixed(self) -> str:
        self._types = {}
        self._choose([column.name for column in self.table.columns])
        self.removed = list(self.table.removed)
        options = "header=false, delim='\\x01', quote='', escape=''"
        source = self._read_csv(self._plain, options, ["line"])
        width = f"SELECT count(*) FROM {source} WHERE coalesce(length(line), 0) <> {self.table.width}"
        try:
            wrong = self._one(f"{width} AND coalesce(line, '') NOT IN ('', chr(26))")
        except duckdb.Error:
            wrong = True
        if wrong:
            self._check_lines()
        return f"(SELECT line FROM {source} WHERE length(line) = {self.table.width})"

    def _check_lines(self) -> None:
        """Say which line is of another width, or not of this alphabet."""
        for number, line in rawfile.lines(self._plain, self.path):
            if len(line) != self.table.width and line.strip("\x1a"):
                raise UserError(
                    f"{self.path}: line {number}: {len(line)} characters where the layout of"
                    f" {self.table.file} has {self.table.width}; give the public-use file as it is published"
                )
            if not line.isascii():
                raise UserError(
                    f"{self.path}: line {number}: is not plain text; give the file as it is published"
                )

    def _csv(self) -> str:
        self._types = {}
        names = rawfile.header(self._plain, self.path)
        self._choose(names)
        self._header = names
        options = "header=true, delim=',', quote='\"', escape='\"'"
        return self._read_csv(self._plain, options, [f"c{i}" for i in range(len(names))])

    @staticmethod
    def _read_csv(path: Path, options: str, names: list[str]) -> str:
        kinds = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
        packed = "gzip" if rawfile.kind_of(path) == "gzip" else "none"
        options = f"auto_detect=false, compression='{packed}', {options}, columns={{{kinds}}}"
        return f"read_csv({literal(path)}, {options})"

    def _choose(self, names: list[str]) -> None:
        """Which of the columns `names` of the file are read, and by its own spelling each is called what."""
        by_name = {name.upper(): (place, name) for place, name in reversed(list(enumerate(names)))}
        self.columns: dict[Column, tuple[int, str]] = {}
        for column in self.table.columns:
            if column.name.upper() in by_name:
                self.columns[column] = by_name[column.name.upper()]
            elif not column.optional:
                self._missing(column, names)
        kept = {name for _, name in self.columns.values()}
        self.removed = [name for name in names if name not in kept]

    def _missing(self, column: Column, names: list[str]) -> None:
        rawfile.check_delimiter(self.path, names)
        place = "" if self._kinds == {"parquet"} else " line 1:"
        found = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
        raise UserError(
            f"{self.path}:{place} column {column.name} is missing from table {self.table.name}, which has"
            f" {found[:120]}; give the table with its header line"
        )

    def _text(self, column: Column) -> str:
        """SQL of a value as text, or of its own type in Parquet."""
        place, name = self.columns[column]
        if self._kinds == {"parquet"}:
            return quoted(name)
        if column.place:
            return f"substr(line, {column.place[0]}, {column.place[1]})"
        return f"c{place}"

    def _value(self, column: Column) -> str:
        """SQL of a value as the type that is declared."""
        text = self._text(column)
        if self._kinds == {"parquet"}:
            of_type = {"integer": "BIGINT", "number": "DOUBLE", "time": "TIMESTAMP"}.get(column.type)
            if of_type:
                return f"TRY_CAST({text} AS {of_type})"
            if column.type == "list":  # of text
                return f"coalesce(CAST({text} AS VARCHAR[]), [])"
            return f"coalesce(CAST({text} AS VARCHAR), '')"
        if column.type == "code":
            return f"coalesce({text}, '')"
        text = f"trim({text}, {BLANKS})"
        if column.type == "text":
            return f"coalesce({text}, '')"
        if column.type == "integer":  # 12.0 is one, 4.7 is none: a cast alone rounds it
            whole = f"regexp_extract({text}, '^(-?\\d+)\\.0*$', 1)"
            value = f"TRY_CAST(CASE WHEN {text} ~ '^-?\\d+$' THEN {text} ELSE {whole} END AS BIGINT)"
            value = (
                f"CASE WHEN contains({text}, '.') OR contains(lower({text}), 'e') THEN {value}"
                f" ELSE TRY_CAST({text} AS BIGINT) END"
            )
            bad = BAD_INTEGER
        elif column.type == "number":
            return f"TRY_CAST({text} AS DOUBLE)"
        else:
            value = f"TRY_CAST(regexp_extract({text}, {literal(TIME)}, 1) AS TIMESTAMP)"
            bad = BAD_TIME
        if column.empty:
            return f"CASE WHEN coalesce({text}, '') = '' THEN NULL ELSE coalesce({value}, {bad}) END"
        return value

    def _load(self, source: str, condition: str | None) -> None:
        chosen = [f"{self._value(column)} AS {quoted(column.name)}" for column in self.columns]
        self._trimmed = []
        if self._kinds != {"parquet"} and not self.table.width:
            self._trimmed = [column for column in self.columns if column.type != "code"]
            changed = [
                f"CASE WHEN {self._text(c)} <> trim({self._text(c)}, {BLANKS}) THEN {1 << bit} ELSE 0 END"
                for bit, c in enumerate(self._trimmed)
            ]
            chosen.append(f'{" + ".join(changed) or "0"} AS "blanks in"')
        absent = [c for c in self.table.columns if c not in self.columns]
        chosen += [f"CAST(NULL AS {sql_type(c)}) AS {quoted(c.name)}" for c in absent]
        where = f" WHERE {condition}" if condition else ""
        query = f"CREATE TABLE {quoted(self.table.name)} AS SELECT {', '.join(chosen)} FROM {source}{where}"
        try:
            self._connection.execute(query)
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.IOException as error:
            if "No space left" in str(error):
                raise  # preprocess says it
            raise rawfile.damaged(self.path) from None
        except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
            form = rawfile.inspect(self.path, self._plain)
            mixed = form.crlf and form.bare_lf  # line ends of both kinds, which only the other mode reads
            if not self.table.width:  # its own message holds the row and is never shown
                self._check_records(not mixed and "unterminated quote" in str(error))
            if mixed and "strict_mode=false" not in source:
                lax = source.replace("auto_detect=false", "auto_detect=false, strict_mode=false")
                self._load(lax, condition)
                return
            raise UserError(
                f"{self.path}: cannot be read as a table; save it again as CSV in UTF-8"
            ) from None

    def _check_records(self, open_quote: bool) -> None:
        """Say where the table breaks; with `open_quote` the last record goes on to the end of the file."""
        line = 1
        for line, values in rawfile.records(self._plain, self.path):
            if len(values) != len(self._header):
                raise UserError(
                    f"{self.path}: line {line}: {len(values)} values where the header has {len(self._header)}"
                    " columns; the file is cut off or its quotes or delimiters are wrong"
                ) from None
            for name, value in zip(self._header, values, strict=True):
                if any("\udc80" <= sign <= "\udcff" for sign in value):
                    raise UserError(
                        f"{self.path}: line {line}: column {name} is not UTF-8 text; save the table as UTF-8"
                    ) from None
        if open_quote:
            raise UserError(
                f"{self.path}: line {line}: a quotation mark is not closed; the file is cut off or damaged"
            ) from None

    def _one(self, query: str):
        return self._connection.execute(query).fetchall()[0][0]

    def _check_types(self) -> None:
        """Refuse the first value that is not of its type."""
        for column in self.columns:
            if column.type not in REMEDIES:
                continue
            wrong = "IS NULL"
            if column.empty:
                if column.type == "number" or self._kinds == {"parquet"}:
                    continue
                wrong = f"= {BAD_INTEGER if column.type == 'integer' else BAD_TIME}"
            row = self._one(
                f"SELECT min(rowid) FROM {quoted(self.table.name)} WHERE {quoted(column.name)} {wrong}"
            )
            if row is not None:
                self.refuse(row, column.name, REMEDIES[column.type])

    def drop_copies(self, audit: Audit) -> None:
        """Drop and count rows that equal an earlier one in every column; refuse a key in two other rows."""
        name = quoted(self.table.name)
        for column in (column for column in self.columns if column.key):
            key = quoted(column.name)
            if self.rows == self._one(f"SELECT count(DISTINCT {key}) FROM {name}"):
                continue
            every = ", ".join(quoted(other.name) for other in self.columns)
            again = (
                f"SELECT rowid AS row, row_number() OVER (PARTITION BY {every} ORDER BY rowid) AS copy,"
                f" row_number() OVER (PARTITION BY {key} ORDER BY rowid) AS number FROM {name}"
            )
            row = self._one(f"SELECT min(row) FROM ({again}) WHERE copy = 1 AND number > 1")
            if row is not None:
                self.refuse(row, column.name, "stands in an earlier row with other values; keep one of them")
            copies = self._one(f"SELECT count(*) FROM ({again}) WHERE copy > 1")
            self._connection.execute(
                f"DELETE FROM {name} WHERE rowid IN (SELECT row FROM ({again}) WHERE copy > 1)"
            )
            audit.drop(self.table.name, "duplicate row", copies)

    def check_references(self, tables: dict[str, "RawTable"]) -> None:
        """Refuse the first value that stands in no row of the table it refers to."""
        for column in self.columns:
            if column.refers is None or column.refers not in tables:
                continue
            key = quoted(column.name)
            row = self._one(
                f"SELECT min(t.rowid) FROM {quoted(self.table.name)} t ANTI JOIN {quoted(column.refers)} o"
                f" ON t.{key} = o.{key} WHERE t.{key} IS NOT NULL"
            )
            if row is not None:
                self.refuse(
                    row, column.name, f"is no {column.name} of {column.refers}; give tables of one release"
                )

    def note(self, audit: Audit) -> None:
        """Add what was read and what was normalised to the audit."""
        kept = [name for _, name in self.columns.values()]
        for number, (path, form) in enumerate(zip(self.paths, self.forms, strict=True)):
            rows = self.rows if number == 0 else 0
            audit.read(self.table.name, path, form.sha256, rows, kept, self.removed)
            audit.normalized["byte-order marks"] += form.byte_order_mark
            audit.normalized["files with CRLF line ends"] += form.crlf
            audit.normalized["files with quoted values"] += form.quoted and not self.table.width
            audit.normalized["files without a last line end"] += not form.ends_with_line
        if self._trimmed and self._one(f'SELECT max("blanks in") FROM {quoted(self.table.name)}'):
            for bit, column in enumerate(self._trimmed):
                changed = self._one(
                    f'SELECT count(*) FROM {quoted(self.table.name)} WHERE "blanks in" & {1 << bit} > 0'
                )
                audit.normalized[f"values of {column.name} with a blank"] += changed

    def refuse(self, row: int, column: str, why: str) -> None:
        """Raise UserError for a value: file, line, column, value and nothing else of the row."""
        declared = next(one for one in self.columns if one.name.upper() == column.upper())
        place, name = self.columns[declared]
        line, value = self._look_up(row, place, declared)
        value = value if len(value) <= 40 else value[:40] + "..."
        raise UserError(f"{self.path}: {line}: column {name}: {value!r} {why}")

    def _look_up(self, row: int, place: int, column: Column) -> tuple[str, str]:
        """Where a row begins, as "line 3", and the value of one of its columns."""
        if self._kinds == {"parquet"}:
            value = self._one(
                f"SELECT coalesce(CAST({quoted(column.name)} AS VARCHAR), '') FROM {quoted(self.table.name)}"
                f" WHERE rowid = {row}"
            )
            return f"row {row + 1}", value
        if column.place:
            first, width = column.place
            for number, (line, text) in enumerate(rawfile.lines(self._plain, self.path)):
                if number == row:
                    return f"line {line}", text[first - 1 : first - 1 + width]
        for number, (line, values) in enumerate(rawfile.records(self._plain, self.path)):
            if number == row + 1:
                return f"line {line}", values[place].strip(" \t\u00a0")
        return f"row {row + 1}", ""
