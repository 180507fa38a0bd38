"""What runs again after a change: the table of the design, one test a row.

The tiny experiment is run once, whole; each test changes one thing, asks which jobs would run, and puts
it back. The workflow lies in a copy, so that its modules can be edited.
"""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from conftest import Workflow, listed_jobs

RUNS = ("multitask", "canaries")
MODES = ("reconstruct", "synthesize")
# Of every synthesize.parquet, and of real.
RELEASED = ("medical_validity", "fidelity", "classifier", "privacy", "utility", "conditioning", "race")
EVALUATIONS = ("heads", "duplicates", "likelihood", "reconstruction", "curve", *RELEASED)
SYNTHESIZED = {*RUNS, "markov", "copy"}
RECONSTRUCTED = {*RUNS, "linear", "markov", "echo"}
SCORED = {*RUNS, "linear"}
PLANTED = {"evaluate_canaries canaries", "evaluate_canaries real"}
SUMMARY = {"summarize"}
# The main run at ages and sexes of training patients.
TWIN = {"generate privacy-multitask synthesize", "evaluate_privacy privacy-multitask"}


def evaluations_of(run: str) -> set[str]:
    return {f"evaluate_{name} {run}" for name in EVALUATIONS}


def generated_by(run: str) -> set[str]:
    return {f"generate {run} {mode}" for mode in MODES}


def after_training(run: str) -> set[str]:
    more = {
        "multitask": {"evaluate_likelihood real", "evaluate_canaries real"} | TWIN,  # of the main run's model
        "canaries": {"evaluate_canaries canaries"},
    }
    return generated_by(run) | evaluations_of(run) | more.get(run, set()) | SUMMARY


NAIVE = {
    *(f"generate_naive {method} synthesize" for method in SYNTHESIZED - set(RUNS)),
    *(f"generate_naive {method} reconstruct" for method in RECONSTRUCTED - set(RUNS)),
}
EVALUATED = {
    *(f"evaluate_{name} {run}" for name in ("heads", "duplicates", "likelihood") for run in RUNS),
    "evaluate_likelihood real",
    *PLANTED,
    *(f"evaluate_{kind} {name}" for kind in RELEASED for name in (*SYNTHESIZED, "real")),
    *(f"evaluate_reconstruction {name}" for name in RECONSTRUCTED),
    "evaluate_privacy privacy-multitask",
    *(f"evaluate_curve {name}" for name in SCORED),
}
AFTER_DATASET = NAIVE | EVALUATED | TWIN | SUMMARY
for _run in RUNS:
    AFTER_DATASET = AFTER_DATASET | {f"train {_run}"} | generated_by(_run)
EVERYTHING = {"simulate_raw", "preprocess", "build_dataset"} | AFTER_DATASET


@pytest.fixture
def changed(tiny, tmp_path):
    """Jobs after keys of the config were changed."""

    def jobs(**changes) -> set[str]:
        overlay = tmp_path / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(changes))
        return tiny.jobs("--configfile", *tiny.options[1:], overlay)

    return jobs


@pytest.fixture
def edited(tiny):
    """Jobs after a line was added to a file of the workflow."""
    saved = {}

    def jobs(*parts: str) -> set[str]:
        path = tiny.folder.joinpath(*parts)
        saved[path] = path.read_text()
        path.write_text(saved[path] + "\n# changed\n")
        return tiny.jobs()

    yield jobs
    for path, text in saved.items():
        path.write_text(text)


def test_nothing_reruns_when_nothing_changed(tiny):
    assert tiny.jobs() == set()


def test_a_key_of_two_evaluations_reruns_both(changed):
    jobs = changed(evaluate={"sampling_fraction": 0.5})
    attacks = ("evaluate_privacy", "evaluate_likelihood")
    assert jobs == {job for job in EVALUATED if job.startswith(attacks)} | SUMMARY


