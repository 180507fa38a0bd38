"""The ablation: its arithmetic on figures to check by hand, its jobs, and a tiny one run whole."""

import csv
import math

import pytest
import yaml
from scipy.stats import ttest_rel

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json
from cohortloom.config.check import check_config
from cohortloom.evaluation.records import record
from cohortloom.reporting.ablation import (
    Training,
    comparisons,
    holm,
    mean_interval,
    paired_test,
    table,
    verdict_sentences,
)
from conftest import Workflow
from test_config import SCHEMA, demo, read

EVALUATIONS = ("medical_validity", "fidelity")
TINY = {"preset": "tiny", "tokens": 3000, "seeds": 2}


def only(**arms) -> dict:
    """The ablation section with these arms and none of the demo's."""
    return {**TINY, "arms": dict.fromkeys(read("config")["ablation"]["arms"]) | arms}


def trainings(*arms: str, seeds: int = 3, **models: str) -> list[Training]:
    return [Training(f"{a}{s}", a, s, f"{models.get(a, a)}{s}") for a in arms for s in range(seeds)]


def records(metric: str, better: bool | None, real: float, mode: str = "synthesize", **arms: list[float]):
    """Records of one figure: a value a seed of each arm, and real."""
    given = [(f"{arm}{seed}", value) for arm, values in arms.items() for seed, value in enumerate(values)]
    return [
        record(run, 0, mode, metric, "", value, value - 1, value + 1, 100, None, better)
        for run, value in [*given, ("real", real)]
    ]


def test_intervals_and_p_are_those_of_the_paired_t_test():
    ours, theirs = [3.0, 5.0, 10.0], [2.0, 5.5, 7.0]
    found = paired_test([a - b for a, b in zip(ours, theirs, strict=True)])
    known = ttest_rel(ours, theirs)
    low, high = known.confidence_interval()
    assert found == pytest.approx((3.5 / 3, low, high, known.pvalue))
    assert mean_interval([1.0]) == (1.0, -math.inf, math.inf) and math.isnan(paired_test([1.0]).p)
    assert paired_test([0.0, 0.0]).p == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.04])[2] == 0.08 and math.isnan(holm([math.nan, 0.5])[0])


def test_verdicts_count_all_comparisons():
    """A single moderate difference is `perhaps` after ten comparisons; a huge one stays significant."""
    noise = {f"arm{i}": [10 + 0.1 * i, 11 - 0.1 * i, 12 + 0.05 * i] for i in range(1, 9)}
    arms = {"ref": [10.0, 11.0, 12.0], "huge": [0.0, 1.001, 2.0], "small": [9.0, 9.7, 10.4], **noise}
    found = table(records("any_violation_rate", False, 0.0, **arms), trainings(*arms), reference="ref")
    verdicts = {row["arm"]: row["verdict"] for row in found if row["seed"] is None}
    assert verdicts["ref"] == "reference" and verdicts["huge"] == "better"
    assert verdicts["small"] == "perhaps better"
    assert {verdicts[name] for name in noise} == {"no difference shown"}
    alone = {name: arms[name] for name in ("ref", "small")}
    found = table(records("any_violation_rate", False, 0.0, **alone), trainings(*alone), "ref")
    assert [row["verdict"] for row in found if row["seed"] is None] == ["reference", "better"]


def test_a_figure_without_a_better_side_is_judged_by_real():
    arms = {"ref": [0.2, 0.21, 0.22], "near": [0.3, 0.3101, 0.32], "far": [0.1, 0.1101, 0.12]}
    found = table(records("carried_codes", None, 0.4, **arms), trainings(*arms), "ref")
    assert [row["verdict"] for row in found if row["seed"] is None] == [
        "reference",
        "nearer to real",
        "further from real",
    ]


def test_an_arm_over_another_model_is_compared_with_it_too_and_has_its_likelihood():
    arms = trainings("ref", "lm", "bound", bound="lm")
    assert comparisons(arms, "ref") == [("ref", None), ("lm", "ref"), ("bound", "ref"), ("bound", "lm")]
    losses = records("lm_loss", False, 0.0, mode="teacher_forced", ref=[5, 5.1, 5.3], lm=[4, 4.2, 4.1])
    found = table(losses, arms, "ref")
    rows = [row for row in found if row["arm"] == "bound"]
    assert [row["against"] for row in rows if row["seed"] is None] == ["ref", "lm"]
    assert [row["verdict"] for row in rows if row["against"] == "lm"] == ["the same"]
    assert [row["value"] for row in rows if row["seed"] is not None] == [4, 4.2, 4.1]
    assert [(row["ci_low"], row["n"]) for row in rows if row["seed"] == 1] == [(pytest.approx(3.2), 100)]


def test_the_words_name_what_lowers_violations_and_what_it_costs():
    arms = {"ref": [3.0, 3.1, 3.2], "bound": [0.0, 0.0, 0.0], "idle": [3.1, 3.0, 3.2]}
    rows = records("any_violation_rate", False, 0.0, **arms)
    rows += records(
        "js_distance", False, 0.1, ref=[0.1, 0.12, 0.11], bound=[0.3, 0.3202, 0.31], idle=[0.1, 0.12, 0.11]
    )
    words = verdict_sentences(table(rows, trainings(*arms), "ref"), {"js_distance": "Jensen-Shannon"})
    assert words[0].startswith(
        "bound against ref: any_violation_rate better (3.1 to 0); Jensen-Shannon worse"
    )
    assert words[1] == "idle against ref: no difference shown with 3 seeds."
    assert words[2].endswith("counted: bound (against ref).") and words[3].endswith("counted): none.")


