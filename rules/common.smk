# Helpers only, no rules: the checked config, names of files, run ids, imported modules, params.
# Nothing here imports more than the standard library and the schema check, so that parsing is fast.
import os
import sys
from pathlib import Path

WORKFLOW = Path(str(workflow.current_basedir)).parent
SCRIPTS = WORKFLOW / "workflow_scripts"
if str(SCRIPTS) not in sys.path:
    sys.path.append(str(SCRIPTS))

from cohortloom.base.imports import imported_files
from cohortloom.config.check import (
    QUALITY_REAL,
    UNTRACKED,
    arm_ids,
    canary_run_ids,
    check_config,
    constraint_of,
    main_run_id,
    quality_runs,
    quality_samples,
    raw_dir,
    raw_tables,
    run_ids,
    tracked_config,
    train_keywords,
    trained_as,
)
from cohortloom.base.errors import UserError
from cohortloom.release.terms import terms_of

try:
    config = check_config(config, WORKFLOW / "config" / "schema.yaml")
    RAW_TABLES = raw_tables(config)
except UserError as error:
    sys.exit(f"error: {error}")

RAW_DIR = raw_dir(config)
RESULTS = f"results/{config['experiment']}"
RUNS = run_ids(config)  # run id -> (name under `runs`, seed)
ARMS = arm_ids(config)  # the same for the trainings of the ablation, which evaluate_all leaves alone
CANARY_RUNS = canary_run_ids(config)  # those that patients are planted into; none by default
QUALITY = quality_samples(config)  # id -> visits of the quality table, which evaluate_all leaves alone too
NAIVE = {
    "prevalence": ("synthesize", "reconstruct"),
    "markov": ("synthesize", "reconstruct"),
    "copy": ("synthesize",),
    "echo": ("reconstruct",),
}
REAL = ("real", QUALITY_REAL)  # held-out visits, the second time as many as the quality table scores
MODES = ("reconstruct", "synthesize")
METHODS = {method: NAIVE[method] for method in config["naive"]}
NAIVE_SYNTHESIZED = [method for method, modes in METHODS.items() if "synthesize" in modes]
QUALITY_NAIVE = [name for name, sample in QUALITY.items() if sample.source in NAIVE]
EXTERNAL = config["evaluate"]["external"]  # name -> file or folder that somebody else made
EXTERNAL_EVALUATIONS = ("medical_validity", "fidelity", "classifier", "privacy", "utility", "conditioning")


wildcard_constraints:
    run="|".join([*RUNS, *ARMS, *(name for name in QUALITY if name not in QUALITY_NAIVE)]),
    method="|".join([*METHODS, *QUALITY_NAIVE]) or "none",
    external="|".join(EXTERNAL) or "none",
    name="|".join([*RUNS, *ARMS, *METHODS, *EXTERNAL, *QUALITY, "real", QUALITY_REAL]),
    mode="|".join(MODES),


def results(*parts: str) -> str:
    """A path below the experiment's folder, relative to the working directory."""
    return "/".join((RESULTS, *parts))


def log_of(rule: str, *wildcards: str) -> str:
    """The log of a rule's job: results/<experiment>/logs/<rule>.<wildcards>.log."""
    return results("logs", ".".join((rule, *wildcards, "log")))


def timing_of(rule: str, *wildcards: str) -> str:
    """The benchmark of a rule's job: results/<experiment>/timings/<rule>.<wildcards>.tsv."""
    return results("timings", ".".join((rule, *wildcards, "tsv")))


def named(**values):
    """A rule's settings as one param, which records each value with its name.

    Snakemake compares the params of a job as a set of bare values: 0.3 changed to 0.5 goes unseen where another
    key holds 0.3 and a third 0.5. A value may be a function of the wildcards. By name, for an overlay changes
    the order of the config's keys.
    """
    return lambda wildcards: {
        name: value(wildcards) if callable(value) else value for name, value in sorted(values.items())
    }


