"""The check of the config against its schema, and the raw tables that it names.

Imported while Snakemake parses the workflow, so it imports neither torch nor anything that reads data.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cohortloom.base.errors import UserError
from cohortloom.base.methods import NAIVE
from cohortloom.base.planting import MIN_CANARIES
from cohortloom.base.step import UNTRACKED
from cohortloom.config.runs import ARM_PREFIX, PRIVACY_PREFIX, QUALITY_PREFIX
from cohortloom.sources.locate import declared, find_tables

RAW_DIR_VARIABLE = "COHORTLOOM_RAW_DIR"


def load_schema(path: Path) -> dict[str, Any]:
    """The schema; runs and arms may have the keys of train, except its seed and the untracked ones."""
    import yaml

    with open(path, encoding="utf-8") as file:
        schema = yaml.safe_load(file)
    train = schema["properties"]["train"]["properties"]
    of_a_model = {key: part for key, part in train.items() if key not in ("seed", *UNTRACKED["train"])}
    for table in (schema["properties"]["runs"], schema["properties"]["ablation"]["properties"]["arms"]):
        table["additionalProperties"]["properties"] |= of_a_model
    return schema


def check_config(
    config: dict[str, Any],
    schema_path: Path,
    files: Sequence[str] = (),
    command_line: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The checked config, with raw_dir looked up and without runs and arms that are null.

    files: config files in their order. command_line: values of --config. Messages name the one that sets a
    key. Raises UserError for the first unknown key, wrong type, value out of range or reserved name.
    """
    schema = load_schema(schema_path)
    for path in non_text_keys(config):
        raise UserError(f"{origin(path, files, command_line)}: {explain_yaml_name(path)}")
    if isinstance(config["cohort"], dict) and config["cohort"].get("source") == "simulated":
        config["raw_dir"] = None  # unused, so it must not cause a rerun
    else:
        config["raw_dir"] = config.get("raw_dir") or os.environ.get(RAW_DIR_VARIABLE) or None
    errors = sorted(strict_validator(schema).iter_errors(config), key=lambda error: len(error.absolute_path))
    if errors:
        raise UserError(f"{origin(key_of(errors[0]), files, command_line)}: {explain(errors[0])}")
    runs = {name: run for name, run in config["runs"].items() if run is not None}
    config["runs"] = runs
    for name in runs:
        if is_reserved(name) or re.search(r"-s\d+$", name):
            raise UserError(f"config: runs.{name}: this name is taken; choose another one for the run")
    if config["main_run"] not in runs:
        known = ", ".join(runs)
        raise UserError(f"config: main_run: {config['main_run']!r} is not among runs; choose from {known}")
    if code_map := config["cohort"]["code_map"]:
        check_braces("config: cohort.code_map", code_map)
        if not Path(code_map).is_file():
            raise UserError(f"config: cohort.code_map: {code_map}: no such file; correct the path")
    check_arms(config)
    check_canaries(config)
    dataset = config["dataset"]
    if dataset["val_fraction"] + dataset["test_fraction"] >= 1:
        raise UserError("config: dataset: val_fraction and test_fraction leave nothing to train on")
    for name, path in config["evaluate"]["external"].items():
        if is_reserved(name):
            raise UserError(f"config: evaluate.external.{name}: this name is taken; choose another one")
        check_braces(f"config: evaluate.external.{name}", path)
        if not Path(path).exists():
            raise UserError(f"config: evaluate.external.{name}: {path}: no such file; correct the path")
    demographics = config["generate"]["demographics"]
    check_braces("config: generate.demographics", demographics)
    check_braces("config: raw_dir", config["raw_dir"] or "")
    check_braces("config: publish.terms", config["publish"]["terms"] or "")
    check_braces("config: export.athena", config["export"]["athena"] or "")
    if demographics not in ("test", "train") and not Path(demographics).is_file():
        raise UserError(
            f"config: generate.demographics: {demographics} is no file; give test, train or a CSV of patients"
        )
    return config


def check_braces(where: str, path: str) -> None:
    """Raise UserError for a path of a rule with braces, in which Snakemake reads a wildcard."""
    if "{" in path or "}" in path:
        raise UserError(
            f"{where}: {path}: Snakemake cannot read a path with braces; rename it, or give a link to it"
        )


def is_reserved(name: str) -> bool:
    """Whether a name under runs or evaluate.external is that of another run."""
    return name == "real" or name in NAIVE or name.startswith((ARM_PREFIX, PRIVACY_PREFIX, QUALITY_PREFIX))


def check_arms(config: dict[str, Any]) -> None:
    """Drop arms that are null; raise UserError for an arm whose `model` is not an arm that is trained."""
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
    """Raise UserError for too few canaries, and for any in the main run, which may be released."""
    for name, run in config["runs"].items():
        count = {**config["train"], **run}["canaries"]
        where = f"config: {f'runs.{name}' if 'canaries' in run else 'train'}.canaries: {count}"
        if 0 < count < MIN_CANARIES:
            raise UserError(f"{where} are too few for a figure; give {MIN_CANARIES} or more, or 0")
        if count and name == config["main_run"]:
            raise UserError(
                f"{where}: none may be planted into the main run {name!r}; give them to another run"
            )