def test_a_key_under_generate_reruns_generation_and_what_follows(changed):
    jobs = changed(generate={"synthesize": {"temperature": 0.9}})
    expected = SUMMARY | TWIN | PLANTED | {f"evaluate_duplicates {run}" for run in RUNS}
    for run in RUNS:
        expected |= {f"generate {run} synthesize"}
        expected |= {f"evaluate_{kind} {run}" for kind in RELEASED}
    assert jobs == expected


def test_a_key_of_one_mode_does_not_rerun_the_other(changed):
    jobs = changed(generate={"reconstruct": {"threshold": 0.3}})
    of_runs = {f"{rule} {run}" for rule in ("evaluate_duplicates", "evaluate_reconstruction") for run in RUNS}
    assert jobs == of_runs | {f"generate {run} reconstruct" for run in RUNS} | SUMMARY


def test_the_seed_of_generation_reruns_all_of_it_and_no_training(changed):
    jobs = changed(generate={"seed": 5})
    untouched = {f"evaluate_{kind} real" for kind in RELEASED}
    expected = NAIVE | EVALUATED | TWIN | SUMMARY | {job for run in RUNS for job in generated_by(run)}
    without_generation = {f"evaluate_{kind} {run}" for kind in ("heads", "likelihood") for run in RUNS}
    assert jobs | without_generation | {"evaluate_likelihood real"} == expected - untouched


def test_another_number_of_shards_generates_again_and_trains_nothing(changed):
    jobs = changed(generate={"shards": 2})
    made = {f"generate {run} {mode} {part}-of-2" for run in RUNS for mode in MODES for part in (1, 2)}
    made |= {f"join_shards {run} {mode}" for run in RUNS for mode in MODES}
    twin = "privacy-multitask synthesize"
    made |= {f"generate {twin} 1-of-2", f"generate {twin} 2-of-2", f"join_shards {twin}"}
    scored = {f"evaluate_{name} {run}" for name in EVALUATIONS for run in RUNS}
    scored -= {f"evaluate_{name} {run}" for name in ("heads", "likelihood", "curve") for run in RUNS}
    assert jobs == made | scored | PLANTED | {"evaluate_privacy privacy-multitask"} | SUMMARY


def test_a_loss_weight_of_a_run_reruns_that_run_alone(changed):
    assert changed(runs={"multitask": {"age_weight": 0.5}}) == {"train multitask"} | after_training(
        "multitask"
    )


def test_values_that_trade_places_are_a_change(changed):
    """Snakemake compares bare values: the rules must give it named ones."""
    jobs = changed(runs={"multitask": {"age_weight": 0.2, "sex_weight": 0.3}})
    assert jobs == {"train multitask"} | after_training("multitask")


def test_the_number_of_visits_reruns_the_evaluations_that_take_it(changed):
    taking = ("fidelity", "classifier", "privacy", "likelihood", "utility", "conditioning", "race")
    scored = tuple(f"evaluate_{name} " for name in taking)
    assert changed(evaluate={"visits": 100}) == {job for job in EVALUATED if job.startswith(scored)} | SUMMARY


def test_an_added_run_runs_alone(changed):
    assert changed(runs={"third": {"dropout": 0.2}}) == {"train third"} | after_training("third")


def test_a_key_of_the_canaries_reruns_their_run_and_the_control_by_real(changed):
    jobs = changed(runs={"canaries": {"canary_repeats": 4}})
    assert jobs == {"train canaries"} | after_training("canaries") | PLANTED


def test_an_added_seed_runs_alone(tiny, tmp_path):
    """Of two seeds one is trained, and a third is added."""
    tiny.run("--config", "seeds=2", "--", "results/tiny/models/multitask-s0/model.safetensors")
    jobs = tiny.jobs("--config", "seeds=3")
    trained = {job for job in jobs if job.startswith("train multitask")}
    assert trained == {"train multitask-s1", "train multitask-s2"}
    assert after_training("multitask-s2") <= jobs
    assert not {"preprocess", "build_dataset"} & jobs and not NAIVE & jobs


def test_devices_and_checkpoint_intervals_rerun_nothing(changed, tiny):
    untracked = {"device": "cpu", "devices": 2, "nodes": 2, "checkpoint_every_minutes": 3.0}
    assert changed(train=untracked, generate={"device": "cpu"}) == set()
    assert tiny.jobs("--set-threads", "train=1", "--set-resources", "train:mem_mb=100") == set()


