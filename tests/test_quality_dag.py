"""The target quality: a tiny table, compared with the single evaluations, and its reruns."""

import dataclasses
import json
import statistics

import pytest
import yaml

from cohortloom.base.files import read_json
from cohortloom.reporting.scorecard import SAME_SIZE
from conftest import Workflow
from test_quality import line

TINY = {"seeds": 2, "patients": 50, "large": 100}
NAIVE = ["copy"]
SOURCES = ["multitask", *NAIVE]


def made(source: str, part: str) -> set[str]:
    """Jobs of one sample; classifier, privacy and utility score the first seed alone."""
    more = {"g0": ("classifier", "privacy", "utility"), "large": ("classifier",)}
    kinds = ("medical_validity", "fidelity", *more.get(part, ()))
    rule = "generate_naive" if source in NAIVE else "generate"
    name = f"quality-{source}-{part}"
    return {f"{rule} {name} synthesize", *(f"evaluate_{kind} {name}" for kind in kinds)}


SUMMARY = {"summarize_quality", "quality"}


@dataclasses.dataclass
class Tiny:
    """The tiny quality table, finished, and how to plan it with other keys."""

    workflow: Workflow
    overlay: dict

    def jobs(self, target: str = "quality", **changes) -> set[str]:
        path = self.workflow.directory / "changed.yaml"
        merged = {**self.overlay, **changes, "quality": {**TINY, **changes.get("quality", {})}}
        path.write_text(yaml.safe_dump(merged))
        return self.workflow.jobs(target, "--configfile", *self.workflow.options[1:-1], path)


@pytest.fixture(scope="module")
def tiny_quality(tiny, tmp_path_factory) -> Tiny:
    """On the models of the tiny experiment."""
    overlay = {"quality": TINY, "naive": NAIVE}
    path = tmp_path_factory.mktemp("quality") / "overlay.yaml"
    path.write_text(yaml.safe_dump(overlay))
    workflow = Workflow(tiny.folder, tiny.directory, [*tiny.options, str(path)])
    workflow.run("quality")
    return Tiny(workflow, overlay)


def test_a_tiny_table_equals_the_single_evaluations(tiny_quality):
    results = tiny_quality.workflow.directory / "results" / "tiny"
    content = read_json(results / "quality.json")
    assert (content["run"], content["seeds"], content["patients"]) == ("multitask", [0, 1], 50)
    assert all(seconds > 0 for seconds in content["generation_seconds"].values())
    assert not list((results / "synthetic").glob("quality-canaries*")), "planted patients are in no target"
    by_kind = {"js_distance": "fidelity", "restricted_share": "medical_validity"}
    for metric, kind in by_kind.items():
        for source in SOURCES:
            found = [
                next(
                    r
                    for r in read_json(results / "evaluation" / f"quality-{source}-g{seed}" / f"{kind}.json")
                    if r["metric"] == metric and not r["subset"]
                )
                for seed in (0, 1)
            ]
            row = line(content["rows"], metric, source)
            assert row["mean"] == pytest.approx(statistics.fmean(r["value"] for r in found))
            assert row["value"] == found[0]["value"] != found[1]["value"]
            assert (row["patients_low"], row["n"]) == (found[0]["ci_low"], found[0]["n"])
            assert row["ci_low"] < row["mean"] < row["ci_high"] and found[1]["seed"] == 1
    for source in SOURCES:
        large = json.loads(
            (results / "synthetic" / f"quality-{source}-large" / "synthesize.json").read_text()
        )
        assert large["patients"] == 100
        row = line(content["rows"], "rare_unigram_r2", source)
        assert row["n"] >= 100 and row["seeds"] == 1
    scored = read_json(results / "evaluation" / "quality-real" / "fidelity.json")[0]
    assert scored["metric"] == "js_distance" and 50 <= scored["n"] < 60
    for source in SOURCES:  # real has a figure only at an equal n, which depends on the tiny model
        row = line(content["rows"], "js_distance", source)
        ours = line(content["rows"], "js_distance", "multitask")["n"]
        alike = abs(ours - scored["n"]) <= SAME_SIZE * scored["n"]
        assert row["real"] == (scored["value"] if alike else None)
    kept = read_json(results / "evaluation" / "multitask" / "reconstruction.json")
    assert line(content["rows"], "jaccard", "multitask")["mean"] == kept[0]["value"]
    assert line(content["rows"], "carried_codes", "multitask")["reason"] is None
    text = (results / "quality.md").read_text(encoding="utf-8")
    assert "| figure | n | target | multitask | copy | real |" in text and "/tmp" not in text


def test_one_more_seed_adds_only_its_samples(tiny_quality):
    assert tiny_quality.jobs() - {"quality"} == set()
    assert tiny_quality.jobs(quality={"seeds": 3}) == SUMMARY.union(*(made(s, "g2") for s in SOURCES))
    assert tiny_quality.jobs(quality={"large": 120}) == SUMMARY.union(*(made(s, "large") for s in SOURCES))
    real = {f"evaluate_{kind} quality-real" for kind in ("fidelity", "classifier", "utility")}
    small = SUMMARY.union(real, *(made(s, part) for s in SOURCES for part in ("g0", "g1")))
    assert tiny_quality.jobs(quality={"patients": 60}) == small


def test_one_more_run_adds_only_its_samples_and_evaluate_all_has_none(tiny_quality):
    more = tiny_quality.jobs(runs={"third": {"dropout": 0.2}})
    parts = ("g0", "g1", "large")
    assert more == SUMMARY.union(*(made("third", part) for part in parts)) | {
        "train third",
        "generate third reconstruct",
        "evaluate_reconstruction third",
    }
    plain = tiny_quality.jobs("evaluate_all")
    assert not any("quality" in job for job in plain)
    assert tiny_quality.jobs("evaluate_all", quality={"seeds": 4, "patients": 70, "large": 300}) == plain


def test_the_demo_plans_five_seeds_and_one_large_sample(fresh):
    jobs = fresh.jobs("quality")
    samples = {job for job in jobs if job.startswith("generate") and " quality-" in job}
    assert len(samples) == 6 * 5 and "generate quality-lm_only-large synthesize" in samples
    assert {"preprocess", "train multitask", "evaluate_reconstruction multitask"} <= jobs
    assert sum(job.startswith("evaluate_classifier") for job in jobs) == 2 * 6
    assert not any("conditioning" in job or "heads" in job or job == "summarize" for job in jobs)
