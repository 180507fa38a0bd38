# Ablation: arms that differ in one thing, trained with several seeds each and compared. `ablation` in the config
# names them. They use the rules of every other run under names of their own (ablation-<arm>-s<seed>), so that a new
# arm runs alone. evaluate_all does not run them.
#
# needs  dataset/; evaluation/<name>/{heads,medical_validity,fidelity}.json, also those of `real`
# makes  ablation.csv, ablation.json   one row an arm and figure, with intervals and a verdict
#        ablation.svg                  the same as a figure


rule summarize_ablation:
    input:
        records=registry.records(RUNS.values(), "ablation"),
        metrics=METRICS,
        modules=modules_of("summarize_ablation"),
    output:
        table=f"{RESULTS}/ablation.json",
        table_csv=report(f"{RESULTS}/ablation.csv", category="Ablation"),
        figure=report(f"{RESULTS}/ablation.svg", category="Ablation"),
    log:
        f"{RESULTS}/logs/summarize_ablation.log",
    benchmark:
        f"{RESULTS}/timings/summarize_ablation.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=named(
            experiment=config["experiment"],
            reference=config["ablation"]["reference"],
            arms=json.dumps([[run.name, run.source, run.seed, run.trained_by] for run in of_kind("arm")]),
        ),
    script:
        "../workflow_scripts/summarize_ablation.py"
