# Dataset: split by patient, then learn the vocabulary from the training patients alone.
#
# needs  cohort/visits.parquet
# makes  dataset/{train,val,test}.parquet   the visits with token ids
#        dataset/vocabulary.json            codes, their counts, the terminators


rule build_dataset:
    input:
        visits=rules.preprocess.output.visits,
        modules=modules_of("build_dataset"),
    output:
        train=results("dataset", "train.parquet"),
        val=results("dataset", "val.parquet"),
        test=results("dataset", "test.parquet"),
        vocabulary=results("dataset", "vocabulary.json"),
    log:
        log_of("build_dataset"),
    benchmark:
        timing_of("build_dataset")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            **config["dataset"],
        ),
    script:
        "../workflow_scripts/build_dataset.py"
