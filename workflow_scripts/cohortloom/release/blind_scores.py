"""Scores of the blind test: the share of visits distinguished, by reader and age band, and the classifier's.

An answer is right (1), wrong (0) or "cannot tell", which counts as half right, as a guess would on average. A
share of 0.5 is guessing. Over several readers a visit counts once, with the mean over its readers, because
answers to one visit are not independent.

Intervals are 95% by Clopper and Pearson (Biometrika 1934), from quantiles of the beta distribution. They are
conservative, the more so with halves and means, which vary less than right and wrong.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import betaincinv

from cohortloom.base.errors import UserError
from cohortloom.data.bands import BROAD_NAMES
from cohortloom.evaluation.intervals import LEVEL

CANNOT_TELL = "cannot tell"
SOURCES = ("real", "synthetic")
ALL_READERS, ALL_AGES, COMPUTER = "all readers", "all ages", "computer"
Key = dict[int, dict[str, Any]]  # number of the visit -> its entry in the key


@dataclass(frozen=True)
class Sheet:
    """One reader's answers; visits without an answer are left out."""

    reader: str
    answers: Mapping[int, str]
    remarks: Mapping[int, str]


@dataclass(frozen=True)
class Score:
    """Share of `visits` distinguished by `who` at `ages`, with its interval."""

    who: str
    ages: str
    share: float
    low: float
    high: float
    visits: int
    cannot_tell: int  # answers


def read_key(path: Path) -> tuple[str, Key]:
    """Id of the page, and the key. Raises UserError for another file."""
    content = _read_object(path, "key of a blind test", ("page", "visits"))
    try:
        return content["page"], {entry["visit"]: entry for entry in content["visits"] if entry["source"]}
    except (KeyError, TypeError):
        raise UserError(f"{path}: not the key of a blind test; give blind_test/key.json") from None


def read_sheet(path: Path, page: str, key: Key) -> Sheet:
    """A reader's answers. Raises UserError for another file, answers to another page, and faulty answers."""
    content = _read_object(path, "file of answers", ("page", "reader", "answers"))
    if content["page"] != page:
        raise UserError(
            f"{path}: page: answers to the page {content['page']!r}, but the key is of {page!r}; "
            "give the key of the page that the reader saw"
        )
    reader = content["reader"]
    if not isinstance(reader, str) or not reader.strip():
        raise UserError(f"{path}: reader: {reader!r} is no name; write one")
    answers: dict[int, str] = {}
    remarks: dict[int, str] = {}
    numbers: set[int] = set()
    for place, entry in enumerate(content["answers"] if isinstance(content["answers"], list) else [None]):
        number = entry.get("visit") if isinstance(entry, dict) else None
        if type(number) is not int or number not in key or number in numbers:
            raise UserError(
                f"{path}: answers: entry {place + 1}: visit {number!r} is not on the page or given twice; "
                "download the answers again"
            )
        numbers.add(number)
        answer, remark = entry.get("answer"), entry.get("remark")
        if answer not in (*SOURCES, CANNOT_TELL, None):
            raise UserError(
                f"{path}: answers: visit {number}: {answer!r} is no answer; "
                f"give real, synthetic, {CANNOT_TELL} or null"
            )
        if answer is not None:
            answers[number] = answer
        if isinstance(remark, str) and remark.strip():
            remarks[number] = " ".join(remark.split())
    if not answers:
        raise UserError(f"{path}: no visit is answered; leave this file out")
    return Sheet(reader.strip(), answers, remarks)


def computer_sheet(key: Key, visits: set[int]) -> Sheet | None:
    """The classifier's answers to these visits; None if the key has none. At 0.5 it cannot tell."""
    probabilities = {number: key[number].get("computer") for number in visits}
    if None in probabilities.values():
        return None
    answers = {
        number: CANNOT_TELL if probability == 0.5 else SOURCES[probability > 0.5]
        for number, probability in probabilities.items()
    }
    return Sheet(COMPUTER, answers, {})


def scores(key: Key, sheets: Sequence[Sheet]) -> list[Score]:
    """Scores of all readers, of each reader, and of the classifier on the visits that a reader answered.

    Each at all ages and by band of age, where there is an answer. Raises UserError if two sheets name one
    reader.
    """
    names = [sheet.reader for sheet in sheets]
    for name in names:
        if names.count(name) > 1 or name in (ALL_READERS, COMPUTER):
            raise UserError(f"reader: the name {name!r} is taken by another; change it in one of the files")
    computer = computer_sheet(key, {number for sheet in sheets for number in sheet.answers})
    parts = [(ALL_READERS, sheets), *((sheet.reader, [sheet]) for sheet in sheets)]
    if computer:
        parts.append((COMPUTER, [computer]))
    found = [_score(who, ages, key, group) for who, group in parts for ages in (ALL_AGES, *BROAD_NAMES)]
    return [score for score in found if score.visits]


def _score(who: str, ages: str, key: Key, sheets: Sequence[Sheet]) -> Score:
    by_visit: dict[int, list[float]] = {}
    for sheet in sheets:
        for number, answer in sheet.answers.items():
            if ages in (ALL_AGES, key[number]["age_band"]):
                right = 0.5 if answer == CANNOT_TELL else float(answer == key[number]["source"])
                by_visit.setdefault(number, []).append(right)
    means = [sum(values) / len(values) for values in by_visit.values()]
    unsure = sum(sheet.answers.get(number) == CANNOT_TELL for sheet in sheets for number in by_visit)
    share = sum(means) / len(means) if means else math.nan
    return Score(who, ages, share, *clopper_pearson(sum(means), len(means)), len(means), unsure)


def clopper_pearson(right: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share of `right` in `n`; `right` may be fractional.

    >>> [round(float(end), 3) for end in clopper_pearson(5, 10)], clopper_pearson(0, 0)
    ([0.187, 0.813], (0.0, 1.0))
    """
    tail = (1 - level) / 2
    low = betaincinv(right, n - right + 1, tail) if right > 0 else 0.0
    high = betaincinv(right + 1, n - right, 1 - tail) if right < n else 1.0
    return float(low), float(high)


def verdict(score: Score) -> str:
    """What a score means, in words."""
    if score.low > 0.5:
        return "distinguished"
    if score.high < 0.5:
        return "distinguished, but taken for each other"
    return "not distinguished beyond chance"


def _read_object(path: Path, what: str, names: Sequence[str]) -> dict[str, Any]:
    """A JSON object that has these names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a {what} ({str(error).splitlines()[0]}); give another file") from None
    missing = [name for name in names if not isinstance(content, dict) or name not in content]
    if missing:
        raise UserError(f"{path}: not a {what}: {missing[0]} is missing; give another file")
    return content
