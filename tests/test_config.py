"""The config, its schema and the signatures of the scripts say the same; mistakes stop in one line."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cohortloom.base.errors import UserError
from cohortloom.config.check import (
    UNTRACKED,
    check_config,
    load_schema,
    run_ids,
    tracked_config,
    train_keywords,
)
from conftest import REPOSITORY

SCHEMA = REPOSITORY / "config" / "schema.yaml"
OVERLAYS = ("nhds2010", "mimic3")


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
def test_every_key_has_type_default_and_description(path, part):
    assert "type" in part and len(part["description"]) > 10, path
    if "properties" in part:
        assert part["additionalProperties"] is False, path
    else:
        assert "default" in part, path
    if part["type"] in ("integer", "number"):
        assert {"minimum", "exclusiveMinimum"} & set(part), f"{path} has no range"


def test_defaults_of_the_schema_are_the_demo():
    assert check_config({}, SCHEMA) == check_config(read("config"), SCHEMA)
    written = {path for path, _ in leaves_of_config(read("config"))}
    known = {path for path, part in leaves(load_schema(SCHEMA)) if "properties" not in part}
    named = ({"runs"}, {"ablation", "arms"})  # tables whose keys are names
    assert {p for p in known if not any(n <= {*p} for n in named)} == {
        p for p in written if not any(n <= {*p} for n in named)
    }


def leaves_of_config(config: dict, path: tuple = ()):
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves_of_config(value, (*path, key))
        elif value != {} or key == "external":  # a section without keys, but for the one that is a table
            yield (*path, key), value


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_hold_only_what_differs(name):
    base = dict(leaves_of_config(read("config")))
    overlay = dict(leaves_of_config(read(name)))
    assert overlay["experiment",] == name
    assert [path for path, value in overlay.items() if base.get(path) == value] == []


SECTIONS = {
    "simulate_raw": ("cohort",),
    "build_dataset": ("dataset",),
    "train": ("train",),
    "evaluate_heads": ("evaluate", "heads"),
    "evaluate_duplicates": ("evaluate", "duplicates"),
    "evaluate_medical_validity": ("evaluate", "medical_validity"),
    "evaluate_reconstruction": ("evaluate", "reconstruction"),
    "evaluate_fidelity": ("evaluate", "fidelity"),
    "evaluate_classifier": ("evaluate", "classifier"),
    "evaluate_privacy": ("evaluate", "privacy"),
    "evaluate_likelihood": ("evaluate", "likelihood"),
    "evaluate_canaries": ("evaluate", "canaries"),
    "evaluate_utility": ("evaluate", "utility"),
    "evaluate_conditioning": ("evaluate", "conditioning"),
    "evaluate_race": ("evaluate", "race"),
    "publish": ("publish",),
}
# Given by the rules: which run, which mode, which seed.
FROM_THE_DAG = {
    "run",
    "mode",
    "seed",
    "group_seed",
    "sample_seed",
    "control_seed",
    "control",
    "canary_seed",
    "source",
    "threads",
    "device",
}


def keywords(script: str) -> dict[str, inspect.Parameter]:
    """The parameters of a script's function that are not files."""
    function = getattr(importlib.import_module(script), script)
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in parameters.items() if "Path" not in str(value.annotation)}


@pytest.mark.parametrize("script", SECTIONS)
def test_keys_are_the_keywords_of_the_script(script):
    part = load_schema(SCHEMA)
    for key in SECTIONS[script]:
        part = part["properties"][key]
    known = part["properties"]
    found = keywords(script)
    ours = set(known) - {"source"} if script == "simulate_raw" else set(known)
    of_the_training = {"canaries", "canary_repeats"} if script == "evaluate_canaries" else set()
    assert ours - FROM_THE_DAG == set(found) - FROM_THE_DAG - of_the_training
    for name in ours & set(found):
        default = found[name].default
        if default is not inspect.Parameter.empty:
            assert known[name]["default"] == default, f"{script}: {name}"


def test_keys_of_generate_are_the_keywords_of_the_script():
    part = load_schema(SCHEMA)["properties"]["generate"]["properties"]
    decoding = part["synthesize"]["properties"]
    assert set(part["reconstruct"]["properties"]) == {*decoding, "prompt_prob"}
    known = {**part, **part["reconstruct"]["properties"], **decoding}
    of_the_dag = ("mode", "shard", "threads")
    found = {name: value for name, value in keywords("generate").items() if name not in of_the_dag}
    assert set(known) - {"synthesize", "reconstruct"} == set(found)
    assert {name: known[name]["default"] for name in found} == {
        name: parameter.default for name, parameter in found.items()
    }


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
    "type": ({"seeds": "two"}, r"config: seeds: two is not of type integer"),
    "range": ({"train": {"dropout": 1.0}}, r"config: train\.dropout: 1.0 must be below 1"),
    "choice": ({"train": {"preset": "huge"}}, r"train\.preset: huge is not one of tiny, mini, small, base"),
    "no section": ({"train": 3}, r"config: train: 3 is not of type object"),
    "main run": ({"main_run": "mine"}, r"main_run: 'mine' is not among runs"),
    "name of a run": ({"runs": {"real": {}}}, r"runs\.real: this name is taken"),
    "fractions": ({"dataset": {"val_fraction": 0.5, "test_fraction": 0.5}}, r"leave nothing to train on"),
    "demographics": ({"generate": {"demographics": "none.csv"}}, r"demographics: none.csv is no file"),
    "too few canaries": (
        {"runs": {"mine": {"canaries": 3}}},
        r"runs\.mine\.canaries: 3 are too few to tell anything; give 10 or more, or 0",
    ),
    "canaries in the main run": (
        {"train": {"canaries": 10}},
        r"train\.canaries: 10: none may be planted into the main run 'multitask'",
    ),
    "repeats": ({"runs": {"mine": {"canary_repeats": 0}}}, r"mine\.canary_repeats: 0 is below 1"),
    "experiment": ({"experiment": "../x"}, r"config: experiment: \.\./x does not match"),
}


@pytest.mark.parametrize("changes, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        check_config(demo(**changes), SCHEMA)
    assert "\n" not in str(caught.value)


def test_raw_dir_counts_only_where_it_is_read(monkeypatch):
    monkeypatch.setenv("COHORTLOOM_RAW_DIR", "/data")
    assert check_config(demo(), SCHEMA)["raw_dir"] is None
    config = check_config(demo(cohort={"source": "mimic3"}), SCHEMA)
    assert config["raw_dir"] == "/data"
    assert check_config(demo(cohort={"source": "mimic3"}, raw_dir="/mine"), SCHEMA)["raw_dir"] == "/mine"


def test_run_ids_name_the_seed_where_there_are_several():
    config = check_config(demo(), SCHEMA)
    assert run_ids(config) == {"multitask": ("multitask", 0), "lm_only": ("lm_only", 0)}
    config["seeds"] = 2
    assert list(run_ids(config)) == ["multitask-s0", "multitask-s1", "lm_only-s0", "lm_only-s1"]
    assert train_keywords(config, "lm_only-s1")["seed"] == 1
    assert train_keywords(config, "lm_only-s1")["age_weight"] == 0.0
    assert "device" not in train_keywords(config, "lm_only-s1")


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
