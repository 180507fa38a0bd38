"""Terms of a source: listed ones, and those that a site states itself."""

import pytest
import yaml

from cohortloom.base.errors import UserError
from cohortloom.release.terms import terms_in_words, terms_of
from conftest import REPOSITORY

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
