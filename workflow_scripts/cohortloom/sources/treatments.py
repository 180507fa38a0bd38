"""Procedures and medications of the simulated hospital, from aggregated counts of public surveys.

A visit's procedures are drawn one by one with their shares among the discharges of the same sex whose
principal diagnosis is of the same category. A patient takes a drug for a diagnosis with its share among the
people of the age band and sex who take anything for that reason, at home and not in a hospital; where these
are few, among people of all ages. Whether a patient takes a drug is drawn once, so that visits repeat it.

The tables are written by resources/derive_treatments.py, which states their sources.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from cohortloom.base.errors import UserError
from cohortloom.base.ragged import ragged_range, row_offsets
from cohortloom.data.visits import SEXES
from cohortloom.sources.simulated import Cohort

TABLES = ("simulation_procedures", "simulation_drugs", "simulation_reasons")
BAND_LOW = np.array([0, 18, 45, 65])  # lowest age of the bands of the medications
FEW = 30  # people of an age band and sex, below whom all ages are taken


def band_of(age: np.ndarray) -> np.ndarray:
    """Index into BAND_LOW of ages in years."""
    return np.searchsorted(BAND_LOW, np.floor(age), side="right") - 1


@dataclass
class Shares:
    """Ragged rows of (what, probability), and the row of each key."""

    rows: dict[tuple, int]
    offsets: np.ndarray
    what: np.ndarray  # index into names
    share: np.ndarray
    names: list[str]

    @classmethod
    def of(cls, counts: dict[tuple, dict[str, int]]) -> "Shares":
        """From key -> {name: count}, the count of all under the empty name."""
        names = sorted({name for cell in counts.values() for name in cell if name})
        at = {name: number for number, name in enumerate(names)}
        keys = [key for key, cell in counts.items() if cell.get("")]
        cells = [[(at[name], n / counts[key][""]) for name, n in counts[key].items() if name] for key in keys]
        flat = [pair for cell in cells for pair in cell]
        return cls(
            {key: number for number, key in enumerate(keys)},
            row_offsets(np.array([len(cell) for cell in cells], np.int64)),
            np.array([what for what, _ in flat], np.int64),
            np.array([share for _, share in flat]),
            names,
        )

    def expand(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of rows (-1: none): place of each among `rows`, what and its probability, flat."""
        known = np.flatnonzero(rows >= 0)
        lengths = np.diff(self.offsets)[rows[known]]
        inside = ragged_range(self.offsets[:-1][rows[known]], lengths)
        return np.repeat(known, lengths), self.what[inside], np.minimum(self.share[inside], 1)


@dataclass
class Treatments:
    """Shares of procedures by (category, sex) and of drugs by (reason, age band, sex); reasons of a code."""

    procedures: Shares
    drugs: Shares
    reasons: dict[str, list[str]]

    @classmethod
    def read(cls, files: list[Path]) -> "Treatments":
        """From the three tables, in any order."""
        by_name = {Path(file).stem: file for file in files}
        if missing := [name for name in TABLES if name not in by_name]:
            raise UserError(
                f"the counts file {missing[0]}.csv is missing; give all resources/simulation_*.csv"
            )
        procedures, drugs, reasons = (_rows(by_name[name]) for name in TABLES)
        of_category: dict[tuple, dict[str, int]] = {}
        for row in procedures:
            of_category.setdefault((row["category"], row["sex"]), {})[row["procedure"]] = int(row["visits"])
        of_reason: dict[tuple, dict[str, int]] = {}
        for row in drugs:
            key = (row["reason"], int(row["age_from"]), row["sex"])
            of_reason.setdefault(key, {})[row["drug"]] = int(row["visits"])
        of_code: dict[str, list[str]] = {}
        for row in reasons:
            of_code.setdefault(row["code"], []).append(row["reason"])
        enough = {key: cell for key, cell in of_reason.items() if not key[2] or cell.get("", 0) >= FEW}
        return cls(Shares.of(of_category), Shares.of(enough), of_code)

    def draw_procedures(
        self, cohort: Cohort, codes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Visit and index into procedures.names of each procedure, by visit."""
        first = row_offsets(cohort.length)[:-1]
        category = np.array([code[:3] for code in codes.tolist()])[cohort.code[first]]
        sex = np.array(SEXES)[cohort.sex[cohort.patient]]
        keys = zip(category.tolist(), sex.tolist(), strict=True)
        rows = np.array([self.procedures.rows.get(key, -1) for key in keys])
        visit, what, share = self.procedures.expand(rows)
        chosen = rng.random(len(share)) < share
        return visit[chosen], what[chosen]

    def draw_drugs(
        self, cohort: Cohort, codes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Visit and index into drugs.names of each drug, by visit, none twice."""
        visit_of_code = np.repeat(np.arange(len(cohort.length)), cohort.length)
        band, sex = band_of(cohort.age), cohort.sex[cohort.patient]
        # Rows of the shares for each code, band and sex, looked up once.
        most = max(map(len, self.reasons.values()))
        table = np.full((len(codes), len(BAND_LOW), len(SEXES), most), -1)
        for number, code in enumerate(codes.tolist()):
            for place, reason in enumerate(self.reasons.get(code, ())):
                everybody = self.drugs.rows.get((reason, 0, ""), -1)
                for b, low in enumerate(BAND_LOW.tolist()):
                    for s, name in enumerate(SEXES):
                        table[number, b, s, place] = self.drugs.rows.get((reason, low, name), everybody)
        rows = table[cohort.code, band[visit_of_code], sex[visit_of_code]]
        at, what, share = self.drugs.expand(rows.ravel())
        visit = visit_of_code[at // most]
        key = cohort.patient[visit] * len(self.drugs.names) + what
        distinct, index = np.unique(key, return_inverse=True)
        chosen = rng.random(len(distinct))[index] < share
        pairs = np.unique(visit[chosen] * len(self.drugs.names) + what[chosen])
        return pairs // len(self.drugs.names), pairs % len(self.drugs.names)


def _rows(path: Path) -> list[dict[str, str]]:
    read = pa_csv.ReadOptions(skip_rows=1, use_threads=False)
    with pa.OSFile(str(path)) as file:
        names = file.read(1 << 12).decode().splitlines()[1].split(",")
    convert = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return pa_csv.read_csv(path, read, None, convert).to_pylist()
