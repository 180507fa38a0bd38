"""The config: checked against its schema, defaults filled in, names of runs and raw tables derived.

Imported while Snakemake parses the workflow, so it stays light: neither data nor torch is touched.
"""

import copy
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from cohortloom.base.errors import UserError
from cohortloom.sources.locate import MIMIC3, find_tables

# Where and how often, not what: these keys change no result, so that changing them reruns nothing.
UNTRACKED = {
    "train": (
        "device",
        "devices",
        "nodes",
        "log_every_tokens",
        "checkpoint_every_tokens",
        "checkpoint_every_minutes",
    ),
    "generate": ("device",),
}
RAW_DIR_VARIABLE = "COHORTLOOM_RAW_DIR"
ARM_PREFIX = "ablation-"  # of the ids of the ablation's trainings
QUALITY_PREFIX = "quality-"  # of the ids of the visits that the quality table is made from
QUALITY_REAL = f"{QUALITY_PREFIX}real"
OF_GENERATION = ("model", "constrained")  # keys of an arm that are not those of train
LEAST_CANARIES = 10  # that of canaries.py, which is not for here: it needs numpy
RESERVED_NAMES = ("real", "prevalence", "markov", "copy", "echo")


class Sample(NamedTuple):
    """Visits of the quality table: the run or naive method that makes them, generation seed, patients."""

    source: str
    seed: int
    patients: int
    large: bool


def load_schema(path: Path) -> dict[str, Any]:
    """The schema as a mapping; runs and arms take the keys of train, less its seed and the untracked ones."""
    import yaml

    with open(path, encoding="utf-8") as file:
        schema = yaml.safe_load(file)
    train = schema["properties"]["train"]["properties"]
    of_a_model = {key: part for key, part in train.items() if key not in ("seed", *UNTRACKED["train"])}
    for table in (schema["properties"]["runs"], schema["properties"]["ablation"]["properties"]["arms"]):
        table["additionalProperties"]["properties"] |= of_a_model
    return schema


def check_config(config: dict[str, Any], schema_path: Path) -> dict[str, Any]:
    """Fill in the schema's defaults and return the config.

    Raises UserError for the first unknown key, wrong type, value out of range or clash of names.
    """
    import jsonschema

    schema = load_schema(schema_path)
    fill_defaults(config, schema)
    if isinstance(config["cohort"], dict) and config["cohort"].get("source") == "simulated":
        config["raw_dir"] = None  # not read, so that it cannot cause a rerun
    else:
        config["raw_dir"] = config["raw_dir"] or os.environ.get(RAW_DIR_VARIABLE) or None
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(config), key=lambda error: len(error.absolute_path))
    if errors:
        raise UserError(explain(errors[0]))
    runs = {name: run for name, run in config["runs"].items() if run is not None}
    config["runs"] = runs
    for name in runs:
        if (
            name in RESERVED_NAMES
            or name.startswith((ARM_PREFIX, QUALITY_PREFIX))
            or re.search(r"-s\d+$", name)
        ):
            raise UserError(f"config: runs.{name}: this name is taken; choose another one for the run")
    if config["main_run"] not in runs:
        known = ", ".join(runs)
        raise UserError(f"config: main_run: {config['main_run']!r} is not among runs; choose from {known}")
    for name in config["quality"]["runs"] or ():
        if name not in runs:
            known = ", ".join(runs)
            raise UserError(f"config: quality.runs: {name!r} is not among runs; choose from {known}")
    check_arms(config)
    check_canaries(config)
    dataset = config["dataset"]
    if dataset["val_fraction"] + dataset["test_fraction"] >= 1:
        raise UserError("config: dataset: val_fraction and test_fraction leave nothing to train on")
    for name, path in config["evaluate"]["external"].items():
        taken = name in RESERVED_NAMES or name in run_ids(config) or name in arm_ids(config)
        if taken or name.startswith(QUALITY_PREFIX):
            raise UserError(f"config: evaluate.external.{name}: this name is taken; choose another one")
        if not Path(path).exists():
            raise UserError(f"config: evaluate.external.{name}: {path}: no such file; correct the path")
    demographics = config["generate"]["demographics"]
    if demographics not in ("test", "train") and not Path(demographics).is_file():
        raise UserError(
            f"config: generate.demographics: {demographics} is no file; give test, train or a CSV of patients"
        )
    return config


