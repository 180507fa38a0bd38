"""All files in the folder of a published model and its cohort."""

PUBLISHED = (
    "model/model.safetensors",
    "model/config.json",
    "model/generation_config.json",
    "model/vocabulary.json",
    "model/README.md",
    "cohort/visits.parquet",
    "cohort/README.md",
)
