"""The table of targets: its arithmetic and verdicts on figures to check by hand, its config and samples."""

import math
import statistics

import numpy as np
import pytest

from cohortloom.base.errors import UserError
from cohortloom.config.check import check_config
from cohortloom.data.visits import read_visits, write_visits
from cohortloom.evaluation.records import record
from cohortloom.generation.requests import resampled_positions
from cohortloom.reporting.quality import Sample, page, read_targets, table, verdict_sentences
from cohortloom.reporting.scorecard import read_metrics
from conftest import REPOSITORY
from generate_naive import generate_naive
from metric_tables import visits_of
from test_config import SCHEMA, demo

TARGETS = read_targets(REPOSITORY / "resources" / "quality_targets.csv")
METRICS = read_metrics(REPOSITORY / "resources" / "metrics.csv")
# metric -> a figure that meets its target on NHDS, one that misses it, real's, that of the naive methods
FIGURES = {
    "js_distance": (0.12, 0.13, 0.119, 0.127),
    "top100_overlap": (0.92, 0.85, 0.94, 0.92),
    "bigram_r2": (0.95, 0.94, 0.965, 0.86),
    "rare_unigram_r2": (0.8, 0.6, None, 0.5),
    "ks_codes_per_visit": (0.01, 0.03, 0.007, 0.1),
    "distinct_codes": (4000, 3600, 4050, 3988),
    "hard_per_100k_visits": (10.0, 46.0, 6.6, 700.0),
    "any_per_restricted_code": (0.0006, 0.0007, 0.00021, 0.01),
    "restricted_share": (0.131, 0.145, 0.129, 0.13),
    "newborn_chronic_rate": (0.001, 0.003, 0.0005, 0.01),
    "classifier_auc": (0.55, 0.62, 0.5, 0.72),
    "prediction_auc": (0.85, 0.83, 0.854, 0.8),
    "membership_auc": (0.51, 0.53, 0.504, 0.5),
    "copy_share": (0.005, 0.007, 0.006, 0.001),
    "jaccard": (0.56, 0.52, None, 0.46),
    "hidden_f1": (0.22, 0.16, None, 0.143),
    "carried_codes": (0.42, 0.38, 0.423, 0.1),
    "ks_visits_per_patient": (0.01, 0.05, 0.005, 0.01),
    "sequential_bigram_r2": (0.75, 0.70, 0.744, 0.2),
}
BASE, LARGE, HELD_OUT = 10_000, 100_000, 15_155
OF_REAL = ("hard_per_100k_visits", "any_per_restricted_code", "restricted_share", "newborn_chronic_rate")
SAMPLES = [
    Sample(f"quality-{source}-{part}", source, seed, part == "large")
    for source in ("ours", "copy", "prevalence", "markov")
    for seed, part in ((0, "g0"), (1, "g1"), (0, "large"))
]


def figure(run: str, metric: str, value: float | None, n: int, mode: str = "synthesize") -> dict:
    half = math.nan if value is None else 0.01
    low, high = (None, None) if value is None else (value - half, value + half)
    return record(run, 0, mode, metric, "", value, low, high, n, n, True)


def world(base: int = BASE, real_n: int = BASE, **own: float | None) -> list[dict]:
    """Records of four sources and real: all of ours meet their targets except the given ones."""
    made = []
    for target in TARGETS:
        metric, mode, size = target["metric"], target["mode"], target["size"]
        good, _, real, naive = FIGURES[metric]
        for sample in SAMPLES:
            value = own.get(metric, good) if sample.source == "ours" else naive
            name, n = (sample.name, LARGE if size == "large" else base) if size else (sample.source, HELD_OUT)
            if not size or sample.large == (size == "large"):
                made.append(figure(name, metric, value, n, mode))
        if size and real is not None:
            ordinary = metric in OF_REAL or metric in ("membership_auc", "copy_share")
            made.append(
                figure("real" if ordinary else "quality-real", metric, real, HELD_OUT if ordinary else real_n)
            )
    return made


