# Export: synthesized visits in formats that other tools read. evaluate_all does not run it.
#
# needs  synthetic/<run>/synthesize.parquet of a run that may be exported (config/runs.py): never real, copied, external
#        or reconstructed visits, and none of a model with planted patients
# makes  exports/<format>/<run>/   the format's files, README.md, cohortloom.json
from cohortloom.release.layout import EXPORTED, omop_files
from cohortloom.sources.locate import declared

EXPORTS = f"{RESULTS}/exports"
EXPORTABLE = [run for run in RUNS.values() if run.exportable]
ATHENA = config["export"]["athena"]
OF_OMOP = {key: config["export"][key] for key in ("athena", "unmapped", "table_files")}
FILES = EXPORTED | {"omop": omop_files(OF_OMOP["table_files"], ATHENA is not None)}  # format -> files
TERMS_FILE = WORKFLOW / "resources" / "publication.yaml"
TERMS = workflow_file("resources", "publication.yaml")
README = workflow_file("resources", "export.md.j2")
OF_EXPORT = dict(
    experiment=config["experiment"],
    source=config["cohort"]["source"],
    seed=config["generate"]["seed"],
    placeholder_days=declared(config["cohort"]["source"]).days_are_placeholders,
)


rule export_meds:
    input:
        synthetic=of_run("synthesized"),
        titles=TITLES,
        terms=TERMS,
        site_terms=stated_terms,
        readme=README,
        modules=modules_of("export_meds"),
    output:
        files=[f"{EXPORTS}/meds/{{run}}/{name}" for name in FILES["meds"]],
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
        settings=named(OF_EXPORT),
    script:
        "../workflow_scripts/{params.script}.py"


use rule export_meds as export_omop with:
    input:
        synthetic=of_run("synthesized"),
        titles=TITLES,
        terms=TERMS,
        site_terms=stated_terms,
        readme=README,
        cdm=workflow_file("resources", "omop_cdm54.csv"),
        vocabularies=athena_files,
        modules=modules_of("export_omop"),
    output:
        files=[f"{EXPORTS}/omop/{{run}}/{name}" for name in FILES["omop"]],
    log:
        f"{RESULTS}/logs/export_omop.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/export_omop.{{run}}.tsv"
    params:
        script="export_omop",
        run="{run}",
        folder=f"{EXPORTS}/omop/{{run}}",
        settings=named(OF_EXPORT, OF_OMOP),


use rule export_meds as export_mimic4 with:
    input:
        synthetic=of_run("synthesized"),
        titles=TITLES,
        terms=TERMS,
        site_terms=stated_terms,
        readme=README,
        modules=modules_of("export_mimic4"),
    output:
        files=[f"{EXPORTS}/mimic4/{{run}}/{name}" for name in FILES["mimic4"]],
    log:
        f"{RESULTS}/logs/export_mimic4.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/export_mimic4.{{run}}.tsv"
    params:
        script="export_mimic4",
        run="{run}",
        folder=f"{EXPORTS}/mimic4/{{run}}",
        settings=named(OF_EXPORT),


use rule export_meds as export_mimic3 with:
    input:
        synthetic=of_run("synthesized"),
        titles=TITLES,
        terms=TERMS,
        site_terms=stated_terms,
        readme=README,
        modules=modules_of("export_mimic3"),
    output:
        files=[f"{EXPORTS}/mimic3/{{run}}/{name}" for name in FILES["mimic3"]],
    log:
        f"{RESULTS}/logs/export_mimic3.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/export_mimic3.{{run}}.tsv"
    params:
        script="export_mimic3",
        run="{run}",
        folder=f"{EXPORTS}/mimic3/{{run}}",
        settings=named(OF_EXPORT),
