"""Token ids: specials, terminators and one id a code (SYSTEM:CODE), learnt from training patients alone.

Layout of the ids: 0 pad, 1 start of a decoded visit, 2 mask, 3 this visit (in the encoder), then the
terminators (`<end>` of the record, then one a bin of the gap to the next visit), then the codes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json, write_json
from cohortloom.data.codes import SYSTEM_OF_VERSION_1, parts

PAD, START, MASK, NOW, END = 0, 1, 2, 3, 4
SPECIAL = {"<pad>": PAD, "<start>": START, "<mask>": MASK, "<now>": NOW}


@dataclass(frozen=True)
class Vocabulary:
    """Codes with their training patients, and the first and last day of each gap bin, ascending."""

    codes: tuple[str, ...]
    counts: tuple[int, ...]
    gap_bins: tuple[tuple[int, int], ...] = ()

    @property
    def terminators(self) -> list[int]:
        """Ids that close a visit: `<end>` first, then the gap bins."""
        return list(range(END, END + 1 + len(self.gap_bins)))

    @property
    def first_code(self) -> int:
        """Id of the first code; every id from here on is a code."""
        return END + 1 + len(self.gap_bins)

    def __len__(self) -> int:
        return self.first_code + len(self.codes)

    def encode(self, values: pa.Array) -> np.ndarray:
        """Ids of flat code strings, -1 for a code outside the vocabulary."""
        found = pc.index_in(values, pa.array(self.codes, pa.string()))
        return np.asarray(pc.fill_null(pc.add(found, self.first_code), -1), np.int32)

    def decode(self, ids: np.ndarray) -> pa.Array:
        """Code strings of code ids."""
        return pa.array(self.codes, pa.string()).take(pa.array(np.asarray(ids) - self.first_code))

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
        codes = [
            {
                "id": self.first_code + i,
                **dict(zip(("system", "code"), parts(name), strict=True)),
                "count": count,
            }
            for i, (name, count) in enumerate(zip(self.codes, self.counts, strict=True))
        ]
        write_json(
            path, {"schema_version": "1", "special": SPECIAL, "terminators": ends + gaps, "codes": codes}
        )

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read vocabulary.json; raises UserError where ids are not as this version lays them out."""
        try:
            content = read_json(path)
            bins = tuple((gap["low_days"], gap["high_days"]) for gap in content["terminators"][1:])
            rows = content["codes"]
            names = tuple(f"{row.get('system', SYSTEM_OF_VERSION_1)}:{row['code']}" for row in rows)
            made = cls(names, tuple(row["count"] for row in rows), bins)
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
