"""summarize: the join, the verdicts, the files, on records small enough to check by eye."""

import csv
import json
from pathlib import Path

import pytest

import show_scorecard as terminal
from cohortloom.base.errors import UserError
from cohortloom.evaluation.records import FIELDS
from cohortloom.reporting import provenance, scorecard, sentences
from summarize import summarize
from summarize_inputs import RESOURCES, figure, write_inputs

METRICS = scorecard.read_metrics(RESOURCES / "metrics.csv")


def joined(*records):
    """The first of the records after the join."""
    return scorecard.join(list(records), METRICS)[0]


def test_join_adds_real_copy_and_best_naive_to_a_record():
    found = joined(
        figure("multitask", "js_distance", 0.125),
        figure("real", "js_distance", 0.12),
        figure("copy", "js_distance", 0.11),
        figure("prevalence", "js_distance", 0.122),
        figure("markov", "js_distance", 0.127),
        figure("real", "js_distance", 0.5, subset="female"),
        figure("real", "js_distance", 0.9, mode="reconstruct"),
    )
    assert (found["real"], found["copy"], found["naive"]) == (0.12, 0.11, 0.122)
    assert found["naive"] < found["value"]  # a naive method that is better is shown as it is
    assert tuple(found) == FIELDS


def test_best_naive_is_the_highest_where_higher_is_better():
    found = joined(
        figure("multitask", "bigram_r2", 0.9, better=True),
        figure("prevalence", "bigram_r2", 0.77, better=True),
        figure("markov", "bigram_r2", 0.86, better=True),
    )
    assert found["naive"] == 0.86


def found_codes(value: float, linear: float | None, run: str = "multitask") -> list[dict]:
    """F1 on hidden codes of a run, of linear and of prevalence, joined."""
    values = {run: value, "linear": linear, "prevalence": 0.14}
    made = [
        figure(name, "hidden_f1", f1, mode="reconstruct", better=True)
        for name, f1 in values.items()
        if f1 is not None
    ]
    return scorecard.join(made, METRICS)


def test_a_model_must_beat_linear_on_hidden_codes():
    assert [found_codes(*values)[0]["pass"] for values in ((0.23, 0.22), (0.22, 0.22), (0.16, 0.22))] == [
        *(True, False, False)
    ]
    worse = found_codes(0.158, 0.221)
    assert worse[0]["naive"] == 0.221 and [record["pass"] for record in worse[1:]] == [None, None]
    assert sentences.against_naive(worse, "multitask", METRICS) == [
        "F1 on hidden codes, 0.158, does not beat linear, 0.221."
    ]
    assert "beats linear" in sentences.against_naive(found_codes(0.23, 0.22), "multitask", METRICS)[0]
    # without linear, or for a naive method, nothing is said
    alone = found_codes(0.16, None)
    assert alone[0]["pass"] is None and sentences.against_naive(alone, "multitask", METRICS) == []
    assert found_codes(0.16, 0.22, run="markov")[0]["pass"] is None


def test_best_naive_is_the_one_closest_to_real_where_no_side_is_better():
    others = [figure(run, "distinct_codes", v, better=None) for run, v in (("prevalence", 9), ("markov", 5))]
    mine = figure("multitask", "distinct_codes", 8, better=None)
    assert joined(mine, *others, figure("real", "distinct_codes", 6, better=None))["naive"] == 5
    assert joined(mine, *others)["naive"] is None


@pytest.mark.parametrize(
    ("metric", "mode", "value", "passes"),
    [
        ("age_head_loss", "reconstruct", 4.99, True),
        ("age_head_loss", "reconstruct", 5.0, False),
        ("sex_head_loss", "reconstruct", 0.05, False),
        ("jaccard", "reconstruct", 0.42, True),
        ("jaccard", "reconstruct", 0.4199, False),
        ("age_violation_rate", "synthesize", 0.02, False),
        ("sex_violation_rate", "synthesize", 0.0099, True),
        ("duplicate_rate", "synthesize", 0.0, True),
        ("duplicate_rate", "synthesize", 1e-9, False),
    ],
)
def test_criteria_are_judged_by_their_absolute_target(metric, mode, value, passes):
    # Real scores far worse, which must not matter.
    real = figure("real", metric, 0.9, mode=mode)
    found = joined(figure("multitask", metric, value, mode=mode), real)
    assert found["pass"] is passes
    assert found["target"] == float(METRICS[metric]["target"].split()[1])


