"""The config, its schema and the signatures of the scripts say the same; mistakes stop in one line."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cohortloom.base.errors import UserError
from cohortloom.base.step import UNTRACKED
from cohortloom.config.check import check_config, load_schema, tracked_config
from conftest import REPOSITORY

SCHEMA = REPOSITORY / "config" / "schema.yaml"
OVERLAYS = ("nhds2010", "mimic3", "mimic4", "eicu", "omop", "meds")


def read(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / "config" / f"{name}.yaml").read_text())


def demo(**changes: Any) -> dict:
    """The demo's config with top-level keys replaced, or updated where they are sections."""
    config = read("config")
    for key, value in changes.items():
        config[key] = {**config[key], **value} if {dict} == {type(config.get(key)), type(value)} else value
    return config


def leaves(schema: dict, path: tuple = ()):
    """(path, schema) of every key of the config."""
    for key, part in schema.get("properties", {}).items():
        yield (*path, key), part
        yield from leaves(part, (*path, key))


@pytest.mark.parametrize("path, part", list(leaves(load_schema(SCHEMA))), ids=lambda value: str(value)[:60])
def test_every_key_has_type_range_and_description(path, part):
    assert "type" in part and len(part["description"]) > 10, path
    if "properties" in part:
        assert part["additionalProperties"] is False, path
    if part["type"] in ("integer", "number"):
        assert {"minimum", "exclusiveMinimum"} & set(part), f"{path} has no range"


def leaves_of_config(config: dict, path: tuple = ()):
    for key, value in config.items():
        if isinstance(value, dict) and (*path, key) not in TABLES:
            yield from leaves_of_config(value, (*path, key))
        else:
            yield (*path, key), value


TABLES = {("runs",), ("ablation", "arms"), ("evaluate", "external")}  # their keys are names


def drift(config: dict, schema: dict) -> set[tuple]:
    """Keys that only one of the two has."""
    known = {path for path, part in leaves(schema) if "properties" not in part}
    return known ^ {path for path, _ in leaves_of_config(config)}


def test_the_demo_holds_every_key_of_the_schema_and_no_other():
    schema = load_schema(SCHEMA)
    assert drift(demo(), schema) == set()
    assert drift(demo(train={"epochs": 3}), schema) == {("train", "epochs")}
    short = demo()
    del short["train"]["tokens"]
    assert drift(short, schema) == {("train", "tokens")}


def test_every_default_is_defined_once():
    assert "default:" not in SCHEMA.read_text()


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_hold_only_what_differs(name):
    base = demo()
    overlay = dict(leaves_of_config(read(name)))
    for (*sections, key), value in overlay.items():
        part = base
        for section in sections:
            part = part[section]
        if isinstance(value, dict):  # runs
            assert all(part[key][run][k] != v for run, own in value.items() for k, v in own.items()), key
        else:
            assert part[key] != value, key


# Params of a rule that are not keys of the config: names of runs, seeds, parts.
OF_A_RECORD = {"run", "seed"}
OF_AN_EXPORT = {"run", "experiment", "source", "placeholder_days"}
GIVEN = {
    "simulate_raw": set(),
    "build_dataset": set(),
    "train": {"threads"},
    "generate": {"mode", "shard", "threads", "as_many_as_test"},
    "generate_naive": {"method", "mode", "patients", "true_length"},
    "evaluate_heads": {*OF_A_RECORD, "group_seed", "device"},
    "evaluate_duplicates": {*OF_A_RECORD, "control_seed", "device"},
    "evaluate_medical_validity": {*OF_A_RECORD, "mode", "group_seed"},
    "evaluate_reconstruction": {*OF_A_RECORD, "group_seed"},
    "evaluate_curve": {*OF_A_RECORD, "group_seed", "generation_seed", "method", "device"},
    "evaluate_fidelity": {*OF_A_RECORD, "mode", "sample_seed"},
    "evaluate_classifier": {*OF_A_RECORD, "mode", "sample_seed"},
    "evaluate_privacy": {*OF_A_RECORD, "mode", "sample_seed", "control"},
    "evaluate_likelihood": {*OF_A_RECORD, "sample_seed", "control", "device"},
    "evaluate_canaries": {
        *OF_A_RECORD,
        *("sample_seed", "canaries", "canary_repeats", "canary_seed", "device"),
    },
    "evaluate_utility": {*OF_A_RECORD, "mode", "sample_seed"},
    "evaluate_conditioning": {*OF_A_RECORD, "mode", "sample_seed", "device"},
    "evaluate_race": {*OF_A_RECORD, "mode", "sample_seed", "control", "source"},
    "publish": {"device"},
    "export_meds": {*OF_AN_EXPORT, "seed"},
    "export_omop": {*OF_AN_EXPORT, "seed"},
    "export_mimic4": {*OF_AN_EXPORT, "seed"},
    "export_mimic3": {*OF_AN_EXPORT, "seed"},
    "blind_test": {"experiment", "run", "source"},
}


