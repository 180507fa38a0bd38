"""What lies in a folder of a published model and its cohort, and nothing else."""

PUBLISHED = (
    "model/model.safetensors",
    "model/config.json",
    "model/generation_config.json",
    "model/vocabulary.json",
    "model/README.md",
    "cohort/visits.parquet",
    "cohort/README.md",
)
