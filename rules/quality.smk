# Quality: the figures that the main run is held to, over several generation seeds and on one large sample,
# beside another run, naive methods and held-out real visits. The visits go through the rules of every other
# run, under ids of their own (quality-<run>-g<seed>, quality-<run>-large), so that a seed more is generated
# alone; evaluate_all does not know them. Nothing is trained for it beyond the runs themselves.
#
# needs  models/<run>/; evaluation/<id>/*.json of the samples; evaluation/real/, of which those figures are
#        taken that do not depend on how many visits are scored; evaluation/<run>/reconstruction.json
# makes  quality.json   a row a figure and run: mean and interval over seeds, interval over patients, verdict
#        quality.md     the same as a table to read


QUALITY_RECONSTRUCTED = [
    *quality_runs(config),
    *(method for method in METHODS if {"synthesize", "reconstruct"} <= {*METHODS[method]}),
]
QUALITY_FIRST = [
    name for name, sample in QUALITY.items() if not sample.large and sample.seed == config["generate"]["seed"]
]
# evaluation -> what it scores. The last three cost minutes each: the first seed alone. The classifier sees
# more with more visits, and on few it is void, so that it also gets the large sample.
QUALITY_EVALUATIONS = {
    "medical_validity": [*QUALITY, "real"],
    "fidelity": [*QUALITY, QUALITY_REAL],
    "reconstruction": QUALITY_RECONSTRUCTED,
    "classifier": [
        *QUALITY_FIRST,
        *(name for name, sample in QUALITY.items() if sample.large),
        QUALITY_REAL,
        "real",
    ],
    "privacy": [*QUALITY_FIRST, "real"],
    "utility": [*QUALITY_FIRST, QUALITY_REAL],
}


rule summarize_quality:
    input:
        records=[
            results("evaluation", name, f"{kind}.json")
            for kind in QUALITY_EVALUATIONS
            for name in QUALITY_EVALUATIONS[kind]
        ],
        targets=workflow_file("resources", "quality_targets.csv"),
        metrics=workflow_file("resources", "metrics.csv"),
        modules=modules_of("summarize_quality"),
    output:
        table=results("quality.json"),
        table_md=report(results("quality.md"), category="Quality"),
    log:
        log_of("summarize_quality"),
    benchmark:
        timing_of("summarize_quality")
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
            samples=json.dumps([[name, *QUALITY[name][:2], QUALITY[name].large] for name in QUALITY]),
            timings=results("timings"),
        ),
    script:
        "../workflow_scripts/summarize_quality.py"
