# Export: synthesized visits in formats that other tools read. evaluate_all does not run it.
#
# needs  synthetic/<run>/synthesize.parquet of a run that may be exported (config/runs.py): never real, copied, external
#        or reconstructed visits, and none of a model with planted patients
# makes  exports/<format>/<run>/   the format's files, README.md, cohortloom.json
from cohortloom.release.layout import EXPORTED
from cohortloom.sources.locate import declared

EXPORTS = f"{RESULTS}/exports"
EXPORTABLE = [run for run in RUNS.values() if run.exportable]
OF_EXPORT = named(
    experiment=config["experiment"],
    source=config["cohort"]["source"],
    seed=config["generate"]["seed"],
    placeholder_days=declared(config["cohort"]["source"]).days_are_placeholders,
)


rule export_meds:
    input:
        synthetic=of_run("synthesized"),
        titles=TITLES,
        terms=workflow_file("resources", "publication.yaml"),
        readme=workflow_file("resources", "export.md.j2"),
        modules=modules_of("export_meds"),
    output:
        files=[f"{EXPORTS}/meds/{{run}}/{name}" for name in EXPORTED["meds"]],
    log:
        f"{RESULTS}/logs/export_meds.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/export_meds.{{run}}.tsv"
    wildcard_constraints:
        run=any_of(EXPORTABLE),
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        script="export_meds",
        run="{run}",
        folder=f"{EXPORTS}/meds/{{run}}",
        settings=OF_EXPORT,
    script:
        "../workflow_scripts/{params.script}.py"


use rule export_meds as export_mimic4 with:
    input:
        synthetic=of_run("synthesized"),
        titles=TITLES,
        terms=workflow_file("resources", "publication.yaml"),
        readme=workflow_file("resources", "export.md.j2"),
        modules=modules_of("export_mimic4"),
    output:
        files=[f"{EXPORTS}/mimic4/{{run}}/{name}" for name in EXPORTED["mimic4"]],
    log:
        f"{RESULTS}/logs/export_mimic4.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/export_mimic4.{{run}}.tsv"
    params:
        script="export_mimic4",
        run="{run}",
        folder=f"{EXPORTS}/mimic4/{{run}}",
        settings=OF_EXPORT,


def exported_files(wildcards):
    """All files of the exports of trained runs; ends the workflow if no run may be exported."""
    runs = [run for run in of_kind("training") if run.exportable]
    if not runs:
        sys.exit(
            "error: config: runs: planted patients are in all of them; export needs a run without train.canaries"
        )
    return [
        f"{EXPORTS}/{format}/{run.name}/{name}"
        for format in config["export"]["formats"]
        for run in runs
        for name in EXPORTED[format]
    ]