def check_arms(config: dict[str, Any]) -> None:
    """Drop the arms that are null; raise UserError for an arm that names no model to generate with."""
    ablation = config["ablation"]
    arms = ablation["arms"] = {name: arm for name, arm in ablation["arms"].items() if arm is not None}
    for name, arm in arms.items():
        where = f"config: ablation.arms.{name}"
        if re.search(r"-s\d+$", name):
            raise UserError(f"{where}: this name is taken; choose another one for the arm")
        if (model := arm.get("model")) is None:
            continue
        if extra := [key for key in arm if key not in ("model", "constrained")]:
            raise UserError(
                f"{where}.{extra[0]}: the models of {model!r} are trained already; drop it or model"
            )
        if "model" in arms.get(model, {"model": None}):
            trained = ", ".join(name for name, other in arms.items() if "model" not in other)
            raise UserError(f"{where}.model: {model!r} is not an arm that is trained; choose from {trained}")
    if ablation["reference"] not in arms:
        known = ", ".join(arms)
        wrong = ablation["reference"]
        raise UserError(f"config: ablation.reference: {wrong!r} is not among arms; choose from {known}")


def check_canaries(config: dict[str, Any]) -> None:
    """Raise UserError for too few canaries, and for any in the main run, which is what may be handed out."""
    for name, run in config["runs"].items():
        count = {**config["train"], **run}["canaries"]
        where = f"config: {f'runs.{name}' if 'canaries' in run else 'train'}.canaries: {count}"
        if 0 < count < LEAST_CANARIES:
            raise UserError(f"{where} are too few to tell anything; give {LEAST_CANARIES} or more, or 0")
        if count and name == config["main_run"]:
            raise UserError(
                f"{where}: none may be planted into the main run {name!r}; give them to another run"
            )


def canary_run_ids(config: dict[str, Any]) -> list[str]:
    """Ids of the runs that patients are planted into."""
    return [run_id for run_id in run_ids(config) if train_keywords(config, run_id)["canaries"]]


def fill_defaults(config: dict[str, Any], schema: dict[str, Any]) -> None:
    """Set what the config leaves out to the schema's defaults, section by section, in place."""
    for key, part in schema.get("properties", {}).items():
        if part.get("type") == "object" and "properties" in part:
            if config.get(key) is None:
                config[key] = {}
            if isinstance(config[key], dict):
                fill_defaults(config[key], part)
        elif key not in config and "default" in part:
            config[key] = copy.deepcopy(part["default"])


def explain(error: Any) -> str:
    """One line on a schema error: which key, what is wrong with it, what to do."""
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        extra = [key for key in error.instance if key not in known]
        key = f"{where}.{extra[0]}" if where else extra[0]
        return f"config: {key}: unknown key; {nearest(extra[0], known)}"
    if error.validator == "propertyNames":
        return f"config: {where}: {error.instance!r} is not a name of letters, digits, _ and -"
    remedy = str(error.schema.get("description", "")).strip().rstrip(".") or "see config/schema.yaml"
    value = str(error.instance)
    value = value if len(value) <= 60 else value[:57] + "..."
    limits = {
        "minimum": "is below {}",
        "exclusiveMinimum": "must be above {}",
        "maximum": "is above {}",
        "exclusiveMaximum": "must be below {}",
        "enum": "is not one of {}",
        "type": "is not of type {}",
        "minItems": "has fewer than {} entries",
        "pattern": "does not match {}",
    }
    limit = error.validator_value
    limit = ", ".join(map(str, limit)) if isinstance(limit, list) else limit
    reason = limits.get(error.validator, "is wrong ({})").format(limit)
    return f"config: {where}: {value} {reason} ({remedy})"


def nearest(word: str, known: list[str]) -> str:
    """A hint at the key that was probably meant."""
    import difflib

    match = difflib.get_close_matches(word, known, 1)
    return f"did you mean {match[0]}?" if match else f"known here: {', '.join(known)}"


