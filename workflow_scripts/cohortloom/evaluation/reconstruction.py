"""How well hidden codes of a held-out visit are recovered from the revealed ones.

Codes of the real visit that are not revealed are hidden; the codes that a method adds to the revealed ones
are its guesses. Recall, precision and F1 are micro averages over all visits; a method that only echoes the
revealed codes scores 0. `jaccard` compares whole visits, with the revealed codes, so that echo scores about
0.5: read it with F1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.base.errors import UserError
from cohortloom.base.ragged import patient_of_visit, row_of_value
from cohortloom.data.coded import patient_groups
from cohortloom.data.visits import code_lists
from cohortloom.evaluation.intervals import interval, ratio, without_each
from cohortloom.evaluation.records import Figure


@dataclass(frozen=True)
class Overlap:
    """Numbers of codes of each visit, [n_visits] each."""

    real: np.ndarray
    reconstructed: np.ndarray
    common: np.ndarray  # in the real and in the reconstructed visit
    hidden: np.ndarray  # in the real visit, not revealed
    guessed: np.ndarray  # in the reconstructed visit, not revealed
    right: np.ndarray  # guessed and hidden


def reconstruction(
    reconstructed: pa.Table, test: pa.Table, name: str | Path, seed: int, column: str = "diagnoses"
) -> Iterator[Figure]:
    """All figures of a column of a reconstruct table against its held-out visits.

    name: the file, for error messages.
    """
    rows = source_rows(reconstructed, test, name)
    sizes = overlap(reconstructed, test.take(pa.array(rows)), column)
    visit = reconstructed["source_visit"].to_numpy()
    patient = patient_of_visit(test["visit"])[rows]
    of_patient = patient_groups(int(patient.max(initial=-1)) + 1, seed)
    groups, n_groups = of_patient[patient], int(of_patient.max(initial=0)) + 1

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(groups, weights=values, minlength=n_groups)

    union = sizes.real + sizes.reconstructed - sizes.common
    share = np.divide(sizes.common, union, out=np.ones(len(union)), where=union > 0)
    n = len(rows)
    jaccard = ratio(sums(share), np.bincount(groups, minlength=n_groups), n, 1.0)
    yield Figure("jaccard", "", jaccard, higher_is_better=True, reason="there is no held-out visit")
    subsets = {"": np.ones(n, bool), "_with_history": visit > 0, "_without_history": visit == 0}
    for suffix, mask in subsets.items():
        n = int(mask.sum())
        right, hidden, guessed = (sums(part * mask) for part in (sizes.right, sizes.hidden, sizes.guessed))
        with np.errstate(invalid="ignore"):
            f1 = 2 * without_each(right) / without_each(hidden + guessed)
        scores = {
            "recall": ratio(right, hidden, n, 1.0),
            "precision": ratio(right, guessed, n, 1.0),
            "f1": interval(f1, n, 0.0, 1.0),
        }
        visits = {"": "", "_with_history": "later ", "_without_history": "first "}[suffix]
        reasons = {
            "recall": f"no code of the {visits}held-out visits is hidden",
            "precision": f"nothing was added to the {visits}held-out visits",
            "f1": f"no code of the {visits}held-out visits is hidden, and none was added",
        }
        for name, score in scores.items():
            reason = reasons[name] if n else f"there is no {visits}held-out visit"
            yield Figure(f"hidden_{name}{suffix}", "", score, higher_is_better=True, reason=reason)
    guesses = ratio(sums(sizes.guessed), sums(sizes.hidden), len(rows))
    yield Figure("guessed_per_hidden_code", "", guesses, reason="no code of the held-out visits is hidden")


def source_rows(reconstructed: pa.Table, test: pa.Table, name: str | Path) -> np.ndarray:
    """Row of `test` for each reconstructed row.

    Raises UserError unless each test visit occurs exactly once.
    """
    keys = [
        pc.binary_join_element_wise(ids.cast(pa.string()), visits.cast(pa.string()), "\x1f")
        for ids, visits in (
            (reconstructed["source_patient_id"], reconstructed["source_visit"]),
            (test["patient_id"], test["visit"]),
        )
    ]
    rows = pc.index_in(keys[0], keys[1].combine_chunks())
    if rows.null_count or len(pc.unique(rows)) != len(rows) or len(rows) != test.num_rows:
        raise UserError(
            f"{name}: columns source_patient_id, source_visit: {reconstructed.num_rows} rows do not match "
            f"the {test.num_rows} held-out visits one by one; generate again from this test file"
        )
    return rows.to_numpy().astype(np.int64)


def overlap(reconstructed: pa.Table, real: pa.Table, column: str = "diagnoses") -> Overlap:
    """Numbers of a column's codes in each visit; both tables have the same visits in the same rows."""
    lists = [
        code_lists(real, column),
        code_lists(reconstructed, column),
        code_lists(reconstructed, f"revealed_{column}"),
    ]
    index = pa.array(
        sorted({code for values, _ in lists for code in pc.unique(values).to_pylist()}), pa.string()
    )
    of_real, of_reconstructed, of_revealed = (  # keys of visit and code
        np.unique(row_of_value(offsets) * len(index) + np.asarray(pc.index_in(values, index), np.int64))
        for values, offsets in lists
    )
    hidden = np.setdiff1d(of_real, of_revealed, assume_unique=True)
    guessed = np.setdiff1d(of_reconstructed, of_revealed, assume_unique=True)

    def per_visit(keys: np.ndarray) -> np.ndarray:
        return np.bincount(keys // max(1, len(index)), minlength=real.num_rows)

    return Overlap(
        real=per_visit(of_real),
        reconstructed=per_visit(of_reconstructed),
        common=per_visit(np.intersect1d(of_real, of_reconstructed, assume_unique=True)),
        hidden=per_visit(hidden),
        guessed=per_visit(guessed),
        right=per_visit(np.intersect1d(hidden, guessed, assume_unique=True)),
    )
