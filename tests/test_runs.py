"""The registry: names, seeds, models, constraint, evaluations and files of everything that is scored."""

import pytest

from cohortloom.base.errors import UserError
from cohortloom.config.check import check_config, tracked_config
from cohortloom.config.runs import OF_A_RELEASE, Run, all_runs, main_run, records
from test_config import SCHEMA, demo, read


def runs_of(**changes) -> dict[str, Run]:
    """The runs of the demo with keys replaced."""
    return all_runs(check_config(demo(**changes), SCHEMA), "results/demo")


def names(runs: dict[str, Run], kind: str) -> list[str]:
    return [name for name, run in runs.items() if run.kind == kind]


def test_a_training_names_its_seed_where_there_are_several():
    assert names(runs_of(), "training") == ["multitask", "lm_only"]
    config = check_config(demo(seeds=2, train={"seed": 3}), SCHEMA)
    runs = all_runs(config, "results/demo")
    assert names(runs, "training") == ["multitask-s3", "multitask-s4", "lm_only-s3", "lm_only-s4"]
    assert main_run(config, runs.values()).name == "multitask-s3" == runs["real"].attacked
    run = runs["lm_only-s4"]
    assert (run.seed, run.train["seed"], run.train["age_weight"]) == (4, 4, 0.0)
    assert "device" not in run.train and "nodes" not in run.train
    assert run.model == "results/demo/models/lm_only-s4" and run.trained_by == run.attacked == run.name


def test_arms_have_names_of_their_own_and_models_of_their_own_or_anothers():
    runs = runs_of(generate={"constrained": "hard"})
    assert len(names(runs, "arm")) == 33 and not {"ablation", "quality"} & set(tracked_config(demo()))
    years, bound = runs["ablation-years-s2"], runs["ablation-constrained_lm-s1"]
    assert (years.source, years.seed, years.constrained) == ("years", 2, "hard")
    assert years.train["age_loss_unit"] == "years" and years.train["tokens"] == 300000
    assert (bound.trained_by, bound.train, bound.constrained) == ("ablation-lm_only-s1", None, "full")
    assert "heads" in years.evaluations["ablation"] and "heads" not in bound.evaluations["ablation"]


def test_the_reference_is_without_the_loss_that_an_arm_adds():
    """Whatever the main run is trained with; else that arm would be the reference itself."""
    runs = runs_of(train={"forbidden_weight": 0.5, "evaluations": 4})
    asked = ("multitask", "ablation-multitask-s0", "ablation-years-s1", "ablation-forbidden_mass-s2")
    assert [runs[name].train["forbidden_weight"] for name in asked] == [0.5, 0.0, 0.0, 1.0]
    assert [runs[name].train["evaluations"] for name in asked] == [4, 1, 1, 1]
    assert [runs[name].edits_in_training for name in asked] == [True, False, False, True]


def test_the_grid_is_an_overlay_of_arms():
    grid = read("ablation_grid")["ablation"]
    arms = read("config")["ablation"]["arms"] | grid["arms"]
    runs = runs_of(ablation={**grid, "arms": arms})
    assert set(read("ablation_grid")) == {"ablation"} and len(names(runs, "arm")) == 5 * 31


def test_samples_of_the_quality_table_differ_in_generation_alone():
    runs = runs_of(generate={"demographics": "train", "patients": 7, "seed": 2})
    assert len(names(runs, "sample")) == 5 * 6
    first, large = runs["quality-multitask-g2"], runs["quality-multitask-large"]
    assert (first.trained_by, first.train, first.seed, first.generation_seed) == ("multitask", None, 2, 2)
    assert (first.patients, first.demographics, large.patients) == (10_000, "test", 100_000)
    assert large.large and not first.large and runs["quality-multitask-g6"].seed == 6
    assert (runs["multitask"].patients, runs["multitask"].demographics) == (7, "train")
    assert (runs["quality-markov-g2"].source, runs["quality-markov-g2"].trained_by) == ("markov", None)
    of_sample = {"classifier": 10_000, "utility": 10_000, "fidelity": 10_000}
    assert first.visits == {**runs["multitask"].visits, **of_sample}
    assert large.visits == {**runs["multitask"].visits, "fidelity": 100_000}
    scored = {
        name: set(runs[f"quality-copy-{name}"].evaluations["quality"]) for name in ("g2", "g3", "large")
    }
    assert scored["g3"] == {"medical_validity", "fidelity"}
    assert scored["g2"] - scored["g3"] == {"classifier", "privacy", "utility"}
    assert scored["large"] - scored["g3"] == {"classifier"}


