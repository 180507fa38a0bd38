# External: another generator's visits, scored in the same way against the same real data.
# `evaluate.external` in the config names them; no model is trained.
#
# needs  files or folders named in the config, dataset/, synthetic/ of the naive methods
# makes  synthetic/<name>/synthesize.parquet   the visits, with ids of our own
#        external.json, external.csv           their records beside real, copy and naive methods

# Tables and events are read as those of the sources are.
SQL_OF_EXTERNAL = [
    workflow_file("workflow_scripts", "cohortloom", "sources", f"{name}.sql")
    for name in ("mimic3", "mimic4", "omop", "eicu", "meds")
]


rule read_external:
    input:
        files=of_run("source_files"),
        icd9_list=ancient(workflow_file("resources", "titles", "ICD9CM.csv")),  # an edited title reruns nothing
        code_map=config["cohort"]["code_map"] or [],
        sql=SQL_OF_EXTERNAL,
        modules=modules_of("read_external"),
    output:
        synthetic=f"{RESULTS}/synthetic/{{run}}/synthesize.parquet",
        counts=f"{RESULTS}/synthetic/{{run}}/synthesize.json",
    log:
        f"{RESULTS}/logs/read_external.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/read_external.{{run}}.tsv"
    wildcard_constraints:
        run=any_of(of_kind("external")),
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        source=of_run("source"),
        settings=named(
            unmapped=config["cohort"]["unmapped"],
            max_dropped=config["evaluate"]["max_dropped"],
        ),
    script:
        "../workflow_scripts/read_external.py"


rule summarize_external:
    input:
        records=external_records,
        metrics=METRICS,
        modules=modules_of("summarize_external"),
    output:
        scorecard=f"{RESULTS}/external.json",
        scorecard_csv=f"{RESULTS}/external.csv",
    log:
        f"{RESULTS}/logs/summarize_external.log",
    benchmark:
        f"{RESULTS}/timings/summarize_external.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=named(
            experiment=config["experiment"],
            names=[run.name for run in of_kind("external")],
        ),
    script:
        "../workflow_scripts/summarize_external.py"