def test_a_missing_value_is_not_judged():
    record = {**figure("multitask", "age_head_loss", 1.0), "value": None, "ci_low": None, "ci_high": None}
    assert joined(record)["pass"] is None


@pytest.mark.parametrize(
    ("better", "value", "passes"),
    [
        (False, 0.105, True),
        (False, 0.05, True),  # better than real
        (False, 0.1101, False),
        (True, 0.095, True),
        (True, 0.5, True),
        (True, 0.0899, False),
        (None, 0.105, True),
        (None, 0.05, False),
        (None, 0.5, False),
    ],
)
def test_other_metrics_are_judged_by_the_interval_of_real(better, value, passes):
    real = figure("real", "js_distance", 0.1, better=better)  # 0.09 to 0.11
    found = joined(figure("multitask", "js_distance", value, better=better), real)
    assert (found["pass"], found["target"]) == (passes, None)


def test_without_real_or_its_interval_there_is_no_verdict():
    mine = figure("multitask", "js_distance", 0.1)
    assert joined(mine)["pass"] is None
    assert joined(mine, {**figure("real", "js_distance", 0.1), "ci_low": None})["pass"] is None


def test_several_seeds_have_a_mean_and_a_spread():
    values = {
        "multitask-s0": 0.10,
        "multitask-s1": 0.12,
        "multitask-s2": 0.17,
        "lm_only-s0": 0.3,
        "real": 0.11,
    }
    records = [figure(run, "js_distance", value) for run, value in values.items()]
    (found,) = scorecard.over_seeds(scorecard.join(records, METRICS))
    assert (found["run"], found["metric"], found["seeds"]) == ("multitask", "js_distance", 3)
    assert found["mean"] == pytest.approx(0.13, abs=1e-12)
    assert found["sd"] == pytest.approx(((0.03**2 + 0.01**2 + 0.04**2) / 2) ** 0.5, abs=1e-12)
    assert (found["min"], found["max"], found["real"]) == (0.10, 0.17, 0.11)
    assert found["ci_high"] - found["mean"] == pytest.approx(4.302653 * found["sd"] / 3**0.5, rel=1e-6)
    assert found["passed"] == 2  # real ends at 0.12


def test_one_seed_has_no_spread():
    records = [figure("multitask", "js_distance", 0.1), figure("lm_only-s0", "js_distance", 0.2)]
    assert scorecard.over_seeds(records) == []


def test_a_subset_of_a_criterion_has_no_absolute_target():
    assert joined(figure("multitask", "age_violation_rate", 0.5, subset="female"))["target"] is None


def test_sizes_more_than_five_percent_apart_are_marked():
    mine, near = figure("multitask", "js_distance", 0.1, n=100), figure("copy", "js_distance", 0.1, n=105)
    far = figure("real", "js_distance", 0.1, n=94)
    marks = scorecard.unequal_sizes([mine, near, far])
    assert marks["multitask", ("synthesize", "js_distance", "all", "")] == ["real"]


@pytest.mark.parametrize("field", ["n", "n_reference"])
def test_where_n_differs_there_is_no_verdict_but_that_of_a_criterion(field):
    mine, real = figure("multitask", "js_distance", 0.1), figure("real", "js_distance", 0.1)
    assert (joined(mine, real)["pass"], joined(mine, real)["reason"]) == (True, None)
    found = joined({**mine, field: 10 * mine[field]}, real)
    assert (found["pass"], found["reason"]) == (None, "n differs")
    assert sentences.record_cells(found, METRICS["js_distance"])["verdict"] == "n differs"
    rate = {**figure("multitask", "copy_share", 0.1), field: 10 * mine[field]}  # of its own long visits
    assert joined(rate, figure("real", "copy_share", 0.1))["pass"] is (True if field == "n" else None)
    criterion = {**figure("multitask", "age_violation_rate", 0.001), field: 10 * mine[field]}
    assert joined(criterion, figure("real", "age_violation_rate", 0.001))["pass"] is True


@pytest.mark.parametrize(
    "better, why",
    [
        (False, "at most 0.110, the worse end of real's interval"),
        (True, "at least 0.090, the worse end of real's interval"),
        (None, "within real's interval, 0.090 to 0.110"),
    ],
)
def test_the_margin_is_given_with_the_verdict(better, why):
    """It is real's interval, which is wider where fewer visits are held out."""
    mine, real = (figure(run, "js_distance", 0.1, better=better) for run in ("multitask", "real"))
    found = joined(mine, real)
    assert (found["real_low"], found["real_high"]) == (real["ci_low"], real["ci_high"])
    assert sentences.record_cells(found, METRICS["js_distance"])["why"] == why
    alone = sentences.record_cells(joined(mine), METRICS["js_distance"])
    assert (alone["verdict"], alone["why"]) == ("not judged", "no such figure of real data")


