"""The written form of ICD-9-CM codes."""

import pytest

from cohortloom.data.codes import is_icd9cm, normalize, sloppiness


@pytest.mark.parametrize("code", ["486", "4019", "42731", "V30", "V3000", "E849", "E8490", "0389"])
def test_codes_of_the_form_stay_as_they_are(code):
    assert is_icd9cm(code) and normalize(code) == code and sloppiness(code) == []


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
    assert normalize(written) == code
    assert sloppiness(written) == kinds


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
        "4.019",
        "42.731",
        "40 1x",
        "nan",
        "40..1",
    ],
)
def test_what_is_no_icd9cm_code_is_refused(code):
    assert normalize(code) is None
