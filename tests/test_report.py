"""report.html: self-contained, honest about small samples, free of real rows, and it opens in a browser."""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.coded import encode
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.titles import titles_of
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import SCHEMA, code_lists, write_visits
from cohortloom.evaluation.neighbours import is_copy
from cohortloom.reporting import curves, examples, figures, report, scorecard
from cohortloom.reporting.sentences import sentences
from grammar import whole_visits
from summarize import summarize
from summarize_inputs import REAL_VISITS, RESOURCES, SYNTHETIC_VISITS, figure, visits, write_inputs

TITLES = titles_of(pc.unique(code_lists(SYNTHETIC_VISITS)[0]).to_pylist(), RESOURCES / "titles")
RULES = load_rules(RESOURCES / "validity")


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
    assert "<link" not in text and "@import" not in text and "url(" not in text
    assert set(re.findall(r'src="([^"]*)"', text)) == {"data:"}
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', text))


def test_one_script_is_permitted_by_its_digest(page):
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert page.count("<script") == 1 and not re.findall(r"\son\w+=", page)
    assert script.count("\n") < 60
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)[1]
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    changed = base64.b64encode(hashlib.sha256(script.upper().encode()).digest()).decode()
    assert changed not in policy


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


def test_violations_by_kind_name_every_set():
    kinds = [
        {**figure(run, figures.VIOLATIONS, value, subset="newborn", half=1), "column": "diagnoses"}
        for run, value in (("multitask", 40.0), ("real", 2.0), ("markov", 90.0))
    ]
    drawn = figures.violation_figures(kinds, "multitask")["violations"]
    assert drawn["shows"] == "real, held out, synthetic (multitask), markov (naive)"
    assert figures.violation_figures(kinds[1:], "multitask") == {}
    assert figures.violation_figures(kinds[::2], "multitask") == {}


def hidden_codes() -> list[dict]:
    """Curves of the model and two methods, and what the model generated."""
    made = [
        figure(run, metric, value + at, mode="reconstruct", subset=f"{at:g}", better=True)
        for metric, value in (("curve_f1", 0.1), ("curve_jaccard", 0.4))
        for run in ("multitask", "linear", "prevalence")
        for at in (0.1, 0.2, 1.1)
    ]
    generated = {"hidden_f1": 0.158, "guessed_per_hidden_code": 0.27}
    made += [figure("multitask", name, value, mode="reconstruct") for name, value in generated.items()]
    return [*made, figure("linear", "hidden_f1", 0.221, mode="reconstruct")]


def test_curves_are_drawn_and_a_model_below_linear_is_named(tmp_path):
    drawn = curves.hidden_code_figures([*hidden_codes(), figure("multitask", "jaccard", 0.5)], "multitask")
    assert drawn["curve_f1"]["shows"] == "model (multitask), linear (naive), prevalence (naive)"
    without_mark = curves.hidden_code_figures([r for r in hidden_codes() if r["subset"]], "multitask")
    assert without_mark["curve_f1"]["uri"] != drawn["curve_f1"]["uri"]
    assert curves.hidden_code_figures([r for r in hidden_codes() if r["run"] == "linear"], "multitask") == {}
    inputs = write_inputs(tmp_path)
    inputs["records"].append(tmp_path / "hidden.json")
    inputs["records"][-1].write_text(json.dumps(hidden_codes()), encoding="utf-8")
    summarize(**inputs)
    text = inputs["report"].read_text(encoding="utf-8")
    assert "F1 on hidden codes, 0.158, does not beat linear, 0.221." in text
    assert text.count("over the number of guesses for each hidden code: model (multitask)") == 2


def test_the_page_does_not_mention_linear_without_it(page):
    assert "beat linear" not in page and "number of guesses for each hidden code:" not in page


def test_unequal_sizes_are_marked(tmp_path):
    inputs = write_inputs(tmp_path)
    extra = [
        figure("multitask", "bigram_r2", 0.9, n=100, better=True),
        figure("real", "bigram_r2", 0.95, n=80, better=True),
    ]
    inputs["records"].append(tmp_path / "extra.json")
    inputs["records"][-1].write_text(json.dumps(extra), encoding="utf-8")
    summarize(**inputs)
    text = inputs["report"].read_text(encoding="utf-8")
    assert "0.950†" in text and ">n differs<" in text
    assert "by more than 5% from real&#39;s" in text


