"""What a set of visits lacks: its file says so, and figures that need it are left out."""

from pathlib import Path

import pyarrow.parquet as pq

KEY = b"absent"  # in the file's metadata: names of columns, with commas, that hold nothing but a placeholder
NO_DEMOGRAPHICS = "the visits have no age and sex"
DEMOGRAPHICS = frozenset({"age", "sex"})


def absent(path: Path) -> frozenset[str]:
    """Columns of a visits file that hold a placeholder: of days, age, sex.

    Of files of our own that is days alone, where the source has no dates.
    """
    metadata = pq.read_schema(path).metadata or {}
    names = {name for name in metadata.get(KEY, b"").decode().split(",") if name}
    if days_metadata(path):
        names.add("days")
    return frozenset(names)


def days_metadata(path: Path) -> dict[str, str]:
    """What a file says of its days, to be written into files that are made from it."""
    placeholder = (pq.read_schema(path).metadata or {}).get(b"days") == b"placeholder"
    return {"days": "placeholder"} if placeholder else {}


def has_demographics(path: Path) -> bool:
    """Whether age and sex of a visits file are more than placeholders."""
    return not DEMOGRAPHICS & absent(path)
