# Ablation: arms that differ from each other in one thing, trained with several seeds each and compared.
# `ablation` in the config names them. Their trainings go through the rules of every other run, under ids
# of their own (ablation-<arm>-s<seed>), so that a new arm runs alone; evaluate_all does not know them.
#
# needs  dataset/; evaluation/<id>/{heads,medical_validity,fidelity}.json, also those of `real`
# makes  ablation.csv, ablation.json   one row an arm and figure, with intervals and a verdict
#        ablation.svg                  the same as a picture

ABLATION_EVALUATIONS = ("medical_validity", "fidelity")


rule summarize_ablation:
    input:
        records=[
            results("evaluation", name, f"{kind}.json")
            for kind in ABLATION_EVALUATIONS
            for name in [*ARMS, "real"]
        ],
        heads=[results("evaluation", run, "heads.json") for run in ARMS if trained_as(config, run) == run],
        metrics=workflow_file("resources", "metrics.csv"),
        modules=modules_of("summarize_ablation"),
    output:
        table=results("ablation.json"),
        table_csv=report(results("ablation.csv"), category="Ablation"),
        figure=report(results("ablation.svg"), category="Ablation"),
    log:
        log_of("summarize_ablation"),
    benchmark:
        timing_of("summarize_ablation")
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=named(
            experiment=config["experiment"],
            reference=config["ablation"]["reference"],
            arms=json.dumps([[run, *ARMS[run], trained_as(config, run)] for run in ARMS]),
        ),
    script:
        "../workflow_scripts/summarize_ablation.py"
