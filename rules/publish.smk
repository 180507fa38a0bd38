# Publish: the main run's model as others may have it, and a cohort that it generated. evaluate_all leaves it alone.
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
        rules=workflow_file("resources", "icd9_validity.csv"),
        metrics=workflow_file("resources", "metrics.csv"),
        terms=workflow_file("resources", "publication.yaml"),
        model_card=workflow_file("resources", "model_card.md.j2"),
        data_card=workflow_file("resources", "data_card.md.j2"),
        modules=modules_of("publish"),
    output:
        weights=results("published", "model", "model.safetensors"),
        settings=results("published", "model", "config.json"),
        decoding=results("published", "model", "generation_config.json"),
        words=results("published", "model", "vocabulary.json"),
        about_model=results("published", "model", "README.md"),
        visits=results("published", "cohort", "visits.parquet"),
        about_cohort=results("published", "cohort", "README.md"),
    log:
        log_of("publish"),
    benchmark:
        timing_of("publish")
    conda:
        "../environment.yml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=120,
    params:
        settings=named(
            **config["publish"],
        ),
        model=lambda wildcards, input: os.path.dirname(input.model_files[0]),
        published=lambda wildcards, output: os.path.dirname(os.path.dirname(output.weights)),
    script:
        "../workflow_scripts/publish.py"
