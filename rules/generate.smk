# Generate: synthetic visits, by the trained models and by naive methods.
#
# needs  models/<run>/, dataset/ (val.parquet for the naive method that chooses settings on it)
# makes  synthetic/<run>/synthesize.parquet    new patients; no code is revealed
#        synthetic/<run>/reconstruct.parquet   test visits with half of their codes hidden and
#                                              filled in again; it holds real codes: never release it
#        synthetic/<run>/<mode>.json           counts on the raw generated ids
#
# With generate.shards above 1, each of that many jobs generates one part, and join_shards joins the parts.


SHARDS = config["generate"]["shards"]


scattergather:
    generate=SHARDS,


ruleorder: generate > join_shards


# What one job of the rule generate writes: a mode, or a shard of it.
PART = "{mode}" if SHARDS == 1 else "{mode}.{scatteritem}"
GENERATED = f"{RESULTS}/synthetic/{{run}}" if SHARDS == 1 else f"{RESULTS}/synthetic/{{run}}/shards"


rule generate:
    input:
        model_files=model_of_run,
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        demographics_file=of_run("demographics_file"),
        rules=edits_if("edits_in_generation"),
        modules=modules_of("generate"),
    output:
        synthetic=f"{GENERATED}/{PART}.parquet" if SHARDS == 1 else temp(f"{GENERATED}/{PART}.parquet"),
        counts=f"{GENERATED}/{PART}.json" if SHARDS == 1 else temp(f"{GENERATED}/{PART}.json"),
    log:
        f"{RESULTS}/logs/generate.{{run}}.{PART}.log",
    benchmark:
        f"{RESULTS}/timings/generate.{{run}}.{PART}.tsv"
    wildcard_constraints:
        run=any_of(run for run in RUNS.values() if run.trained_by),
    conda:
        "../environment.yml"
    threads: share_of_cores()
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        model_dir=of_run("model"),
        mode="{mode}",
        shard=lambda wildcards: int(wildcards.get("scatteritem", "1-of-1").split("-")[0]),
        settings=named(
            lambda wildcards: config["generate"][wildcards.mode],  # what this mode alone takes
            seed=of_run("generation_seed"),
            patients=of_run("patients"),
            demographics=of_run("demographics"),
            as_many_as_test=of_run("as_many_as_test"),
            constrained=of_run("constrained"),
            shards=SHARDS,
            batch_size=config["generate"]["batch_size"],
            no_repeat_ngram_size=config["generate"]["no_repeat_ngram_size"],
        ),
    script:
        "../workflow_scripts/generate.py"


rule join_shards:
    input:
        synthetic_shards=gather.generate(
            f"{RESULTS}/synthetic/" "{{run}}/shards/{{mode}}.{scatteritem}.parquet"
        ),
        counts_shards=gather.generate(f"{RESULTS}/synthetic/" "{{run}}/shards/{{mode}}.{scatteritem}.json"),
        modules=modules_of("join_shards"),
    output:
        synthetic=f"{RESULTS}/synthetic/{{run}}/{{mode}}.parquet",
        counts=f"{RESULTS}/synthetic/{{run}}/{{mode}}.json",
    log:
        f"{RESULTS}/logs/join_shards.{{run}}.{{mode}}.log",
    benchmark:
        f"{RESULTS}/timings/join_shards.{{run}}.{{mode}}.tsv"
    wildcard_constraints:
        run=any_of(run for run in RUNS.values() if run.trained_by),
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=60,
    script:
        "../workflow_scripts/join_shards.py"


rule generate_naive:
    input:
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        val=validation_of_run,
        modules=modules_of("generate_naive"),
    output:
        synthetic=f"{RESULTS}/synthetic/{{run}}/{{mode}}.parquet",
        counts=f"{RESULTS}/synthetic/{{run}}/{{mode}}.json",
    log:
        f"{RESULTS}/logs/generate_naive.{{run}}.{{mode}}.log",
    benchmark:
        f"{RESULTS}/timings/generate_naive.{{run}}.{{mode}}.tsv"
    wildcard_constraints:
        run=any_of(run for run in RUNS.values() if run.source in NAIVE),
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        method=of_run("source"),
        mode="{mode}",
        settings=named(
            seed=of_run("generation_seed"),
            patients=of_run("patients"),
            prompt_prob=config["generate"]["reconstruct"]["prompt_prob"],
            hide=config["generate"]["reconstruct"]["hide"],
        ),
    script:
        "../workflow_scripts/generate_naive.py"