MISTAKES = {
    "reference": ({"reference": "mine"}, "ablation.reference: 'mine' is not among arms"),
    "model": (
        {"arms": {"x": {"model": "mine"}, "multitask": {}}},
        "x.model: 'mine' is not an arm that is trained",
    ),
    "chain": (
        {"arms": {"multitask": {}, "x": {"model": "multitask"}, "y": {"model": "x"}}},
        "choose from multitask",
    ),
    "trained twice": (
        {"arms": {"multitask": {}, "x": {"model": "multitask", "dropout": 0.5}}},
        "x.dropout: the models of 'multitask' are trained already",
    ),
    "unknown key": ({"arms": {"multitask": {"droput": 0.5}}}, "droput: unknown key; did you mean dropout"),
    "name": ({"arms": {"multitask-s1": {}, "multitask": {}}}, "this name is taken"),
    "one seed": ({"seeds": 1}, "ablation.seeds: 1 is below 2"),
}


@pytest.mark.parametrize("section, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_section_is_reported(section, message):
    with pytest.raises(UserError, match=message):
        check_config(demo(ablation=section), SCHEMA)


def jobs_of(arm: str, seeds: int = 2, model: str | None = None) -> set[str]:
    ids = [f"ablation-{arm}-s{seed}" for seed in range(seeds)]
    made = {f"generate {i} synthesize" for i in ids}
    made |= {f"evaluate_{kind} {i}" for kind in EVALUATIONS for i in ids}
    return made if model else made | {f"{rule} {i}" for rule in ("train", "evaluate_heads") for i in ids}


@pytest.fixture(scope="module")
def ablated(tiny, tmp_path_factory):
    """The tiny ablation, finished, in the tiny experiment: one trained arm and one with a constraint."""
    overlay = tmp_path_factory.mktemp("ablation") / "overlay.yaml"
    arms = only(multitask={"forbidden_weight": 1.0}, bound={"model": "multitask", "constrained": "full"})
    overlay.write_text(yaml.safe_dump({"ablation": arms}))
    workflow = Workflow(tiny.folder, tiny.directory, [*tiny.options, str(overlay)], tiny.environment)
    expected = jobs_of("multitask") | jobs_of("bound", model="multitask") | {"summarize_ablation", "ablation"}
    assert workflow.jobs("ablation") == expected  # real, the dataset and the naive methods are there already
    workflow.run("ablation")
    return workflow


def test_a_tiny_ablation_answers_in_a_table_and_a_figure(ablated):
    results = ablated.directory / "results" / "tiny"
    content = read_json(results / "ablation.json")
    rows = content["rows"]
    with open(results / "ablation.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows) and [r["arm"] for r in lines] == [r["arm"] for r in rows]
    means = {(r["arm"], r["metric"]): r for r in rows if r["seed"] is None}
    assert means["bound", "any_violation_rate"]["value"] == 0
    # the constraint had something to do: so few visits may break no limit by themselves
    bound = [
        path for path in (results / "evaluation").glob("*/medical_validity.json") if "bound" in str(path)
    ]
    removed = [r["value"] for path in bound for r in read_json(path) if r["metric"] == "removed_mass"]
    assert removed and min(removed) > 0
    assert means["bound", "lm_loss"]["verdict"] == "the same"
    assert 0 < means["bound", "removed_mass"]["value"] < 1 and ("multitask", "removed_mass") not in means
    single = [r for r in rows if r["metric"] == "lm_loss" and r["seed"] is not None]
    assert len(single) == 4 and all(r["ci_low"] < r["value"] < r["ci_high"] for r in single)
    assert content["verdict"] and "bound against multitask" in content["verdict"][0]
    figure = (results / "ablation.svg").read_text()
    assert figure.startswith("<?xml") and len(figure) > 10_000
    history = (results / "models" / "ablation-multitask-s0" / "history.csv").read_text()
    assert "forbidden_loss" in history.splitlines()[0]


def test_one_more_arm_runs_alone_and_evaluate_all_has_no_arms(ablated, tmp_path):
    assert ablated.jobs("ablation") == {"ablation"} or ablated.jobs("ablation") == set()
    overlay = tmp_path / "more.yaml"
    overlay.write_text(yaml.safe_dump({"ablation": {"arms": {"more": {"heads": "codes"}}}}))
    options = ["--configfile", *ablated.options[1:], overlay]
    summary = {"summarize_ablation", "ablation"}
    assert ablated.jobs("ablation", *options) == jobs_of("more") | summary
    overlay.write_text(yaml.safe_dump({"ablation": {"arms": {"more": {"model": "multitask"}}}}))
    assert ablated.jobs("ablation", *options) == jobs_of("more", model="multitask") | summary
    assert ablated.jobs("evaluate_all", *options) == set()


def test_the_demo_plans_eleven_arms_with_three_seeds(fresh):
    jobs = fresh.jobs("ablation")
    counts = {
        rule: sum(job.startswith(rule + " ") for job in jobs)
        for rule in ("train", "generate", "evaluate_heads")
    }
    assert counts == {"train": 27, "generate": 33, "evaluate_heads": 27}
    assert "evaluate_fidelity real" in jobs and not any(job.split()[-1] == "multitask" for job in jobs)
    others = {job.split()[0] for job in jobs} - {*counts, *(f"evaluate_{kind}" for kind in EVALUATIONS)}
    assert others == {"simulate_raw", "preprocess", "build_dataset", "summarize_ablation", "ablation"}
