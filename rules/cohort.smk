# Cohort: from a hospital's raw tables to the one table of visits. Race and every other column
# that is not on the reader's allow-list end here.
#
# needs  the tables in raw_dir (sources mimic3 and nhds2010), or nothing (source simulated)
# makes  cohort/visits.parquet   one row a visit
#        cohort/audit.json       what was read, dropped, removed and put right, with counts
#        raw/<experiment>/*.csv.gz  the simulated tables, in the shape of MIMIC-III


rule simulate_raw:
    input:
        counts=workflow_files("resources", "simulation_*.csv"),
        rules=workflow_file("resources", "icd9_validity.csv"),
        modules=modules_of("simulate_raw"),
    output:
        patients_table=f"raw/{config['experiment']}/PATIENTS.csv.gz",
        admissions_table=f"raw/{config['experiment']}/ADMISSIONS.csv.gz",
        diagnoses_table=f"raw/{config['experiment']}/DIAGNOSES_ICD.csv.gz",
    log:
        log_of("simulate_raw"),
    benchmark:
        timing_of("simulate_raw")
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=named(
            patients=config["cohort"]["patients"],
            seed=config["cohort"]["seed"],
        ),
    script:
        "../workflow_scripts/simulate_raw.py"


rule preprocess:
    input:
        tables=RAW_TABLES,
        modules=modules_of("preprocess"),
    output:
        visits=results("cohort", "visits.parquet"),
        audit=results("cohort", "audit.json"),
    log:
        log_of("preprocess"),
    benchmark:
        timing_of("preprocess")
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            raw_dir=lambda wildcards: RAW_DIR,
            source=config["cohort"]["source"],
        ),
    script:
        "../workflow_scripts/preprocess.py"
