"""How often generated codes break the age and sex edits, and whether restricted codes are made at all.

Rates are fractions, 95% intervals are over patients. A violation is a breach of the full edit; hard ones are
counted apart. `per_100k_visits` counts the visits with at least one such code. A generator can avoid every
restricted code: `restricted_share` shows that, and `any_per_restricted_code` takes it into account. Codes
of a system without a validity table are unconstrained and count in no rate of codes.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.base.ragged import patient_of_visit, row_of_value
from cohortloom.data.coded import patient_groups
from cohortloom.data.validity import Rules, Violations
from cohortloom.data.visits import code_lists, sex_index
from cohortloom.evaluation.intervals import Estimate, ratio
from cohortloom.evaluation.records import Figure

WORST = 10
PER = 100_000
NO_CODE = "no visit holds a code"
BIRTH = r"^ICD9CM:V3[0-9]"
# Families of chronic disease that a newborn cannot have: diabetes, lipids, senile psychoses, hypertension,
# coronary disease, chronic bronchitis and emphysema, chronic airway obstruction, prostate, osteoarthrosis.
ADULT_CHRONIC = r"^ICD9CM:(250|272|290|40[1-5]|41[0-4]|49[0-2]|496|600|715)"


def medical_validity(table: pa.Table, rules: Rules, seed: int, column: str = "diagnoses") -> Iterator[Figure]:
    """All figures of a table of visits of whole patients."""
    values, offsets = code_lists(table, column)
    n_visits = table.num_rows
    owner, patient = row_of_value(offsets), patient_of_visit(table["visit"])
    of_patient = patient_groups(int(patient[-1]) + 1 if n_visits else 0, seed)
    groups, n_groups = of_patient[patient], int(of_patient.max(initial=0)) + 1
    tabled = rules.apply_to(values)
    values, owner = values.filter(pa.array(tabled)), owner[tabled]
    no_code = (
        NO_CODE
        if tabled.all()
        else f"no code is of a system with limits ({', '.join(sorted(rules.systems))})"
    )
    found = rules.violations(values, table["age"].to_numpy()[owner], sex_index(table)[owner])

    def codes(mask: np.ndarray) -> np.ndarray:
        return np.bincount(groups[owner[mask]], minlength=n_groups)

    def visits(mask: np.ndarray) -> np.ndarray:
        return np.bincount(groups[np.unique(owner[mask])], minlength=n_groups)

    everything = np.ones(len(values), bool)
    all_codes, all_visits = codes(everything), np.bincount(groups, minlength=n_groups)
    restricted = codes(found.restricted)
    for metric, mask in (("age", found.age), ("sex", found.sex), ("any", found.any), ("hard", found.hard)):
        rate = ratio(codes(mask), all_codes, n_visits, 1.0)
        yield _lower_is_better(f"{metric}_violation_rate", "", rate, no_code)
    for metric, mask in (("any", found.any), ("hard", found.hard)):
        rate = ratio(codes(mask), restricted, n_visits, 1.0)
        yield _lower_is_better(f"{metric}_per_restricted_code", "", rate, "no code has an age or sex limit")
        rate = ratio(visits(mask), all_visits, n_visits, PER, PER)
        yield _lower_is_better(f"{metric}_per_100k_visits", "", rate, "there is no visit")
    yield Figure("restricted_share", "", ratio(restricted, all_codes, n_visits, 1.0), reason=no_code)
    yield from newborns(values, owner, groups, n_groups)
    yield from offenders(values, found, owner, groups, n_groups, all_visits)


def newborns(values: pa.Array, owner: np.ndarray, groups: np.ndarray, n_groups: int) -> Iterator[Figure]:
    """Share of birth visits (V30-V39) that also hold an adult's chronic disease."""
    birth, chronic = np.zeros((2, len(groups)), bool)
    birth[owner[_matches(values, BIRTH)]] = True
    chronic[owner[_matches(values, ADULT_CHRONIC)]] = True
    both = np.bincount(groups[birth & chronic], minlength=n_groups)
    births = np.bincount(groups[birth], minlength=n_groups)
    rate = ratio(both, births, int(birth.sum()), 1.0)
    yield _lower_is_better("newborn_chronic_rate", "", rate, "no visit is a birth (V30-V39)")


def offenders(
    values: pa.Array,
    found: Violations,
    owner: np.ndarray,
    groups: np.ndarray,
    n_groups: int,
    all_visits: np.ndarray,
) -> Iterator[Figure]:
    """Violations by category of the edit, and the codes that are most often out of place."""
    n_visits = int(all_visits.sum())
    for category in sorted({*found.category[found.restricted]}):
        inside = found.category == category
        bad = np.bincount(groups[owner[inside & found.any]], minlength=n_groups)
        among = np.bincount(groups[owner[inside]], minlength=n_groups)
        yield _lower_is_better("category_violation_rate", category, ratio(bad, among, n_visits, 1.0))
        yield _lower_is_better(
            "category_per_100k_visits", category, ratio(bad, all_visits, n_visits, per=PER)
        )
    encoded = values.dictionary_encode()
    names, index = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    counts = np.bincount(index[found.any], minlength=len(names))
    for code in sorted(range(len(names)), key=lambda i: (-counts[i], names[i]))[:WORST]:
        if counts[code]:
            bad = np.bincount(groups[owner[found.any & (index == code)]], minlength=n_groups)
            yield _lower_is_better(
                "code_per_100k_visits", names[code], ratio(bad, all_visits, n_visits, per=PER)
            )


def _matches(values: pa.Array, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(values, pattern).to_numpy(zero_copy_only=False)


def _lower_is_better(metric: str, subset: str, rate: Estimate, reason: str | None = None) -> Figure:
    return Figure(metric, subset, rate, higher_is_better=False, reason=reason)
