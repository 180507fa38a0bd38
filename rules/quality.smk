# Quality: the main run's figures with their targets, over several generation seeds and on one large sample, beside
# the other runs, naive methods and held-out real visits. The samples use the rules of every other run under names of
# their own (quality-<run>-g<seed>, quality-<run>-large), so that a new seed is generated alone. evaluate_all does not
# run them. Nothing is trained beyond the runs themselves.
#
# needs  models/<run>/; evaluation/<name>/*.json of the samples; evaluation/real/, for the figures that do not
#        depend on how many visits are scored; evaluation/<run>/reconstruction.json
# makes  quality.json   a row a figure and run: mean and interval over seeds, interval over patients, verdict
#        quality.md     the same as a table to read


rule summarize_quality:
    input:
        records=registry.records(RUNS.values(), "quality"),
        targets=workflow_file("resources", "quality_targets.csv"),
        metrics=METRICS,
        modules=modules_of("summarize_quality"),
    output:
        table=f"{RESULTS}/quality.json",
        table_md=report(f"{RESULTS}/quality.md", category="Quality"),
    log:
        f"{RESULTS}/logs/summarize_quality.log",
    benchmark:
        f"{RESULTS}/timings/summarize_quality.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=named(
            experiment=config["experiment"],
            cohort=config["cohort"]["source"],
            patients=config["quality"]["patients"],
            large=config["quality"]["large"],
            constrained=config["generate"]["constrained"],
            samples=json.dumps([[run.name, run.source, run.seed, run.large] for run in of_kind("sample")]),
            timings=f"{RESULTS}/timings",
        ),
    script:
        "../workflow_scripts/summarize_quality.py"
