"""Token ids: specials, terminators, boundaries and one id a code, learnt from training patients alone.

Layout of the ids: 0 pad, 1 start of a decoded visit, 2 mask, 3 this visit (in the encoder), then the
terminators (`<end>` of the record, then one a bin of the gap to the next visit), then a boundary for each
column of codes but the first, then the codes, column by column. A visit is written in the order of the
columns: codes of the first, boundary, codes of the second ... and a terminator. Each boundary is a token of
its own, for no token may be written twice.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json, write_json
from cohortloom.base.ragged import join_rows, row_of_value, row_offsets
from cohortloom.data.codes import CODE_COLUMNS, SYSTEM_OF_VERSION_1, parts
from cohortloom.data.visits import code_lists, list_column

PAD, START, MASK, NOW, END = 0, 1, 2, 3, 4
SPECIAL = {"<pad>": PAD, "<start>": START, "<mask>": MASK, "<now>": NOW}


@dataclass(frozen=True)
class Vocabulary:
    """Codes (SYSTEM:CODE) with their training patients; first and last day of each gap bin, ascending.

    columns: the columns of codes, in order, and how many of `codes` are of each. apart: pairs of code systems
    that no training visit holds together although chance would bring them together (`systems_apart`).
    """

    codes: tuple[str, ...]
    counts: tuple[int, ...]
    gap_bins: tuple[tuple[int, int], ...] = ()
    columns: tuple[tuple[str, int], ...] = ()
    apart: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        if not self.columns:
            object.__setattr__(self, "columns", ((next(iter(CODE_COLUMNS)), len(self.codes)),))

    @property
    def terminators(self) -> list[int]:
        """Ids that close a visit: `<end>` first, then the gap bins."""
        return list(range(END, END + 1 + len(self.gap_bins)))

    @property
    def first_boundary(self) -> int:
        """Id of the first boundary: the terminators end here, and the codes begin where there is none."""
        return END + 1 + len(self.gap_bins)

    @property
    def boundaries(self) -> list[int]:
        """Ids that open the second, third ... column of a visit."""
        return list(range(self.first_boundary, self.first_code))

    @property
    def first_code(self) -> int:
        """Id of the first code; every id from here on is a code."""
        return self.first_boundary + len(self.columns) - 1

    @property
    def first_ids(self) -> tuple[int, ...]:
        """Id of the first code of each column."""
        sizes = [size for _, size in self.columns]
        return tuple(int(first) for first in self.first_code + row_offsets(sizes)[:-1])

    def __len__(self) -> int:
        return self.first_code + len(self.codes)

    def encode(self, values: pa.Array, column: str | None = None) -> np.ndarray:
        """Ids of flat code strings of a column (the first by default), -1 for a code that is not known."""
        names = [name for name, _ in self.columns]
        number = names.index(column) if column else 0
        first, size = self.first_ids[number], self.columns[number][1]
        begin = first - self.first_code
        found = pc.index_in(values, pa.array(self.codes[begin : begin + size], pa.string()))
        return np.asarray(pc.fill_null(pc.add(found, first), -1), np.int32)

    def encode_visits(self, table: pa.Table, prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Ids of all codes of a visits table, column by column in each visit, and offsets [n_visits + 1].

        -1 for a code outside the vocabulary. prefix: of the names of the table's columns.
        """
        parts = []
        for column, _ in self.columns:
            values, offsets = code_lists(table, prefix + column)
            parts.append((self.encode(values, column), np.diff(offsets)))
        ids, lengths = join_rows(*parts)
        return ids, row_offsets(lengths)

    def column_of(self, ids: np.ndarray) -> np.ndarray:
        """Number of the column of each code id."""
        return np.searchsorted(self.first_ids, ids, side="right") - 1

    def decode(self, ids: np.ndarray) -> pa.Array:
        """Code strings of code ids."""
        return pa.array(self.codes, pa.string()).take(pa.array(np.asarray(ids) - self.first_code))

    def as_columns(self, ids: np.ndarray, offsets: np.ndarray) -> dict[str, pa.ListArray]:
        """List columns of a visits table from the code ids of visits and their offsets [n_visits + 1]."""
        column, row = self.column_of(ids), row_of_value(offsets)
        columns = {}
        for number, (name, _) in enumerate(self.columns):
            lengths = np.bincount(row[column == number], minlength=len(offsets) - 1)
            columns[name] = list_column(self.decode(ids[column == number]), row_offsets(lengths))
        return columns

    def terminator_of_gap(self, gaps: np.ndarray) -> np.ndarray:
        """Terminator ids of gaps in days; a gap beyond the learnt range takes the nearest bin."""
        if not self.gap_bins:
            return np.full(len(gaps), END, np.int32)
        low, high = np.array(self.gap_bins).T
        between = (high[:-1] + low[1:]) / 2
        return (END + 1 + np.searchsorted(between, gaps)).astype(np.int32)

    def draw_gap(self, terminators: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A gap in days drawn uniformly inside the bin of each terminator."""
        low, high = np.array(self.gap_bins)[np.asarray(terminators) - END - 1].T
        return rng.integers(low, high + 1)

    def save(self, path: Path) -> None:
        """Write vocabulary.json."""
        ends = [{"id": END, "end": True}]
        gaps = [
            {"id": END + 1 + k, "low_days": low, "high_days": high}
            for k, (low, high) in enumerate(self.gap_bins)
        ]
        names = [name for name, _ in self.columns]
        boundaries = [
            {"id": token, "before": name} for token, name in zip(self.boundaries, names[1:], strict=True)
        ]
        column_of_code = np.repeat(names, [size for _, size in self.columns]).tolist()
        codes = [
            {
                "id": self.first_code + i,
                "column": column,
                **dict(zip(("system", "code"), parts(name), strict=True)),
                "count": count,
            }
            for i, (column, name, count) in enumerate(
                zip(column_of_code, self.codes, self.counts, strict=True)
            )
        ]
        content = {"special": SPECIAL, "terminators": ends + gaps, "boundaries": boundaries}
        write_json(path, {"schema_version": "2", **content, "systems_apart": self.apart, "codes": codes})

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read vocabulary.json; raises UserError where ids are not as this version lays them out.

        Schema version 1 had diagnoses alone; those of the first models were of ICD-9-CM, without a system.
        """
        try:
            content = read_json(path)
            bins = tuple((gap["low_days"], gap["high_days"]) for gap in content["terminators"][1:])
            rows = content["codes"]
            names = tuple(f"{row.get('system', SYSTEM_OF_VERSION_1)}:{row['code']}" for row in rows)
            first_column = next(iter(CODE_COLUMNS))
            columns = [first_column] if content["schema_version"] == "1" else [rows[0]["column"]]
            columns += [boundary["before"] for boundary in content.get("boundaries", ())]
            sizes = Counter(row.get("column", first_column) for row in rows)
            made = cls(
                names,
                tuple(row["count"] for row in rows),
                bins,
                tuple((column, sizes[column]) for column in columns),
                tuple((one, other) for one, other in content.get("systems_apart", ())),
            )
            if [row["id"] for row in rows] != list(range(made.first_code, len(made))):
                raise KeyError("ids")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a vocabulary of this version ({error}); rerun build_dataset"
            ) from None
        return made


def gap_bins(gaps: np.ndarray, max_bins: int) -> tuple[tuple[int, int], ...]:
    """First and last day of each bin: log-spaced over the training gaps, narrowed to what falls into it."""
    if not len(gaps):
        return ()
    edges = np.unique(np.round(np.geomspace(gaps.min() + 1, gaps.max() + 2, max_bins + 1)).astype(int) - 1)
    of_gap = np.searchsorted(edges, gaps, side="right")
    return tuple(
        (int(part.min()), int(part.max())) for b in np.unique(of_gap) if len(part := gaps[of_gap == b])
    )
