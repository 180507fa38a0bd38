"""Visits as flat integer arrays: what every comparison of two sets of visits counts on."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from cohortloom.base.ragged import (
    join_rows,
    patient_of_visit,
    positions_in_rows,
    row_of_value,
    row_offsets,
    select_rows,
)
from cohortloom.data.visits import code_lists, list_column, sex_index

GROUPS = 20  # of patients, each of which an interval leaves out in turn (evaluation/intervals.py)


@dataclass(frozen=True)
class Coded:
    """Visits of whole patients; `codes` [n_codes] index a code list shared with the other set."""

    codes: np.ndarray
    offsets: np.ndarray  # [n_visits + 1]
    patient: np.ndarray  # [n_visits] 0, 1, 2 ...
    days: np.ndarray
    age: np.ndarray
    sex: np.ndarray  # 0 F, 1 M

    @property
    def n_visits(self) -> int:
        return len(self.patient)

    @property
    def n_patients(self) -> int:
        return int(self.patient[-1]) + 1 if len(self.patient) else 0

    @property
    def lengths(self) -> np.ndarray:
        """Codes of each visit [n_visits]."""
        return np.diff(self.offsets)

    @property
    def visit_of_code(self) -> np.ndarray:
        """Visit of each flat code [n_codes]."""
        return row_of_value(self.offsets)

    @property
    def first_visits(self) -> np.ndarray:
        """Each patient's first visit [n_patients]."""
        return np.flatnonzero(np.diff(self.patient, prepend=-1))

    @property
    def followed(self) -> np.ndarray:
        """Visits that have a next one."""
        return np.flatnonzero(self.patient[1:] == self.patient[:-1])

    def codes_of(self, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat codes of these visits in this order, and their offsets [n + 1]."""
        return select_rows(self.codes, self.offsets, visits)

    def where(self, chosen: np.ndarray) -> "Coded":
        """The visits with only the codes of the list that `chosen` [n_codes] marks."""
        keep = chosen[self.codes]
        return replace(self, codes=self.codes[keep], offsets=row_offsets(keep)[self.offsets])

    def groups(self, seed: int) -> tuple[np.ndarray, int]:
        """Jackknife group of each visit, and how many groups there are."""
        of_patient = patient_groups(self.n_patients, seed)
        return of_patient[self.patient], int(of_patient.max(initial=-1)) + 1


def encode(tables: list[pa.Table], column: str = "diagnoses") -> tuple[list[Coded], list[str]]:
    """Tables with one shared, sorted list of the codes of a column."""
    return _encode(tables, [code_lists(table, column) for table in tables])


def encode_columns(tables: list[pa.Table], columns: list[str]) -> tuple[list[Coded], list[str], np.ndarray]:
    """Tables with one shared list of the codes of several columns, column by column in each visit.

    Also returns the names of the codes, without their column, and the number in `columns` of each.
    """
    lists = []
    for table in tables:
        parts = [code_lists(table, column) for column in columns]
        lengths = [np.diff(offsets) for _, offsets in parts]
        flat = pa.concat_arrays(
            [
                pc.binary_join_element_wise(str(number), values.cast(pa.string()), "/")
                for number, (values, _) in enumerate(parts)
            ]
        )
        starts = row_offsets([len(values) for values, _ in parts])
        places = [np.arange(first, last) for first, last in zip(starts[:-1], starts[1:], strict=True)]
        order, total = join_rows(*zip(places, lengths, strict=True))
        lists.append((flat.take(pa.array(order)), row_offsets(total)))
    coded, names = _encode(tables, lists)
    numbers, codes = zip(*(name.split("/", 1) for name in names), strict=True) if names else ((), ())
    return coded, list(codes), np.array(numbers, np.int64)


def _encode(tables: list[pa.Table], lists: list[tuple[pa.Array, np.ndarray]]):
    names = sorted({code for values, _ in lists for code in pc.unique(values).to_pylist()})
    index = pa.array(names, pa.string())
    coded = []
    for table, (values, offsets) in zip(tables, lists, strict=True):
        coded.append(
            Coded(
                codes=np.asarray(pc.index_in(values, index), np.int64),
                offsets=np.asarray(offsets, np.int64),
                patient=patient_of_visit(table["visit"]),
                days=table["days"].to_numpy(),
                age=table["age"].to_numpy(),
                sex=sex_index(table),
            )
        )
    return coded, names


def as_lists(codes: np.ndarray, offsets: np.ndarray, names: list[str]) -> pa.ListArray:
    """List column of code strings from flat indices into `names` and their offsets."""
    return list_column(pa.array(names, pa.string()).take(pa.array(codes, pa.int64())), offsets)


def most_frequent(codes: np.ndarray, n_codes: int, most: int, least: int = 1) -> np.ndarray:
    """The at most `most` codes that occur `least` times or more, most frequent first; ties by number.

    codes: flat, below `n_codes`.
    """
    counts = np.bincount(codes, minlength=n_codes)
    order = np.argsort(-counts, kind="stable")[:most]
    return order[counts[order] >= least]


def indicators(
    row: np.ndarray, value: np.ndarray, columns: np.ndarray, n_values: int, n_rows: int
) -> sparse.csr_matrix:
    """[n_rows, len(columns)] float32: 1 where a row holds the value of the column.

    row, value: of each occurrence, flat; values are below `n_values`.
    """
    place = np.full(n_values, -1)
    place[columns] = np.arange(len(columns))
    column = place[value]
    known = column >= 0
    ones = np.ones(int(known.sum()), np.float32)
    return sparse.csr_matrix((ones, (row[known], column[known])), (n_rows, len(columns)))


def sample_size(visits: int, held_out: Path | None) -> int:
    """`visits`, or where there are fewer so many as the visits of a file, which are scored beside."""
    return visits if held_out is None else min(visits, pq.read_metadata(held_out).num_rows)


def sample_patients(table: pa.Table, visits: int, seed: int) -> pa.Table:
    """Whole patients in seeded shuffled order until at least `visits` visits; all when there are fewer."""
    patient = patient_of_visit(table["visit"])
    sizes = np.bincount(patient)
    order = np.random.default_rng([seed, 0xF1DE]).permutation(len(sizes))
    wanted = np.searchsorted(np.cumsum(sizes[order]), visits) + 1
    chosen = np.zeros(len(sizes), bool)
    chosen[order[:wanted]] = True
    return table.filter(pa.array(chosen[patient]))


def pairs_within(visits: Coded, n_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Visit and key of every unordered pair of codes of one visit; key = smaller * n_codes + larger."""
    lengths = visits.lengths
    partners = np.repeat(lengths, lengths) - 1 - positions_in_rows(lengths)
    first = np.repeat(np.arange(len(visits.codes)), partners)
    second = first + 1 + positions_in_rows(partners)
    a, b = visits.codes[first], visits.codes[second]
    return visits.visit_of_code[first], np.minimum(a, b) * n_codes + np.maximum(a, b)


def pairs_across(visits: Coded, n_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Visit t and key of every pair (code in visit t, code in visit t + 1); key = this * n_codes + next."""
    partners_of_visit = np.zeros(visits.n_visits, np.int64)
    partners_of_visit[visits.followed] = visits.lengths[visits.followed + 1]
    owner = visits.visit_of_code
    partners = partners_of_visit[owner]
    first = np.repeat(np.arange(len(visits.codes)), partners)
    second = visits.offsets[owner[first] + 1] + positions_in_rows(partners)
    return owner[first], visits.codes[first] * n_codes + visits.codes[second]


def count_by_group(keys: np.ndarray, groups: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Unique keys [k] and how often each occurs in each group [k, n_groups]."""
    unique, inverse = np.unique(keys, return_inverse=True)
    counts = np.bincount(inverse * n_groups + groups, minlength=len(unique) * n_groups)
    return unique, counts.reshape(len(unique), n_groups)


def patient_groups(n_patients: int, seed: int, n_groups: int = GROUPS) -> np.ndarray:
    """Group of each patient [n_patients], sizes differing by one at most; no more groups than patients."""
    groups = np.arange(n_patients) % max(1, min(n_groups, n_patients))
    return np.random.default_rng([seed, 0x1ACC]).permutation(groups)
