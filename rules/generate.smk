# Generate: synthetic visits, by the trained models and by naive methods that stand beside them.
#
# needs  models/<run>/, dataset/
# makes  synthetic/<run>/synthesize.parquet    new patients; no code is revealed
#        synthetic/<run>/reconstruct.parquet   test visits with half of their codes hidden and
#                                              filled in again; it holds real codes: never release it
#        synthetic/<run>/<mode>.json           counts on the ids as they were generated


DEMOGRAPHICS = config["generate"]["demographics"]


rule generate:
    input:
        weights=rules.train.output.weights,
        model_files=rules.train.output,
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        demographics_file=[] if DEMOGRAPHICS in ("train", "test") else DEMOGRAPHICS,
        modules=modules_of("generate"),
    output:
        synthetic=results("synthetic", "{run}", "{mode}.parquet"),
        counts=results("synthetic", "{run}", "{mode}.json"),
    log:
        log_of("generate", "{run}", "{mode}"),
    benchmark:
        timing_of("generate", "{run}", "{mode}")
    conda:
        "../environment.yml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        **{key: decoding(key) for key in config["generate"]["synthesize"]},
        model=lambda wildcards, input: os.path.dirname(input.weights),
        mode="{mode}",
        seed=config["generate"]["seed"],
        batch_size=config["generate"]["batch_size"],
        demographics=DEMOGRAPHICS,
        patients=config["generate"]["patients"],
        no_repeat_ngram_size=config["generate"]["no_repeat_ngram_size"],
        prompt_prob=config["generate"]["reconstruct"]["prompt_prob"],
    script:
        "../workflow_scripts/generate.py"


rule generate_naive:
    input:
        train=rules.build_dataset.output.train,
        test=rules.build_dataset.output.test,
        modules=modules_of("generate_naive"),
    output:
        synthetic=results("synthetic", "{method}", "{mode}.parquet"),
        counts=results("synthetic", "{method}", "{mode}.json"),
    log:
        log_of("generate_naive", "{method}", "{mode}"),
    benchmark:
        timing_of("generate_naive", "{method}", "{mode}")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        method="{method}",
        mode="{mode}",
        seed=config["generate"]["seed"],
        prompt_prob=config["generate"]["reconstruct"]["prompt_prob"],
    script:
        "../workflow_scripts/generate_naive.py"