def test_the_quality_table_has_the_main_run_first_and_no_planted_patients():
    runs = runs_of(main_run="lm_only", runs={"planted": {"canaries": 20}}, seeds=2)
    sources = list(dict.fromkeys(runs[name].source for name in names(runs, "sample")))
    assert sources == ["lm_only-s0", "multitask-s0", "prevalence", "markov", "copy"]


def test_the_main_run_is_attacked_once_more_at_ages_and_sexes_of_training_patients():
    runs = runs_of(generate={"patients": 7})
    twin, main = runs["privacy-multitask"], runs["multitask"]
    assert names(runs, "privacy") == ["privacy-multitask"] and twin.evaluations == {
        "evaluate_all": ("privacy",)
    }
    assert (twin.trained_by, twin.train, twin.seed) == ("multitask", None, main.seed)
    assert (twin.demographics, twin.as_many_as_test) == ("train", True) and not main.as_many_as_test
    assert twin.visits["privacy"] == main.visits["privacy"] and twin.held_out == main.held_out
    assert "privacy-lm_only-s1" in runs_of(main_run="lm_only", seeds=2, train={"seed": 1})
    assert names(runs_of(generate={"demographics": "train"}), "privacy") == []  # its own have them


def test_naive_methods_use_the_test_patients_whatever_generate_says():
    runs = runs_of(generate={"demographics": "train", "patients": 7, "constrained": "full"})
    echo, copy = runs["echo"], runs["copy"]
    assert (copy.patients, copy.demographics, copy.constrained) == (None, "test", "none")
    assert echo.modes == ("reconstruct",) and echo.evaluations["evaluate_all"] == ("reconstruction",)
    assert "reconstruction" not in copy.evaluations["evaluate_all"] and copy.model is None


def test_real_visits_are_those_of_the_dataset():
    runs = runs_of()
    real, held_out = runs["real"], runs["quality-real"]
    assert real.synthesized == held_out.synthesized == "results/demo/dataset/test.parquet"
    assert real.release == "results/demo/dataset/val.parquet" and real.counts == []
    assert real.control and not held_out.control and real.model is None
    assert (real.visits["fidelity"], real.visits["classifier"]) == (20_000, 20_000)
    assert held_out.visits["classifier"] == 10_000
    assert (
        runs["copy"].release == runs["copy"].synthesized == "results/demo/synthetic/copy/synthesize.parquet"
    )


def test_no_more_visits_of_a_run_are_scored_than_real_has(tmp_path):
    """Of real itself and of the samples of the quality table, at an n of their own, nothing is cut."""
    (tmp_path / "theirs.csv").touch()
    runs = runs_of(evaluate={"external": {"theirs": str(tmp_path / "theirs.csv")}})
    for name in ("multitask", "copy", "theirs", "ablation-years-s0"):
        of_test = {key for key, path in runs[name].held_out.items() if path == runs["real"].synthesized}
        of_val = {key for key, path in runs[name].held_out.items() if path == runs["real"].release}
        assert of_test == {"medical_validity", "fidelity"} and of_test | of_val == set(OF_A_RELEASE)
    for name in ("real", "quality-real", "quality-copy-g0", "quality-multitask-large"):
        assert set(map(str, runs[name].held_out.values())) == {"[]"}


