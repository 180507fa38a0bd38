"""The one table of visits, real and synthetic alike: schema, checks, reading and writing.

One row a visit, sorted by patient and time:

| column     | type              | meaning                                                              |
|------------|-------------------|----------------------------------------------------------------------|
| patient_id | string            | opaque; synthetic ids never equal real ones                          |
| visit      | int16             | 0, 1, 2 ... in time order                                            |
| days       | int32             | days since the patient's first visit                                 |
| age        | float32           | completed years; under 1 year days/365.25; newborn 0; capped at 90   |
| sex        | dictionary string | F or M                                                               |
| diagnoses  | list of string    | SYSTEM:CODE in upper case without dot, recorded order, none twice    |
| procedures | list of string    | the same; an empty list where the source has none                    |
| medications| list of string    | the same                                                             |

CODE_COLUMNS (data/codes.py) names the columns of codes and the systems of each. Files of schema version 1
held ICD-9-CM diagnoses alone, without a system; they are read as ICD9CM.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from cohortloom.base.errors import UserError
from cohortloom.base.files import atomic
from cohortloom.base.ragged import patient_of_visit, row_of_value
from cohortloom.data.codes import CODE_COLUMNS, SYSTEM_OF_VERSION_1, fault

SCHEMA_VERSION = "2"
SEXES = ("F", "M")  # the order of x_cat: 0 is F, 1 is M
MAX_AGE = 90.0

_CODES = pa.list_(pa.field("element", pa.string(), nullable=False))
SCHEMA = pa.schema(
    [
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("visit", pa.int16(), nullable=False),
        pa.field("days", pa.int32(), nullable=False),
        pa.field("age", pa.float32(), nullable=False),
        pa.field("sex", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        *(pa.field(column, _CODES, nullable=False) for column in CODE_COLUMNS),
    ]
)
# What reconstruct adds. The file holds real codes: it is never released and never shown.
RECONSTRUCT_SCHEMA = pa.schema(
    [
        *SCHEMA,
        pa.field("source_patient_id", pa.string(), nullable=False),
        pa.field("source_visit", pa.int16(), nullable=False),
        *(pa.field(f"revealed_{column}", _CODES, nullable=False) for column in CODE_COLUMNS),
    ]
)


def code_lists(table: pa.Table, column: str = "diagnoses") -> tuple[pa.Array, np.ndarray]:
    """Flat code strings of a list column and the offsets [n_visits + 1] of each visit in them."""
    array = table[column].combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    offsets = array.offsets.to_numpy()
    return array.values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0]


def used_columns(*tables: pa.Table) -> list[str]:
    """The columns of codes, in the order of the table, in which a visit of these tables holds a code."""
    return [column for column in CODE_COLUMNS if any(len(code_lists(table, column)[0]) for table in tables)]


def list_column(values: pa.Array, offsets: np.ndarray) -> pa.ListArray:
    """The inverse of code_lists: a list column from flat strings and offsets."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.cast(pa.string()), type=_CODES)


def with_empty_columns(table: pa.Table) -> pa.Table:
    """The table with those columns of codes that it lacks, as empty lists."""
    columns = list(CODE_COLUMNS)
    if "source_patient_id" in table.column_names:
        columns += [f"revealed_{column}" for column in CODE_COLUMNS]
    nothing = list_column(pa.array([], pa.string()), np.zeros(table.num_rows + 1, np.int32))
    for column in columns:
        if column not in table.column_names:
            table = table.append_column(pa.field(column, _CODES, nullable=False), nothing)
    return table


def from_version_1(table: pa.Table) -> pa.Table:
    """Visits of schema version 1, whose codes are ICD-9-CM without a system, in the present form."""
    names = {"diagnoses": "diagnoses", "revealed": "revealed_diagnoses"}
    for old, new in names.items():
        if old in table.column_names:
            values, offsets = code_lists(table, old)
            named = pc.binary_join_element_wise(SYSTEM_OF_VERSION_1, values.cast(pa.string()), ":")
            column = table.column_names.index(old)
            table = table.set_column(
                column, pa.field(new, _CODES, nullable=False), list_column(named, offsets)
            )
    return with_empty_columns(table)


