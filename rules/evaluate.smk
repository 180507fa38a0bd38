# Evaluate: score every run, naive methods and held-out real visits alike, and join the records into the
# scorecard and the report.
#
# needs  synthetic/, dataset/, models/, resources/
# makes  evaluation/<run>/<evaluation>.json   tidy records
#        scorecard.json, scorecard.csv, report.html, provenance.json
#
# An evaluation is a rule and a script of the same name. The param `script` names the script, because a rule derived
# from another inherits the directive script. A release is compared with the test visits. The release of `real` is
# therefore dataset/val.parquet: real visits that no model is trained on. `held_out` is the set that `real` is scored
# on. No more visits of any other run are scored, because most figures depend on n.
import json

SEED = config["evaluate"]["seed"]


# ---- what needs only visits


rule evaluate_medical_validity:
    input:
        synthetic=of_run("synthesized"),
        counts=of_run("counts"),
        rules=VALIDITY,
        held_out=of_run("held_out", "medical_validity"),
        modules=modules_of("evaluate_medical_validity"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/medical_validity.json",
    log:
        f"{RESULTS}/logs/evaluate_medical_validity.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_medical_validity.{{run}}.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        script="evaluate_medical_validity",
        run="{run}",
        settings=named(seed=of_run("seed"), group_seed=SEED),
    script:
        "../workflow_scripts/{params.script}.py"


use rule evaluate_medical_validity as evaluate_reconstruction with:
    input:
        reconstruct=f"{RESULTS}/synthetic/{{run}}/reconstruct.parquet",
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_reconstruction"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/reconstruction.json",
    log:
        f"{RESULTS}/logs/evaluate_reconstruction.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_reconstruction.{{run}}.tsv"
    params:
        script="evaluate_reconstruction",


use rule evaluate_medical_validity as evaluate_fidelity with:
    input:
        synthetic=of_run("synthesized"),
        train=rules.build_dataset.output.train,
        held_out=of_run("held_out", "fidelity"),
        modules=modules_of("evaluate_fidelity"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/fidelity.json",
    log:
        f"{RESULTS}/logs/evaluate_fidelity.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_fidelity.{{run}}.tsv"
    params:
        script="evaluate_fidelity",
        settings=named(seed=of_run("seed"), sample_seed=SEED, visits=of_run("visits", "fidelity")),


use rule evaluate_medical_validity as evaluate_classifier with:
    input:
        synthetic=of_run("release"),
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        held_out=of_run("held_out", "classifier"),
        modules=modules_of("evaluate_classifier"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/classifier.json",
    log:
        f"{RESULTS}/logs/evaluate_classifier.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_classifier.{{run}}.tsv"
    params:
        script="evaluate_classifier",
        settings=named(seed=of_run("seed"), sample_seed=SEED, visits=of_run("visits", "classifier")),


use rule evaluate_classifier as evaluate_utility with:
    input:
        synthetic=of_run("release"),
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        held_out=of_run("held_out", "utility"),
        modules=modules_of("evaluate_utility"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/utility.json",
    log:
        f"{RESULTS}/logs/evaluate_utility.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_utility.{{run}}.tsv"
    params:
        script="evaluate_utility",
        settings=named(seed=of_run("seed"), sample_seed=SEED, visits=of_run("visits", "utility")),


use rule evaluate_classifier as evaluate_privacy with:
    input:
        synthetic=of_run("release"),
        train=rules.build_dataset.output.train,
        val=rules.build_dataset.output.val,
        test=rules.build_dataset.output.test,
        held_out=of_run("held_out", "privacy"),
        modules=modules_of("evaluate_privacy"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/privacy.json",
    log:
        f"{RESULTS}/logs/evaluate_privacy.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_privacy.{{run}}.tsv"
    params:
        script="evaluate_privacy",
        settings=named(
            seed=of_run("seed"),
            sample_seed=SEED,
            visits=of_run("visits", "privacy"),
            sampling_fraction=config["evaluate"]["sampling_fraction"],
            control=of_run("control"),
        ),


# Race is read from the raw tables into memory; only rates by broad group are saved.
use rule evaluate_classifier as evaluate_race with:
    input:
        tables=RAW_TABLES,
        synthetic=of_run("release"),
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        held_out=of_run("held_out", "race"),
        modules=modules_of("evaluate_race"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/race.json",
    log:
        f"{RESULTS}/logs/evaluate_race.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_race.{{run}}.tsv"
    params:
        script="evaluate_race",
        settings=named(
            seed=of_run("seed"),
            sample_seed=SEED,
            visits=of_run("visits", "race"),
            raw_dir=raw_dir(config),
            source=config["cohort"]["source"],
            control=of_run("control"),
        ),


# ---- what needs a model


rule evaluate_heads:
    input:
        model_files=model_of_run,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_heads"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/heads.json",
    log:
        f"{RESULTS}/logs/evaluate_heads.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_heads.{{run}}.tsv"
    wildcard_constraints:
        run=any_of(run for run in RUNS.values() if run.trained_by),
    conda:
        "../environment.yml"
    threads: share_of_cores()
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        script="evaluate_heads",
        run="{run}",
        settings=named(seed=of_run("seed"), group_seed=SEED, model_dir=of_run("model")),
    script:
        "../workflow_scripts/{params.script}.py"


use rule evaluate_heads as evaluate_duplicates with:
    input:
        model_files=model_of_run,
        test=rules.build_dataset.output.test,
        counts=[f"{RESULTS}/synthetic/{{run}}/{mode}.json" for mode in ("reconstruct", "synthesize")],
        modules=modules_of("evaluate_duplicates"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/duplicates.json",
    log:
        f"{RESULTS}/logs/evaluate_duplicates.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_duplicates.{{run}}.tsv"
    params:
        script="evaluate_duplicates",
        settings=named(seed=of_run("seed"), control_seed=SEED, model_dir=of_run("model")),


# How well a model, or a naive method, recovers hidden codes at every number of guesses.
use rule evaluate_heads as evaluate_curve with:
    input:
        model_files=model_of_run,
        counts=counts_of_fitted_run,
        train=rules.build_dataset.output.train,
        val=rules.build_dataset.output.val,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_curve"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/curve.json",
    log:
        f"{RESULTS}/logs/evaluate_curve.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_curve.{{run}}.tsv"
    wildcard_constraints:
        run=any_of(run for run in RUNS.values() if "curve" in run.evaluations.get("evaluate_all", ())),
    params:
        script="evaluate_curve",
        settings=named(
            seed=of_run("seed"),
            group_seed=SEED,
            model_dir=of_run("model"),
            method=lambda wildcards: None if RUNS[wildcards.run].model else RUNS[wildcards.run].source,
            generation_seed=of_run("generation_seed"),
            prompt_prob=config["generate"]["reconstruct"]["prompt_prob"],
            hide=config["generate"]["reconstruct"]["hide"],
        ),


# The model's own likelihood. `real`: the main run's model, with validation patients in place of training patients.
use rule evaluate_heads as evaluate_likelihood with:
    input:
        model_files=attacked_model_of_run,
        train=rules.build_dataset.output.train,
        val=rules.build_dataset.output.val,
        test=rules.build_dataset.output.test,
        modules=modules_of("evaluate_likelihood"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/likelihood.json",
    log:
        f"{RESULTS}/logs/evaluate_likelihood.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_likelihood.{{run}}.tsv"
    wildcard_constraints:
        run=any_of(run for run in RUNS.values() if run.attacked),
    params:
        script="evaluate_likelihood",
        settings=named(
            seed=of_run("seed"),
            sample_seed=SEED,
            model_dir=of_run("attacked_model"),
            visits=config["evaluate"]["visits"],
            sampling_fraction=config["evaluate"]["sampling_fraction"],
            control=of_run("control"),
        ),


# Patients planted into the training. `real`: the main run's model and patients, of whom none is planted.
use rule evaluate_heads as evaluate_canaries with:
    input:
        model_files=attacked_model_of_run,
        synthetic=of_run("attacked_release"),
        train=rules.build_dataset.output.train,
        vocabulary=rules.build_dataset.output.vocabulary,
        rules=VALIDITY,
        modules=modules_of("evaluate_canaries"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/canaries.json",
    log:
        f"{RESULTS}/logs/evaluate_canaries.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_canaries.{{run}}.tsv"
    wildcard_constraints:
        run=any_of(run for run in RUNS.values() if run.planted),
    params:
        script="evaluate_canaries",
        settings=named(
            seed=of_run("seed"),
            sample_seed=SEED,
            model_dir=of_run("attacked_model"),
            canaries=of_run("planted", "canaries"),
            canary_repeats=of_run("planted", "canary_repeats"),
            canary_seed=of_run("planted", "canary_seed"),
        ),


# With a model, sex and age are flipped in generation; visits without a model are compared in matched pairs.
use rule evaluate_heads as evaluate_conditioning with:
    input:
        synthetic=of_run("release"),
        model_files=model_of_run,
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        held_out=of_run("held_out", "conditioning"),
        modules=modules_of("evaluate_conditioning"),
    output:
        records=f"{RESULTS}/evaluation/{{run}}/conditioning.json",
    log:
        f"{RESULTS}/logs/evaluate_conditioning.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/evaluate_conditioning.{{run}}.tsv"
    wildcard_constraints:
        run=any_of(RUNS.values()),
    params:
        script="evaluate_conditioning",
        settings=named(
            seed=of_run("seed"),
            sample_seed=SEED,
            model_dir=of_run("model"),
            visits=of_run("visits", "conditioning"),
        ),


rule summarize:
    input:
        records=registry.records(RUNS.values(), "evaluate_all"),
        histories=[f"{run.model}/history.csv" for run in of_kind("training")],
        audit=rules.preprocess.output.audit,
        synthetic=MAIN.synthesized,
        naive=[run.synthesized for run in of_kind("naive") if "synthesize" in run.modes],
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        titles=TITLES,
        validity=VALIDITY,
        metrics=METRICS,
        template=workflow_file("resources", "report.html.j2"),
        modules=modules_of("summarize"),
    output:
        scorecard=f"{RESULTS}/scorecard.json",
        scorecard_csv=report(f"{RESULTS}/scorecard.csv", category="Scorecard"),
        report=report(f"{RESULTS}/report.html", category="Scorecard"),  # for snakemake --report
        provenance=f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/summarize.log",
    benchmark:
        f"{RESULTS}/timings/summarize.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            experiment=config["experiment"],
            main_run=MAIN.name,
            privacy_run=next((run.name for run in of_kind("privacy")), None),
            runs=[run.name for run in of_kind("training")],
            models=[run.model for run in of_kind("training")],
            config=json.dumps(tracked_config(config), sort_keys=True),
        ),
    script:
        "../workflow_scripts/summarize.py"
