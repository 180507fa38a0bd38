"""What a foreign set of visits lacks: its file says so, and figures that need it are left out."""

from pathlib import Path

import pyarrow.parquet as pq

KEY = b"absent"  # in the file's metadata: names of columns, with commas, that hold nothing but a placeholder
NO_DEMOGRAPHICS = "the visits have no age and sex"
DEMOGRAPHICS = frozenset({"age", "sex"})


def absent(path: Path) -> frozenset[str]:
    """Columns of a visits file that hold a placeholder: of days, age, sex. Empty for all of our own files."""
    written = (pq.read_schema(path).metadata or {}).get(KEY, b"")
    return frozenset(name for name in written.decode().split(",") if name)


def has_demographics(path: Path) -> bool:
    """Whether age and sex of a visits file are more than placeholders."""
    return not DEMOGRAPHICS & absent(path)