def test_attacks_at_two_sets_of_ages_are_said_to_be_two(tmp_path):
    inputs = write_inputs(tmp_path)
    said = "The larger figure is given"
    extra = [figure(run, "membership_auc", value) for run, value in (("multitask", 0.5), ("twin", 0.53))]
    inputs["records"].append(tmp_path / "extra.json")
    inputs["records"][-1].write_text(json.dumps(extra), encoding="utf-8")
    for run, spoken in (("twin", True), (None, False)):
        summarize(**inputs, privacy_run=run)
        text = inputs["report"].read_text(encoding="utf-8")
        assert (said in text) == spoken
        assert ("picks the training patient with a probability of 0.530" in text) == spoken


def test_figures_are_drawn_with_their_alternative_texts(page):
    images = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]*)"', page)
    assert len(images) >= 6
    assert all(len(data) > 2000 and len(alt) > 20 for data, alt in images)


def test_examples_are_synthetic_and_no_copies():
    found = examples.choose_examples(SYNTHETIC_VISITS, [REAL_VISITS], TITLES, RULES)
    assert [patient["id"] for patient in found] == ["synthetic-0000002", "synthetic-0000003"]
    assert found[0]["who"] == "Female, newborn at the first visit"
    codes = found[0]["visits"][0]["columns"]["diagnoses"]
    assert codes[0]["title"].startswith("Single liveborn") and codes[0]["broken"] == ""
    assert codes[1]["broken"] == "does not fit the patient's age"
    assert found[1]["visits"][1]["when"] == "9 days after the first visit"


def test_a_visit_in_another_order_is_a_copy_and_a_short_one_is_not():
    (synthetic, real), names = encode([SYNTHETIC_VISITS, REAL_VISITS])
    assert is_copy(synthetic, real, len(names)).tolist() == [True, False, False, False]


def test_a_code_cannot_inject_markup(page):
    assert "&lt;b&gt;" in page and "<b>" not in page


def test_ages_in_words():
    words = [examples.age_in_words(age) for age in (0, 0.02, 0.5, 1, 44, 90)]
    assert words == ["newborn", "1 month", "6 months", "1 year", "44 years", "90 or older"]


def test_shares_of_visits_by_code():
    shares = figures.code_shares(REAL_VISITS)
    assert shares["ICD9CM:4019"] == 0.5 and shares["ICD9CM:V3000"] == 0.25
    assert figures.visits_per_patient(REAL_VISITS).tolist() == [2, 1, 1]


def test_histories_leave_out_what_is_empty_or_unknown(tmp_path):
    rows = [{"split": "val", "tokens": "10", "sex_loss": "nan", "lm_loss": "3.5", "other": "x"}]
    tokens, loss = figures.loss_points(rows, "val", "lm_loss")
    assert (tokens.tolist(), loss.tolist()) == ([10.0], [3.5])
    assert not np.size(figures.loss_points(rows, "val", "sex_loss")[0])
    with pytest.raises(UserError, match="train the run again"):
        figures.read_history(tmp_path / "history.csv")


def test_a_cohort_without_several_visits_has_no_figure_of_them():
    single = REAL_VISITS.filter(pa.compute.equal(REAL_VISITS["visit"], 0))
    sets = dict.fromkeys(("training", "test", "synthetic"), single)
    found = figures.visit_figures(sets, {}, "multitask")
    assert set(found) == {"prevalence_diagnoses", "prevalence_real_diagnoses", "codes_per_visit_diagnoses"}
    assert "visits_per_patient" in figures.visit_figures(sets | {"test": REAL_VISITS}, {}, "multitask")


def test_each_column_of_the_cohort_has_figures_and_examples(tmp_path):
    whole = whole_visits(60, 1)
    sets = dict.fromkeys(("training", "test", "synthetic"), whole)
    found = figures.visit_figures(sets, {"markov": whole}, "multitask")
    names = [f"{name}_{column}" for column in CODE_COLUMNS for name in FIGURES_OF_A_COLUMN]
    assert list(found) == [*names, "visits_per_patient"]
    assert len({found[name]["uri"] for name in names}) == len(names)
    inputs = write_inputs(tmp_path)
    for name in ("synthetic", "train", "test"):
        write_visits(whole.cast(SCHEMA), inputs[name], {"source": "test"})
    summarize(**inputs)
    text = inputs["report"].read_text(encoding="utf-8")
    assert "which diagnoses, procedures and medications occur together" in text
    for column in CODE_COLUMNS:
        assert f"Share of visits by number of {column}:" in text and f"<h5>{column.capitalize()}</h5>" in text


