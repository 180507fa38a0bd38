"""The account of what was read, dropped, removed and normalised, which preprocess writes as audit.json."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.data.codes import CODE_COLUMNS, parts
from cohortloom.data.visits import code_lists, patient_starts, sex_index

AGES = {"under 1": (0, 1), "1 to 17": (1, 18), "18 to 64": (18, 65), "65 and over": (65, 1000)}


@dataclass
class Audit:
    """Counts by reason. Nothing here is of a single patient."""

    tables: list[dict] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)  # (what, reason) -> rows
    left_out: Counter = field(
        default_factory=Counter
    )  # (what, reason) -> rows that the source does not select
    normalized: Counter = field(default_factory=Counter)  # what -> values or files
    unlisted: Counter = field(default_factory=Counter)  # (column, system) -> codes in no list of the system
    mapped: Counter = field(default_factory=Counter)  # (column, "mapped" or "kept" or "dropped") -> codes
    ignored: list[str] = field(default_factory=list)  # files that stand beside those that were read
    patients: int = 0
    visits: int = 0
    by_sex: Counter = field(default_factory=Counter)
    by_age: Counter = field(default_factory=Counter)
    by_code: Counter = field(default_factory=Counter)  # (column, SYSTEM:CODE) -> visits

    def read(self, table: str, path: Path, sha256: str, rows: int, kept: list, removed: list) -> None:
        """Note a file that was read, the columns kept and, by name, the columns removed."""
        self.tables.append(
            {
                "table": table,
                "file": Path(path).name,
                "sha256": sha256,
                "rows": rows,
                "columns_kept": list(kept),
                "columns_removed": list(removed),
            }
        )

    def empty_tables(self) -> list[str]:
        """Names of tables that have a header and no row."""
        rows: Counter = Counter()
        for table in self.tables:
            rows[table["table"]] += table["rows"]
        return [name for name, n in rows.items() if not n]

    def drop(self, what: str, reason: str, rows: int) -> None:
        """Count dropped rows; a reason that never occurred is listed with 0."""
        self.dropped[what, reason] += int(rows)

    def add(self, visits: pa.Table) -> None:
        """Count a batch of the visits that are written."""
        self.patients += len(patient_starts(visits))
        self.visits += visits.num_rows
        ages, sexes = visits["age"].to_numpy(), sex_index(visits)
        for sex, name in enumerate(("F", "M")):
            self.by_sex[name] += int((sexes == sex).sum())
        for name, (low, high) in AGES.items():
            self.by_age[name] += int(((ages >= low) & (ages < high)).sum())
        for column in CODE_COLUMNS:
            counted = pc.value_counts(code_lists(visits, column)[0])
            for code, n in zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True):
                self.by_code[column, code] += n

    def codes_of(self, column: str) -> int:
        """Codes written into a column."""
        return sum(n for (where, _), n in self.by_code.items() if where == column)

    def codes_in_words(self) -> str:
        """Codes written, by column and system: 6 diagnoses (ICD9CM 4, ICD10CM 2), 0 procedures ..."""
        systems: Counter = Counter()
        for (column, code), n in self.by_code.items():
            systems[column, parts(code)[0]] += n
        words = []
        for column in CODE_COLUMNS:
            own = [f"{system} {n:,}" for (where, system), n in systems.most_common() if where == column]
            words.append(f"{self.codes_of(column):,} {column}" + (f" ({', '.join(own)})" if own else ""))
        return ", ".join(words)

    def dropped_in_words(self) -> str:
        """What was dropped, the most first: diagnoses: null code 3; visits: no code 1. Else `nothing`."""
        lost = Counter({key: n for key, n in self.dropped.items() if n}).most_common()
        return "; ".join(f"{what}: {reason} {n:,}" for (what, reason), n in lost) or "nothing"

    def summary(self, source: str) -> dict:
        """audit.json: sums by reason and the cohort in a few numbers."""
        systems: dict[tuple[str, str], list[int]] = {}
        for (column, code), n in self.by_code.items():
            systems.setdefault((column, parts(code)[0]), []).append(n)
        codes = sum(self.by_code.values())
        return {
            "source": source,
            "tables": self.tables,
            "columns_removed": sorted({name for table in self.tables for name in table["columns_removed"]}),
            "files_ignored": self.ignored,
            "dropped": _rows(self.dropped),
            "left_out": _rows(self.left_out),
            "normalized": [{"what": what, "count": count} for what, count in self.normalized.items()],
            "mapped": [
                {"column": column, "what": what, "codes": n} for (column, what), n in self.mapped.items()
            ],
            "cohort": {
                "patients": self.patients,
                "visits": self.visits,
                "codes": codes,
                "distinct_codes": len(self.by_code),
                "codes_per_visit": round(codes / max(1, self.visits), 4),
                "by_system": [
                    {
                        "column": column,
                        "system": system,
                        "codes": int(np.sum(counts)),
                        "distinct_codes": len(counts),
                        "in_no_list": self.unlisted.get((column, system)),
                    }
                    for (column, system), counts in sorted(systems.items())
                ],
                "visits_by_sex": {name: self.by_sex[name] for name in ("F", "M")},
                "visits_by_age": {name: self.by_age[name] for name in AGES},
            },
        }


def _rows(counts: Counter) -> list[dict]:
    return [{"what": what, "reason": reason, "rows": rows} for (what, reason), rows in counts.items()]