def keys_of(script: str) -> dict[str, Any]:
    """Key -> value of the demo, for the keys that are keywords of a script."""
    config = demo()
    generate, evaluate = config["generate"], config["evaluate"]
    revealing = {key: generate["reconstruct"][key] for key in ("prompt_prob", "hide")}
    own = {
        "simulate_raw": {key: config["cohort"][key] for key in ("patients", "seed")},
        "build_dataset": config["dataset"],
        "train": config["train"],
        "generate": {
            **{key: value for key, value in generate.items() if not isinstance(value, dict)},
            **generate["synthesize"],
            **generate["reconstruct"],
        },
        "generate_naive": {
            "seed": generate["seed"],
            **revealing,
        },
        "evaluate_curve": revealing,
        "publish": {"patients": config["publish"]["patients"], "seed": generate["seed"]},
        "blind_test": config["blind_test"],
        "export_omop": {key: config["export"][key] for key in ("unmapped", "table_files")},
    }
    attacks = ("privacy", "likelihood")
    of_evaluations = {
        "visits": (*attacks, "fidelity", "classifier", "utility", "conditioning", "race"),
        "sampling_fraction": attacks,
    }
    name = script.removeprefix("evaluate_")
    return own.get(script, {key: evaluate[key] for key, names in of_evaluations.items() if name in names})


def mismatches(script: str, keys: dict[str, Any]) -> set[str]:
    """Keywords of a script, files left out, that the config lacks, adds or sets otherwise."""
    function = getattr(importlib.import_module(script), script)
    parameters = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if "Path" not in str(parameter.annotation)
    }
    empty = inspect.Parameter.empty
    other = {key for key in set(keys) & set(parameters) if parameters[key] not in (empty, keys[key])}
    return (set(keys) ^ set(parameters)) - GIVEN[script] | other


@pytest.mark.parametrize("script", GIVEN)
def test_keys_and_defaults_of_the_config_are_those_of_the_signatures(script):
    assert mismatches(script, keys_of(script)) == set()


def test_a_missing_or_wrong_default_is_detected():
    keys = keys_of("build_dataset")
    assert mismatches("build_dataset", {**keys, "seed": 7}) == {"seed"}
    assert mismatches("build_dataset", {**keys, "words": 7}) == {"words"}
    del keys["val_fraction"]
    assert mismatches("build_dataset", keys) == {"val_fraction"}


def test_untracked_keys_exist():
    schema = load_schema(SCHEMA)
    for section, names in UNTRACKED.items():
        for name in names:
            assert "reruns nothing" in schema["properties"][section]["properties"][name]["description"]
            assert name not in tracked_config(demo())[section]