def test_a_cohort_of_diagnoses_has_figures_of_them_alone(page):
    assert "Share of visits by number of diagnoses:" in page and "which diagnoses occur together" in page
    assert "number of procedures" not in page and "<h5>" not in page


def test_the_line_of_time_has_a_mark_for_each_visit():
    time = examples.line_of_time([0, 34, 97], [78.0, 78.0, 78.0])
    assert [mark["x"] for mark in time["marks"]] == [8, 107.5, 292]
    assert [mark["label"] for mark in time["marks"]][1:] == ["day 34, 78 years", "day 97, 78 years"]
    assert time["words"] == "Visits in time: day 0, 78 years; day 34, 78 years; day 97, 78 years"
    assert [mark["row"] for mark in time["marks"]] == [0, 1, 0] and time["rows"] == 2  # the second touches
    close = examples.line_of_time([0, 1, 2, 1000, 2000], [0.0, 0.01, 0.01, 2.0, 5.0])
    assert [mark.get("row") for mark in close["marks"]] == [
        0,
        1,
        2,
        0,
        None,
    ]  # only listed visits have labels
    assert close["rows"] == 3 and all(0 <= mark["x"] <= 300 for mark in close["marks"])
    assert all(0 <= mark["start"] < 300 for mark in close["marks"][:4])


def test_only_a_patient_with_several_days_has_a_line_of_time(page):
    assert page.count('<svg class="time"') == 1
    assert 'aria-label="Visits in time: day 0, 66 years; day 9, 66 years"' in page


def test_days_that_are_placeholders_are_not_shown(tmp_path):
    inputs = write_inputs(tmp_path)
    write_visits(REAL_VISITS, inputs["train"], {"source": "test", "days": "placeholder"})
    summarize(**inputs)
    text = inputs["report"].read_text(encoding="utf-8")
    assert "<h4>Visit 2, 66 years</h4>" in text
    assert '<svg class="time"' not in text and "after the first visit" not in text


def test_each_of_three_readers_has_a_part(page):
    parts = re.findall(r'<section id="(\w+)">', page)
    assert parts == ["physician", "statistician", "steward"]
    for anchor in re.findall(r'href="#(\w+)"', page):
        assert f'id="{anchor}"' in page, anchor
    steward = page[page.index('<section id="steward">') :]
    assert "ETHNICITY" in steward and "reconstruct.parquet" in steward and "never" in steward
    physician = page[page.index('<section id="physician">') : page.index('<section id="statistician">')]
    assert "synthetic-0000003" in physician


FIGURES_OF_A_COLUMN = ("prevalence", "prevalence_real", "codes_per_visit")
METRICS = scorecard.read_metrics(RESOURCES / "metrics.csv")


def test_a_sentence_has_a_reader_and_names_only_what_a_record_holds():
    readers = {metric["reader"] for metric in METRICS.values() if metric["sentence"]}
    assert readers == {"physician", "steward", "control"}
    for metric in METRICS.values():
        assert bool(metric["sentence"]) == bool(metric["reader"])
        assert "{value}" in metric["sentence"] or not metric["sentence"]
        assert set(re.findall(r"{(.*?)}", metric["sentence"])) <= {"value", "real", "low", "high", "column"}


def test_a_sentence_gives_the_value_and_real_and_the_verdict_of_the_record():
    records = [
        figure("multitask", "copy_share", 0.25, half=0.05),
        figure("real", "copy_share", 0.01, half=0.005),
        figure("multitask", "copy_share", 0.9, subset="male"),
    ]
    joined = scorecard.join(records, METRICS)
    (found,) = sentences(joined, "multitask", "steward", METRICS)
    assert "25.0%" in found["text"] and "(20.0% to 30.0%)" in found["text"] and "1.00%" in found["text"]
    assert found["verdict"] == "FAIL"
    assert sentences(joined[1:2], "multitask", "steward", METRICS) == []
    assert sentences(joined, "multitask", "physician", METRICS) == []


