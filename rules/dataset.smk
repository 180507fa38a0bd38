# Dataset: splits by patient, then learns the vocabulary from the training patients only.
#
# needs  cohort/visits.parquet
# makes  dataset/{train,val,test}.parquet   the visits with token ids
#        dataset/vocabulary.json            codes, their counts, the terminators


rule build_dataset:
    input:
        visits=rules.preprocess.output.visits,
        modules=modules_of("build_dataset"),
    output:
        train=f"{RESULTS}/dataset/train.parquet",
        val=f"{RESULTS}/dataset/val.parquet",
        test=f"{RESULTS}/dataset/test.parquet",
        vocabulary=f"{RESULTS}/dataset/vocabulary.json",
    log:
        f"{RESULTS}/logs/build_dataset.log",
    benchmark:
        f"{RESULTS}/timings/build_dataset.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(config["dataset"]),
    script:
        "../workflow_scripts/build_dataset.py"
