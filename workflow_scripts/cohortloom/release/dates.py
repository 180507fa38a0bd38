"""Dates and births for visits that have none: what every export format needs.

The visits table knows ages and days since the first visit. An export needs dates from which a reader gets the
same ages back. Two rules are in use:

- completed years between birth and visit, or days / 365.25 under one year (MEDS, OMOP, MIMIC-III);
- age at the first visit plus calendar years since then (MIMIC-IV).

A patient has one first day and one birth for all formats. The first day lies in the real past, and is chosen
such that the visits cross New Year as often as their ages advance, which satisfies the second rule; the
birth is drawn from the days that satisfy the first. Leap years can make a difference, so four years in a row
are tried. Visits that no date fits are marked, and exports count them.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.ragged import row_of_value
from cohortloom.base.seeds import generator
from cohortloom.data.visits import MAX_AGE, patient_starts

FIRST_YEAR, LAST_YEAR = 1951, 2019  # of all visits; quality checks of OMOP refuse events before 1950
SPREAD = 10  # years over which the last possible first years are spread
LEAP_CYCLE = 4
DAYS_PER_YEAR = 365.25
HALF_A_DAY = 0.5 / DAYS_PER_YEAR + 1e-6  # in years; ages of infants come back to the day
HOUR = 3600
OPENS, OPEN_HOURS = 8, 12  # hour of a day's first admission, and hours that the visits of a day share


@dataclass(frozen=True)
class Dates:
    """Dates of the patients and visits of a table, and the visits whose age they do not give."""

    birth: np.ndarray  # datetime64[D] [n_patients]
    admitted: np.ndarray  # datetime64[s] [n_visits]
    discharged: np.ndarray  # datetime64[s] [n_visits], the same day
    misfit_by_birth: np.ndarray  # bool [n_visits]: completed years since birth are another age
    misfit_by_year: np.ndarray  # bool [n_visits]: calendar years since the first visit give another age


def shift_years(day: np.ndarray, years: np.ndarray) -> np.ndarray:
    """The days `years` years earlier, datetime64[D]; the last of February where there is no 29th.

    >>> str(shift_years(np.array(["2016-02-29"], "M8[D]"), np.array([1]))[0])
    '2015-02-28'
    """
    month = day.astype("M8[M]")
    earlier = month - 12 * np.asarray(years, np.int64)
    last = (earlier + 1).astype("M8[D]") - 1
    return np.minimum(earlier.astype("M8[D]") + (day - month.astype("M8[D]")), last)


def year_of(day: np.ndarray) -> np.ndarray:
    """Calendar years of datetime64[D], int64."""
    return day.astype("M8[Y]").astype(np.int64) + 1970


def new_year(year: np.ndarray) -> np.ndarray:
    """The first of January of each year, datetime64[D]."""
    return (np.asarray(year, np.int64) - 1970).astype("M8[Y]").astype("M8[D]")


def completed_years(birth: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Birthdays since birth, int64. One born on 29 February has it on 1 March of other years.

    >>> completed_years(np.array(["2016-02-29"] * 2, "M8[D]"), np.array(["2017-02-28", "2017-03-01"],
    "M8[D]")) array([0, 1])
    """
    month, born = day.astype("M8[M]"), birth.astype("M8[M]")
    within = lambda moment, of: (  # noqa: E731
        (of.astype(np.int64) % 12) * 100 + (moment - of.astype("M8[D]")).astype(np.int64)
    )
    return year_of(day) - year_of(birth) - (within(day, month) < within(birth, born))