def test_a_sentence_that_names_the_column_is_made_for_each_but_the_diagnoses():
    records = [
        {**figure(run, metric, value, better=None), "column": column}
        for metric in ("visits_with_code", "mean_codes_per_visit")
        for run, value in (("multitask", 0.5), ("real", 0.6))
        for column in ("diagnoses", "medications", "procedures")
    ]
    said = sentences(scorecard.join(records, METRICS), "multitask", "physician", METRICS)
    assert [item["text"] for item in said] == [
        "A synthetic visit has 0.500 diagnoses on average, a real one 0.600.",
        "Of the synthetic visits, 50.0% hold procedures; of real visits 60.0%.",
        "Of the synthetic visits, 50.0% hold medications; of real visits 60.0%.",
    ]
    assert said[1]["verdict"] == "FAIL" and said[1]["why"] == "outside real's interval, 59.0% to 61.0%"


def test_planted_patients_have_a_row_for_each_number_of_repeats():
    shown = (("canary_exposure", 3.5), ("canary_extracted", 0.25), ("canary_extracted_80", 0.5))
    records = [figure("real", "canary_auc", 0.5, subset="repeats 16", n=50)]
    for subset in ("", "repeats 16", "repeats 4"):
        records += [figure("spy", "canary_auc", 0.9, subset=subset, n=50)]
        records += [figure("spy", metric, value, subset=subset, n=50) for metric, value in shown]
    found = report.planted_patients(scorecard.join(records, METRICS), METRICS)
    assert (found["run"], found["held_out"], found["ceiling"]) == ("spy", "800", "9.65")
    assert list(found["rows"]) == [4, 16]
    row = found["rows"][16]
    auc = row["canary_auc"]
    assert (auc["value"], auc["real"], auc["interval"]) == ("0.900", "0.500", "0.890 to 0.910")
    assert auc["verdict"] == "FAIL"
    assert found["rows"][4]["canary_auc"]["verdict"] == "not judged"  # real's is of 16 alone
    assert (row["canary_exposure"]["value"], row["canary_extracted"]["value"]) == ("3.50", "25.0%")
    assert report.planted_patients(records[:1], METRICS) is None


def test_a_page_with_attacks_audit_seeds_and_a_void_measure(tmp_path):
    inputs = write_inputs(tmp_path)
    extra = [
        *(figure(run, "membership_auc", 0.5, n=50) for run in ("multitask", "real", "copy")),
        *(figure(run, "classifier_auc", 0.6) for run in ("multitask", "real", "markov")),
        figure("real", "copy_share_control", 0.1, better=None),
        figure("real", "race_auc", 0.7, subset="black", better=None),
        *(figure(run, "race_js_distance", 0.3, subset="black") for run in ("multitask", "real")),
        *(figure(run, "canary_auc", 0.5, subset="repeats 4", n=50) for run in ("other-s0", "real")),
        *(
            figure("other-s0", f"canary_{name}", 0.25, subset="repeats 4", n=50)
            for name in ("exposure", "extracted", "extracted_80")
        ),
        *(figure(f"other-s{seed}", "js_distance", 0.1 + seed / 10) for seed in range(3)),
    ]
    inputs["records"].append(tmp_path / "extra.json")
    inputs["records"][-1].write_text(json.dumps(extra), encoding="utf-8")
    summarize(**inputs)
    text = inputs["report"].read_text(encoding="utf-8")
    assert "Attacks on training patients" in text
    assert "the test detects such a leak" in text
    row = re.search(r"<tr><td class=.num.>4</td>.*?</tr>", text)[0]
    cells = [re.sub("<.*?>", "", cell).strip() for cell in re.findall(r"<td.*?>(.*?)</td>", row)]
    assert cells[:4] == ["4", "0.500", "0.490 to 0.510", "0.500"] and "pass" in cells[4]
    assert cells[5:] == ["0.250", "25.0%", "25.0%", "50"] and "the run <em>other-s0</em>" in text
    assert re.search(r"<td>black</td><td class=.num.>0.700 \(0.690 to 0.710\)</td>", text)
    assert 'id="seeds"' in text and "<td>other</td>" in text and "0 of 3" not in text
    assert "is not judged: its control, the method markov, scores 0.600" in text


def test_a_page_without_attacks_says_so(page):
    assert "Nothing was measured." in page and 'id="seeds"' not in page and 'id="removed"' not in page
    assert "Planted patients" not in page
