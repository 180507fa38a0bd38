"""The blind test: a page on which a reader tells real held-out visits from synthetic ones, and its key.

Each synthetic visit is paired with a real one of the same age, sex and place in the patient's history (first
visit or later), so that none of these tells which is which. A patient has at most one visit on the page. Both
kinds of visits go through the same functions into words. Codes keep the order of the tables: the recorded
order of a real visit, the generated order of a synthetic one.

A classifier, trained on visits of other patients, answers beside the readers. It is the gradient boosting
of evaluation/classifier.py on what the page shows: the most frequent codes of all columns, numbers of codes,
age, sex, first visit or later.
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier

from cohortloom.base.ragged import patient_of_visit
from cohortloom.base.seeds import generator, seed_of
from cohortloom.data import bands
from cohortloom.data.coded import Coded, encode_columns, most_frequent, sample_patients
from cohortloom.data.validity import Rules
from cohortloom.data.visits import sex_index, used_columns
from cohortloom.evaluation.classifier import BOOSTING, TOP
from cohortloom.evaluation.features import code_matrix, demographics
from cohortloom.release.blind_scores import SOURCES
from cohortloom.reporting.examples import age_in_words, patient_in_words

REAL, SYNTHETIC = SOURCES
MOST_OTHERS, FEWEST_OTHERS = 20_000, 100  # visits of each kind that the classifier is trained on


@dataclass(frozen=True)
class Pairs:
    """Row of a real and row of a synthetic visit [n_pairs], and the age that the page shows of both."""

    real: np.ndarray
    synthetic: np.ndarray
    ages: list[str]
    by_band: int  # pairs of the same age band, for lack of the same age


def draw_pairs(real: pa.Table, synthetic: pa.Table, most: int, seed: int) -> Pairs:
    """At most `most` pairs of visits of different patients, drawn without replacement.

    Synthetic visits are taken in random order. Each is paired with a real visit of the same sex and place in
    the history, of the same age in words (completed years, months under one year) if there is one left, else
    of the same band of `bands.BROAD`; without one it is passed over.
    """
    rng = generator("blind test", seed)
    real_keys, synthetic_keys = _keys(real), _keys(synthetic)
    real_patient, synthetic_patient = (patient_of_visit(table["visit"]) for table in (real, synthetic))
    waiting: dict[tuple, list[int]] = defaultdict(list)  # real rows by age, and again by band
    for row in rng.permutation(real.num_rows).tolist():
        age, *rest = real_keys[row]
        waiting[(age, *rest)].append(row)
        waiting[tuple(rest)].append(row)
    used_real: set[int] = set()
    used_synthetic: set[int] = set()
    rows: list[tuple[int, int]] = []
    ages: list[str] = []
    for row in rng.permutation(synthetic.num_rows).tolist():
        if len(rows) == most:
            break
        if synthetic_patient[row] in used_synthetic:
            continue
        age, *rest = synthetic_keys[row]
        for key, shown in (((age, *rest), age), (tuple(rest), bands.BROAD_NAMES[rest[0]])):
            match = _take(waiting[key], real_patient, used_real)
            if match is not None:
                rows.append((match, row))
                ages.append(shown)
                used_real.add(real_patient[match])
                used_synthetic.add(synthetic_patient[row])
                break
    matched = np.array(rows, np.int64).reshape(-1, 2)
    return Pairs(matched[:, 0], matched[:, 1], ages, sum(age in bands.BROAD_NAMES for age in ages))


def _keys(visits: pa.Table) -> list[tuple[str, int, int, bool]]:
    """What visits of a pair have in common: age in words, its band, sex, whether the visit is the first."""
    ages = visits["age"].to_numpy()
    columns = (bands.band(ages, bands.BROAD), sex_index(visits), visits["visit"].to_numpy() == 0)
    words = [age_in_words(age) for age in ages.tolist()]
    return list(zip(words, *(column.tolist() for column in columns), strict=True))


def _take(rows: list[int], patient: np.ndarray, used: set[int]) -> int | None:
    """Remove and return the last row whose patient is not used; rows of used patients are dropped."""
    while rows:
        if patient[row := rows.pop()] not in used:
            return row
    return None


def visits_in_words(
    real: pa.Table, synthetic: pa.Table, pairs: Pairs, titles: dict[str, str], rules: Rules, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the page shows of each visit, in random order, and what the key says of it, without its number."""
    entries = []
    tables = ((REAL, real, pairs.real), (SYNTHETIC, synthetic, pairs.synthetic))
    for source, table, rows in tables:
        for pair, row in enumerate(rows.tolist()):
            visit = table.slice(row, 1)
            first = visit["visit"][0].as_py() == 0
            columns = patient_in_words(visit, titles, rules)["visits"][0]["columns"]
            shown = {
                "sex": {"F": "Female", "M": "Male"}[visit["sex"][0].as_py()],
                "age": pairs.ages[pair],
                "history": "first visit of this patient" if first else "a later visit of this patient",
                # Not the mark of a broken edit: whether a code fits is for the reader to judge.
                "columns": {
                    name: [{"title": code["title"], "code": code["code"]} for code in codes]
                    for name, codes in columns.items()
                },
            }
            hidden = {
                "source": source,
                "pair": pair,
                "age_band": bands.BROAD_NAMES[int(bands.band(visit["age"].to_numpy(), bands.BROAD)[0])],
                "patient_id": visit["patient_id"][0].as_py(),
                "patient_visit": visit["visit"][0].as_py(),
            }
            entries.append((shown, hidden))
    order = generator("order of the blind test", seed).permutation(len(entries))
    shown, hidden = zip(*(entries[number] for number in order), strict=True)
    return list(shown), list(hidden)


