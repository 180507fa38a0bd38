"""The written form of codes, by system."""

import pytest

from cohortloom.data.codes import CODE_COLUMNS, fault, normalize, sloppiness, with_dot


@pytest.mark.parametrize("code", ["486", "4019", "42731", "V30", "V3000", "E849", "E8490", "0389"])
def test_codes_of_the_form_stay_as_they_are(code):
    assert normalize("ICD9CM", code) == code and sloppiness("ICD9CM", code) == []


@pytest.mark.parametrize(
    ("written", "code", "kinds"),
    [
        ("427.31", "42731", ["dot"]),
        (" v45.82", "V4582", ["dot", "blank", "lower case"]),
        ("e8490", "E8490", ["lower case"]),
        ("E849.0", "E8490", ["dot"]),
        ('"4019"', "4019", ["quote"]),
        ("486.", "486", ["dot"]),
    ],
)
def test_sloppy_codes_are_put_right(written, code, kinds):
    assert normalize("ICD9CM", written) == code
    assert sloppiness("ICD9CM", written) == kinds


@pytest.mark.parametrize(
    "code",
    [
        "",
        "40",
        "401901",
        "I48.91",
        "V3",
        "V30001",
        "E84",
        "E84900",
        "E11.9",
        "E119",
        "4.019",
        "42.731",
        "40 1x",
        "nan",
        "40..1",
    ],
)
def test_what_is_no_icd9cm_code_is_refused(code):
    assert normalize("ICD9CM", code) is None


@pytest.mark.parametrize(
    ("system", "written", "code"),
    [
        ("ICD10CM", "E87.2", "E872"),
        ("ICD10CM", " i48.91", "I4891"),
        ("ICD10CM", "78791  ", None),
        ("ICD10CM", "E1.19", None),
        ("ICD10", "J18.9", "J189"),
        ("ICD10", "J18.91A", None),
        ("ICD9Proc", "00.45", "0045"),
        ("ICD9Proc", "0045", "0045"),
        ("ICD9Proc", "V45", None),
        ("ICD10PCS", "5A1D70Z", "5A1D70Z"),
        ("ICD10PCS", "5A1D70I", None),  # the letters I and O are not used
        ("NDC", "00338004904", "00338004904"),
        ("NDC", "0", None),
        ("Drug", " Sodium  Chloride 0.9% ", "SODIUM CHLORIDE 0.9%"),
        ("Drug", "  ", None),
        ("ATC", "c09aa02", "C09AA02"),
        ("ATC", "C9", None),
    ],
)
def test_codes_of_each_system(system, written, code):
    assert normalize(system, written) == code


def test_a_system_stands_in_its_own_column_alone():
    for column, systems in CODE_COLUMNS.items():
        for system in {one for other in CODE_COLUMNS.values() for one in other}:
            assert (fault(column, f"{system}:1") is None) == (system in systems)
        assert fault(column, "CCS:98") is None and fault(column, "98") and fault(column, "CCS:")


def test_dots_stand_where_each_system_has_them():
    names = (
        "ICD9CM:4019",
        "ICD9CM:E8120",
        "ICD10CM:E8120",
        "ICD9Proc:0045",
        "ICD10PCS:5A1D70Z",
        "ICD9CM:042",
    )
    assert [with_dot(name) for name in names] == ["401.9", "E812.0", "E81.20", "00.45", "5A1D70Z", "042"]
