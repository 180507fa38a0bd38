# Evaluate: score what was generated, beside held-out real visits (`real`) and the naive methods,
# and join the records into the scorecard and the report.
#
# needs  synthetic/, dataset/, models/, resources/
# makes  evaluation/<run>/<evaluation>.json   tidy records
#        scorecard.json, scorecard.csv, report.html, provenance.json
import json

# evaluation -> what it scores
EVALUATIONS = {
    "heads": [*RUNS],
    "duplicates": [*RUNS],
    "medical_validity": [*scored("synthesize"), "real"],
    "reconstruction": scored("reconstruct"),
    "fidelity": [*scored("synthesize"), "real"],
    "classifier": [*scored("synthesize"), "real"],
    "privacy": [*scored("synthesize"), "real"],
    "likelihood": [*RUNS, "real"],
    "canaries": [*CANARY_RUNS, "real"] if CANARY_RUNS else [],
    "utility": [*scored("synthesize"), "real"],
    "conditioning": [*scored("synthesize"), "real"],
    "race": [*scored("synthesize"), "real"],
}


rule evaluate_heads:
    input:
        weights=rules.train.output.weights,
        model_files=rules.train.output,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_heads"),
    output:
        records=results("evaluation", "{run}", "heads.json"),
    log:
        log_of("evaluate_heads", "{run}"),
    benchmark:
        timing_of("evaluate_heads", "{run}")
    conda:
        "../environment.yml"
    threads: share_of_cores()
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        settings=named(
            **config["evaluate"]["heads"],
            group_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.run,
            seed=lambda wildcards: seed_of(wildcards.run),
        ),
        model=lambda wildcards, input: os.path.dirname(input.weights),
    script:
        "../workflow_scripts/evaluate_heads.py"


rule evaluate_duplicates:
    input:
        weights=rules.train.output.weights,
        model_files=rules.train.output,
        test=rules.build_dataset.output.test,
        counts=[results("synthetic", "{run}", f"{mode}.json") for mode in MODES],
        modules=modules_of("evaluate_duplicates"),
    output:
        records=results("evaluation", "{run}", "duplicates.json"),
    log:
        log_of("evaluate_duplicates", "{run}"),
    benchmark:
        timing_of("evaluate_duplicates", "{run}")
    conda:
        "../environment.yml"
    threads: share_of_cores()
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        settings=named(
            **config["evaluate"]["duplicates"],
            control_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.run,
            seed=lambda wildcards: seed_of(wildcards.run),
        ),
        model=lambda wildcards, input: os.path.dirname(input.weights),
    script:
        "../workflow_scripts/evaluate_duplicates.py"


rule evaluate_medical_validity:
    input:
        synthetic=lambda wildcards: visits_of(wildcards.name, "synthesize"),
        counts=lambda wildcards: counts_of(wildcards.name),
        rules=workflow_file("resources", "icd9_validity.csv"),
        modules=modules_of("evaluate_medical_validity"),
    output:
        records=results("evaluation", "{name}", "medical_validity.json"),
    log:
        log_of("evaluate_medical_validity", "{name}"),
    benchmark:
        timing_of("evaluate_medical_validity", "{name}")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            **config["evaluate"]["medical_validity"],
            group_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
            mode="synthesize",
        ),
    script:
        "../workflow_scripts/evaluate_medical_validity.py"


rule evaluate_reconstruction:
    input:
        reconstruct=lambda wildcards: visits_of(wildcards.name, "reconstruct"),
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_reconstruction"),
    output:
        records=results("evaluation", "{name}", "reconstruction.json"),
    log:
        log_of("evaluate_reconstruction", "{name}"),
    benchmark:
        timing_of("evaluate_reconstruction", "{name}")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            **config["evaluate"]["reconstruction"],
            group_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
        ),
    script:
        "../workflow_scripts/evaluate_reconstruction.py"


rule evaluate_fidelity:
    input:
        synthetic=lambda wildcards: visits_of(wildcards.name, "synthesize"),
        train=rules.build_dataset.output.train,
        modules=modules_of("evaluate_fidelity"),
    output:
        records=results("evaluation", "{name}", "fidelity.json"),
    log:
        log_of("evaluate_fidelity", "{name}"),
    benchmark:
        timing_of("evaluate_fidelity", "{name}")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            visits=scored_visits("fidelity"),
            sample_seed=config["evaluate"]["seed"],
            run=lambda wildcards: wildcards.name,
            seed=lambda wildcards: seed_of(wildcards.name),
            mode="synthesize",
        ),
    script:
        "../workflow_scripts/evaluate_fidelity.py"


rule summarize:
    input:
        records=[
            results("evaluation", name, f"{kind}.json") for kind in EVALUATIONS for name in EVALUATIONS[kind]
        ],
        histories=expand(rules.train.output.history, run=RUNS),
        audit=rules.preprocess.output.audit,
        synthetic=results("synthetic", main_run_id(config), "synthesize.parquet"),
        naive=[visits_of(name, "synthesize") for name in METHODS if "synthesize" in METHODS[name]],
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        titles=workflow_file("resources", "icd9_titles.csv"),
        validity=workflow_file("resources", "icd9_validity.csv"),
        metrics=workflow_file("resources", "metrics.csv"),
        template=workflow_file("resources", "report.html.j2"),
        modules=modules_of("summarize"),
    output:
        scorecard=results("scorecard.json"),
        scorecard_csv=report(results("scorecard.csv"), category="Scorecard"),
        report=report(results("report.html"), category="Scorecard"),  # for snakemake --report
        provenance=results("provenance.json"),
    log:
        log_of("summarize"),
    benchmark:
        timing_of("summarize")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            experiment=config["experiment"],
            main_run=main_run_id(config),
            runs=list(RUNS),
            models=lambda wildcards: [results("models", run) for run in RUNS],
            config=json.dumps(tracked_config(config), sort_keys=True),
        ),
    script:
        "../workflow_scripts/summarize.py"
