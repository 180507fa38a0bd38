# Publish: the main run's model as others may have it, and a cohort that it generated.
# evaluate_all leaves it alone.
#
# needs  models/<main run>/, scorecard.json, provenance.json, dataset/
# makes  published/model/    weights in bf16, vocabulary and settings, a model card with terms, figures and limits
#        published/cohort/   visits.parquet of publish.patients patients, and a data card
#
# Refused before any job for a source whose models may not be published (resources/publication.yaml).


rule publish:
    input:
        model_files=model_to_publish,
        scorecard=rules.summarize.output.scorecard,
        provenance=rules.summarize.output.provenance,
        train=rules.build_dataset.output.train,
        val=rules.build_dataset.output.val,
        test=rules.build_dataset.output.test,
        rules=VALIDITY,
        metrics=METRICS,
        terms=workflow_file("resources", "publication.yaml"),
        model_card=workflow_file("resources", "model_card.md.j2"),
        data_card=workflow_file("resources", "data_card.md.j2"),
        modules=modules_of("publish"),
    output:
        weights=f"{RESULTS}/published/model/model.safetensors",
        settings=f"{RESULTS}/published/model/config.json",
        decoding=f"{RESULTS}/published/model/generation_config.json",
        words=f"{RESULTS}/published/model/vocabulary.json",
        about_model=f"{RESULTS}/published/model/README.md",
        visits=f"{RESULTS}/published/cohort/visits.parquet",
        about_cohort=f"{RESULTS}/published/cohort/README.md",
    log:
        f"{RESULTS}/logs/publish.log",
    benchmark:
        f"{RESULTS}/timings/publish.tsv"
    conda:
        "../environment.yml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=120,
    params:
        settings=named(
            model=MAIN.model,
            published=f"{RESULTS}/published",
            patients=config["publish"]["patients"],
            max_megabytes=config["publish"]["max_megabytes"],
            seed=config["generate"]["seed"],
        ),
    script:
        "../workflow_scripts/publish.py"