def run_ids(config: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Run id -> (name under `runs`, training seed): `<run>`, or `<run>-s<seed>` with several seeds."""
    first, count = config["train"]["seed"], config["seeds"]
    seeds = range(first, first + count)
    return {f"{run}-s{seed}" if count > 1 else run: (run, seed) for run in config["runs"] for seed in seeds}


def main_run_id(config: dict[str, Any]) -> str:
    """Id of the main run, with several seeds that of its first."""
    return next(run_id for run_id, (run, _) in run_ids(config).items() if run == config["main_run"])


def arm_ids(config: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Id of a training of the ablation -> (name of the arm, seed): `ablation-<arm>-s<seed>`."""
    first, ablation = config["train"]["seed"], config["ablation"]
    seeds = range(first, first + ablation["seeds"])
    return {f"{ARM_PREFIX}{arm}-s{seed}": (arm, seed) for arm in ablation["arms"] for seed in seeds}


def quality_runs(config: dict[str, Any]) -> list[str]:
    """Ids of the runs in the quality table, with several seeds that of the first one each."""
    default = [config["main_run"], *(["lm_only"] if "lm_only" in config["runs"] else [])]
    names = dict.fromkeys(default if config["quality"]["runs"] is None else config["quality"]["runs"])
    ids = run_ids(config)
    return [next(run_id for run_id, (run, _) in ids.items() if run == name) for name in names]


def quality_samples(config: dict[str, Any]) -> dict[str, Sample]:
    """Id -> sample: `quality-<source>-g<seed>`, and the large one of the first seed `quality-<source>-large`.

    An id says all that differs between them but the number of patients, so that a seed more is made alone.
    """
    section, first = config["quality"], config["generate"]["seed"]
    made = {}
    for source in [*quality_runs(config), *(method for method in config["naive"] if method != "echo")]:
        for seed in range(first, first + section["seeds"]):
            made[f"{QUALITY_PREFIX}{source}-g{seed}"] = Sample(source, seed, section["patients"], False)
        made[f"{QUALITY_PREFIX}{source}-large"] = Sample(source, first, section["large"], True)
    return made


def train_keywords(config: dict[str, Any], run_id: str) -> dict[str, Any]:
    """The train section with the run's or arm's own keys and seed, less what must not cause a rerun."""
    arms = arm_ids(config)
    if run_id in arms:
        (arm, seed), ablation = arms[run_id], config["ablation"]
        shared = {key: ablation[key] for key in ("preset", "tokens", "evaluations", "forbidden_weight")}
        own = {**shared, **ablation["arms"][arm]}
    else:
        run, seed = run_ids(config)[run_id]
        own = config["runs"][run]
    keywords = {**config["train"], **own, "seed": seed}
    dropped = (*UNTRACKED["train"], *OF_GENERATION)
    return {key: value for key, value in keywords.items() if key not in dropped}


def trained_as(config: dict[str, Any], run_id: str) -> str:
    """Id of the training whose model a run generates with: its own, or that of the arm or run it names."""
    if sample := quality_samples(config).get(run_id):
        return sample.source
    arm, seed = arm_ids(config).get(run_id, (None, None))
    model = config["ablation"]["arms"][arm].get("model") if arm else None
    return f"{ARM_PREFIX}{model}-s{seed}" if model else run_id


def constraint_of(config: dict[str, Any], run_id: str) -> str:
    """Which codes a run cannot write: none, hard or full."""
    arm, _ = arm_ids(config).get(run_id, (None, None))
    own = config["ablation"]["arms"][arm] if arm else {}
    return own.get("constrained", config["generate"]["constrained"])


def tracked_config(config: dict[str, Any]) -> dict[str, Any]:
    """What scorecard and report rest on: all but what other targets alone read and what reruns nothing."""
    return {
        section: {key: value for key, value in content.items() if key not in UNTRACKED.get(section, ())}
        if isinstance(content, dict)
        else content
        for section, content in config.items()
        if section not in ("ablation", "publish", "quality")
    }


def raw_dir(config: dict[str, Any]) -> str:
    """Folder of the raw tables; the simulated ones lie outside results/, because they hold ethnicity."""
    if config["cohort"]["source"] == "simulated":
        return f"raw/{config['experiment']}"
    return config["raw_dir"] or ""


def raw_tables(config: dict[str, Any]) -> list[str]:
    """Paths of the raw tables that the source reads; the simulated ones need not exist yet.

    Raises UserError where raw_dir is not set or a table is missing.
    """
    if config["cohort"]["source"] == "simulated":
        return [f"{raw_dir(config)}/{table}.csv.gz" for table in MIMIC3]
    return [str(path) for path in find_tables(config["cohort"]["source"], config["raw_dir"]).values()]