@pytest.mark.parametrize("key, value", [("patients", 500), ("seed", 3)])
def test_a_key_under_cohort_reruns_everything(changed, key, value):
    assert changed(cohort={key: value}) == EVERYTHING


def test_a_key_under_dataset_reruns_all_but_the_cohort(changed):
    assert changed(dataset={"seed": 3}) == AFTER_DATASET | {"build_dataset"}


def test_a_metrics_module_reruns_the_evaluations_that_import_it(edited):
    """The audit of race takes its distance from fidelity."""
    jobs = edited("workflow_scripts", "cohortloom", "evaluation", "fidelity.py")
    importers = ("evaluate_fidelity", "evaluate_race")
    assert jobs == {job for job in EVALUATED if job.startswith(importers)} | SUMMARY


def test_the_report_module_reruns_only_the_summary(edited):
    assert edited("workflow_scripts", "cohortloom", "reporting", "report.py") == SUMMARY


def test_the_training_module_reruns_training_and_what_follows(edited):
    jobs = edited("workflow_scripts", "cohortloom", "training", "trainer.py")
    expected = set(SUMMARY)
    for run in RUNS:
        expected |= {f"train {run}"} | after_training(run)
    assert jobs == expected


def test_a_reader_reruns_everything_that_follows_it(edited):
    assert edited("workflow_scripts", "cohortloom", "sources", "intake.py") == EVERYTHING - {"simulate_raw"}


def test_the_table_of_visits_reruns_every_step_that_reads_it(edited):
    assert edited("workflow_scripts", "cohortloom", "data", "visits.py") == EVERYTHING


def test_a_script_reruns_itself_and_what_follows(edited):
    jobs = edited("workflow_scripts", "evaluate_reconstruction.py")
    assert jobs == {job for job in EVALUATED if job.startswith("evaluate_reconstruction")} | SUMMARY


def test_a_rule_table_reruns_what_reads_it(edited):
    jobs = edited("resources", "titles", "ICD9CM.csv")
    assert jobs == SUMMARY


def test_touched_files_rerun_nothing(tiny):
    """Every file of the workflow, of the results and of the raw tables gets a new time, in any order."""
    for folder in (tiny.folder, tiny.directory / "results", tiny.directory / "raw"):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file():
                os.utime(path)
    assert tiny.jobs() == set()


def test_a_moved_workflow_reruns_nothing(tiny, tmp_path):
    """Workflow and working directory moved together keep their relative names."""
    for name in ("workflow", "work"):
        shutil.copytree(tiny.folder.parent / name, tmp_path / name)
    options = ["--configfile", str(tmp_path / "workflow" / "tests" / "config_tiny.yaml")]
    assert Workflow(tmp_path / "workflow", tmp_path / "work", options).jobs() == set()


def test_the_announced_jobs_are_those_that_run(tiny, tmp_path):
    """A real run of one evaluation after a change, then nothing; and the same after the change is undone."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"evaluate": {"visits": 150}}))
    changed = ["--configfile", *tiny.options[1:], str(overlay)]
    target = ["--", "results/tiny/evaluation/copy/fidelity.json"]
    told = {"evaluate_fidelity copy"}
    assert tiny.jobs(*changed, *target) == told
    assert listed_jobs(tiny.run(*changed, *target).stdout) == told
    assert tiny.jobs(*changed, *target) == set()
    assert tiny.jobs() == told | SUMMARY
    assert listed_jobs(tiny.run().stdout) == told | SUMMARY
    assert tiny.jobs() == set()


def test_half_finished_output_does_not_look_finished(tiny):
    """A job that is killed leaves its output marked as incomplete, and it runs again."""
    scorecard = Path(tiny.directory, "results", "tiny", "scorecard.json")
    saved = scorecard.read_bytes()
    scorecard.unlink()
    assert tiny.jobs() == SUMMARY
    scorecard.write_bytes(saved)
