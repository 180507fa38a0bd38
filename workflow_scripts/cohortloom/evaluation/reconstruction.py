"""How well hidden codes are found again when the others of a held-out visit are revealed.

A code of the real visit is hidden when it is not among the revealed ones; what a method adds to the revealed
codes is its guess. Recall, precision and F1 are micro averages over all visits; echoing the revealed codes
adds nothing and scores 0. `jaccard` compares the whole visits, revealed codes included, so that echo alone
scores about 0.5: read it with F1.
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
    """Sizes of each visit's sets of codes, [n_visits] each."""

    real: np.ndarray
    written: np.ndarray
    common: np.ndarray  # in the real visit and written
    hidden: np.ndarray  # in the real visit, not revealed
    guessed: np.ndarray  # written, not revealed
    right: np.ndarray  # guessed and hidden


def reconstruction(written: pa.Table, test: pa.Table, name: str | Path, seed: int) -> Iterator[Figure]:
    """All figures of a reconstruct table against the held-out visits it was made from."""
    rows = source_rows(written, test, name)
    sizes = overlap(written, test.take(pa.array(rows)))
    visit = written["source_visit"].to_numpy()
    patient = patient_of_visit(test["visit"])[rows]
    of_patient = patient_groups(int(patient.max(initial=-1)) + 1, seed)
    groups, n_groups = of_patient[patient], int(of_patient.max(initial=0)) + 1

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(groups, weights=values, minlength=n_groups)

    union = sizes.real + sizes.written - sizes.common
    share = np.divide(sizes.common, union, out=np.ones(len(union)), where=union > 0)
    n = len(rows)
    jaccard = ratio(sums(share), np.bincount(groups, minlength=n_groups), n, 1.0)
    yield Figure("jaccard", "", jaccard, higher_is_better=True, reason="there is no held-out visit")
    everyone = np.ones(n, bool)
    for suffix, chosen in (("", everyone), ("_with_history", visit > 0), ("_without_history", visit == 0)):
        n = int(chosen.sum())
        right, hidden, guessed = (sums(part * chosen) for part in (sizes.right, sizes.hidden, sizes.guessed))
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


def source_rows(written: pa.Table, test: pa.Table, name: str | Path) -> np.ndarray:
    """Row of `test` for each written row; raises UserError unless each test visit occurs there once."""
    keys = [
        pc.binary_join_element_wise(ids.cast(pa.string()), visits.cast(pa.string()), "\x1f")
        for ids, visits in (
            (written["source_patient_id"], written["source_visit"]),
            (test["patient_id"], test["visit"]),
        )
    ]
    rows = pc.index_in(keys[0], keys[1].combine_chunks())
    if rows.null_count or len(pc.unique(rows)) != len(rows) or len(rows) != test.num_rows:
        raise UserError(
            f"{name}: columns source_patient_id, source_visit: {written.num_rows} rows do not stand for "
            f"the {test.num_rows} held-out visits one by one; generate again from this test file"
        )
    return rows.to_numpy().astype(np.int64)


def overlap(written: pa.Table, real: pa.Table) -> Overlap:
    """Sizes of the sets of each visit; both tables have the same visits in the same rows."""
    lists = [code_lists(real), code_lists(written), code_lists(written, "revealed_diagnoses")]
    index = pa.array(
        sorted({code for values, _ in lists for code in pc.unique(values).to_pylist()}), pa.string()
    )
    truth, made, shown = (
        np.unique(row_of_value(offsets) * len(index) + np.asarray(pc.index_in(values, index), np.int64))
        for values, offsets in lists
    )
    hidden = np.setdiff1d(truth, shown, assume_unique=True)
    guessed = np.setdiff1d(made, shown, assume_unique=True)

    def per_visit(keys: np.ndarray) -> np.ndarray:
        return np.bincount(keys // max(1, len(index)), minlength=real.num_rows)

    return Overlap(
        real=per_visit(truth),
        written=per_visit(made),
        common=per_visit(np.intersect1d(truth, made, assume_unique=True)),
        hidden=per_visit(hidden),
        guessed=per_visit(guessed),
        right=per_visit(np.intersect1d(hidden, guessed, assume_unique=True)),
    )