def test_figures_of_two_columns_of_codes_are_not_mixed():
    """Procedures and diagnoses: each is compared with its own real; the criterion is of the diagnoses."""

    def of(column: str, run: str, metric: str, value: float) -> dict:
        return {**figure(run, metric, value), "column": column}

    records = [
        of(column, run, metric, value + shift)
        for metric in ("js_distance", "age_violation_rate")
        for column, shift in (("diagnoses", 0.0), ("procedures", 0.5))
        for run, value in (("multitask", 0.001), ("real", 0.1))
    ]
    for order in (records, records[::-1]):
        found = {(r["run"], r["metric"], r["column"]): r for r in scorecard.join(order, METRICS)}
        assert found["multitask", "js_distance", "diagnoses"]["real"] == 0.1
        assert found["multitask", "js_distance", "procedures"]["real"] == 0.6
        criterion = found["multitask", "age_violation_rate", "diagnoses"]
        assert criterion["target"] == 0.02 and criterion["pass"] is True
        assert found["multitask", "age_violation_rate", "procedures"]["target"] is None
        said = sentences.record_cells(found["multitask", "js_distance", "procedures"], METRICS["js_distance"])
        assert said["mode"] == "procedures"
        joint = list(found.values())
        assert {r["value"] for r in joint if scorecard.is_headline(r)} == {0.001, 0.1}


def test_the_larger_of_two_attacks_is_the_main_runs_figure():
    def of(run: str, copies: float, distance: float) -> list[dict]:
        return [figure(run, "copy_share", copies), figure(run, "membership_auc", distance)]

    records = [*of("multitask", 0.01, 0.51), *of("privacy-multitask", 0.02, 0.505), *of("lm_only", 0.03, 0.6)]
    records.append(figure("multitask", "js_distance", 0.1))
    found = {
        (r["run"], r["metric"], r["subset"]): r["value"]
        for r in scorecard.larger_leaks(records, "multitask", "privacy-multitask")
    }
    assert found["multitask", "copy_share", ""] == 0.02 and found["multitask", "membership_auc", ""] == 0.51
    assert found["multitask", "copy_share", scorecard.AGES_OF_TEST] == 0.01
    assert found["multitask", "membership_auc", scorecard.AGES_OF_TRAINING] == 0.505
    assert found["lm_only", "membership_auc", ""] == 0.6 and len(found) == 9
    assert scorecard.larger_leaks(records[:2], "multitask", None) == records[:2]


def test_the_order_of_the_files_does_not_matter(tmp_path):
    inputs = write_inputs(tmp_path)
    there = scorecard.read_records(inputs["records"])
    assert there == scorecard.read_records(inputs["records"][::-1])


@pytest.mark.parametrize("content", ["{}", '[{"run": "multitask"}]'])
def test_a_file_that_holds_no_records_is_refused(tmp_path, content):
    path = tmp_path / "heads.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="heads.json"):
        scorecard.read_records([path])


def test_a_metric_without_an_explanation_is_refused():
    with pytest.raises(UserError, match="no row for the metric beauty"):
        scorecard.build("tiny", [figure("multitask", "beauty", 1.0)], "multitask", METRICS)


def test_a_missing_criterion_is_an_error():
    with pytest.raises(UserError, match="multitask: no record of age_head_loss"):
        scorecard.build("tiny", [figure("multitask", "js_distance", 0.1)], "multitask", METRICS)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    summarize(**write_inputs(folder))
    return folder


def test_scorecard_holds_the_six_criteria_of_the_main_run_in_order(made):
    card = json.loads((made / "scorecard.json").read_text(encoding="utf-8"))
    assert list(card) == ["experiment", "criteria", "records"]
    assert [record["metric"] for record in card["criteria"]] == [
        "age_head_loss",
        "sex_head_loss",
        "jaccard",
        "age_violation_rate",
        "sex_violation_rate",
        "duplicate_rate",
    ]
    assert {record["run"] for record in card["criteria"]} == {"multitask"}
    assert all(record["pass"] is True for record in card["criteria"])
    assert all(tuple(record) == FIELDS for record in card["records"])
    jaccard = card["criteria"][2]
    assert (jaccard["naive"], jaccard["real"]) == (0.53, None)  # echo is better than the model, and shown


