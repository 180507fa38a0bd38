"""Terms of a source: listed ones, and those that a site states itself."""

import pytest
import yaml

from cohortloom.base.errors import UserError
from cohortloom.release.terms import terms_in_words, terms_of
from conftest import REPOSITORY
from export_cohort import STEPS, cohort, export_as

LISTED = REPOSITORY / "resources" / "publication.yaml"
OURS = {
    "source": "omop",
    "title": "Records of a hospital",
    "url": None,
    "license": "other",
    "terms": "The board has agreed.",
    "limits": ["One hospital."],
}


def stated(folder, **changes):
    path = folder / "terms.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (OURS | changes).items() if v != "absent"}))
    return path


def test_a_site_states_the_terms_of_a_source_that_is_not_listed(tmp_path):
    entry = terms_of("omop", LISTED, stated(tmp_path))
    assert entry["title"] == "Records of a hospital" and entry["limits"] == ["One hospital."]
    with pytest.raises(UserError, match="are not known here.*state its terms in a file, publish.terms"):
        terms_of("omop", LISTED)


@pytest.mark.parametrize("source", ["mimic3", "mimic4", "eicu"])
def test_nobody_states_the_terms_of_what_is_refused(tmp_path, source):
    with pytest.raises(UserError, match="-derived weights may be published"):
        terms_of(source, LISTED, stated(tmp_path, source=source))


WRONG = {
    "another source": ({"source": "meds"}, "states the terms of 'meds', and cohort.source is 'omop'"),
    "missing": ({"license": "absent"}, "license is missing; give source, title"),
    "unknown": ({"licence": "mit"}, "licence: unknown key"),
    "no text": ({"terms": " "}, "terms: ' ' is no text"),
    "no list": ({"limits": "none"}, "limits: give a list of sentences"),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_a_faulty_file_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        terms_of("omop", LISTED, stated(tmp_path, **change))
    assert str(caught.value).startswith(f"publish.terms: {tmp_path}") and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        terms_of("omop", LISTED, tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is no YAML"):
        terms_of("omop", LISTED, tmp_path / "broken.yaml")
    with pytest.raises(UserError, match="the terms of nhds2010 are in publication.yaml; take the key out"):
        terms_of("nhds2010", LISTED, stated(tmp_path, source="nhds2010"))


def test_an_export_says_whose_terms_apply():
    assert "308(d)" in terms_in_words("nhds2010", LISTED)
    assert "do not hand this folder on" in terms_in_words("mimic3", LISTED)
    assert "not known here" in terms_in_words("omop", LISTED)


@pytest.mark.parametrize("format", STEPS)
def test_the_readme_of_an_export_states_the_terms_of_the_site(tmp_path, format):
    terms = stated(tmp_path, url="https://hospital.example", limits=["One hospital.", "Adults."])
    folder = export_as(format, cohort(), tmp_path / "out", source="omop", site_terms=terms)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        "Source: Records of a hospital (https://hospital.example). Licence: other. The board has agreed."
        in text
    )
    assert "\n- One hospital.\n- Adults.\n" in text and "terms of use are not known here" not in text
    without = export_as(format, cohort(), tmp_path / "without", source="omop")
    assert "terms of use are not known here" in (without / "README.md").read_text(encoding="utf-8")


def test_an_export_refuses_terms_that_are_not_of_its_source(tmp_path):
    for source, error in (("mimic3", "the terms of mimic3 are in"), ("meds", "states the terms of 'omop'")):
        with pytest.raises(UserError, match=error):
            export_as("meds", cohort(), tmp_path / "out", source=source, site_terms=stated(tmp_path))
        assert not (tmp_path / "out" / "meds").exists()