def age_by_birth(birth: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Age in years as readers compute it from a birth date: float64, capped at MAX_AGE."""
    years = completed_years(birth, day)
    exact = (day - birth).astype(np.int64) / DAYS_PER_YEAR
    return np.minimum(np.where(years < 1, exact, years), MAX_AGE)


def date_visits(visits: pa.Table, seed: int) -> Dates:
    """Dates for a table of visits; `seed` draws them.

    Raises UserError for a history that does not fit between FIRST_YEAR and LAST_YEAR.
    """
    starts = patient_starts(visits)
    n, m = len(starts), visits.num_rows
    days, age = visits["days"].to_numpy().astype(np.int64), visits["age"].to_numpy().astype(np.float64)
    patient = row_of_value(np.append(starts, m))
    rng = generator("dates of an export", seed)
    year_draw, day_draw, birth_draw = rng.random(n), rng.random(n), rng.random(n)
    if not m:
        nothing = np.zeros(0, "M8[s]")
        return Dates(np.zeros(0, "M8[D]"), nothing, nothing, np.zeros(0, bool), np.zeros(0, bool))
    latest = LAST_YEAR - 1 - np.maximum.reduceat(days, starts) // 365
    if (latest < FIRST_YEAR).any():
        row = starts[np.flatnonzero(latest < FIRST_YEAR)[0]]
        raise UserError(
            f"patient {visits['patient_id'][row].as_py()}: the history takes more than the"
            f" {LAST_YEAR - FIRST_YEAR} years from {FIRST_YEAR} to {LAST_YEAR}; export shorter histories"
        )
    best: list[np.ndarray] = []
    for back in range(LEAP_CYCLE):
        year = np.maximum(latest - (year_draw * SPREAD).astype(np.int64) - back, FIRST_YEAR)
        first = _first_day(year, starts, patient, days, age, day_draw)
        day = first[patient] + days
        birth = _birth(starts, day, age, birth_draw)
        by_birth = np.abs(age_by_birth(birth[patient], day) - age) > HALF_A_DAY
        by_year = age_by_year(age[starts], first, patient, day) != np.floor(age)
        faults = np.add.reduceat(by_birth.astype(np.int64) + by_year, starts)
        found = [faults, birth, first, by_birth, by_year]
        if not best:
            best = found
            continue
        better = faults < best[0]
        of = [better] * 3 + [better[patient]] * 2
        best = [np.where(which, new, old) for which, new, old in zip(of, found, best, strict=True)]
    _, birth, first, by_birth, by_year = best
    admitted, discharged = _hours(first[patient] + days, patient)
    return Dates(birth, admitted, discharged, by_birth, by_year)


def age_by_year(first_age: np.ndarray, first: np.ndarray, patient: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Age in whole years by calendar years since the first visit, capped at MAX_AGE, float64 [n_visits]."""
    return np.minimum(np.floor(first_age)[patient] + year_of(day) - year_of(first)[patient], MAX_AGE)


def _first_day(year, starts, patient, days, age, draw) -> np.ndarray:
    """A day of `year` from which each visit falls into the calendar year that its age asks for."""
    whole = np.floor(age)
    advanced = (whole - whole[starts][patient]).astype(np.int64)  # calendar years since the first visit
    target = year[patient] + advanced
    low, high = new_year(target) - days, new_year(target + 1) - 1 - days
    capped = age >= MAX_AGE  # at least so many years
    end = np.datetime64("9999-12-31")
    high = np.where(capped, end, high)
    low = np.where(capped & (whole[starts][patient] >= MAX_AGE), np.datetime64("0001-01-01"), low)
    low = np.maximum(np.maximum.reduceat(low, starts), new_year(year))
    high = np.minimum(np.minimum.reduceat(high, starts), new_year(year + 1) - 1)
    return _draw_between(low, high, new_year(year), new_year(year + 1) - 1, draw)


def _birth(starts, day, age, draw) -> np.ndarray:
    """A birth from which the completed years at each visit are its age; under one year the exact day."""
    whole = np.floor(age).astype(np.int64)
    infant = age < 1
    exact = day - np.floor(age * DAYS_PER_YEAR + 0.5).astype(np.int64)
    low = np.where(infant, exact, shift_years(day, whole + 1) + 1)
    high = np.where(infant, exact, shift_years(day, whole))
    first_low, first_high = low[starts], high[starts]
    open_below = age >= MAX_AGE
    open_below[starts] = False  # at the first visit 90 means 90, later 90 or more
    low = np.where(open_below, np.datetime64("0001-01-01"), low)
    low, high = np.maximum.reduceat(low, starts), np.minimum.reduceat(high, starts)
    return _draw_between(low, high, first_low, first_high, draw)


def _draw_between(low, high, first_low, first_high, draw) -> np.ndarray:
    """A day from low to high, datetime64[D]; where there is none, a near one that fits the first visit."""
    width = (high - low).astype(np.int64) + 1
    drawn = low + (draw * np.maximum(width, 1)).astype(np.int64)
    return np.where(width > 0, drawn, np.clip(high, first_low, first_high))


def _hours(day: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Admission and discharge, datetime64[s] [n_visits]; visits of one patient and day follow each other."""
    begins = np.ones(len(day), bool)
    begins[1:] = (day[1:] != day[:-1]) | (patient[1:] != patient[:-1])
    start = np.flatnonzero(begins)
    group = np.cumsum(begins) - 1
    place = np.arange(len(day)) - start[group]
    length = OPEN_HOURS * HOUR // np.bincount(group)[group]
    admitted = day.astype("M8[s]") + OPENS * HOUR + place * length
    return admitted, admitted + length * 3 // 4
