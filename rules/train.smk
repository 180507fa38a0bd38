# Train: one model a run and seed. `runs` in the config says what differs between the runs.
#
# needs  dataset/{train,val}.parquet, dataset/vocabulary.json
# makes  models/<run>/        a save_pretrained folder with vocabulary, loss history and model card
# keeps  checkpoints/<run>/   training state; not an output, so that a killed job can resume


rule train:
    input:
        train=rules.build_dataset.output.train,
        val=rules.build_dataset.output.val,
        vocabulary=rules.build_dataset.output.vocabulary,
        edits=lambda wildcards: edits_of_training(wildcards) or [],
        modules=modules_of("train"),
    output:
        weights=results("models", "{run}", "model.safetensors"),
        settings=results("models", "{run}", "config.json"),
        sampling=results("models", "{run}", "generation_config.json"),
        words=results("models", "{run}", "vocabulary.json"),
        history=results("models", "{run}", "history.csv"),
        card=results("models", "{run}", "README.md"),
    log:
        log_of("train", "{run}"),
    benchmark:
        timing_of("train", "{run}")
    priority: 1  # the longest jobs by far: they start as soon as they can
    conda:
        "../environment.yml"
    threads: share_of_cores(min(2, len(RUNS)))
    resources:
        mem_mb=16000,
        runtime=2880,
    params:
        settings=named(
            **{key: trained(key) for key in config["train"] if key not in UNTRACKED["train"]},
            rules=edits_of_training,
            checkpoints=lambda wildcards: results("checkpoints", wildcards.run),
        ),
        model=lambda wildcards, output: os.path.dirname(output.weights),
    script:
        "../workflow_scripts/train.py"
