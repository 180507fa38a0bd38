# Cohort: from a hospital's raw tables to the one table of visits. Race and every other column
# that is not on the reader's allow-list end here.
#
# needs  the tables in raw_dir, or nothing (source simulated); cohort.code_map where it is set
# makes  cohort/visits.parquet   one row a visit
#        cohort/audit.json       what was read, dropped, removed and normalized, with counts
#        raw/<experiment>/*.csv.gz  the five simulated tables, in the shape of MIMIC-III


# The simulated tables are those of MIMIC-III.
SQL_OF_SOURCE = "mimic3" if config["cohort"]["source"] == "simulated" else config["cohort"]["source"]


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
        procedures_table=f"raw/{config['experiment']}/PROCEDURES_ICD.csv.gz",
        prescriptions_table=f"raw/{config['experiment']}/PRESCRIPTIONS.csv.gz",
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
        icd9_list=ancient(workflow_file("resources", "titles", "ICD9CM.csv")),  # an edited title reruns nothing
        code_map=config["cohort"]["code_map"] or [],
        sql=workflow_file("workflow_scripts", "cohortloom", "sources", f"{SQL_OF_SOURCE}.sql"),
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
        mem_mb=config["cohort"]["memory_mb"] + 1500,
        runtime=120,
    params:
        settings=named(
            raw_dir=raw_dir(config),
            source=config["cohort"]["source"],
            columns=config["cohort"]["columns"],
            unmapped=config["cohort"]["unmapped"],
            max_dropped=config["cohort"]["max_dropped"],
            max_empty=config["cohort"]["max_empty"],
        ),
    script:
        "../workflow_scripts/preprocess.py"