def line(rows: list[dict], metric: str, run: str = "ours") -> dict:
    return next(row for row in rows if row["metric"] == metric and row["run"] == run)


def judged(records: list[dict], cohort: str = "nhds2010", samples=SAMPLES) -> list[dict]:
    return table(records, samples, TARGETS, cohort)


def test_the_targets_are_the_required_ones():
    assert [*dict.fromkeys(target["metric"] for target in TARGETS)] == list(FIGURES)
    assert all(target["metric"] in METRICS and target["source"] for target in TARGETS)


@pytest.mark.parametrize("metric", FIGURES)
def test_a_target_is_met_and_a_missed_one_is_marked_as_missed(metric):
    good, bad, _, _ = FIGURES[metric]
    rows = judged(world())
    assert line(rows, metric)["pass"] is True and line(rows, metric)["mean"] == pytest.approx(good)
    rows = judged(world(**{metric: bad}))
    lines = [metric] * sum(target["metric"] == metric for target in TARGETS)
    assert [row["metric"] for row in rows if row["run"] == "ours" and row["pass"] is not True] == lines
    assert line(rows, metric)["pass"] is False
    text = page(content_of(rows), METRICS)
    assert f"Missed: {METRICS[metric]['title']}, " in text
    first, patients = text.split("## The first seed")
    missed = [row for row in first.splitlines() if row.startswith("| ") and "**missed**" in row.split("|")[4]]
    assert len(missed) == len(lines) and missed[0].startswith(f"| {METRICS[metric]['title']} |")
    assert "missed" not in patients


def content_of(rows: list[dict]) -> dict:
    return {
        "experiment": "made",
        "run": "ours",
        "seeds": [0, 1],
        "patients": BASE,
        "large": LARGE,
        "constrained": "none",
        "generation_seconds": {"quality-ours-g0": 10.0, "quality-ours-g1": 12.0, "quality-ours-large": 99.0},
        "git": None,
        "hardware": {"processor": "P", "cores": 2, "memory_gib": 8.0, "gpus": []},
        "rows": rows,
    }


def test_mean_and_interval_are_over_seeds_and_the_other_interval_is_of_the_first():
    records = world()
    for found in records:
        if found["metric"] == "js_distance" and found["run"] == "quality-ours-g1":
            found["value"] = 0.124
    rows = judged(records)
    row = line(rows, "js_distance")
    half = 12.706204736 * statistics.stdev([0.12, 0.124]) / 2**0.5  # t at 1 degree of freedom
    assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx((0.122, 0.122 - half, 0.122 + half))
    assert (row["value"], row["patients_low"], row["patients_high"]) == pytest.approx((0.12, 0.11, 0.13))
    assert (row["seeds"], row["n"], row["real"], row["copy"]) == (2, BASE, 0.119, 0.127)
    same = line(rows, "bigram_r2")  # no spread seen is not a spread of 0
    assert (same["seeds"], same["ci_low"], same["ci_high"]) == (2, None, None)
    alone = line(rows, "rare_unigram_r2")
    assert (alone["seeds"], alone["ci_low"], alone["n"]) == (1, None, LARGE)
    assert line(rows, "js_distance", "real")["seeds"] is None
    text = page(content_of(rows), METRICS)
    assert "| 0.800 (0.790 to 0.810 †) |" in text
    assert "| 0.122 (0.097 to 0.147) |" in text and "| 0.120 (0.110 to 0.130) |" in text
    assert "| 0.950 (0.940 to 0.960 †) |" in text
    assert "ours 11 and 99." in text


def test_the_page_ends_a_rate_at_0():
    records = world(newborn_chronic_rate=0.0001)
    found = [r for r in records if r["metric"] == "newborn_chronic_rate" and r["run"] == "quality-ours-g1"]
    found[0]["value"] = 0.001
    row = line(judged(records), "newborn_chronic_rate")
    assert row["ci_low"] < 0
    assert "| 0.055% (0% to 0.627%) |" in page(content_of(judged(records)), METRICS)


