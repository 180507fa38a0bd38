"""Batches of whole patients from sorted rows, and the visits table of a batch."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from cohortloom.base.ragged import row_offsets
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.visits import list_column, sex_array
from cohortloom.sources.audit import Audit

Arrays = dict[str, np.ndarray]


def in_batches(
    visits: Iterable[pa.RecordBatch], codes: Iterable[pa.RecordBatch]
) -> Iterator[tuple[Arrays, Arrays]]:
    """Visits of whole patients and their codes, in order; `n` of a visit and of a code is the visit's number.

    Both come sorted by n, and the visits of a patient follow one another.
    """
    stream = _Stream(codes)
    held: Arrays | None = None
    for batch in visits:
        arrays = _arrays(batch)
        if held is not None:
            arrays = {name: np.concatenate([held[name], values]) for name, values in arrays.items()}
        if not len(arrays["n"]):
            continue
        new = np.flatnonzero(arrays["patient"][1:] != arrays["patient"][:-1]) + 1
        cut = int(new[-1]) if len(new) else 0  # the last patient may go on in the next batch
        held = {name: values[cut:] for name, values in arrays.items()}
        if cut:
            whole = {name: values[:cut] for name, values in arrays.items()}
            yield whole, stream.until(int(whole["n"][-1]))
    if held is not None and len(held["n"]):
        yield held, stream.until(int(held["n"][-1]))


class _Stream:
    """Rows of codes, taken up to a visit's number."""

    def __init__(self, batches: Iterable[pa.RecordBatch]):
        self._batches = iter(batches)
        self._held: list[Arrays] = []

    def until(self, n: int) -> Arrays:
        """All rows up to visit `n`, which were not taken before."""
        while not self._held or not len(self._held[-1]["n"]) or self._held[-1]["n"][-1] <= n:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._held.append(_arrays(batch))
        names = ("n", "kind", "id", "position")
        if not self._held:
            return {name: np.zeros(0, np.int64) for name in names}
        every = {name: np.concatenate([part[name] for part in self._held]) for name in names}
        cut = int(np.searchsorted(every["n"], n, side="right"))
        self._held = [{name: values[cut:] for name, values in every.items()}]
        return {name: values[:cut] for name, values in every.items()}


def _arrays(batch: pa.RecordBatch) -> Arrays:
    return {
        name: column.to_numpy(zero_copy_only=False)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }


class Assembly:
    """Builds the visits table of each batch and counts what it leaves out."""

    def __init__(self, names: list[str], audit: Audit):
        self._names, self._audit = pa.array(names, pa.string()), audit
        self.read: Counter = Counter()  # column -> codes of visits
        self.visits = self.empty = 0
        self.falling: set[str] = set()
        self.changing = 0

    def table(self, visits: Arrays, codes: Arrays) -> pa.Table | None:
        """Visits with a code, each code once in its visit; None where no visit has one."""
        row = codes["n"] - visits["n"][0]
        n_visits, n_names = len(visits["n"]), max(1, len(self._names))
        key = (row.astype(np.int64) * len(CODE_COLUMNS) + codes["kind"]) * n_names + codes["id"]
        _, first, same = np.unique(key, return_index=True, return_inverse=True)
        keep = np.zeros(len(key), bool)
        keep[first] = True
        copy = ~keep & (codes["position"] >= 0) & (codes["position"] == codes["position"][first][same])
        for kind, column in enumerate(CODE_COLUMNS):
            here = codes["kind"] == kind
            if n := int(here.sum()):
                self.read[column] += n
                self._audit.drop(column, "duplicate row", int((here & copy).sum()))
                self._audit.drop(column, "code repeated in its visit", int((here & ~keep & ~copy).sum()))
        full = np.bincount(row[keep], minlength=n_visits) > 0
        self.visits += n_visits
        self.empty += int((~full).sum())
        if not full.any():
            return None
        patient, day = visits["patient"][full], visits["day"][full]
        age, sex = visits["age"][full].astype(np.float64), visits["sex"][full]
        new = np.r_[True, patient[1:] != patient[:-1]]
        begin = np.flatnonzero(new)[np.cumsum(new) - 1]
        follows = ~new[1:]
        self.falling |= set(patient[1:][follows & (age[1:] < age[:-1])].tolist())
        self.changing += len(set(patient[1:][follows & (sex[1:] != sex[:-1])].tolist()))
        columns = {
            "patient_id": pa.array(patient.tolist(), pa.string()),
            "visit": pa.array(np.arange(len(new)) - begin),
            "days": pa.array(day - day[begin], pa.int32()),
            "age": pa.array(age.astype(np.float32)),
            "sex": sex_array(sex),
        }
        for kind, column in enumerate(CODE_COLUMNS):
            chosen = keep & (codes["kind"] == kind)
            lengths = np.bincount(row[chosen], minlength=n_visits)[full]
            values = self._names.take(pa.array(codes["id"][chosen]))
            columns[column] = list_column(values, row_offsets(lengths))
        return pa.table(columns)
