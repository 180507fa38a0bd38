"""All files in the folder of a published model and its cohort, and in that of each export."""

PUBLISHED = (
    "model/model.safetensors",
    "model/config.json",
    "model/generation_config.json",
    "model/vocabulary.json",
    "model/README.md",
    "cohort/visits.parquet",
    "cohort/README.md",
)
EXPORT_FACTS = "cohortloom.json"  # no other tool's data set has it, so none is taken for an export of ours
_OF_EACH = (EXPORT_FACTS, "README.md")
# Format -> all files of an export; of omop see omop_files.
EXPORTED = {
    "meds": (
        *(f"data/{split}/0.parquet" for split in ("train", "tuning", "held_out")),
        *(f"metadata/{name}" for name in ("codes.parquet", "subject_splits.parquet", "dataset.json")),
        *_OF_EACH,
    ),
    "mimic4": (
        *(f"hosp/{table}.csv" for table in ("patients", "admissions", "diagnoses_icd", "procedures_icd")),
        *("hosp/prescriptions.csv", "icu/icustays.csv", *_OF_EACH),
    ),
    "mimic3": (
        *(f"{table}.csv" for table in ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD", "PROCEDURES_ICD")),
        *("PRESCRIPTIONS.csv", "ICUSTAYS.csv", *_OF_EACH),
    ),
}
_OMOP = (
    *("person", "observation_period", "visit_occurrence", "condition_occurrence", "procedure_occurrence"),
    *("drug_exposure", "death", "cdm_source", "concept", "concept_relationship", "vocabulary", "domain"),
    *("concept_class", "relationship"),
)


def omop_tables(athena: bool) -> tuple[str, ...]:
    """Tables of an export as omop. Only standard concepts move codes to observation and measurement."""
    return (*_OMOP, "observation", "measurement") if athena else _OMOP


def omop_files(table_files: str, athena: bool) -> tuple[str, ...]:
    """All files of an export as omop; table_files: the ending of the tables, csv or parquet."""
    return (*(f"{table}.{table_files}" for table in omop_tables(athena)), *_OF_EACH)