def test_the_mean_is_judged_and_not_the_first_seed():
    records = world(js_distance=0.124)
    next(r for r in records if r["run"] == "quality-ours-g1" and r["metric"] == "js_distance")["value"] = (
        0.127
    )
    assert line(judged(records), "js_distance")["pass"] is False


def test_bounds_follow_real_and_prevalence():
    rows = judged(world())
    assert line(rows, "distinct_codes")["target_low"] == pytest.approx(0.9 * 4050)
    assert line(rows, "any_per_restricted_code")["target_high"] == pytest.approx(3 * 0.00021)
    assert line(rows, "hidden_f1")["target_low"] == pytest.approx(1.5 * 0.143)
    row = line(rows, "carried_codes")
    assert (row["target_low"], row["target_high"], row["against"]) == (
        pytest.approx(0.393),
        pytest.approx(0.453),
        "real",
    )
    assert line(rows, "carried_codes", "real")["pass"] is None


def test_linear_is_a_column_and_must_be_beaten():
    """It makes no patients: none of the samples is of it."""
    rows = judged(world(hidden_f1=0.218))
    assert "linear" not in {row["run"] for row in rows}
    assert "linear" not in " ".join(verdict_sentences(rows, "ours", METRICS))
    of_linear = [figure("linear", "hidden_f1", 0.221, HELD_OUT, "reconstruct")]
    rows = judged(world(hidden_f1=0.218) + of_linear)
    assert list(dict.fromkeys(row["run"] for row in rows)) == [
        *("ours", "copy", "prevalence", "linear", "markov", "real")
    ]
    assert line(rows, "hidden_f1", "linear")["mean"] == 0.221 and line(rows, "hidden_f1")["pass"] is True
    assert line(rows, "js_distance", "linear")["mean"] is None
    assert "F1 on hidden codes, 0.218, does not beat linear, 0.221." in verdict_sentences(
        rows, "ours", METRICS
    )
    rows = judged(world(hidden_f1=0.23) + of_linear)
    assert "F1 on hidden codes, 0.230, beats linear, 0.221." in verdict_sentences(rows, "ours", METRICS)


def test_copies_of_the_same_n_replace_real_with_too_few_visits():
    rows = judged(world(real_n=3_500))
    row = line(rows, "distinct_codes")
    assert (row["against"], row["real"], row["target_low"]) == ("copy", None, pytest.approx(0.9 * 3988))
    assert line(rows, "distinct_codes", "copy")["pass"] is None  # it is the yardstick
    assert line(rows, "distinct_codes", "real")["mean"] is None
    # A rate of real data does not depend on n, so copies must not replace it.
    row = line(rows, "carried_codes")
    assert (row["against"], row["real"]) == ("real", 0.423)
    without = [r for r in world() if not (r["metric"] == "copy_share" and r["run"] == "real")]
    row = line(judged(without), "copy_share")
    assert row["pass"] is None and "no figure of real" in row["reason"]


def test_figures_that_count_pairs_of_visits_are_compared_by_visits():
    """A generator with fewer second visits than copies has fewer pairs in a sample of the same size."""
    records = world(real_n=3_500)
    for found in records:
        if found["metric"] == "sequential_bigram_r2":
            found["n"] = 2_000 if "ours" in found["run"] else 3_000
    row = line(judged(records), "sequential_bigram_r2")
    assert (row["against"], row["reference"], row["n"]) == ("copy", 0.2, BASE)


def test_a_target_for_another_n_or_other_data_is_not_judged():
    row = line(judged(world(base=2_000, real_n=2_000, js_distance=0.5)), "js_distance")
    assert row["pass"] is None and row["reason"] == "the target is for n = 10,000"
    rows = judged(world(js_distance=0.5), cohort="simulated")
    row = line(rows, "js_distance")
    assert row["pass"] is None and row["reason"] == "the target is for nhds2010" and row["mean"] == 0.5
    assert line(rows, "distinct_codes")["pass"] is True
    told = verdict_sentences(rows, "ours", METRICS)
    assert told[0] == "10 of 10 targets met." and "(the target is for nhds2010)" in told[1]


