"""OMOP exports, loaded into DuckDB with types, keys and NOT NULL of CDM 5.4, and their plausibility."""

import csv
import shutil
import subprocess

import duckdb
import pytest

from cohortloom.base.errors import UserError
from cohortloom.release.layout import omop_tables
from conftest import REPOSITORY
from export_cohort import ICD10, ROWS, cohort, export_as, without_ids
from raw_cohort import SHARED, by_system, read

CDM = REPOSITORY / "resources" / "omop_cdm54.csv"
LONG = (9, 0, 70, 1, "ICD9CM:4019", "", f"Drug:{'SALINE ' * 8}END")
TYPES = {"integer": "INTEGER", "date": "DATE", "datetime": "TIMESTAMP", "float": "FLOAT"}


def fields() -> dict[str, list[dict[str, str]]]:
    with open(CDM, newline="", encoding="utf-8") as file:
        out: dict[str, list[dict[str, str]]] = {}
        for row in csv.DictReader(file):
            out.setdefault(row["table"], []).append(row)
    return out


def load(folder, athena=False) -> duckdb.DuckDBPyConnection:
    """A database with the constraints of the CDM, filled from the files; DuckDB refuses what breaks them."""
    connection = duckdb.connect()
    for table in omop_tables(athena):
        columns = []
        for row in fields()[table]:
            kind = row["type"]
            text = f"{row['field']} {TYPES.get(kind, 'VARCHAR')}"
            if kind.startswith("varchar(") and kind != "varchar(max)":
                text += f" CHECK (length({row['field']}) <= {kind[8:-1]})"
            text += " NOT NULL" * (row["required"] == "true")
            columns.append(text + " PRIMARY KEY" * (row["primary_key"] == "true"))
        connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        connection.execute(f"COPY {table} FROM '{folder / table}.csv' (HEADER, DATEFORMAT '%Y-%m-%d')")
    return connection


def dangling(connection, athena=False) -> list[str]:
    """Foreign keys that lead nowhere."""
    found, tables = [], omop_tables(athena)
    for table in tables:
        for row in fields()[table]:
            other, _, field = row["references"].partition(".")
            if not other:
                continue
            where = f"{row['field']} IS NOT NULL"
            if other in tables:
                where += f" AND {row['field']} NOT IN (SELECT {field} FROM {other})"
            n = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchall()[0][0]
            found += [f"{table}.{row['field']}: {n}"] * (n > 0)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_as("omop", cohort([*ROWS, *ICD10, LONG]), tmp_path_factory.mktemp("omop"))


def test_types_keys_and_not_null_of_the_cdm_hold(folder):
    connection = load(folder)
    assert dangling(connection) == []
    counts = {t: connection.execute(f"SELECT count(*) FROM {t}").fetchall()[0][0] for t in omop_tables(False)}
    assert (counts["person"], counts["observation_period"], counts["visit_occurrence"]) == (9, 9, 17)
    assert (counts["condition_occurrence"], counts["drug_exposure"], counts["death"]) == (23, 6, 0)
    assert counts["procedure_occurrence"] == 5 and counts["cdm_source"] == 1


def test_what_breaks_the_cdm_is_rejected(folder, tmp_path):
    """The check itself: a null, a repeated key, a long value, a key that leads nowhere."""
    changes = {
        "person": ("8507", "", "NOT NULL"),
        "visit_occurrence": ("\n2,", "\n1,", "Duplicate key|PRIMARY KEY"),
        "drug_exposure": ("HEPARIN", "HEPARIN" * 9, "CHECK"),
    }
    for table, (old, new, error) in changes.items():
        broken = tmp_path / table
        broken.mkdir()
        for path in folder.glob("*.csv"):
            (broken / path.name).write_text(path.read_text())
        path = broken / f"{table}.csv"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(duckdb.Error, match=error):
            load(broken)
    connection = load(folder)
    connection.execute("DELETE FROM concept WHERE concept_id = 9201")
    assert dangling(connection) == ["visit_occurrence.visit_concept_id: 17"]


