# Cohort: from a hospital's raw tables to the one table of visits. Race and every other column
# that is not on the reader's allow-list end here.
#
# needs  the tables in raw_dir (sources mimic3 and nhds2010), or nothing (source simulated)
# makes  cohort/visits.parquet   one row a visit
#        cohort/audit.json       what was read, dropped, removed and normalized, with counts
#        raw/<experiment>/*.csv.gz  the simulated tables, in the shape of MIMIC-III


rule simulate_raw:
    input:
        counts=[
            workflow_file("resources", path.name)
            for path in sorted((WORKFLOW / "resources").glob("simulation_*.csv"))
        ],
        rules=VALIDITY,
        modules=modules_of("simulate_raw"),
    output:
        patients_table=f"raw/{config['experiment']}/PATIENTS.csv.gz",
        admissions_table=f"raw/{config['experiment']}/ADMISSIONS.csv.gz",
        diagnoses_table=f"raw/{config['experiment']}/DIAGNOSES_ICD.csv.gz",
    log:
        f"{RESULTS}/logs/simulate_raw.log",
    benchmark:
        f"{RESULTS}/timings/simulate_raw.tsv"
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
        visits=f"{RESULTS}/cohort/visits.parquet",
        audit=f"{RESULTS}/cohort/audit.json",
    log:
        f"{RESULTS}/logs/preprocess.log",
    benchmark:
        f"{RESULTS}/timings/preprocess.tsv"
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        settings=named(
            raw_dir=raw_dir(config),
            source=config["cohort"]["source"],
        ),
    script:
        "../workflow_scripts/preprocess.py"