def share_of_cores(jobs: int = 2) -> int:
    """Threads of a job that works with a model, of which `jobs` have work at the same time: up to 8.

    Two trainings of one thread each see a third more tokens than one after the other with two, and a job starts
    and reads while another computes. Where one is much longer than the other the gain is lost at its end. A cluster's job uses the CPUs that its cpus_per_task asks for.
    """
    cores = workflow.resource_settings.cores
    if cores is None or workflow.remote_exec:
        return 8
    return max(1, min(8, cores // jobs))


def workflow_file(*parts: str) -> str:
    """A file of the workflow itself, relative to the working directory.

    A relative name survives moving the repository and its results together.
    """
    return os.path.relpath(WORKFLOW.joinpath(*parts))


def workflow_files(folder: str, pattern: str) -> list[str]:
    """Files of the workflow that match a pattern, in order of name."""
    return [workflow_file(folder, path.name) for path in sorted((WORKFLOW / folder).glob(pattern))]


def trained(key: str):
    """The value of a train key for the run in the wildcard."""
    return lambda wildcards: train_keywords(config, wildcards.run)[key]


def edits_for(used: bool) -> str | None:
    """The validity table, where a training or a generation uses it."""
    return workflow_file("resources", "icd9_validity.csv") if used else None


def edits_of_training(wildcards) -> str | None:
    """The validity table, where the run's loss or its canaries need it."""
    keywords = train_keywords(config, wildcards.run)
    return edits_for(keywords["forbidden_weight"] > 0 or keywords["canaries"] > 0)


def edits_of_generation(wildcards) -> str | None:
    """The validity table, where the run may not write what it forbids."""
    return edits_for(constraint_of(config, wildcards.run) != "none")


def decoding(key: str):
    """The value of a decoding key for the mode in the wildcard."""
    return lambda wildcards: config["generate"][wildcards.mode][key]


def shard_of(wildcards) -> tuple[int, int]:
    """Which part of how many a job of the rule generate makes."""
    number, _, count = wildcards.get("scatteritem", "1-of-1").split("-")
    return int(number), int(count)


def sampled(name: str, key: str, otherwise):
    """Seed or patients of a sample of the quality table; what any other run takes otherwise."""
    return getattr(QUALITY[name], key) if name in QUALITY else otherwise


def demographics_of(run: str) -> str:
    """Whose ages and sexes a run takes; the quality table is about those of held-out patients."""
    return "test" if run in QUALITY else config["generate"]["demographics"]


def demographics_file_of(run: str) -> list[str]:
    """The CSV of requested patients, where a run takes one."""
    return [name for name in [demographics_of(run)] if name not in ("train", "test")]


def scored_visits(kind: str):
    """How many visits an evaluation scores; for the quality table at most what the sample was asked for."""
    own = config["evaluate"][kind]["visits"]

    def visits(wildcards) -> int:
        if wildcards.name not in QUALITY and wildcards.name != QUALITY_REAL:
            return own
        asked = sampled(wildcards.name, "patients", config["quality"]["patients"])
        return asked if kind == "fidelity" else min(own, asked)

    return visits


def seed_of(name: str) -> int:
    """The training seed of a run, the generation seed of a sample; 0 for what was not trained."""
    if name in QUALITY:
        return QUALITY[name].seed
    return {**RUNS, **ARMS}.get(name, ("", 0))[1]


def counts_of(name: str) -> list[str]:
    """The counts of a generation; real visits were not generated."""
    return [] if name in REAL else [results("synthetic", name, "synthesize.json")]


def scored(mode: str) -> list[str]:
    """Runs and naive methods that write a mode."""
    return [*RUNS, *(method for method, modes in METHODS.items() if mode in modes)]


def visits_of(name: str, mode: str) -> str:
    """The visits to score: `real` stands for the held-out visits themselves."""
    return (
        results("dataset", "test.parquet") if name in REAL else results("synthetic", name, f"{mode}.parquet")
    )


def release_of(name: str) -> str:
    """The visits to compare with the held-out test visits: for `real` the validation visits."""
    return results("dataset", "val.parquet") if name in REAL else visits_of(name, "synthesize")


def external_files(name: str) -> list[str]:
    """The files of a foreign set of visits: itself, or the tables of its folder."""
    path = Path(EXTERNAL[name])
    return [str(file) for file in sorted(path.iterdir()) if file.is_file()] if path.is_dir() else [str(path)]


def model_of(name: str) -> str:
    """The run whose model is attacked: for `real` the main run's."""
    return main_run_id(config) if name == "real" else name


def planted_in(name: str) -> dict[str, int]:
    """The canaries that a run is asked about; for `real`, which saw none, those of the first run with any."""
    run = name if name in CANARY_RUNS else CANARY_RUNS[0]
    keywords = train_keywords(config, run)
    return {"canary_seed": seed_of(run), **{key: keywords[key] for key in ("canaries", "canary_repeats")}}


def model_files_of(name: str) -> list[str]:
    """The files of a run's model; none for what was not trained."""
    trained = name in RUNS or name in ARMS
    return [file.format(run=name) for file in rules.train.output] if trained else []


def model_to_publish(wildcards) -> list[str]:
    """The files of the main run's model; ends the workflow where the source's models may not be published.

    Snakemake asks for them only where publish is to run: other targets may use any source.
    """
    try:
        terms_of(config["cohort"]["source"], WORKFLOW / "resources" / "publication.yaml")
    except UserError as error:
        sys.exit(f"error: {error}")
    return model_files_of(main_run_id(config))


def modules_of(script: str) -> list[str]:
    """The script and every module of this repository that it imports: inputs of its rule."""
    return [workflow_file(path.relative_to(WORKFLOW)) for path in imported_files(script)]