MISTAKES = {
    "unknown key": ({"epochs": 3}, r"config: epochs: unknown key"),
    "unknown key below": (
        {"train": {"learningrate": 1}},
        r"train\.learningrate: unknown key; did you mean learning_rate",
    ),
    "key of a run": ({"runs": {"multitask": {"seed": 1}}}, r"runs\.multitask\.seed: unknown key"),
    "type": ({"seeds": "two"}, r"config: seeds: 'two' is not of type integer \(it is text; write it without"),
    "whole number": ({"seeds": 2.0}, r"config: seeds: 2\.0 is not of type integer \(write 2\)"),
    "number as a name": ({"main_run": 2024}, r"main_run: 2024 is not of type string \(put it in quotes\)"),
    "truth value as a run": (
        {"runs": {False: {}}},
        r"runs: YAML takes the name no, off or false for a",
    ),
    "number as a run": (
        {"runs": {2024: {}}},
        r"runs: YAML takes the name 2024 for a number; put",
    ),
    "braces": (
        {"cohort": {"source": "mimic3"}, "raw_dir": "/data/{x}"},
        r"raw_dir: /data/\{x\}: Snakemake cannot read a path with braces",
    ),
    "range": ({"train": {"dropout": 1.0}}, r"config: train\.dropout: 1.0 must be below 1"),
    "choice": ({"train": {"preset": "huge"}}, r"train\.preset: huge is not one of tiny, mini, small, base"),
    "no section": ({"train": 3}, r"config: train: 3 is not of type object"),
    "empty section": ({"train": None}, r"config: train: null is not of type object"),
    "main run": ({"main_run": "mine"}, r"main_run: 'mine' is not among runs"),
    "name of a run": ({"runs": {"real": {}}}, r"runs\.real: this name is taken"),
    "fractions": ({"dataset": {"val_fraction": 0.5, "test_fraction": 0.5}}, r"leave nothing to train on"),
    "demographics": ({"generate": {"demographics": "none.csv"}}, r"demographics: none.csv is no file"),
    "too few canaries": (
        {"runs": {"mine": {"canaries": 3}}},
        r"runs\.mine\.canaries: 3 are too few for a figure; give 10 or more, or 0",
    ),
    "canaries in the main run": (
        {"train": {"canaries": 10}},
        r"train\.canaries: 10: none may be planted into the main run 'multitask'",
    ),
    "repeats": ({"runs": {"mine": {"canary_repeats": 0}}}, r"mine\.canary_repeats: 0 is below 1"),
    "experiment": ({"experiment": "../x"}, r"config: experiment: \.\./x does not match"),
}


@pytest.mark.parametrize("changes, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        check_config(demo(**changes), SCHEMA)
    assert "\n" not in str(caught.value)


def test_a_mistake_names_the_file_that_holds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("first.yaml", "seeds: 0\n"), ("second.yaml", "seeds: 2.0\n"), ("third.yaml", "{}\n")):
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in ("first.yaml", "second.yaml", "third.yaml")]
    with pytest.raises(UserError, match=r"^second\.yaml: seeds: 2\.0 is not"):
        check_config(demo(seeds=2.0), SCHEMA, files)
    # Snakemake hands on what is nested in --config as text.
    given = {"train": {"tokens": "5000"}}
    with pytest.raises(UserError, match=r"^--config: train\.tokens: '5000' is not of type .*--configfile"):
        check_config(demo(**given), SCHEMA, files, given)


def test_raw_dir_counts_only_where_it_is_read(monkeypatch):
    monkeypatch.setenv("COHORTLOOM_RAW_DIR", "/data")
    assert check_config(demo(), SCHEMA)["raw_dir"] is None
    config = check_config(demo(cohort={"source": "mimic3"}), SCHEMA)
    assert config["raw_dir"] == "/data"
    assert check_config(demo(cohort={"source": "mimic3"}, raw_dir="/mine"), SCHEMA)["raw_dir"] == "/mine"


def test_a_run_of_another_file_can_be_left_out():
    assert list(check_config(demo(runs={"lm_only": None}), SCHEMA)["runs"]) == ["multitask"]


def pins(path: Path) -> set[str]:
    return set(re.findall(r"^[\s-]*([A-Za-z0-9_.-]+==[\w.]+)$", path.read_text(), re.MULTILINE))


def test_environment_has_the_pins_of_the_requirements():
    assert pins(REPOSITORY / "environment.yml") == pins(REPOSITORY / "requirements.txt") != set()
    assert pins(REPOSITORY / "requirements.txt") | pins(REPOSITORY / "requirements-dev.txt") <= pins(
        REPOSITORY / "constraints.txt"
    )


def test_the_readme_names_every_section():
    text = (REPOSITORY / "config" / "README.md").read_text()
    for key in load_schema(SCHEMA)["properties"]:
        assert f"| `{key}` |" in text, key
