# Train: one model for each run and seed. `runs` in the config holds the settings that differ between runs.
#
# needs  dataset/{train,val}.parquet, dataset/vocabulary.json
# makes  models/<run>/        a save_pretrained folder with vocabulary, loss history and model card
# keeps  checkpoints/<run>/   state of the training; not an output, so that a killed job can resume


rule train:
    input:
        train=rules.build_dataset.output.train,
        val=rules.build_dataset.output.val,
        vocabulary=rules.build_dataset.output.vocabulary,
        rules=edits_if("edits_in_training"),
        modules=modules_of("train"),
    output:
        weights=f"{RESULTS}/models/{{run}}/model.safetensors",
        settings=f"{RESULTS}/models/{{run}}/config.json",
        sampling=f"{RESULTS}/models/{{run}}/generation_config.json",
        vocabulary_copy=f"{RESULTS}/models/{{run}}/vocabulary.json",
        history=f"{RESULTS}/models/{{run}}/history.csv",
        card=f"{RESULTS}/models/{{run}}/README.md",
    log:
        f"{RESULTS}/logs/train.{{run}}.log",
    benchmark:
        f"{RESULTS}/timings/train.{{run}}.tsv"
    wildcard_constraints:
        run=any_of(run for run in RUNS.values() if run.train),
    priority: 1  # by far the longest jobs: they start as soon as they can
    conda:
        "../environment.yml"
    threads: share_of_cores(min(2, len(of_kind("training"))))
    resources:
        mem_mb=16000,
        runtime=2880,
    params:
        model_dir=of_run("model"),
        checkpoints=of_run("checkpoints"),
        settings=of_run("train"),
    script:
        "../workflow_scripts/train.py"
