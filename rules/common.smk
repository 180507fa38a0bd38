# Common: the checked config, the registry of runs, and the functions that rules call. It has no rules.
#
# needs  config, resources/publication.yaml
# makes  RESULTS, RUNS and the functions below
#
# Nothing here imports more than the standard library and the schema check, so that parsing is fast.
import os
import shlex
import sys
from pathlib import Path

WORKFLOW = Path(str(workflow.current_basedir)).parent
SCRIPTS = WORKFLOW / "workflow_scripts"
if str(SCRIPTS) not in sys.path:
    sys.path.append(str(SCRIPTS))

from cohortloom.base.errors import UserError
from cohortloom.base.files import tables_in
from cohortloom.base.imports import imported_files
from cohortloom.base.methods import FITTED, NAIVE
from cohortloom.config import runs as registry
from cohortloom.config.check import check_braces, check_config, raw_dir, raw_tables, tracked_config
from cohortloom.release.terms import terms_in_words, terms_of

try:
    config = check_config(
        config,
        WORKFLOW / "config" / "schema.yaml",
        [WORKFLOW / "config" / "config.yaml", *workflow.overwrite_configfiles],
        workflow.config_settings.config,
    )
    RESULTS = f"results/{config['experiment']}"
    RUNS = registry.all_runs(config, RESULTS)  # name -> Run, for all that is generated and scored
    RAW_TABLES = raw_tables(config)
    check_braces("the folder of the workflow", os.path.relpath(WORKFLOW))
except UserError as error:
    sys.exit(f"error: {error}")


class Quoted(str):
    """A path that is quoted where it is put into a command line."""

    def __format__(self, spec):
        return format(shlex.quote(str(self)), spec)


# Snakemake puts the path of its interpreter unquoted into the command line of a script, where a blank would split it.
sys.executable = Quoted(sys.executable)

MAIN = registry.main_run(config, RUNS.values())


def workflow_file(*parts):
    """A file of the workflow itself, relative to the working directory: both may be moved together."""
    return os.path.relpath(WORKFLOW.joinpath(*parts))


def tables_of(folder):
    """The tables in a folder of resources/, one a code system."""
    paths = tables_in(WORKFLOW / "resources" / folder)
    return [workflow_file("resources", folder, path.name) for path in paths]


VALIDITY = tables_of("validity")
TITLES = tables_of("titles")
METRICS = workflow_file("resources", "metrics.csv")


def of_kind(kind):
    """The runs of a kind: training, arm, sample, naive, external or real."""
    return [run for run in RUNS.values() if run.kind == kind]


def any_of(runs):
    """A wildcard constraint: the names of these runs."""
    return "|".join(run.name for run in runs) or "none"


wildcard_constraints:
    run=any_of(RUNS.values()),
    mode="reconstruct|synthesize",


def of_run(field, key=None):
    """A field of the Run of the wildcard in the registry, or a key of that field."""

    def answer(wildcards):
        value = getattr(RUNS[wildcards.run], field)
        return value if key is None else value[key]

    return answer


def model_of_run(wildcards):
    """Files of the model that generates the run; none where no model does."""
    run = RUNS[wildcards.run]
    return expand(rules.train.output, run=run.trained_by) if run.trained_by else []


def validation_of_run(wildcards):
    """The validation visits, if a naive method chooses its settings on them."""
    return rules.build_dataset.output.val if RUNS[wildcards.run].source == FITTED else []


def counts_of_fitted_run(wildcards):
    """The counts of a naive method with settings chosen on validation visits, which they hold."""
    counts = f"{RESULTS}/synthetic/{wildcards.run}/reconstruct.json"
    return counts if RUNS[wildcards.run].source == FITTED else []


def attacked_model_of_run(wildcards):
    """Files of the attacked model: the run's own, for `real` the main run's."""
    return expand(rules.train.output, run=RUNS[wildcards.run].attacked)


def edits_if(field):
    """The validity tables, if this field of the run is true."""
    return lambda wildcards: VALIDITY if getattr(RUNS[wildcards.run], field) else []


def external_records(wildcards):
    """Records of external visits and of their references; ends the workflow if no visits are named.

    Snakemake calls this only to run evaluate_external.
    """
    if not of_kind("external"):
        sys.exit("error: config: evaluate.external: no visits are named; give NAME: PATH of those to score")
    return registry.records(RUNS.values(), "evaluate_external")


def model_to_publish(wildcards):
    """Files of the main run's model; ends the workflow if models of the source may not be published.

    Snakemake calls this only to run publish: other targets may use any source.
    """
    try:
        stated = config["publish"]["terms"]
        terms_of(
            config["cohort"]["source"], WORKFLOW / "resources" / "publication.yaml", stated and Path(stated)
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    return expand(rules.train.output, run=MAIN.name)


def named(*sections, **values):
    """A rule's settings as one param, which records each value with its name.

    Snakemake compares the params of a job as a set of values without names, and so misses some changes. A value, or a
    section of several, may be a function of the wildcards. Sorted, because an overlay changes the order of the keys.
    """

    def settings(wildcards):
        resolve = lambda value: value(wildcards) if callable(value) else value
        params = {name: resolve(value) for name, value in values.items()}
        for section in sections:
            params |= resolve(section)
        return dict(sorted(params.items()))

    return settings


def share_of_cores(jobs=2):
    """Threads of a job with a model if `jobs` such jobs run at the same time: up to 8.

    Two jobs of one thread each end sooner than two jobs of two threads one after the other: one computes while the
    other starts. A cluster's job uses the CPUs of its cpus_per_task.
    """
    cores = workflow.resource_settings.cores
    if cores is None or workflow.remote_exec:
        return 8
    return max(1, min(8, cores // jobs))


def modules_of(script):
    """The script and every module of this repository that it imports: inputs of its rule."""
    return [workflow_file(path.relative_to(WORKFLOW)) for path in imported_files(script)]


def athena_files(wildcards):
    """The files of a download of vocabularies; ends the workflow if there are none.

    Snakemake calls this only to export omop: other targets do not read them.
    """
    athena = config["export"]["athena"]
    if athena is None:
        return []
    found = sorted(str(path) for path in Path(athena).glob("*.csv"))
    return found or sys.exit(
        f"error: config: export.athena: {athena}: holds no .csv; give a download from Athena"
    )


def exported_files(wildcards):
    """All files of the exports of trained runs that may be exported: the main run always may.

    Where they go and what they are called stands in export.smk.
    """
    return [
        f"{EXPORTS}/{format}/{run.name}/{name}"
        for format in config["export"]["formats"]
        for run in of_kind("training")
        if run.exportable
        for name in FILES[format]
    ]


def stated_terms(wildcards):
    """The site's own terms of its source; ends the workflow if their file is faulty, or not for this source.

    Snakemake calls this only to export: other targets do not read them. What it calls stands in export.smk.
    """
    if (stated := config["publish"]["terms"]) is None:
        return []
    try:
        terms_in_words(config["cohort"]["source"], TERMS_FILE, Path(stated))
    except UserError as error:
        sys.exit(f"error: {error}")
    return stated
