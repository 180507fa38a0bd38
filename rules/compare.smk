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
        settings=named(
            visits=scored_visits("classifier"),
            sample_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
            mode="synthesize",
        ),
    script:
        "../workflow_scripts/evaluate_classifier.py"


rule evaluate_privacy:
    input:
        synthetic=lambda wildcards: release_of(wildcards.name),
        train=rules.build_dataset.output.train,
        val=rules.build_dataset.output.val,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_privacy"),
    output:
        records=results("evaluation", "{name}", "privacy.json"),
    log:
        log_of("evaluate_privacy", "{name}"),
    benchmark:
        timing_of("evaluate_privacy", "{name}")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            **config["evaluate"]["privacy"],
            control=lambda wildcards: wildcards.name == "real",
            sample_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
            mode="synthesize",
        ),
    script:
        "../workflow_scripts/evaluate_privacy.py"


# The model's own likelihood. `real`: the main run's model on validation patients in place of its own.
rule evaluate_likelihood:
    input:
        model_files=lambda wildcards: model_files_of(model_of(wildcards.name)),
        train=rules.build_dataset.output.train,
        val=rules.build_dataset.output.val,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_likelihood"),
    output:
        records=results("evaluation", "{name}", "likelihood.json"),
    log:
        log_of("evaluate_likelihood", "{name}"),
    benchmark:
        timing_of("evaluate_likelihood", "{name}")
    conda:
        "../environment.yml"
    threads: share_of_cores()
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        settings=named(
            **config["evaluate"]["likelihood"],
            model=lambda wildcards: results("models", model_of(wildcards.name)),
            control=lambda wildcards: wildcards.name == "real",
            sample_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
        ),
    script:
        "../workflow_scripts/evaluate_likelihood.py"


# Patients who were planted into training. `real`: the main run's model and patients, into which none were.
rule evaluate_canaries:
    input:
        model_files=lambda wildcards: model_files_of(model_of(wildcards.name)),
        synthetic=lambda wildcards: visits_of(model_of(wildcards.name), "synthesize"),
        train=rules.build_dataset.output.train,
        vocabulary=rules.build_dataset.output.vocabulary,
        rules=workflow_file("resources", "icd9_validity.csv"),
        modules=modules_of("evaluate_canaries"),
    output:
        records=results("evaluation", "{name}", "canaries.json"),
    log:
        log_of("evaluate_canaries", "{name}"),
    benchmark:
        timing_of("evaluate_canaries", "{name}")
    wildcard_constraints:
        name="|".join([*CANARY_RUNS, "real"]) if CANARY_RUNS else "none",
    conda:
        "../environment.yml"
    threads: share_of_cores()
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        settings=named(
            **config["evaluate"]["canaries"],
            canaries=lambda wildcards: planted_in(wildcards.name)["canaries"],
            canary_repeats=lambda wildcards: planted_in(wildcards.name)["canary_repeats"],
            canary_seed=lambda wildcards: planted_in(wildcards.name)["canary_seed"],
            model=lambda wildcards: results("models", model_of(wildcards.name)),
            sample_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
        ),
    script:
        "../workflow_scripts/evaluate_canaries.py"


rule evaluate_utility:
    input:
        synthetic=lambda wildcards: release_of(wildcards.name),
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_utility"),
    output:
        records=results("evaluation", "{name}", "utility.json"),
    log:
        log_of("evaluate_utility", "{name}"),
    benchmark:
        timing_of("evaluate_utility", "{name}")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            visits=scored_visits("utility"),
            sample_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
            mode="synthesize",
        ),
    script:
        "../workflow_scripts/evaluate_utility.py"


# With a model sex and age are flipped in generation; what has none is compared in matched pairs.
rule evaluate_conditioning:
    input:
        synthetic=lambda wildcards: release_of(wildcards.name),
        model_files=lambda wildcards: model_files_of(wildcards.name),
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_conditioning"),
    output:
        records=results("evaluation", "{name}", "conditioning.json"),
    log:
        log_of("evaluate_conditioning", "{name}"),
    benchmark:
        timing_of("evaluate_conditioning", "{name}")
    conda:
        "../environment.yml"
    threads: share_of_cores()
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        settings=named(
            **config["evaluate"]["conditioning"],
            model=lambda wildcards: results("models", wildcards.name) if wildcards.name in RUNS else None,
            sample_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
            mode="synthesize",
        ),
    script:
        "../workflow_scripts/evaluate_conditioning.py"


# Reads race from the raw tables, holds it in memory and writes rates by broad group.
rule evaluate_race:
    input:
        tables=RAW_TABLES,
        synthetic=lambda wildcards: release_of(wildcards.name),
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_race"),
    output:
        records=results("evaluation", "{name}", "race.json"),
    log:
        log_of("evaluate_race", "{name}"),
    benchmark:
        timing_of("evaluate_race", "{name}")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            **config["evaluate"]["race"],
            raw_dir=lambda wildcards: RAW_DIR,
            source=config["cohort"]["source"],
            control=lambda wildcards: wildcards.name == "real",
            sample_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
            mode="synthesize",
        ),
    script:
        "../workflow_scripts/evaluate_race.py"
