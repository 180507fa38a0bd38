"""OMOP CDM 5.4: persons, visits and codes as events, with a concept table of our own.

OMOP's vocabularies may not be shipped, and the ids of their concepts cannot be computed. Each code is
therefore a source concept of our own with an id above 2,000,000,000, which OHDSI leaves to local concepts,
and its standard concept is 0 or, where a tool reads standard concepts alone, the source concept again
(`unmapped`). A user's download from Athena gives the real ones: source concepts by vocabulary and code,
standard ones by `Maps to`, one event a target, in the table of the target's domain.
"""

import csv
import datetime
from collections.abc import Mapping
from pathlib import Path

import duckdb

from cohortloom.base.errors import UserError
from cohortloom.base.version import VERSION
from cohortloom.release.dates import LAST_YEAR
from cohortloom.release.exports import count, write_csv, write_parquet
from cohortloom.release.layout import omop_tables

OWN = 2_000_000_000
LONGEST = 50  # characters of a source value
NONE, MALE, FEMALE, INPATIENT, EHR, CDM = 0, 8507, 8532, 9201, 32817, 756265
# concept_id, name, domain, vocabulary, class, standard, code: standard concepts that do not come from codes
STANDARD = (
    (NONE, "No matching concept", "Metadata", "None", "Undefined", None, "No matching concept"),
    (MALE, "MALE", "Gender", "Gender", "Gender", "S", "M"),
    (FEMALE, "FEMALE", "Gender", "Gender", "Gender", "S", "F"),
    (INPATIENT, "Inpatient Visit", "Visit", "Visit", "Visit", "S", "IP"),
    (EHR, "EHR", "Type Concept", "Type Concept", "Type Concept", "S", "OMOP4976890"),
    (CDM, "OMOP CDM Version 5.4.0", "Metadata", "CDM", "CDM", "S", "CDM v5.4.0"),
)
ATHENA = {
    "CONCEPT": "concept_id concept_name domain_id vocabulary_id concept_class_id standard_concept"
    " concept_code valid_start_date valid_end_date invalid_reason",
    "CONCEPT_RELATIONSHIP": "concept_id_1 concept_id_2 relationship_id invalid_reason",
    "VOCABULARY": "vocabulary_id vocabulary_name vocabulary_reference vocabulary_version",
}
# domain of a standard concept -> its table; all other domains are observations
TABLES = {
    "Condition": "condition_occurrence",
    "Procedure": "procedure_occurrence",
    "Drug": "drug_exposure",
    "Measurement": "measurement",
    "Observation": "observation",
}
CONCEPTS = f"""
CREATE TABLE source AS  -- each code once, with its own concept or that of Athena
SELECT n.system, n.code, any_value(n.dotted) AS dotted, any_value(n.title) AS title,
       min(CASE n."column" WHEN 'diagnoses' THEN 'Condition' WHEN 'procedures' THEN 'Procedure' ELSE 'Drug'
       END)
           AS domain,
       {OWN} + row_number() OVER (ORDER BY n.system, n.code) AS own, min(a.concept_id) AS known
FROM name n LEFT JOIN athena a ON a.vocabulary_id = n.system AND replace(a.concept_code, '.', '') = n.code
GROUP BY n.system, n.code;
CREATE TABLE target AS  -- a row a standard concept of a code, at least one
SELECT n.name, coalesce(known, own) AS source_concept,
       coalesce(t.concept_id, if(getvariable('zero'), {NONE}, coalesce(known, own))) AS concept,
       coalesce(t.domain_id,
                CASE n."column" WHEN 'diagnoses' THEN 'Condition' WHEN 'procedures' THEN 'Procedure' ELSE
                'Drug' END)
           AS domain
FROM name n JOIN source s USING (system, code) LEFT JOIN maps_to m ON m.concept_id_1 = s.known
LEFT JOIN standard t ON t.concept_id = m.concept_id_2;
CREATE TABLE event AS
SELECT row_number() OVER (PARTITION BY t.domain ORDER BY c.visit, n."column", c.place, t.concept) AS id,
       c.patient,
       c.visit, t.domain, t.concept, t.source_concept, left(if(n.system = 'Drug', n.code, n.dotted),
       {LONGEST}) AS value, v.admitted, v.discharged
FROM coded c JOIN name n USING (name) JOIN visit v USING (visit)
JOIN (SELECT * REPLACE (if(domain IN ({", ".join(repr(domain) for domain in TABLES)}), domain, 'Observation')
                        AS domain) FROM target) t USING (name);
"""
NO_ATHENA = """
CREATE TABLE athena (concept_id INTEGER, vocabulary_id VARCHAR, concept_code VARCHAR);
CREATE TABLE maps_to (concept_id_1 INTEGER, concept_id_2 INTEGER);
CREATE TABLE standard (concept_id INTEGER, domain_id VARCHAR);
"""
OF_CONCEPT = "concept_id concept_name domain_id vocabulary_id concept_class_id standard_concept concept_code"