def test_the_facts_of_the_cdm_are_those_of_ohdsi():
    path = SHARED / "omop_cdm54" / "cdm54.csv"
    if not path.is_file():
        pytest.skip("the CDM's own table is not beside the repository")
    with open(path, newline="", encoding="utf-8") as file:
        theirs = {
            (r["cdmTableName"], r["cdmFieldName"].lower()): (
                r["cdmDatatype"].lower(),
                r["isRequired"] == "Yes",
            )
            for r in csv.DictReader(file)
        }
    ours = {
        (t, r["field"]): (r["type"], r["required"] == "true") for t, rows in fields().items() for r in rows
    }
    assert ours == {key: value for key, value in theirs.items() if key[0] in fields()}


PLAUSIBLE = {  # a query for offending rows, after the checks of OHDSI's Data Quality Dashboard
    "dates in the past": "FROM visit_occurrence WHERE visit_start_date NOT"
    " BETWEEN '1950-01-01' AND current_date",
    "start before end": "FROM visit_occurrence WHERE visit_start_datetime > visit_end_datetime",
    "events in their visit": "FROM condition_occurrence c JOIN visit_occurrence v USING (visit_occurrence_id)"
    " WHERE c.condition_start_datetime NOT BETWEEN v.visit_start_datetime AND v.visit_end_datetime"
    " OR c.person_id <> v.person_id",
    "events after birth": "FROM visit_occurrence JOIN person USING (person_id)"
    " WHERE visit_start_datetime < birth_datetime",
    "a period for everybody": "FROM person LEFT JOIN observation_period o USING (person_id)"
    " WHERE o.person_id IS NULL",
    "visits in the period": "FROM visit_occurrence JOIN observation_period USING (person_id)"
    " WHERE visit_start_date NOT BETWEEN observation_period_start_date AND observation_period_end_date",
    "drugs end": "FROM drug_exposure WHERE drug_exposure_end_date < drug_exposure_start_date",
    "birth in parts": "FROM person"
    " WHERE make_date(year_of_birth, month_of_birth, day_of_birth) <> birth_datetime",
    "own concepts above two billion": "FROM concept"
    " WHERE vocabulary_id LIKE 'ICD%' AND concept_id <= 2000000000",
    "own concepts are not standard": "FROM concept"
    " WHERE concept_id > 2000000000 AND standard_concept IS NOT NULL",
    "race and ethnicity are withheld": "FROM person WHERE race_concept_id <> 0 OR ethnicity_concept_id <> 0"
    " OR coalesce(race_source_value, ethnicity_source_value) IS NOT NULL"
    " OR coalesce(race_source_concept_id, ethnicity_source_concept_id) IS NOT NULL",
    "all times are there": "FROM condition_occurrence, procedure_occurrence, drug_exposure"
    " WHERE condition_start_datetime IS NULL OR condition_end_datetime IS NULL OR procedure_datetime IS NULL"
    " OR drug_exposure_start_datetime IS NULL OR drug_exposure_end_datetime IS NULL",
}


@pytest.mark.parametrize("query", PLAUSIBLE.values(), ids=PLAUSIBLE)
def test_plausibility(folder, query):
    assert load(folder).execute(f"SELECT count(*) {query}").fetchall() == [(0,)]


def test_codes_have_dots_their_system_and_a_title(folder):
    connection = load(folder)
    rows = connection.execute(
        "SELECT condition_concept_id, condition_source_value, vocabulary_id, concept_name"
        " FROM condition_occurrence JOIN concept ON concept_id = condition_source_concept_id"
        " WHERE concept_code IN ('414.01', 'E880.9', 'E88.09') ORDER BY 2, 3"
    ).fetchall()
    assert [row[:3] for row in rows] == [
        (0, "414.01", "ICD9CM"),
        (0, "E88.09", "ICD10CM"),
        (0, "E880.9", "ICD9CM"),
    ]
    assert "atherosclerosis" in rows[0][3].lower()
    longest = connection.execute("SELECT max(length(drug_source_value)) FROM drug_exposure").fetchall()
    assert longest == [(50,)] and "1 names are cut there" in (folder / "README.md").read_text()


def test_the_source_concept_stands_in_where_asked(tmp_path):
    connection = load(export_as("omop", cohort(), tmp_path, unmapped="source"))
    assert connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE condition_concept_id = condition_source_concept_id)"
        " FROM condition_occurrence"
    ).fetchall() == [(19, 19)]


