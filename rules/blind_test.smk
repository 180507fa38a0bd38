# Blind test: a page on which readers tell real held-out visits from synthetic ones. evaluate_all does not run it.
#
# needs  synthetic/<main run>/synthesize.parquet, dataset/test.parquet
# makes  blind_test/page.html   for readers; it holds real records
#        blind_test/key.json    which visit is which; not for readers
#
# No rule may use what this one makes: real records are in no report, export or release.


rule blind_test:
    input:
        synthetic=MAIN.synthesized,
        test=rules.build_dataset.output.test,
        titles=TITLES,
        rules=VALIDITY,
        template=workflow_file("resources", "blind_test.html.j2"),
        modules=modules_of("blind_test"),
    output:
        page=f"{RESULTS}/blind_test/page.html",
        key=f"{RESULTS}/blind_test/key.json",
    log:
        f"{RESULTS}/logs/blind_test.log",
    benchmark:
        f"{RESULTS}/timings/blind_test.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            config["blind_test"],
            experiment=config["experiment"],
            run=MAIN.name,
            source=config["cohort"]["source"],
        ),
    script:
        "../workflow_scripts/blind_test.py"