def strict_validator(schema: dict[str, Any]) -> Any:
    """A validator for which 2.0 is not an integer, as for Python's range."""
    import jsonschema

    plain = jsonschema.Draft202012Validator
    type_checker = plain.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    return jsonschema.validators.extend(plain, type_checker=type_checker)(schema)


def non_text_keys(config: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of the keys that are not text: YAML reads the names 2024 and no as a number and a bool."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if not isinstance(key, str):
            yield (*path, key)
        yield from non_text_keys(value, (*path, key))


def explain_yaml_name(path: tuple) -> str:
    """The message on a key that YAML does not read as text."""
    *above, key = path
    name, kind = str(key), "number"
    if isinstance(key, bool) or key is None:
        name = {True: "yes, on or true", False: "no, off or false", None: "null"}[key]
        kind = "null" if key is None else "truth value"
    where = f"{'.'.join(map(str, above))}: " if above else ""
    return f"{where}YAML takes the name {name} for a {kind}; put it in quotes or choose another name"


def key_of(error: Any) -> tuple:
    """Path of the key of a schema error."""
    path = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        return (*path, unknown_key(error))
    return (*path, error.instance) if error.validator == "propertyNames" else path


def unknown_key(error: Any) -> str:
    """The first key that is not in the schema."""
    return next(key for key in error.instance if key not in error.schema.get("properties", {}))


def origin(path: tuple, files: Sequence[str], command_line: Mapping[str, Any] | None) -> str:
    """Where a key was last set: --config, a file, or `config` if neither has it."""
    import yaml

    def is_in(content: Any) -> bool:
        for key in path:
            if not isinstance(content, Mapping) or key not in content:
                return False
            content = content[key]
        return True

    if is_in(command_line or {}):
        return "--config"
    for file in reversed(files):
        with open(file, encoding="utf-8") as text:
            if is_in(yaml.safe_load(text)):
                return os.path.relpath(file)
    return "config"


def explain(error: Any) -> str:
    """One line on a schema error: the key, the mistake, the remedy."""
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        extra = unknown_key(error)
        key = f"{where}.{extra}" if where else extra
        return f"{key}: unknown key; {suggest(extra, list(error.schema.get('properties', {})))}"
    if error.validator == "propertyNames":
        return f"{where}: {error.instance!r} is not a name of letters, digits, _ and -"
    remedy = str(error.schema.get("description", "")).strip().rstrip(".") or "see config/schema.yaml"
    value = "null" if error.instance is None else str(error.instance)
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
    if error.validator == "type":
        value = repr(error.instance) if isinstance(error.instance, str) else value
        remedy = type_remedy(error.instance, error.validator_value) or remedy
    limit = error.validator_value
    limit = ", ".join(map(str, limit)) if isinstance(limit, list) else limit
    reason = limits.get(error.validator, "is wrong ({})").format(limit)
    return f"{where}: {value} {reason} ({remedy})"


def type_remedy(value: Any, types: str | list[str]) -> str | None:
    """The remedy for a value of the wrong type; None if only the description of the key helps."""
    types = [types] if isinstance(types, str) else types
    if "integer" in types and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, str) and "string" not in types:
        return "it is text; write it without quotes in a file and add --configfile FILE"
    if "string" in types and value is not None and not isinstance(value, (dict, list)):
        return "put it in quotes"
    return None


def suggest(word: str, known: list[str]) -> str:
    """A hint: the most similar known key, or all known keys."""
    import difflib

    match = difflib.get_close_matches(word, known, 1)
    return f"did you mean {match[0]}?" if match else f"known here: {', '.join(known)}"


def tracked_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of the config that affects scorecard and report.

    Without the sections of other targets and the keys that rerun nothing.
    """
    return {
        section: {key: value for key, value in content.items() if key not in UNTRACKED.get(section, ())}
        if isinstance(content, dict)
        else content
        for section, content in config.items()
        if section not in ("ablation", "export", "publish", "quality")
    }


def raw_dir(config: dict[str, Any]) -> str:
    """Folder of the raw tables; simulated ones are outside results/, because they hold ethnicity."""
    if config["cohort"]["source"] == "simulated":
        return f"raw/{config['experiment']}"
    return config["raw_dir"] or ""


def raw_tables(config: dict[str, Any]) -> list[str]:
    """Paths of the raw tables of the source; simulated ones need not exist yet.

    Raises UserError if raw_dir is not set or a table is missing.
    """
    cohort = config["cohort"]
    if cohort["source"] == "simulated":
        used = cohort["columns"]
        tables = declared("simulated").tables.values()
        names = [table.name for table in tables if not (used and table.column) or table.column in used]
        return [f"{raw_dir(config)}/{name}.csv.gz" for name in names]
    found = find_tables(cohort["source"], config["raw_dir"], cohort["columns"])
    return [str(path) for files in found.values() for path in files]
