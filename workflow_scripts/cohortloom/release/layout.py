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
        *(f"hosp/{table}.csv.gz" for table in ("patients", "admissions", "diagnoses_icd", "procedures_icd")),
        *("hosp/prescriptions.csv.gz", "icu/icustays.csv.gz", *_OF_EACH),
    ),
}
