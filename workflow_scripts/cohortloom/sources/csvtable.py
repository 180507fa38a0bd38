"""A raw CSV table of which only the allowed columns are parsed, and which knows the line of each row."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from cohortloom.base.errors import UserError
from cohortloom.sources.cohort import Audit
from cohortloom.sources.rawfile import BOM, read_bytes

DATE = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2})?)?$"
MAX_KEYS = 2**63  # distinct values of a 64-bit integer
DELIMITERS = {";": "a semicolon", "\t": "a tab", "|": "a bar"}


def header(path: Path) -> set[str]:
    """Column names of a CSV or CSV.GZ table in upper case, without parsing its rows."""
    first = read_bytes(path)[0].removeprefix(BOM).split(b"\n", 1)[0].decode("utf-8", "replace")
    return {name.strip().strip('"').upper() for name in first.split(",")}


class CsvTable:
    """Allowed columns of one CSV or CSV.GZ table as trimmed strings [n_rows], by upper-case name.

    They are held as dictionaries: each value once, and for each row its number. Raises UserError for a
    damaged or empty file, a wrong delimiter, a missing column or a row with another number of fields;
    `refuse` raises it for a value.
    """

    def __init__(self, name: str, path: Path, columns: tuple[str, ...], audit: Audit):
        self.name, self.path = name, path
        content, digest = read_bytes(path)
        self._note_form(content, audit)
        content = content.removeprefix(BOM)
        if not content or content.isspace():
            raise UserError(f"{path}: the file is empty; download it again")
        records = self._records(content)
        header = next(records)[1]
        by_name = {column.strip().upper(): column for column in reversed(header)}
        for column in columns:
            if column not in by_name:
                self._missing(column, header)
        if next(records, None) is None:
            raise UserError(f"{path}: the table {name} has a header but no row; give the full table")
        parse = pa.csv.ParseOptions(newlines_in_values=True)
        convert = pa.csv.ConvertOptions(
            include_columns=[by_name[column] for column in columns],
            column_types={by_name[column]: pa.dictionary(pa.int32(), pa.string()) for column in columns},
            strings_can_be_null=False,
        )
        read = pa.csv.ReadOptions(use_threads=False)
        try:
            table = pa.csv.read_csv(io.BytesIO(content), read, parse, convert).unify_dictionaries()
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            self._malformed(header, str(error), content)
        self._columns = {
            column: self._trim(column, table[by_name[column]].combine_chunks(), audit) for column in columns
        }
        self.n = table.num_rows
        self.rows = np.arange(self.n)  # row of the file behind each row that is left
        removed = [column for column in header if column.strip().upper() not in columns]
        audit.read(name, path, digest, self.n, columns, [column.strip().upper() for column in removed])

    def __getitem__(self, column: str) -> pa.Array:
        return self._columns[column].dictionary_decode()

    def encoded(self, column: str) -> pa.DictionaryArray:
        """A column as a dictionary, which may hold values that no row has any more."""
        return self._columns[column]

    def filter(self, keep: np.ndarray) -> None:
        """Keep the rows where `keep` [n_rows] is true."""
        mask = pa.array(keep)
        self._columns = {column: values.filter(mask) for column, values in self._columns.items()}
        self.rows, self.n = self.rows[keep], int(keep.sum())

    def drop_copies(self, audit: Audit, what: str, key: str | None = None) -> None:
        """Drop and count rows that equal an earlier one in every allowed column.

        With `key`, refuse a row whose key occurs in an earlier row with other values.
        """
        whole, size = np.zeros(self.n, np.int64), 1
        for column in self._columns.values():
            values = max(1, len(column.dictionary))
            if size * values >= MAX_KEYS:
                distinct, whole = np.unique(whole, return_inverse=True)
                size = len(distinct)
            whole *= values
            whole += column.indices.to_numpy()
            size *= values
        first = np.zeros(self.n, bool)
        first[np.unique(whole, return_index=True)[1]] = True
        audit.drop(what, "duplicate row", (~first).sum())
        self.filter(first)
        if key is not None:
            numbers = self._columns[key].indices.to_numpy()
            again = np.ones(self.n, bool)
            again[np.unique(numbers, return_index=True)[1]] = False
            self.refuse(key, again, "stands in an earlier row with other values; keep one of them")

    def integers(self, column: str, empty: int | None = None) -> np.ndarray:
        """A column as int64; an empty value becomes `empty` where that is given. Raises UserError."""
        values, row = self._distinct(column)
        whole = pc.match_substring_regex(values, r"^-?\d{1,18}$")
        if empty is not None:
            blank = pc.equal(values, "")
            values = pc.if_else(blank, str(empty), values)
            whole = pc.or_(whole, blank)
        bad = ~whole.to_numpy(zero_copy_only=False)[row]
        self.refuse(column, bad, "is not a whole number; fix or remove the row")
        return pc.if_else(whole, values, "0").cast(pa.int64()).to_numpy()[row]

    def dates(self, column: str) -> np.ndarray:
        """A column of dates, with or without a time, as datetime64[s]: years 0 to 9999 without overflow."""
        remedy = "is no date of the form 2101-10-20 19:08:00; fix or remove the row"
        values, row = self._distinct(column)
        formed = pc.match_substring_regex(values, DATE)
        self.refuse(column, ~formed.to_numpy(zero_copy_only=False)[row], remedy)
        values = pc.if_else(formed, values, "2000-01-01")  # of values that no row has any more
        try:
            return values.cast(pa.timestamp("s")).to_numpy()[row]
        except pa.ArrowInvalid:
            bad = np.array([_no_timestamp(value) for value in values])
            self.refuse(column, bad[row], remedy)
            values = pc.if_else(pa.array(bad), "2000-01-01", values)
            return values.cast(pa.timestamp("s")).to_numpy()[row]

    def _distinct(self, column: str) -> tuple[pa.Array, np.ndarray]:
        """The values of a column, and for each row the number of its own."""
        encoded = self._columns[column]
        return encoded.dictionary, encoded.indices.to_numpy()

    def refuse(self, column: str, bad: np.ndarray, what: str) -> None:
        """Raise UserError for the first row where `bad` [n_rows] is true: file, line, column and value."""
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            value = self._columns[column][row].as_py()[:40]
            raise UserError(
                f"{self.path}: line {self._line(self.rows[row])}: column {column}: {value!r} {what}"
            )

    def _trim(self, column: str, values: pa.DictionaryArray, audit: Audit) -> pa.DictionaryArray:
        if column == "ICD9_CODE":  # codes are normalised, and counted, by clean_codes
            return values
        trimmed = pc.utf8_trim_whitespace(values.dictionary)
        changed = pc.not_equal(trimmed, values.dictionary)
        if not pc.any(changed).as_py():
            return values
        changed = changed.take(values.indices)
        audit.normalized[f"values of {column} with a blank"] += pc.sum(changed).as_py()
        encoded = trimmed.dictionary_encode()
        return pa.DictionaryArray.from_arrays(encoded.indices.take(values.indices), encoded.dictionary)

    def _note_form(self, content: bytes, audit: Audit) -> None:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{self.path}: the file is UTF-16; save it as UTF-8")
        audit.normalized["byte-order marks"] += content.startswith(BOM)
        audit.normalized["files with CRLF line ends"] += b"\r\n" in content
        audit.normalized["files with quoted values"] += b'"' in content

    def _line(self, row: int) -> int:
        """Line of the file (from 1) at which data row `row` (from 0) begins."""
        for number, (line, _) in enumerate(self._records(read_bytes(self.path)[0].removeprefix(BOM))):
            if number == row + 1:
                return line
        return row + 2

    def _records(self, content: bytes) -> Iterator[tuple[int, list[str]]]:
        """(first line, fields) of each record that is not a blank line, as pyarrow counts them."""
        text = io.TextIOWrapper(io.BytesIO(content), "utf-8", "replace", newline="")
        reader, line = csv.reader(text), 1
        try:
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error:
            raise UserError(
                f"{self.path}: line {line}: a value is longer than {csv.field_size_limit():,} characters;"
                " a quotation mark is not closed, or the file is no CSV table"
            ) from None

    def _missing(self, column: str, header: list[str]) -> None:
        first = "".join(header)
        for delimiter, word in DELIMITERS.items():
            if len(header) <= 2 and delimiter in first:
                raise UserError(
                    f"{self.path}: line 1: the delimiter is {word}, not a comma; save the table with commas"
                )
        raise UserError(
            f"{self.path}: line 1: column {column} is missing from table {self.name};"
            " give the MIMIC-III table with its header line"
        )

    def _malformed(self, header: list[str], error: str, content: bytes) -> None:
        """Say where the table breaks; pyarrow's own message holds the row and is never shown."""
        for line, fields in self._records(content):
            if len(fields) != len(header):
                raise UserError(
                    f"{self.path}: line {line}: {len(fields)} values where the header has {len(header)}"
                    " columns; the file is cut off or its quotes or delimiters are wrong"
                ) from None
        column = re.search(r"column #(\d+)", error)
        place = f" column {header[int(column[1])]}" if column else ""
        raise UserError(f"{self.path}:{place} is not UTF-8 text; save the table as UTF-8") from None


def _no_timestamp(value: pa.Scalar) -> bool:
    try:
        value.cast(pa.timestamp("s"))
    except pa.ArrowInvalid:
        return True
    return False