def test_a_classifier_that_does_not_distinguish_markov_is_void():
    records = world(classifier_auc=0.5)
    for found in records:
        if found["run"] == "quality-markov-g0" and found["metric"] == "classifier_auc":
            found["value"] = 0.6
    assert (
        line(judged(records), "classifier_auc")["reason"]
        == "void: the control markov scores 0.660, 0.70 is needed"
    )
    large = next(r for r in judged(records) if r["metric"] == "classifier_auc" and r["size"] == "large")
    assert large["pass"] is True, "its own control holds"
    few = [sample for sample in SAMPLES if sample.source != "markov"]
    row = line(judged(world(), samples=few), "classifier_auc")
    assert row["pass"] is None and "was not scored" in row["reason"]


def test_figures_of_histories_are_left_out_without_second_visits():
    records = [{**r, "value": None} if r["metric"] == "carried_codes" else r for r in world()]
    rows = judged(records)
    left = {"carried_codes", "ks_visits_per_patient", "sequential_bigram_r2"}
    assert {row["metric"] for row in rows} == set(FIGURES) - left


def test_a_figure_that_is_missing_is_no_pass():
    row = line(judged(world(newborn_chronic_rate=None)), "newborn_chronic_rate")
    assert row["pass"] is None and row["mean"] is None
    assert "| – |" in page(content_of(judged(world(newborn_chronic_rate=None))), METRICS)


@pytest.mark.parametrize("wrong", ["js_distance,synthesize,base,,,<,1,,,x", "a,b,base,,,within,1,,,x"])
def test_a_wrong_line_of_targets_is_named(tmp_path, wrong):
    path = tmp_path / "targets.csv"
    path.write_text("metric,mode,size,at_n,cohort,comparison,bound,of,needs,source\n" + wrong + "\n")
    with pytest.raises(UserError, match=r"targets.csv: line 2: column (comparison|of): "):
        read_targets(path)
    path.write_text("metric,mode\n")
    with pytest.raises(UserError, match="column size is missing"):
        read_targets(path)


MISTAKES = {
    "one seed": ({"quality": {"seeds": 1}}, "quality.seeds: 1 is below 2"),
    "unknown key": ({"quality": {"seed": 1}}, "quality.seed: unknown key; did you mean seeds"),
    "name": ({"runs": {"quality-x": {}}}, "this name is taken"),
}


@pytest.mark.parametrize("changes, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_section_is_reported(changes, message):
    with pytest.raises(UserError, match=message):
        check_config(demo(**changes), SCHEMA)


def test_naive_methods_generate_the_requested_number_of_patients(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("train", 60), ("test", 20)):
        patients = [[(f"a b c{rng.integers(9)}", 0, int(rng.integers(90)), "FM"[i % 2])] for i in range(n)]
        write_visits(visits_of(patients), tmp_path / f"{name}.parquet", {})

    def ages(method: str, **keywords) -> list[float]:
        files = {"synthetic": tmp_path / "made.parquet", "counts": tmp_path / "made.json"}
        inputs = {name: tmp_path / f"{name}.parquet" for name in ("train", "test")}
        generate_naive(**inputs, **files, method=method, mode="synthesize", **keywords)
        return read_visits(files["synthetic"])["age"].to_pylist()

    held_out = read_visits(tmp_path / "test.parquet")["age"].to_pylist()
    for method in ("prevalence", "markov"):
        assert ages(method) == held_out
        taken = resampled_positions(len(held_out), 50, 0)
        assert ages(method, patients=50) == [held_out[i] for i in taken]
        assert {*np.bincount(taken, minlength=len(held_out))} == {
            50 // len(held_out),
            50 // len(held_out) + 1,
        }
        few = resampled_positions(len(held_out), 7, 0)
        assert len({*few}) == 7 and few.tolist() != list(range(7)), "a random choice, not the first"
    assert len(ages("copy")) == 20 and len(ages("copy", patients=50)) == 50
    assert ages("copy") == ages("copy", patients=20)