def numbered_ids(word: str, numbers: np.ndarray) -> pa.Array:
    """Ids such as synthetic-0000001 of patients numbered from 0."""
    return pa.array([f"{word}-{number + 1:07d}" for number in numbers.tolist()], pa.string())


def sex_array(sexes: np.ndarray) -> pa.DictionaryArray:
    """Dictionary column from integers (0 F, 1 M)."""
    return pa.DictionaryArray.from_arrays(pa.array(sexes, pa.int8()), pa.array(SEXES))


def sex_index(table: pa.Table) -> np.ndarray:
    """Sexes as integers [n_visits], 0 for F and 1 for M, whatever the file's dictionary order."""
    return pc.index_in(table["sex"].cast(pa.string()), pa.array(SEXES)).to_numpy()


def without_empty_visits(table: pa.Table) -> pa.Table:
    """The visits that hold a code, numbered anew within their patients."""
    full = np.zeros(table.num_rows, bool)
    for column in CODE_COLUMNS:
        full |= np.diff(code_lists(table, column)[1]) > 0
    if full.all():
        return table
    patient = patient_of_visit(table["visit"])[full]
    table = table.filter(pa.array(full))
    new = np.diff(patient, prepend=-1) != 0
    begin = np.flatnonzero(new)[np.cumsum(new) - 1]
    days = table["days"].to_numpy()
    for name, values in (("visit", np.arange(len(new)) - begin), ("days", days - days[begin])):
        column = table.column_names.index(name)
        field = SCHEMA.field(name)
        table = table.set_column(column, field, pa.array(values).cast(field.type))
    return table


def patient_starts(table: pa.Table) -> np.ndarray:
    """Row numbers [n_patients] at which a new patient begins."""
    return np.flatnonzero(table["visit"].to_numpy() == 0)


def check_visits(table: pa.Table, name: str = "visits") -> pa.Table:
    """Return the table in the public schema, or raise UserError naming the first fault."""
    reconstruct = "source_patient_id" in table.column_names
    schema = RECONSTRUCT_SCHEMA if reconstruct else SCHEMA
    missing = [field.name for field in schema if field.name not in table.column_names]
    if missing:
        raise UserError(f"{name}: column {missing[0]} is missing; see visits.py for the schema")
    try:
        table = table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: a column is not of the type that visits.py gives: {reason}") from None
    _require(
        name,
        "a column",
        table,
        np.array([0 if table[c].null_count == 0 else 1 for c in table.column_names]),
        "null",
    )
    if table.num_rows == 0:
        return table
    ages = table["age"].to_numpy()
    _require(name, "age", table, ~((ages >= 0) & (ages <= MAX_AGE)), f"outside 0 to {MAX_AGE:g}", "age")
    known = pc.is_in(table["sex"].cast(pa.string()), pa.array(SEXES)).to_numpy(zero_copy_only=False)
    _require(name, "sex", table, ~known, "neither F nor M", "sex")
    visit, days = table["visit"].to_numpy(), table["days"].to_numpy()
    ids = table["patient_id"].combine_chunks()
    same = np.zeros(len(visit), bool)
    same[1:] = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
    expected = np.where(same, np.roll(visit, 1) + 1, 0)
    _require(name, "visit", table, visit != expected, "not 0, 1, 2 ... within its patient", "visit")
    _require(
        name,
        "days",
        table,
        np.where(same, days < np.roll(days, 1), days != 0),
        "not in time order from 0",
        "days",
    )
    if pc.count_distinct(ids).as_py() != int((~same).sum()):
        raise UserError(f"{name}: column patient_id: a patient's visits do not stand together")
    for column in CODE_COLUMNS:
        for code in pc.unique(code_lists(table, column)[0]).to_pylist():
            if what := fault(column, code):
                raise UserError(f"{name}: column {column}: {code!r} {what}")
        repeated = repeated_codes(table, column)
        if repeated.any():
            row = int(np.flatnonzero(repeated)[0])
            raise UserError(f"{name}: row {row}: column {column}: a code stands twice in the visit")
    return table