def read_cdm(path: Path) -> dict[str, dict[str, str]]:
    """Table -> field -> type in DuckDB, in the order of the CDM, from resources/omop_cdm54.csv."""
    types = {"integer": "INTEGER", "date": "DATE", "datetime": "TIMESTAMP", "float": "FLOAT"}
    tables: dict[str, dict[str, str]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            tables.setdefault(row["table"], {})[row["field"]] = types.get(row["type"], "VARCHAR")
    return tables


def write(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    *,
    cdm: Path,
    name: str,
    unmapped: str,
    table_files: str,
    athena: Path | None,
) -> list[str]:
    """Write the tables of resources/omop_cdm54.csv (`cdm`) from the relations of exports.py.

    name: of the cohort. unmapped: zero or source, the standard concept of a code without one. table_files:
    csv or parquet. athena: folder of a download of vocabularies. Returns what the format does not hold.
    """
    connection.execute("SET VARIABLE zero = ?", [unmapped == "zero"])
    version = "own concepts only"
    if athena is None:
        connection.execute(NO_ATHENA)
    else:
        version = _open_athena(connection, athena)
    connection.execute(CONCEPTS)
    _vocabulary(connection)
    save = write_parquet if table_files == "parquet" else write_csv
    rows = _events() | _persons() | _words(name, version)
    fields_of = read_cdm(cdm)
    for table in omop_tables(athena is not None):
        fields = fields_of[table]
        expressions, rest = rows.get(table, ({}, "WHERE false"))
        if unknown := set(expressions) - set(fields):
            raise ValueError(f"{table}: {sorted(unknown)}: no fields of the CDM")
        listed = ", ".join(
            f"CAST({expressions.get(field, 'NULL')} AS {kind}) AS {field}" for field, kind in fields.items()
        )
        save(connection, f"SELECT {listed} {rest}", folder / f"{table}.{table_files}")
    return _lost(connection, athena is not None, unmapped)


def _persons() -> dict[str, tuple[dict[str, str], str]]:
    """Persons, their time of observation and visits. Race and ethnicity are 0, no matching concept."""
    return {
        "person": (
            {
                "person_id": "patient",
                "gender_concept_id": f"if(sex = 'M', {MALE}, {FEMALE})",
                "year_of_birth": "year(birth)",
                "month_of_birth": "month(birth)",
                "day_of_birth": "day(birth)",
                "birth_datetime": "birth",
                "race_concept_id": f"{NONE}",
                "ethnicity_concept_id": f"{NONE}",
                "gender_source_value": "sex",
                "gender_source_concept_id": f"{NONE}",
            },
            "FROM patient ORDER BY patient",
        ),
        "observation_period": (
            {
                "observation_period_id": "patient",
                "person_id": "patient",
                "observation_period_start_date": "min(admitted)",
                "observation_period_end_date": "max(discharged)",
                "period_type_concept_id": f"{EHR}",
            },
            "FROM visit GROUP BY patient ORDER BY patient",
        ),
        "visit_occurrence": (
            {
                "visit_occurrence_id": "visit",
                "person_id": "patient",
                "visit_concept_id": f"{INPATIENT}",
                "visit_start_date": "admitted",
                "visit_start_datetime": "admitted",
                "visit_end_date": "discharged",
                "visit_end_datetime": "discharged",
                "visit_type_concept_id": f"{EHR}",
                "preceding_visit_occurrence_id": "if(number > 0, visit - 1, NULL)",
            },
            "FROM visit ORDER BY visit",
        ),
    }


def _events() -> dict[str, tuple[dict[str, str], str]]:
    """The codes, in the table of their domain. All times are those of the visit."""
    ids = {
        "condition_occurrence": "condition",
        "procedure_occurrence": "procedure",
        "drug_exposure": "drug",
        "measurement": "measurement",
        "observation": "observation",
    }
    begin = "admitted"
    times = {
        "Condition": {"condition_start_date": begin, "condition_start_datetime": begin}
        | dict.fromkeys(("condition_end_date", "condition_end_datetime"), "discharged"),
        "Procedure": dict.fromkeys(
            ("procedure_date", "procedure_datetime", "procedure_end_date", "procedure_end_datetime"), begin
        ),
        "Drug": dict.fromkeys(
            (f"drug_exposure_{end}_{kind}" for end in ("start", "end") for kind in ("date", "datetime")),
            begin,
        ),
        "Measurement": dict.fromkeys(("measurement_date", "measurement_datetime"), begin),
        "Observation": dict.fromkeys(("observation_date", "observation_datetime"), begin),
    }
    return {
        table: (
            {
                f"{table}_id": "id",
                "person_id": "patient",
                f"{ids[table]}_concept_id": "concept",
                f"{ids[table]}_type_concept_id": f"{EHR}",
                "visit_occurrence_id": "visit",
                f"{ids[table]}_source_value": "value",
                f"{ids[table]}_source_concept_id": "source_concept",
                **times[domain],
            },
            f"FROM event WHERE domain = '{domain}' ORDER BY id",
        )
        for domain, table in TABLES.items()
    }


def _words(name: str, version: str) -> dict[str, tuple[dict[str, str], str]]:
    """Where the cohort comes from, and the words that its tables use."""
    text = lambda value: "'" + value.replace("'", "''") + "'"  # noqa: E731
    concept = {field: field for field in (*OF_CONCEPT.split(), "valid_start_date", "valid_end_date")}
    named = lambda field: (  # noqa: E731
        {f"{field}_id": field, f"{field}_name": field, f"{field}_concept_id": f"{NONE}"},
        f"FROM (SELECT DISTINCT {field}_id AS {field} FROM concept) ORDER BY {field}",
    )
    vocabulary, rest = named("vocabulary")
    return {
        "cdm_source": (
            {
                "cdm_source_name": text(f"Cohortloom: {name}"[:255]),
                "cdm_source_abbreviation": "'Cohortloom'",
                "cdm_holder": "'none: the patients are synthetic'",
                "source_description": "'Synthetic patients; see README.md'",
                "cdm_etl_reference": text(f"Cohortloom {VERSION}"),
                "source_release_date": f"'{LAST_YEAR}-12-31'",
                "cdm_release_date": text(datetime.date.today().isoformat()),
                "cdm_version": "'v5.4'",
                "cdm_version_concept_id": f"{CDM}",
                "vocabulary_version": text(version[:20]),
            },
            "",
        ),
        "concept": (concept, "FROM concept ORDER BY concept_id"),
        "concept_relationship": (
            {
                "concept_id_1": "concept_id_1",
                "concept_id_2": "concept_id_2",
                "relationship_id": "'Maps to'",
                "valid_start_date": "'1970-01-01'",
                "valid_end_date": "'2099-12-31'",
            },
            "FROM used_relation ORDER BY ALL",
        ),
        "relationship": (
            {
                "relationship_id": "id",
                "relationship_name": "id",
                "is_hierarchical": "'0'",
                "defines_ancestry": "'0'",
                "reverse_relationship_id": "reverse",
                "relationship_concept_id": f"{NONE}",
            },
            "FROM (VALUES ('Maps to', 'Mapped from'), ('Mapped from', 'Maps to')) r(id, reverse)",
        ),
        "vocabulary": (
            vocabulary | {"vocabulary_version": f"if(vocabulary = 'None', {text(version)}, NULL)"},
            rest,
        ),
        "domain": named("domain"),
        "concept_class": named("concept_class"),
    }


def _vocabulary(connection: duckdb.DuckDBPyConnection) -> None:
    """Tables concept and used_relation: what the events refer to."""
    dates = "DATE '1970-01-01' AS valid_start_date, DATE '2099-12-31' AS valid_end_date"
    connection.execute(
        "CREATE TABLE concept (concept_id INTEGER, concept_name VARCHAR, domain_id VARCHAR,"
        " vocabulary_id VARCHAR, concept_class_id VARCHAR, standard_concept VARCHAR,"
        " concept_code VARCHAR, valid_start_date DATE,"
        " valid_end_date DATE)"
    )
    connection.executemany(
        "INSERT INTO concept VALUES (?, ?, ?, ?, ?, ?, ?, '1970-01-01', '2099-12-31')", STANDARD
    )
    connection.execute(
        f"INSERT INTO concept SELECT own, left(coalesce(title, dotted), 255), domain, left(system, 20),"
        f" 'Undefined', NULL, left(dotted, {LONGEST}), {dates} FROM source WHERE known IS NULL"
    )
    connection.execute(
        "CREATE TABLE used_relation AS SELECT DISTINCT m.concept_id_1, m.concept_id_2 FROM maps_to m"
        " JOIN source s ON s.known = m.concept_id_1 JOIN standard t ON t.concept_id = m.concept_id_2"
    )
    connection.execute(
        "CREATE TABLE used AS SELECT known AS concept_id FROM source WHERE known IS NOT NULL"
        " UNION SELECT concept_id_2 FROM used_relation"
    )
    if count(connection, "SELECT count(*) FROM used"):
        connection.execute(
            "INSERT INTO concept SELECT CAST(concept_id AS INTEGER), left(concept_name, 255), domain_id,"
            " vocabulary_id, concept_class_id, nullif(standard_concept, ''), concept_code,"
            " CAST(strptime(valid_start_date, '%Y%m%d') AS DATE),"
            " CAST(strptime(valid_end_date, '%Y%m%d') AS DATE)"
            " FROM athena_file WHERE CAST(concept_id AS INTEGER) IN (SELECT concept_id FROM used)"
            " AND CAST(concept_id AS INTEGER) NOT IN (SELECT concept_id FROM concept)"
        )


def _open_athena(connection: duckdb.DuckDBPyConnection, folder: Path) -> str:
    """Tables athena, maps_to and standard of a download of vocabularies; returns its version.

    Raises UserError for a missing file or column.
    """
    files = {path.name.upper(): path for path in folder.glob("*")} if folder.is_dir() else {}
    for table, columns in ATHENA.items():
        path = files.get(f"{table}.CSV")
        if path is None:
            raise UserError(
                f"export.athena: {folder}: {table}.csv is missing; give the folder of a download from Athena"
            )
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline().rstrip("\r\n").lower().split("\t")
        if missing := [column for column in columns.split() if column not in header]:
            raise UserError(
                f"export.athena: {path}: line 1: column {missing[0]} is missing;"
                " give the files of Athena as they are, separated by tabs"
            )
        name = "athena_file" if table == "CONCEPT" else f"{table.lower()}_file"
        literal = str(path).replace("'", "''")
        connection.execute(
            f"CREATE VIEW {name} AS SELECT {', '.join(columns.split())} FROM read_csv('{literal}',"
            " delim='\t', header=true, quote='', escape='', all_varchar=true, null_padding=true)"
        )
    connection.execute(
        "CREATE TABLE athena AS SELECT CAST(concept_id AS INTEGER) AS concept_id, vocabulary_id, concept_code"
        " FROM athena_file WHERE vocabulary_id IN (SELECT system FROM name)"
    )
    connection.execute(
        "CREATE TABLE maps_to AS SELECT CAST(concept_id_1 AS INTEGER) AS concept_id_1,"
        " CAST(concept_id_2 AS INTEGER) AS concept_id_2 FROM concept_relationship_file"
        " WHERE relationship_id = 'Maps to' AND coalesce(invalid_reason, '') = ''"
        " AND CAST(concept_id_1 AS INTEGER) IN (SELECT concept_id FROM athena)"
    )
    connection.execute(
        "CREATE TABLE standard AS SELECT CAST(concept_id AS INTEGER) AS concept_id, domain_id"
        " FROM athena_file WHERE standard_concept = 'S'"
        " AND CAST(concept_id AS INTEGER) IN (SELECT concept_id_2 FROM maps_to)"
    )
    found = connection.execute(
        "SELECT vocabulary_version FROM vocabulary_file WHERE vocabulary_id = 'None'"
    ).fetchall()
    return (found[0][0] if found else None) or "unknown"


def _lost(connection: duckdb.DuckDBPyConnection, athena: bool, unmapped: str) -> list[str]:
    """What the format does not hold, and what a reader must know of the concepts."""
    total = count(connection, "SELECT count(*) FROM source")
    mapped = count(
        connection,
        f"SELECT count(DISTINCT source_concept) FROM target WHERE concept NOT IN ({NONE}, source_concept)",
    )
    long = count(
        connection, f"SELECT count(*) FROM source WHERE system = 'Drug' AND length(code) > {LONGEST}"
    )
    other: Mapping[str, str] = {
        "zero": f"0: tools that read *_concept_id alone see one code (export.unmapped: source writes {OWN:,}"
        " and above there too)",
        "source": f"the source concept, above {OWN:,}: they are not standard, which checks of quality count",
    }
    lines = [
        f"Standard concepts: {mapped:,} of {total:,} codes have one. The *_concept_id of the others is"
        f" {other[unmapped]}. Source concepts and source values are there for every code.",
        "Kind of visit: all are written as inpatient visits (9201), of type EHR (32817).",
        "Ends: those of conditions are those of the visit, those of drugs and procedures their begin.",
        "Eras (condition_era, drug_era) are derived tables; they are left out.",
    ]
    if athena:
        moved = count(connection, "SELECT count(*) FROM event WHERE domain IN ('Observation', 'Measurement')")
        lines += [
            "One row a code: a code with several standard concepts has a row for each, in the table of its"
            f" domain ({moved:,} rows are observations or measurements). The order of a visit's codes over"
            " several tables is lost.",
            "Table concept holds rows of the downloaded vocabularies: their licences apply to this folder.",
        ]
    if long:
        lines.append(
            f"Names of drugs above {LONGEST} characters: {long:,} names are cut there in source values and"
            " concept codes; concept_name holds them."
        )
    return lines