def test_a_run_that_misses_its_targets_fails_in_the_records(made):
    card = json.loads((made / "scorecard.json").read_text(encoding="utf-8"))
    verdicts = {
        r["metric"]: r["pass"] for r in card["records"] if r["run"] == "lm_only" and r["target"] is not None
    }
    assert verdicts == dict.fromkeys(scorecard.CRITERIA, False)


def test_naive_methods_and_real_have_records_too(made):
    card = json.loads((made / "scorecard.json").read_text(encoding="utf-8"))
    assert {"prevalence", "markov", "echo", "copy", "real"} < {record["run"] for record in card["records"]}


def test_the_csv_equals_the_json(made):
    card = json.loads((made / "scorecard.json").read_text(encoding="utf-8"))
    with open(made / "scorecard.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(card["records"])
    for row, record in zip(rows, card["records"], strict=True):
        assert float(row["value"]) == record["value"]
        assert row["pass"] == {True: "true", False: "false", None: ""}[record["pass"]]


def test_two_runs_give_identical_files(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "git", lambda folder: None)  # somebody may commit meanwhile
    for folder in ("one", "two"):
        summarize(**write_inputs(tmp_path / folder))
    for name in ("scorecard.json", "scorecard.csv", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_provenance_holds_config_seeds_and_versions(made):
    found = json.loads((made / "provenance.json").read_text(encoding="utf-8"))
    assert found["seeds"] == {"seeds": 1, "train.seed": 7}
    assert found["inputs_sha256"] == {"ADMISSIONS.csv": "ab" * 32}
    assert found["config"]["train"]["preset"] == "tiny"
    assert found["versions"]["python"] and found["versions"]["pyarrow"]
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_gib"] > 0


def test_provenance_of_a_folder_that_is_no_checkout_is_null(tmp_path):
    assert provenance.git(tmp_path) is None


def test_the_terminal_shows_the_criteria_and_the_path(made, capsys):
    terminal.show_scorecard(results=made)
    text = capsys.readouterr().out
    assert "6 of 6 criteria pass" in text
    assert "Jaccard" in text and "at least 0.42" in text and "0.530" in text
    assert "only 100 test visits; figures mean nothing" in text
    assert str(made / "report.html") in text.replace("\n", "")


def test_a_criterion_without_a_value_has_a_reason(tmp_path, capsys):
    """In the record, on the terminal and on the page, which is complete."""
    inputs = write_inputs(tmp_path)
    path = tmp_path / "evaluation" / "multitask" / "all.json"
    rows, reason = json.loads(path.read_text()), "no held-out visit holds a code of the vocabulary"
    for row in rows:
        if row["metric"] in ("age_head_loss", "js_distance"):
            row |= {"value": None, "ci_low": None, "ci_high": None, "reason": reason}
    path.write_text(json.dumps(rows))
    summarize(**inputs)
    card = json.loads((tmp_path / "scorecard.json").read_text())
    assert [(row["metric"], row["pass"], row["reason"]) for row in card["criteria"]][:2] == [
        ("age_head_loss", None, reason),
        ("sex_head_loss", True, None),
    ]
    assert reason in (tmp_path / "scorecard.csv").read_text()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count(f"not judged</span>: <small>{reason}</small>") == 3  # the criterion is in two tables
    terminal.show_scorecard(results=tmp_path)
    assert f"age head loss has no value: {reason}" in capsys.readouterr().out


def test_the_terminal_does_without_rich(made, capsys, monkeypatch):
    pytest.importorskip("tabulate")
    monkeypatch.setattr(terminal.importlib.util, "find_spec", lambda name: None)
    terminal.show_scorecard(results=made)
    assert "under 2%" in capsys.readouterr().out


def test_the_terminal_names_a_missing_scorecard(tmp_path):
    with pytest.raises(UserError, match="run `snakemake evaluate_all` first"):
        terminal.show_scorecard(results=tmp_path)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "–"),
        (0, "fraction", "0%"),
        (0.00231, "fraction", "0.231%"),
        (0.0000092, "fraction", "0.00092%"),
        (1234.0, "count", "1,234"),
        (-1.53, "", "-1.53"),
        (0.4567, "", "0.457"),
    ],
)
def test_numbers_in_words(value, unit, text):
    assert sentences.format_number(value, unit) == text