def test_parquet_is_read_too(tmp_path):
    folder = export_as("omop", cohort(), tmp_path / "out", table_files="parquet")
    assert not list(folder.glob("*.csv"))
    table, _ = read(folder, "omop", tmp_path / "in")
    assert without_ids(table) == without_ids(cohort())


CONCEPT = """concept_id concept_name domain_id vocabulary_id concept_class_id standard_concept concept_code\
 valid_start_date valid_end_date invalid_reason
44820682 Hypertension_401.9 Condition ICD9CM 4-dig S- 401.9 19700101 20991231 -
320128 Essential_hypertension Condition SNOMED Disorder S 59621000 20020131 20991231 -
44831230 Bypass Observation ICD9CM 5-dig - V45.82 19700101 20991231 -
4000001 History_of_angioplasty Observation SNOMED Context S 1 20020131 20991231 -
4000002 Another_target Procedure SNOMED Procedure S 2 20020131 20991231 -
4000003 Old_target Procedure SNOMED Procedure S 3 20020131 20991231 -
"""
RELATIONSHIP = """concept_id_1 concept_id_2 relationship_id valid_start_date valid_end_date invalid_reason
44820682 320128 Maps_to 19700101 20991231 -
44831230 4000001 Maps_to 19700101 20991231 -
44831230 4000002 Maps_to 19700101 20991231 -
44831230 4000003 Maps_to 19700101 20991231 D
320128 44820682 Mapped_from 19700101 20991231 -
"""
VOCABULARY = """vocabulary_id vocabulary_name vocabulary_reference vocabulary_version vocabulary_concept_id
None OMOP ref v5.0_29-FEB-24 44819096
"""


def athena(folder, **replaced):
    folder.mkdir()
    tables = {"CONCEPT": CONCEPT, "CONCEPT_RELATIONSHIP": RELATIONSHIP, "VOCABULARY": VOCABULARY} | replaced
    for name, text in tables.items():
        rows = [line.replace("S-", "-").split(" ") for line in text.splitlines()]
        cells = [
            ["" if cell == "-" else cell.replace("_", " ") if i else cell for cell in row]
            for i, row in enumerate(rows)
        ]
        (folder / f"{name}.csv").write_text("".join("\t".join(row) + "\n" for row in cells))
    return folder


def test_a_download_of_vocabularies_gives_standard_concepts(tmp_path):
    """One row a target, in the table of its domain; codes that it does not know keep concepts of our own."""
    folder = export_as("omop", cohort(), tmp_path / "out", athena=athena(tmp_path / "athena"))
    connection = load(folder, athena=True)
    assert dangling(connection, athena=True) == []
    query = "SELECT condition_concept_id, condition_source_concept_id, count(*) FROM condition_occurrence"
    found = connection.execute(f"{query} WHERE condition_source_value = '401.9' GROUP BY ALL").fetchall()
    assert found == [(320128, 44820682, 1)]
    assert connection.execute(
        "SELECT observation_concept_id, observation_source_value FROM observation"
    ).fetchall() == [(4000001, "V45.82")]
    moved = "SELECT procedure_concept_id FROM procedure_occurrence WHERE procedure_source_value = 'V45.82'"
    assert connection.execute(moved).fetchall() == [(4000002,)]
    others = (
        "SELECT min(condition_source_concept_id) FROM condition_occurrence WHERE condition_concept_id = 0"
    )
    assert connection.execute(others).fetchall()[0][0] > 2_000_000_000
    assert connection.execute("SELECT vocabulary_version FROM cdm_source").fetchall() == [("v5.0 29-FEB-24",)]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "Standard concepts: 2 of" in text and "their licences apply" in text
    table, account = read(folder, "omop", tmp_path / "in")
    assert table.num_rows == 14 and by_system(account)["diagnoses", "ICD9CM"] == 19