def repeated_codes(table: pa.Table, column: str = "diagnoses") -> np.ndarray:
    """Whether a visit holds a code more than once, [n_visits] of bool."""
    values, offsets = code_lists(table, column)
    codes = values.dictionary_encode()
    keys = np.sort(row_of_value(offsets) * max(1, len(codes.dictionary)) + codes.indices.to_numpy())
    out = np.zeros(len(offsets) - 1, bool)
    out[keys[1:][keys[1:] == keys[:-1]] // max(1, len(codes.dictionary))] = True
    return out


def _require(name: str, column: str, table: pa.Table, bad: np.ndarray, what: str, show: str = "") -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        if not show:
            raise UserError(f"{name}: column {table.column_names[row]}: {what} values are not allowed")
        raise UserError(f"{name}: row {row}: column {column}: {table[show][row].as_py()!r} is {what}")


def read_visits(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a visits file (or a dataset file, whose token columns are left out) and check it.

    Raises UserError for a missing, foreign or damaged file.
    """
    try:
        schema = pq.read_schema(path)
        wanted = [name for name in (*RECONSTRUCT_SCHEMA.names, "revealed") if name in schema.names]
        table = pq.read_table(path, columns=wanted, partitioning=None)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the step that writes it") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
    if (schema.metadata or {}).get(b"schema_version") == b"1":
        table = from_version_1(table)
    table = check_visits(table, str(path))
    return table.select(columns) if columns else table


@contextmanager
def visits_writer(
    path: Path, metadata: dict[str, str], schema: pa.Schema = SCHEMA
) -> Iterator["VisitsWriter"]:
    """Stream batches of whole patients to a parquet file that appears only when all went well.

    `metadata` gives source, seed, inputs_sha256 and tool_version as strings. Raises UserError for a name with
    another ending.
    """
    check_ending(path, (".parquet",))
    keys = {"schema_version": SCHEMA_VERSION, **metadata}
    schema = schema.with_metadata(keys)
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield VisitsWriter(writer, schema, str(path))


class VisitsWriter:
    """Checks each batch against the schema and appends it."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema, name: str):
        self._writer, self._schema, self._name = writer, schema, name

    def write(self, table: pa.Table) -> None:
        """Append visits of whole patients; raises UserError rather than repair a faulty batch."""
        check_visits(table, self._name)
        self._writer.write_table(table.select(self._schema.names).cast(self._schema))


def check_ending(path: Path, endings: tuple[str, ...]) -> str:
    """The ending of a file to write, one of `endings`; raises UserError for any other."""
    found = [ending for ending in endings if Path(path).name.lower().endswith(ending)]
    if not found:
        raise UserError(f"{path}: no file of visits has this ending; give a name with {' or '.join(endings)}")
    return found[0]


def write_visits_csv(table: pa.Table, path: Path) -> None:
    """Write visits as CSV, gzipped where the name ends in .gz; the codes of a visit share a cell."""
    columns = {name: table[name] for name in SCHEMA.names if name not in CODE_COLUMNS}
    columns["sex"] = columns["sex"].cast(pa.string())
    for name in CODE_COLUMNS:
        codes = table[name].combine_chunks().cast(pa.list_(pa.string()))  # binary_join knows no other list
        columns[name] = pc.binary_join(codes, "|")  # names of drugs hold blanks
    packed = "gzip" if Path(path).name.lower().endswith(".gz") else None
    with atomic(path) as temporary, pa.output_stream(temporary, compression=packed) as file:
        csv.write_csv(pa.table(columns), file, csv.WriteOptions(quoting_style="needed"))


def write_visits(table: pa.Table, path: Path, metadata: dict[str, str], schema: pa.Schema = SCHEMA) -> None:
    """Check and write a whole table; extra columns are written where `schema` names them."""
    with visits_writer(path, metadata, schema) as writer:
        writer.write(table)
