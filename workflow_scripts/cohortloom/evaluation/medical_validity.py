"""How often generated codes break the age and sex edits, and how often restricted codes are generated.

Rates are fractions, 95% intervals are over patients. A violation breaks the full edit; violations of the hard
edit are also counted separately. `per_100k_visits` counts visits with at least one violation. A generator can
avoid all restricted codes: `restricted_share` shows it, and `any_per_restricted_code` allows for it. Codes
of a system without a validity table are unconstrained and do not count in rates of codes.
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
BIRTH = r"^(ICD9CM:V3[0-9]|ICD10CM:Z38)"
# Families of chronic disease that a newborn cannot have: diabetes, lipids, senile psychoses, hypertension,
# coronary disease, chronic bronchitis and emphysema, chronic airway obstruction, prostate, osteoarthrosis.
ADULT_CHRONIC = (
    r"^(ICD9CM:(250|272|290|40[1-5]|41[0-4]|49[0-2]|496|600|715)"
    r"|ICD10CM:(E1[0-3]|E78[0-6]|F0[13]|I1[0-6]|I2[0-5]|J4[0-4]|N40|M1[5-9]))"
)


def medical_validity(table: pa.Table, rules: Rules, seed: int, column: str = "diagnoses") -> Iterator[Figure]:
    """All figures of the codes of one column of a table of visits of whole patients."""
    values, offsets = code_lists(table, column)
    n_visits = table.num_rows
    visit, patient = row_of_value(offsets), patient_of_visit(table["visit"])
    of_patient = patient_groups(int(patient[-1]) + 1 if n_visits else 0, seed)
    groups, n_groups = of_patient[patient], int(of_patient.max(initial=0)) + 1
    has_limits = rules.apply_to(values)
    values, visit = values.filter(pa.array(has_limits)), visit[has_limits]
    no_code = (
        NO_CODE
        if has_limits.all()
        else f"no code is of a system with limits ({', '.join(sorted(rules.systems))})"
    )
    broken = rules.violations(values, table["age"].to_numpy()[visit], sex_index(table)[visit])

    def n_codes(mask: np.ndarray) -> np.ndarray:
        return np.bincount(groups[visit[mask]], minlength=n_groups)

    def n_visits_with(mask: np.ndarray) -> np.ndarray:
        return np.bincount(groups[np.unique(visit[mask])], minlength=n_groups)

    all_codes, all_visits = n_codes(np.ones(len(values), bool)), np.bincount(groups, minlength=n_groups)
    restricted = n_codes(broken.restricted)
    masks = {"age": broken.age, "sex": broken.sex, "any": broken.any, "hard": broken.hard}
    for metric, mask in masks.items():
        rate = ratio(n_codes(mask), all_codes, n_visits, 1.0)
        yield _lower_is_better(f"{metric}_violation_rate", "", rate, no_code)
    for metric in ("any", "hard"):
        mask = masks[metric]
        rate = ratio(n_codes(mask), restricted, n_visits, 1.0)
        yield _lower_is_better(f"{metric}_per_restricted_code", "", rate, "no code has an age or sex limit")
        rate = ratio(n_visits_with(mask), all_visits, n_visits, PER, PER)
        yield _lower_is_better(f"{metric}_per_100k_visits", "", rate, "there is no visit")
    yield Figure("restricted_share", "", ratio(restricted, all_codes, n_visits, 1.0), reason=no_code)
    if column == "diagnoses":
        yield from newborns(values, visit, groups, n_groups)
    yield from violations_in_detail(values, broken, visit, groups, n_groups, all_visits)


def newborns(values: pa.Array, visit: np.ndarray, groups: np.ndarray, n_groups: int) -> Iterator[Figure]:
    """Share of birth visits (V30-V39, Z38) that also hold a chronic disease of adults."""
    is_birth, is_chronic = np.zeros((2, len(groups)), bool)
    is_birth[visit[_matches(values, BIRTH)]] = True
    is_chronic[visit[_matches(values, ADULT_CHRONIC)]] = True
    both = np.bincount(groups[is_birth & is_chronic], minlength=n_groups)
    births = np.bincount(groups[is_birth], minlength=n_groups)
    rate = ratio(both, births, int(is_birth.sum()), 1.0)
    yield _lower_is_better("newborn_chronic_rate", "", rate, "no visit is a birth (V30-V39, Z38)")


def violations_in_detail(
    values: pa.Array,
    broken: Violations,
    visit: np.ndarray,
    groups: np.ndarray,
    n_groups: int,
    all_visits: np.ndarray,
) -> Iterator[Figure]:
    """Violations by category of the edit, and the codes with the most violations."""
    n_visits = int(all_visits.sum())
    for category in sorted({*broken.category[broken.restricted]}):
        in_category = broken.category == category
        violations = np.bincount(groups[visit[in_category & broken.any]], minlength=n_groups)
        codes = np.bincount(groups[visit[in_category]], minlength=n_groups)
        yield _lower_is_better("category_violation_rate", category, ratio(violations, codes, n_visits, 1.0))
        rate = ratio(violations, all_visits, n_visits, per=PER)
        yield _lower_is_better("category_per_100k_visits", category, rate)
    encoded = values.dictionary_encode()
    names, index = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    counts = np.bincount(index[broken.any], minlength=len(names))
    for code in sorted(range(len(names)), key=lambda i: (-counts[i], names[i]))[:WORST]:
        if counts[code]:
            violations = np.bincount(groups[visit[broken.any & (index == code)]], minlength=n_groups)
            rate = ratio(violations, all_visits, n_visits, per=PER)
            yield _lower_is_better("code_per_100k_visits", names[code], rate)


def _matches(values: pa.Array, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(values, pattern).to_numpy(zero_copy_only=False)


def _lower_is_better(metric: str, subset: str, rate: Estimate, reason: str | None = None) -> Figure:
    return Figure(metric, subset, rate, higher_is_better=False, reason=reason)