def page_id(shown: list[dict[str, Any]]) -> str:
    """An id of what a page shows, by which answers are known to be answers to it."""
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:12]


def render_page(template: Path, shown: list[dict[str, Any]], experiment: str, simulated: bool) -> str:
    """The page as a string. It is given nothing of the key."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        page=page_id(shown), visits=shown, experiment=experiment, simulated=simulated
    )


def computer_probabilities(
    real: pa.Table, synthetic: pa.Table, pairs: Pairs, seed: int
) -> tuple[list[float], list[float]] | None:
    """Probability of being synthetic of the real and of the synthetic visits of the pairs, by a classifier.

    It is trained on equally many visits of each kind, of patients who are not on the page. None if there are
    fewer than FEWEST_OTHERS of one kind.
    """
    others = [_without(real, pairs.real), _without(synthetic, pairs.synthetic)]
    size = min(MOST_OTHERS, *(table.num_rows for table in others))
    if size < FEWEST_OTHERS:
        return None
    seed = seed_of("classifier of the blind test", seed) % 2**32
    others = [sample_patients(table, size, seed) for table in others]
    tables = [*others, real.take(pa.array(pairs.real)), synthetic.take(pa.array(pairs.synthetic))]
    coded, names, column_of = encode_columns(tables, used_columns(*tables))
    frequent = most_frequent(np.concatenate([part.codes for part in coded[:2]]), len(names), TOP)
    rows = [
        _features(part, table["visit"].to_numpy() == 0, frequent, column_of)
        for part, table in zip(coded, tables, strict=True)
    ]
    is_synthetic = np.repeat([False, True], [len(part) for part in rows[:2]])
    model = HistGradientBoostingClassifier(**BOOSTING, random_state=seed)
    model.fit(np.concatenate(rows[:2]), is_synthetic)
    return tuple(model.predict_proba(part)[:, 1].tolist() for part in rows[2:])


def _without(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The visits of the patients who have none of these rows."""
    patient = patient_of_visit(table["visit"])
    return table.filter(pa.array(~np.isin(patient, patient[rows])))


def _features(visits: Coded, first: np.ndarray, frequent: np.ndarray, column_of: np.ndarray) -> np.ndarray:
    """Feature rows [n_visits, codes + columns + 3]."""
    of_column = column_of[visits.codes]
    lengths = [
        np.bincount(visits.visit_of_code[of_column == number], minlength=visits.n_visits)
        for number in range(int(column_of.max()) + 1)
    ]
    codes = code_matrix(visits, frequent, len(column_of)).toarray()
    return np.concatenate([codes, np.stack([*lengths, first], axis=1), demographics(visits)], axis=1)
