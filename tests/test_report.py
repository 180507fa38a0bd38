"""report.html: self-contained, honest about small samples, free of real rows, and it opens in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cohortloom import report, report_examples, report_figures
from cohortloom.errors import UserError
from cohortloom.report_examples import choose, copies
from cohortloom.visits import write_visits
from summarize import summarize
from summarize_inputs import REAL_VISITS, RESOURCES, SYNTHETIC_VISITS, figure, visits, write_inputs

EXAMPLES = {"titles": RESOURCES / "icd9_titles.csv", "validity": RESOURCES / "icd9_validity.csv"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    inputs = write_inputs(folder)
    # Left where the DAG writes it: the report must not touch it.
    reconstruct = visits([("reconstructed-0000001", 0, 0, 50.0, "F", ["E8120", "REVEALEDCODE"])])
    write_visits(reconstruct, folder / "synthetic" / "multitask" / "reconstruct.parquet", {"source": "test"})
    summarize(**inputs)
    return folder


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_nothing_is_fetched(page):
    text = re.sub(r'src="data:image/svg\+xml;base64,[A-Za-z0-9+/=]+"', 'src="data:"', page)
    assert not re.findall(r"https?:", text)
    assert "<script" not in text and "<link" not in text and "@import" not in text and "url(" not in text
    assert set(re.findall(r'src="([^"]*)"', text)) == {"data:"}
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', text))


def test_no_real_patient_and_nothing_of_reconstruct(page):
    for secret in ("secret-patient", "reconstructed-", "REVEALEDCODE", "E812.0", "/secret/place"):
        assert secret not in page


def test_removed_columns_are_named(page):
    assert "<code>ETHNICITY</code>" in page and "<code>RELIGION</code>" in page
    assert "1,234" in page and "codes with a dot" in page


def test_criteria_are_judged_in_words(page):
    assert re.search(r"6 of 6 pass</strong> for the model <em>multitask", page)
    assert "at least 0.42" in page and "under 2%" in page
    assert page.count('class="verdict no"') >= 6  # lm_only misses all six


def test_every_emitted_metric_is_explained(page, folder):
    card = json.loads((folder / "scorecard.json").read_text(encoding="utf-8"))
    meanings = page[page.index('id="meaning"') :]
    for metric in {record["metric"] for record in card["records"]}:
        assert f"<small>{metric}," in meanings


def test_a_small_test_set_is_warned_of(page):
    assert "Figures mean nothing at this size" in page


def test_a_test_set_that_is_large_enough_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MEANINGFUL_VISITS", 4)
    inputs = write_inputs(tmp_path)
    summarize(**inputs)
    assert "mean nothing at this size" not in inputs["report"].read_text(encoding="utf-8")


def test_every_column_of_a_row_is_filled(page):
    row = re.search(r"<tr><td>Jensen-Shannon distance.*?</tr>", page, re.DOTALL)[0]
    cells = [re.sub("<.*?>", "", cell).strip() for cell in re.findall(r'<td class="num">(.*?)</td>', row)]
    assert cells == ["0.125", "0.115 to 0.135", "0.120", "0.110", "0.122", "100"]
    assert "built-in" not in page


def test_violations_by_kind_name_every_set():
    kinds = [
        figure(run, report_figures.VIOLATIONS, value, subset="newborn", half=1)
        for run, value in (("multitask", 40.0), ("real", 2.0), ("markov", 90.0))
    ]
    drawn = report_figures.violations(kinds, "multitask")
    assert "real, held out, synthetic (multitask), markov (naive)" in drawn[0]["alt"]
    assert report_figures.violations(kinds[1:], "multitask") == []
    assert report_figures.violations(kinds[::2], "multitask") == []


def test_unequal_sizes_are_marked(tmp_path):
    inputs = write_inputs(tmp_path)
    extra = [
        figure("multitask", "bigram_r2", 0.9, n=100, better=True),
        figure("real", "bigram_r2", 0.95, n=80, better=True),
    ]
    inputs["records"].append(tmp_path / "extra.json")
    inputs["records"][-1].write_text(json.dumps(extra), encoding="utf-8")
    summarize(**inputs)
    assert "0.950†" in inputs["report"].read_text(encoding="utf-8")


def test_figures_are_drawn_with_their_alternative_texts(page):
    images = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]*)"', page)
    assert len(images) >= 6
    assert all(len(data) > 2000 and len(alt) > 20 for data, alt in images)


def test_examples_are_synthetic_and_no_copies():
    found = choose(SYNTHETIC_VISITS, [REAL_VISITS], **EXAMPLES)
    assert [patient["id"] for patient in found] == ["synthetic-0000002", "synthetic-0000003"]
    assert found[0]["who"] == "Female, newborn at the first visit"
    codes = found[0]["visits"][0]["codes"]
    assert codes[0]["title"].startswith("Single liveborn") and codes[0]["broken"] == ""
    assert codes[1]["broken"] == "does not fit the patient's age"
    assert found[1]["visits"][1]["when"] == "9 days after the first visit"


def test_a_visit_in_another_order_is_a_copy_and_a_short_one_is_not():
    assert copies(SYNTHETIC_VISITS, [REAL_VISITS]).tolist() == [True, False, False, False]


def test_a_code_cannot_inject_markup(page):
    assert "&lt;b&gt;" in page and "<b>" not in page


def test_ages_in_words():
    words = [report_examples._age(age) for age in (0, 0.02, 0.5, 1, 44, 90)]
    assert words == ["newborn", "1 months", "6 months", "1 year", "44 years", "90 or older"]


def test_shares_of_visits_by_code():
    shares = report_figures.code_shares(REAL_VISITS)
    assert shares["4019"] == 0.5 and shares["V3000"] == 0.25
    assert report_figures.visits_each(REAL_VISITS).tolist() == [2, 1, 1]
    assert report_figures.lengths(REAL_VISITS).tolist() == [5, 2, 1, 2]


def test_histories_leave_out_what_is_empty_or_unknown(tmp_path):
    rows = [{"split": "val", "tokens": "10", "sex_loss": "nan", "lm_loss": "3.5", "other": "x"}]
    tokens, loss = report_figures._points(rows, "val", "lm_loss")
    assert (tokens.tolist(), loss.tolist()) == ([10.0], [3.5])
    assert not np.size(report_figures._points(rows, "val", "sex_loss")[0])
    with pytest.raises(UserError, match="train the run again"):
        report_figures.read_history(tmp_path / "history.csv")


def test_a_cohort_without_several_visits_has_no_figure_of_them():
    single = REAL_VISITS.filter(pa.compute.equal(REAL_VISITS["visit"], 0))
    titles = [f["title"] for f in report_figures.synthetic(single, single, single, {}, "multitask")]
    assert "Visits of a patient" not in titles and "Diagnoses in a visit" in titles


def test_it_opens_in_a_browser(folder, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--hide-scrollbars",
    ]
    # A page that is wider than a phone would be scrolled sideways: the document says how wide it is.
    probe = (
        (folder / "report.html")
        .read_text(encoding="utf-8")
        .replace(
            "</body>",
            "<script>const i=[...document.images];document.title=[document.documentElement.scrollWidth,"
            "window.innerWidth,i.length,i.filter(x=>x.naturalWidth>0).length].join()</script></body>",
        )
    )
    (tmp_path / "probe.html").write_text(probe, encoding="utf-8")
    done = subprocess.run(
        [browser, *flags, "--window-size=500,900", "--dump-dom", f"file://{tmp_path}/probe.html"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    wide, window, images, drawn = map(int, re.search(r"<title>([\d,]+)</title>", done.stdout)[1].split(","))
    assert wide <= window
    assert images == drawn >= 6
