"""Token ids: specials, terminators and one id a diagnosis code, learnt from training patients alone.

Layout of the ids: 0 pad, 1 start of a decoded visit, 2 mask, 3 this visit (in the encoder), then the
terminators (`<end>` of the record, then one a bin of the gap to the next visit), then the codes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.errors import UserError
from cohortloom.files import read_json, write_json
from cohortloom.visits import CODE_COLUMNS

PAD, START, MASK, NOW, END = 0, 1, 2, 3, 4
SPECIAL = {"<pad>": PAD, "<start>": START, "<mask>": MASK, "<now>": NOW}


@dataclass(frozen=True)
class Vocabulary:
    """Codes with their training patients, and the edges in days of the gap bins.

    `gap_edges` [n_bins + 1] ascending integers: bin k holds edges[k] <= gap < edges[k + 1].
    """

    codes: tuple[str, ...]
    counts: tuple[int, ...]
    gap_edges: tuple[int, ...] = ()
    system: str = CODE_COLUMNS["diagnoses"]

    @property
    def n_gap_bins(self) -> int:
        """Number of gap bins; 0 where no training patient came twice."""
        return max(0, len(self.gap_edges) - 1)

    @property
    def terminators(self) -> list[int]:
        """Ids that close a visit: `<end>` first, then the gap bins."""
        return list(range(END, END + 1 + self.n_gap_bins))

    @property
    def first_code(self) -> int:
        """Id of the first code; every id from here on is a code."""
        return END + 1 + self.n_gap_bins

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
        if not self.n_gap_bins:
            return np.full(len(gaps), END, np.int32)
        bins = np.searchsorted(self.gap_edges, gaps, side="right") - 1
        return (END + 1 + np.clip(bins, 0, self.n_gap_bins - 1)).astype(np.int32)

    def draw_gap(self, terminators: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A gap in days drawn uniformly inside the bin of each terminator."""
        bins = np.asarray(terminators) - END - 1
        edges = np.asarray(self.gap_edges)
        return rng.integers(edges[bins], edges[bins + 1])

    def save(self, path: Path) -> None:
        """Write vocabulary.json."""
        ends = [{"id": END, "end": True}]
        gaps = [
            {"id": END + 1 + k, "low_days": self.gap_edges[k], "high_days": self.gap_edges[k + 1] - 1}
            for k in range(self.n_gap_bins)
        ]
        codes = [
            {"id": self.first_code + i, "system": self.system, "code": code, "count": count}
            for i, (code, count) in enumerate(zip(self.codes, self.counts, strict=True))
        ]
        write_json(
            path, {"schema_version": "1", "special": SPECIAL, "terminators": ends + gaps, "codes": codes}
        )

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read vocabulary.json; raises UserError where ids are not as this version lays them out."""
        try:
            content = read_json(path)
            gaps = content["terminators"][1:]
            edges = [gap["low_days"] for gap in gaps] + [gap["high_days"] + 1 for gap in gaps[-1:]]
            rows = content["codes"]
            systems = {row["system"] for row in rows} or {CODE_COLUMNS["diagnoses"]}
            made = cls(
                tuple(r["code"] for r in rows), tuple(r["count"] for r in rows), tuple(edges), *systems
            )
            if [row["id"] for row in rows] != list(range(made.first_code, len(made))):
                raise KeyError("ids")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a vocabulary of this version ({error}); rerun build_dataset"
            ) from None
        return made


def gap_edges(gaps: np.ndarray, max_bins: int) -> tuple[int, ...]:
    """Log-spaced edges in whole days over the training gaps; bins that no gap falls into are merged."""
    if not len(gaps):
        return ()
    low, high = int(gaps.min()), int(gaps.max()) + 1
    edges = np.unique(np.round(np.geomspace(low + 1, high + 1, max_bins + 1)).astype(int) - 1)
    filled = np.histogram(gaps, edges)[0] > 0
    return (*(int(edge) for edge in edges[:-1][filled]), high)
