# External: visits that somebody else's generator made, scored by the same code against the same real data.
# `evaluate.external` in the config names them; no model is trained.
#
# needs  files or folders named in the config, dataset/, synthetic/ of the naive methods
# makes  synthetic/<name>/synthesize.parquet   the visits, with ids of our own
#        external.json, external.csv           their records beside real, copy and naive


rule read_external:
    input:
        files=lambda wildcards: external_files(wildcards.external),
        modules=modules_of("read_external"),
    output:
        synthetic=results("synthetic", "{external}", "synthesize.parquet"),
        counts=results("synthetic", "{external}", "synthesize.json"),
    log:
        log_of("read_external", "{external}"),
    benchmark:
        timing_of("read_external", "{external}")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            source=lambda wildcards: EXTERNAL[wildcards.external],
        ),
    script:
        "../workflow_scripts/read_external.py"


rule summarize_external:
    input:
        records=[
            results("evaluation", name, f"{kind}.json")
            for kind in EXTERNAL_EVALUATIONS
            for name in [*EXTERNAL, *NAIVE_SYNTHESIZED, "real"]
        ],
        metrics=workflow_file("resources", "metrics.csv"),
        modules=modules_of("summarize_external"),
    output:
        scorecard=results("external.json"),
        scorecard_csv=results("external.csv"),
    log:
        log_of("summarize_external"),
    benchmark:
        timing_of("summarize_external")
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=named(
            experiment=config["experiment"],
            names=list(EXTERNAL),
        ),
    script:
        "../workflow_scripts/summarize_external.py"
