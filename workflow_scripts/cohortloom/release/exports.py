"""What all exports have in common: what may be exported, its README, and the visits as relations in DuckDB.

Each format is written by SQL from these relations:

- patient: patient (1, 2 ... in the order of the visits table), sex, birth, first (date of the first visit),
  age;
- visit: visit (1, 2 ... over all patients), patient, number (from 0), admitted, discharged (timestamps), age;
- name: name (a number), "column", system, code, dotted, title (null where none is known): each distinct code;
- coded: visit, patient, place (from 1 in its column of the visit), name.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cohortloom.base.errors import UserError
from cohortloom.base.files import replace_own_folder, write_json
from cohortloom.base.ragged import positions_in_rows, row_of_value
from cohortloom.base.step import log
from cohortloom.base.version import VERSION
from cohortloom.data.codes import CODE_COLUMNS, parts, with_dot
from cohortloom.data.titles import titles_of
from cohortloom.data.visits import code_lists, patient_starts, read_visits
from cohortloom.release.dates import Dates, date_visits
from cohortloom.release.layout import EXPORT_FACTS
from cohortloom.release.terms import terms_in_words

Write = Callable[[duckdb.DuckDBPyConnection, Path], list[str]]  # into a folder; returns what was lost
CSV = "FORMAT csv, HEADER, DATEFORMAT '%Y-%m-%d', TIMESTAMPFORMAT '%Y-%m-%d %H:%M:%S'"


def save_export(
    format: str,
    write: Write,
    files: Collection[str],
    held: Mapping[str, tuple[str, ...]],
    *,
    synthetic: Path,
    folder: Path,
    titles: list[Path],
    terms: Path,
    readme: Path,
    experiment: str,
    run: str,
    source: str,
    seed: int,
    placeholder_days: bool,
    site_terms: Path | None,
) -> None:
    """Write the visits of `synthetic` into `folder` by `write`, with README.md and a file of facts.

    files: all that is written. held: column -> systems that the format holds, for columns that do not hold
    all. titles, terms: resources/titles/* and publication.yaml; readme: the template of README.md,
    which names `experiment`, `run` and the `source` of the training data. `seed` draws dates and births.
    placeholder_days: the source knows no days between visits. site_terms: the site's own file of the terms of
    a source that `terms` does not list. Raises UserError, with nothing written, for visits that no trained
    run synthesized, codes that the format cannot hold, a folder with foreign files, and a faulty file of
    terms.
    """
    stated = terms_in_words(source, terms, site_terms)
    origin = check_synthesized(synthetic)
    visits = read_visits(synthetic)
    check_systems(visits, held, format)
    dates = date_visits(visits, seed)
    with replace_own_folder(folder, files) as new:
        with relations(visits, dates, titles) as connection:
            lost = write(connection, new)
        facts = {
            "format": format,
            "experiment": experiment,
            "run": run,
            "source": source,
            "seed": seed,
            "version": VERSION,
            "model_sha256": origin.get("inputs_sha256", ""),
            "patients": len(patient_starts(visits)),
            "visits": visits.num_rows,
            "codes": {column: len(code_lists(visits, column)[0]) for column in CODE_COLUMNS},
            "ages_not_given": misfits(visits, dates, format),
            "not_held": lost,
        }
        write_json(new / EXPORT_FACTS, facts)
        text = readme_text(readme, terms=stated, placeholder_days=placeholder_days, **facts)
        (new / "README.md").write_text(text, encoding="utf-8")
    log.info("%s: %d patients, %d visits", folder, facts["patients"], facts["visits"])


def check_synthesized(path: Path) -> dict[str, str]:
    """The metadata of a file of visits. Raises UserError unless a trained model synthesized them.

    Real, copied and external visits, those of naive methods and reconstructed ones are refused.
    """
    read_visits(path, ["visit"])  # says what is wrong with a file that is none
    schema = pq.read_schema(path)
    facts = {key.decode(): value.decode(errors="replace") for key, value in (schema.metadata or {}).items()}
    if "source_patient_id" in schema.names:
        raise UserError(
            f"{path}: it is a reconstruction and holds real codes; give synthesize.parquet of a trained run"
        )
    if facts.get("source") != "model":
        raise UserError(
            f"{path}: its source is {facts.get('source') or 'unknown'}, and only what a trained run"
            " synthesized is exported; give synthesize.parquet of a trained run"
        )
    return facts


def misfits(visits: pa.Table, dates: Dates, format: str) -> int:
    """Visits whose age the dates do not give by the rule of the format, but for infants in MIMIC-IV."""
    if format == "mimic4":
        return int((dates.misfit_by_year & (visits["age"].to_numpy() >= 1)).sum())
    return int(dates.misfit_by_birth.sum())


def readme_text(template: Path, **facts: Any) -> str:
    """README.md of an export."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**facts)


@contextmanager
def relations(visits: pa.Table, dates: Dates, titles: Sequence[Path]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that holds the visits as the relations above; titles: tables of titles."""
    starts = patient_starts(visits)
    patient = row_of_value(np.append(starts, visits.num_rows)) + 1
    age = visits["age"].to_numpy()
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        _create(
            connection,
            "patient",
            patient=pa.array(np.arange(1, len(starts) + 1), pa.int32()),
            sex=visits["sex"].combine_chunks().cast(pa.string()).take(pa.array(starts)),
            birth=pa.array(dates.birth),
            first=pa.array(dates.admitted[starts].astype("M8[D]")),
            age=pa.array(age[starts]),
        )
        _create(
            connection,
            "visit",
            visit=pa.array(np.arange(1, visits.num_rows + 1), pa.int32()),
            patient=pa.array(patient, pa.int32()),
            number=visits["visit"].combine_chunks(),
            admitted=pa.array(dates.admitted.astype("M8[us]")),
            discharged=pa.array(dates.discharged.astype("M8[us]")),
            age=pa.array(age),
        )
        names: list[tuple[str, str]] = []  # column, SYSTEM:CODE
        coded = []
        for column in CODE_COLUMNS:
            values, offsets = code_lists(visits, column)
            codes = values.dictionary_encode()
            number = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64) + len(names)
            names += [(column, name) for name in codes.dictionary.to_pylist()]
            row = row_of_value(offsets)
            place = positions_in_rows(np.diff(offsets)) + 1
            coded.append(
                pa.table(
                    {
                        "visit": pa.array(row + 1, pa.int32()),
                        "patient": pa.array(patient[row], pa.int32()),
                        "place": pa.array(place, pa.int32()),
                        "name": pa.array(number, pa.int32()),
                    }
                )
            )
        connection.register("registered", pa.concat_tables(coded))
        connection.execute("CREATE TABLE coded AS SELECT * FROM registered")
        title_of = titles_of([name for _, name in names], titles)
        text = lambda values: pa.array(values, pa.string())  # noqa: E731
        _create(
            connection,
            "name",
            name=pa.array(range(len(names)), pa.int32()),
            column=text([column for column, _ in names]),
            system=text([parts(name)[0] for _, name in names]),
            code=text([parts(name)[1] for _, name in names]),
            dotted=text([with_dot(name) for _, name in names]),
            title=text([title_of.get(name) for _, name in names]),
        )
        yield connection


def _create(connection: duckdb.DuckDBPyConnection, relation: str, **columns: pa.Array) -> None:
    connection.register("registered", pa.table(columns))
    connection.execute(f"CREATE TABLE {relation} AS SELECT * FROM registered")
    connection.unregister("registered")


def check_systems(visits: pa.Table, held: Mapping[str, tuple[str, ...]], format: str) -> None:
    """Raise UserError for a code of a system that is none of those that a format holds in its column."""
    for column, systems in held.items():
        for name in pc.unique(code_lists(visits, column)[0]).to_pylist():
            if parts(name)[0] not in systems:
                raise UserError(
                    f"export.formats: {format} holds no {column} of the system {parts(name)[0]}, such as"
                    f" {name}, only {' and '.join(systems)}; take {format} out of export.formats"
                )


def write_csv(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write the rows of a query as CSV; null is an empty field."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = str(path).replace("'", "''")
    connection.execute(f"COPY ({query}) TO '{target}' ({CSV})")


def write_parquet(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write the rows of a query as parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = str(path).replace("'", "''")
    connection.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")


def count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The one number that a query gives."""
    return connection.execute(query).fetchall()[0][0]
