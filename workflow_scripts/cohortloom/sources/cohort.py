"""What every reader returns: visits, and the account of what was read, dropped, removed and normalised."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.ragged import row_offsets
from cohortloom.data.codes import normalize, sloppiness
from cohortloom.data.visits import (
    code_lists,
    list_column,
    patient_starts,
    sex_array,
    sex_index,
    with_empty_columns,
)


@dataclass
class Audit:
    """Counts by reason; every reader fills it and preprocess writes it as audit.json."""

    tables: list[dict] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)  # (what, reason) -> rows
    normalized: Counter = field(default_factory=Counter)  # what -> values or files

    def read(self, table: str, path: Path, sha256: str, rows: int, kept: list, removed: list) -> None:
        """Note a table that was read, the columns kept and, by name, the columns removed."""
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

    def drop(self, what: str, reason: str, rows: int) -> None:
        """Count dropped rows; a reason that never occurred is listed with 0."""
        self.dropped[what, reason] += int(rows)

    def summary(self, source: str, visits: pa.Table) -> dict:
        """audit.json: sums by reason and the cohort in a few numbers, nothing of a single patient."""
        values, offsets = code_lists(visits)
        ages, sexes = visits["age"].to_numpy(), sex_index(visits)
        return {
            "source": source,
            "tables": self.tables,
            "columns_removed": sorted({name for table in self.tables for name in table["columns_removed"]}),
            "dropped": [
                {"what": what, "reason": reason, "rows": rows}
                for (what, reason), rows in self.dropped.items()
            ],
            "normalized": [{"what": what, "count": count} for what, count in self.normalized.items()],
            "cohort": {
                "patients": len(patient_starts(visits)),
                "visits": visits.num_rows,
                "codes": len(values),
                "distinct_codes": len(values.unique()),
                "codes_per_visit": round(len(values) / max(1, len(offsets) - 1), 4),
                "visits_by_sex": {"F": int((sexes == 0).sum()), "M": int((sexes == 1).sum())},
                "visits_by_age": {
                    "under 1": int((ages < 1).sum()),
                    "1 to 17": int(((ages >= 1) & (ages < 18)).sum()),
                    "18 to 64": int(((ages >= 18) & (ages < 65)).sum()),
                    "65 and over": int((ages >= 65).sum()),
                },
            },
        }


def clean_codes(codes: pa.Array, audit: Audit) -> pa.DictionaryArray:
    """Codes in the public form, null where there is no code or it is not of ICD-9-CM form; both counted.

    `codes` is an array of n strings, or a dictionary of them; each distinct spelling is looked at once.
    """
    encoded = codes.dictionary_encode()
    spelled = encoded.dictionary.to_pylist()
    index = encoded.indices.fill_null(-1).to_numpy()
    counts = np.bincount(index + 1, minlength=len(spelled) + 1)
    empty, malformed, public, mapped = int(counts[0]), 0, {}, np.full(len(spelled) + 1, -1, np.int32)
    for position, text in enumerate(spelled):
        rows = int(counts[position + 1])
        if not rows:
            continue
        if not text.strip(" \t\u00a0\"'"):
            empty += rows
            continue
        code = normalize("ICD9CM", text.removeprefix("ICD9CM:"))
        if code is None:
            malformed += rows
            continue
        mapped[position] = public.setdefault(code, len(public))
        for kind in sloppiness("ICD9CM", text.removeprefix("ICD9CM:")):
            audit.normalized[f"codes with a {kind}" if kind != "lower case" else "codes in lower case"] += (
                rows
            )
    audit.drop("diagnoses", "null code", empty)
    audit.drop("diagnoses", "code not of ICD-9-CM form", malformed)
    index = mapped[index]
    return pa.DictionaryArray.from_arrays(
        pa.array(index, mask=index < 0), pa.array([f"ICD9CM:{code}" for code in public], pa.string())
    )


def assemble(
    patient_id: pa.Array,
    when: np.ndarray,
    age: np.ndarray,
    sex: np.ndarray,
    visit_of_code: np.ndarray,
    codes: pa.DictionaryArray,
    audit: Audit,
) -> pa.Table:
    """The visits table from rows already sorted by patient and time.

    patient_id, when (day number), age, sex (0 F, 1 M): [n_visits]. visit_of_code (row number) and codes:
    [n_codes], sorted by visit and recorded order, no nulls. Later repeats of a code in its visit are
    dropped, then visits without codes; both are counted. Raises UserError where no visit is left.
    """
    index = codes.indices.to_numpy().astype(np.int64)
    keys = visit_of_code.astype(np.int64) * max(1, len(codes.dictionary)) + index
    _, first = np.unique(keys, return_index=True)
    keep = np.zeros(len(keys), bool)
    keep[first] = True
    audit.drop("diagnoses", "code repeated in its visit", (~keep).sum())
    lengths = np.bincount(visit_of_code[keep], minlength=len(age))
    full = lengths > 0
    audit.drop("admissions", "no diagnosis", (~full).sum())
    if not full.any():
        raise UserError(
            "no visit with a diagnosis is left after cleaning; check that the tables are the full ones"
        )
    index, lengths = index[keep], lengths[full]
    ids = patient_id.filter(pa.array(full)).cast(pa.string()).dictionary_encode()
    numbers = ids.indices.to_numpy()
    new = np.r_[True, numbers[1:] != numbers[:-1]]
    starts = np.flatnonzero(new)
    first = starts[np.cumsum(new) - 1]
    visit, days = np.arange(len(new)) - first, when[full] - when[full][first]
    table = pa.table(
        {
            "patient_id": ids.cast(pa.string()),
            "visit": pa.array(visit, pa.int16()),
            "days": pa.array(days, pa.int32()),
            "age": pa.array(np.minimum(age[full], 90), pa.float32()),
            "sex": sex_array(sex[full]),
            "diagnoses": list_column(codes.dictionary.take(pa.array(index)), row_offsets(lengths)),
        }
    )
    return with_empty_columns(table)