MOVED = """44829000 Fever Condition ICD9CM 4-dig - 780.6 19700101 20991231 -
4000004 Temperature Measurement SNOMED Test S 4 20020131 20991231 -
2000066 Stent_insertion Procedure ICD9Proc 4-dig - 00.66 19700101 20991231 -
4000005 Infused_drug Drug RxNorm Clinical S 5 20020131 20991231 -
21600000 heparin Drug ATC ATC - B01AB01 19700101 20991231 -
4000006 Strip Device SNOMED Device S 6 20020131 20991231 -
45000000 test_strip Device NDC 11-dig - 00338004904 19700101 20991231 -
45000001 aspirin Drug NDC 11-dig - 00338004905 19700101 20991231 -
"""
MAPS = """44829000 4000004 Maps_to 19700101 20991231 -
2000066 4000005 Maps_to 19700101 20991231 -
21600000 4000005 Maps_to 19700101 20991231 -
45000000 4000006 Maps_to 19700101 20991231 -
45000001 4000005 Maps_to 19700101 20991231 -
"""
DRUGS = (9, 0, 70, 1, "ICD9CM:4019 ICD9CM:7806", "", "ATC:B01AB01 NDC:00338004904 NDC:00338004905")


def test_codes_come_back_from_whatever_table_their_standard_concept_has(tmp_path):
    """Domains move them to observation, measurement and drug_exposure; an NDC alone becomes RxNorm."""
    downloaded = athena(
        tmp_path / "athena", CONCEPT=CONCEPT + MOVED, CONCEPT_RELATIONSHIP=RELATIONSHIP + MAPS
    )
    visits = cohort([*ROWS, DRUGS, (10, *LONG[1:])])
    folder = export_as("omop", visits, tmp_path / "out", athena=downloaded)
    with duckdb.connect() as connection:
        of_table = f"SELECT count(*) FROM '{folder}/{{}}.csv'"
        moved = [
            connection.execute(of_table.format(t)).fetchall()[0][0] for t in ("measurement", "observation")
        ]
    assert moved == [2, 2]
    table, _ = read(folder, "omop", tmp_path / "in")
    expected = [
        {k: sorted(v) if isinstance(v, list) else v for k, v in row.items()} for row in without_ids(visits)
    ]
    assert expected[14]["medications"] == ["ATC:B01AB01", "NDC:00338004904", "NDC:00338004905"]
    expected[14]["medications"][2] = "RxNorm:5"
    found = [
        {k: sorted(v) if isinstance(v, list) else v for k, v in row.items()} for row in without_ids(table)
    ]
    assert found == expected
    # Without the table of measurements its codes are missing: that is where they were read.
    (folder / "measurement.csv").unlink()
    table, _ = read(folder, "omop", tmp_path / "less")
    assert not any("ICD9CM:7806" in codes for codes in table["diagnoses"].to_pylist())


def test_a_folder_that_is_no_download_is_refused(tmp_path):
    for name, change, error in (
        ("empty", {}, "CONCEPT.csv is missing; give the folder of a download from Athena"),
        (
            "other",
            {"CONCEPT": CONCEPT.replace("vocabulary_id", "vocabulary")},
            "column vocabulary_id is missing",
        ),
    ):
        folder = athena(tmp_path / name, **change)
        if name == "empty":
            (folder / "CONCEPT.csv").unlink()
        with pytest.raises(UserError, match=error):
            export_as("omop", cohort(), tmp_path / "out", athena=folder)
        assert not (tmp_path / "out" / "omop").exists()


@pytest.mark.skipif(not shutil.which("meds_etl_omop"), reason="the OMOP tool meds_etl is not installed")
def test_an_omop_tool_reads_it(folder, tmp_path):
    """meds_etl makes MEDS of it without a download of vocabularies, and that is read as the same visits."""
    command = ["meds_etl_omop", str(folder), str(tmp_path / "meds"), "--num_proc", "1", "--num_shards", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    table, _ = read(tmp_path / "meds", "meds", tmp_path / "in", columns=["diagnoses", "procedures"])
    expected = without_ids(cohort([*ROWS, *ICD10, LONG]))
    for found, visit in zip(without_ids(table), expected, strict=True):
        for column in ("diagnoses", "procedures"):  # the tool sorts the codes of one time
            assert sorted(found[column]) == sorted(visit[column])
        assert [found[k] for k in ("days", "age", "sex")] == [visit[k] for k in ("days", "age", "sex")]
