# Compare: score synthetic visits beside real patients in ways that train something of their own or
# look for single patients: a classifier, attacks, predictions, probes.
#
# needs  synthetic/, dataset/, models/
# makes  evaluation/<run>/<evaluation>.json   tidy records
#
# Each takes a release and compares it with held-out test visits. The release of `real` is therefore
# dataset/val.parquet: as many real visits, which no model was trained on and which are not the test ones.


rule evaluate_classifier:
    input:
        synthetic=lambda wildcards: release_of(wildcards.name),
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_classifier"),
    output:
        records=results("evaluation", "{name}", "classifier.json"),
    log:
        log_of("evaluate_classifier", "{name}"),
    benchmark:
        timing_of("evaluate_classifier", "{name}")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **config["evaluate"]["classifier"],
        sample_seed=config["evaluate"]["seed"],
        run="{name}",
        seed=lambda wildcards: seed_of(wildcards.name),
        mode="synthesize",
    script:
        "../workflow_scripts/evaluate_classifier.py"
