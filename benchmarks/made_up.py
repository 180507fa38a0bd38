"""A cohort without sense, of any size: uniform codes, in visits as long as hospital discharges."""

import sys
from pathlib import Path

from measures import SCRIPTS

sys.path.append(str(SCRIPTS))

import numpy as np
import pyarrow as pa

from build_dataset import dataset_schema, learn_vocabulary, with_ids
from cohortloom.base.ragged import row_offsets
from cohortloom.data.visits import list_column, sex_array, write_visits

CODES = 4500


def visits(n: int, seed: int = 0) -> pa.Table:
    """`n` visits of one patient each: 1 to 15 codes, 7 on average, of 4,500."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.poisson(6.3, n) + 1, 1, 15)
    codes = np.concatenate([rng.choice(CODES, length, replace=False) for length in lengths])
    zeros = np.zeros(n, np.int32)
    return pa.table(
        [
            pa.array([str(i) for i in range(n)]),
            zeros.astype(np.int16),
            zeros,
            rng.integers(1, 90, n).astype(np.float32),
            sex_array(rng.integers(0, 2, n)),
            list_column(pa.array([f"{c:05d}" for c in codes]), row_offsets(lengths)),
        ],
        names=["patient_id", "visit", "days", "age", "sex", "diagnoses"],
    )


def dataset(folder: Path, n: int) -> dict[str, Path]:
    """train.parquet, val.parquet and vocabulary.json of `n` made-up visits in `folder`.

    Few of the visits are for validation, which has no part in the speed of training.
    """
    table = visits(n)
    vocabulary = learn_vocabulary(table, 1, 1)
    files = {name: folder / f"{name}.parquet" for name in ("train", "val")}
    for name, rows in (("train", n), ("val", 100)):
        write_visits(with_ids(table.slice(0, rows), vocabulary), files[name], {}, dataset_schema(vocabulary))
    files["vocabulary"] = folder / "vocabulary.json"
    vocabulary.save(files["vocabulary"])
    return files
