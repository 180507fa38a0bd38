"""The report's table of measures: its rows, and verdicts that say why."""
# ruff: noqa: F811 - fixtures are imported and named as arguments

import html
import json
import re

import pytest

from cohortloom.reporting import report, scorecard
from cohortloom.reporting.sentences import verdict_reason
from summarize_inputs import figure
from test_report import METRICS, folder, page  # noqa: F401


def rows(page: str) -> list[list[str]]:
    """The cells of the table of all measures, without markup."""
    table = re.search(r'<table id="measures">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    cells = [
        re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in re.findall("<tr>.*?</tr>", table, re.S)
    ]
    return [[html.unescape(re.sub("<.*?>", "", cell)).strip() for cell in row] for row in cells]


def test_every_column_of_a_row_is_filled(page):
    (row,) = (row for row in rows(page) if row[0].startswith("Jensen-Shannon distance"))
    assert row[0] == "Jensen-Shannon distance of code counts fidelity"
    assert row[1:4] == ["all", "new patients", ""]
    assert row[4:8] == ["0.125", "0.115 to 0.135", "0.120", "0.122"]
    assert row[8:] == ["pass: at most 0.130, the worse end of real's interval", "100"]
    assert "built-in" not in page


def test_the_table_has_a_row_for_each_record_of_the_main_run(page, folder):
    card = json.loads((folder / "scorecard.json").read_text(encoding="utf-8"))
    assert len(rows(page)) == sum(record["run"] == "multitask" for record in card["records"]) == 8


def test_rows_name_their_column_mode_and_part():
    records = [
        {**figure("multitask", "carried_codes", 0.5), "column": column}
        for column in ("procedures", "diagnoses")
    ]
    records.append(
        {**figure("multitask", "hidden_f1", None, mode="reconstruct", half=None), "reason": "no guess"}
    )
    records += [
        figure("multitask", "code_per_100k_visits", 3.5, subset=code) for code in ("ICD9CM:4019", "x")
    ]
    titles = {"ICD9CM:4019": "Hypertension"}
    found = report.measures(scorecard.join(records, METRICS), METRICS, {}, titles)
    assert [(row["metric"], row["column"], row["how"], row["part"]) for row in found] == [
        ("code_per_100k_visits", "all", "new patients", "401.9 Hypertension"),
        ("code_per_100k_visits", "all", "new patients", "x"),
        ("hidden_f1", "all", "half revealed", ""),
        ("carried_codes", "diagnoses", "new patients", ""),
        ("carried_codes", "procedures", "new patients", ""),
    ]
    assert found[0]["numbers"]["value"] == 3.5 and found[0]["group"] == "medical validity"
    missing = found[2]
    assert (missing["value"], missing["numbers"]["value"]) == ("–", None)
    assert (missing["verdict"], missing["why"]) == ("not judged", "no guess")


@pytest.mark.parametrize(
    "fields, why",
    [
        ({"pass": False}, "above 0.960, the worse end of real's interval"),
        ({"pass": True}, "at most 0.960, the worse end of real's interval"),
        ({"pass": False, "higher_is_better": True}, "below 0.800, the worse end of real's interval"),
        ({"pass": False, "higher_is_better": None}, "outside real's interval, 0.800 to 0.960"),
        ({"pass": False, "metric": "hidden_f1"}, "not above the naive method linear"),
        ({"pass": True, "metric": "hidden_f1"}, "above the naive method linear"),
        ({"pass": False, "metric": "age_head_loss", "target": 5.0}, "not under 5"),
        ({"reason": "n differs"}, "by more than 5% from real's"),
        ({"reason": scorecard.NO_REAL}, "real's figure has no interval"),
        ({"reason": scorecard.NO_REAL, "real": None}, "no such figure of real data"),
        ({"reason": "every patient has one visit"}, "every patient has one visit"),
    ],
)
def test_a_verdict_says_why(fields, why):
    judged = {
        "metric": "js_distance",
        "pass": None,
        "reason": None,
        "target": None,
        "higher_is_better": False,
    }
    record = judged | {"real": 0.9, "real_low": 0.8, "real_high": 0.96} | fields
    assert verdict_reason(record, METRICS[record["metric"]]) == why


def test_no_verdict_of_a_page_is_without_a_reason(page):
    """Of the tables: each FAIL and each figure that is not judged."""
    for row in rows(page):
        words = row[8].removeprefix("pass").removeprefix("FAIL").removeprefix("not judged").removeprefix(": ")
        assert len(words) > 5, row
    marks = re.findall(r'<span class="verdict (?:no|open)"(.*?)>', page[: page.index('id="physician"')])
    assert marks and all("title=" in mark for mark in marks)