def test_only_what_a_trained_run_synthesized_may_be_exported(tmp_path):
    (tmp_path / "theirs.csv").touch()
    external = {"theirs": str(tmp_path / "theirs.csv")}
    runs = runs_of(evaluate={"external": external}, runs={"planted": {"canaries": 20}})
    exportable = {name for name, run in runs.items() if run.exportable}
    assert {"multitask", "lm_only", "ablation-constrained-s0", "quality-multitask-g0"} <= exportable
    never = {"real", "quality-real", "copy", "echo", "prevalence", "markov", "quality-copy-g0", "theirs"}
    assert not {*never, "planted"} & exportable and {*never, "planted"} <= set(runs)
    arms = {"multitask": {}, "planted": {"canaries": 20}, "bound": {"model": "planted"}}
    runs = runs_of(ablation={"arms": arms})
    assert not any(runs[f"ablation-{arm}-s0"].exportable for arm in ("planted", "bound"))


def test_canaries_are_evaluated_for_their_run_and_for_real():
    runs = runs_of()
    assert not any("canaries" in run.evaluations.get("evaluate_all", ()) for run in runs.values())
    assert runs["real"].planted is None
    runs = runs_of(runs={"planted": {"canaries": 20, "canary_repeats": 4}}, train={"seed": 3})
    scored = [name for name, run in runs.items() if "canaries" in run.evaluations.get("evaluate_all", ())]
    assert scored == ["planted", "real"] and runs["planted"].edits_in_training
    assert runs["planted"].planted == {"canaries": 20, "canary_repeats": 4, "canary_seed": 3}
    assert runs["real"].planted == runs["planted"].planted and runs["real"].attacked == "multitask"


def test_each_target_needs_the_records_of_its_runs_and_references(tmp_path):
    (tmp_path / "theirs.csv").touch()
    runs = runs_of(evaluate={"external": {"theirs": str(tmp_path / "theirs.csv")}}).values()
    read_by = {
        target: [tuple(path.split("/")[-2:]) for path in records(runs, target)]
        for target in ("evaluate_all", "evaluate_external", "ablation", "quality")
    }
    assert len(read_by["evaluate_all"]) == len(set(read_by["evaluate_all"])) == 60
    assert {name for name, _ in read_by["evaluate_external"]} == {
        *("theirs", "real", "copy", "prevalence", "markov")
    }
    assert ("real", "race.json") not in read_by["evaluate_external"]
    assert {kind for name, kind in read_by["ablation"] if name == "real"} == {
        "medical_validity.json",
        "fidelity.json",
    }
    beside = {pair for pair in read_by["quality"] if not pair[0].startswith("quality-")}
    assert beside == {
        *(("real", f"{kind}.json") for kind in ("medical_validity", "classifier", "privacy")),
        *(
            (name, "reconstruction.json")
            for name in ("multitask", "lm_only", "prevalence", "linear", "markov")
        ),
    }
    scored = {name for name, kind in read_by["evaluate_all"] if kind == "curve.json"}
    assert scored == {"multitask", "lm_only", "prevalence", "linear"}


@pytest.mark.parametrize(
    "name", ["multitask", "real", "copy", "ablation-years-s0", "quality-real", "privacy-x"]
)
def test_external_visits_with_a_reserved_name_are_refused(name, tmp_path):
    (tmp_path / "theirs.csv").touch()
    with pytest.raises(UserError, match=f"evaluate.external.{name}: this name is taken"):
        runs_of(evaluate={"external": {name: str(tmp_path / "theirs.csv")}})
    assert (
        runs_of(evaluate={"external": {"theirs": str(tmp_path / "theirs.csv")}})["theirs"].kind == "external"
    )


@pytest.mark.parametrize("name", ["real", "echo", "ablation-x", "quality-x", "privacy-x", "mine-s1"])
def test_a_run_with_a_reserved_name_is_refused(name):
    with pytest.raises(UserError, match=f"runs.{name}: this name is taken"):
        runs_of(runs={name: {}})
