"""Dates and births of exports: in the real past, and the ages come back by each rule."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from cohortloom.base.errors import UserError
from cohortloom.release.dates import age_by_birth, age_by_year, completed_years, date_visits, shift_years
from export_cohort import cohort


def many(n: int, seed: int) -> pa.Table:
    """Histories of n patients of all ages by completed years and random birthdays."""
    rng, rows = np.random.default_rng(seed), []
    for patient in range(1, n + 1):
        exact, day = float(rng.choice([rng.uniform(0, 2), rng.uniform(0, 91)])), 0
        for _ in range(rng.integers(1, 6)):
            now = exact + day / 365.25
            age = min(np.floor(now), 90) if now >= 1 else np.floor(now * 365.25) / 365.25
            rows.append(
                (patient, day, age, int(rng.integers(2)) if day == 0 else rows[-1][3], "ICD9CM:4019", "", "")
            )
            day += int(rng.integers(0, 700))
    return cohort(rows)


def test_ages_come_back_by_both_rules():
    visits = many(400, 0)
    dates, age = date_visits(visits, 0), visits["age"].to_numpy()
    patient = np.cumsum(visits["visit"].to_numpy() == 0) - 1
    day = dates.admitted.astype("M8[D]")
    starts = visits["visit"].to_numpy() == 0
    exact = np.abs(age_by_birth(dates.birth[patient], day) - age)
    by_year = age_by_year(age[starts], day[starts], patient, day)
    # The ages above are of years of 365.25 days, which no calendar has: a few of them lie a day off.
    assert (exact > 0.002).mean() < 0.01 and dates.misfit_by_birth.mean() < 0.01
    assert ((exact > 0.002) == dates.misfit_by_birth).all()
    assert ((by_year != np.floor(age)) == dates.misfit_by_year).all() and dates.misfit_by_year.mean() < 0.02
    assert (np.diff(day)[~starts[1:]].astype(int) == np.diff(visits["days"].to_numpy())[~starts[1:]]).all()


def test_visits_lie_in_the_real_past_in_order_and_do_not_overlap():
    visits = many(300, 1)
    dates = date_visits(visits, 3)
    starts = visits["visit"].to_numpy() == 0
    assert dates.admitted.min() > np.datetime64("1950-12-31")
    assert dates.discharged.max() < np.datetime64(datetime.date(2020, 1, 1))
    assert (dates.admitted < dates.discharged).all()
    assert (dates.discharged[:-1] <= dates.admitted[1:])[~starts[1:]].all()
    assert (dates.discharged.astype("M8[D]") == dates.admitted.astype("M8[D]")).all()
    patient = np.cumsum(starts) - 1
    assert (dates.birth[patient] <= dates.admitted).all()


def test_ages_that_no_date_gives_are_marked_and_not_bent():
    """Ten years older after a day: no birth does that."""
    rows = [(1, 0, 40, 0, "ICD9CM:4019", "", ""), (1, 1, 50, 0, "ICD9CM:4019", "", "")]
    dates = date_visits(cohort(rows), 0)
    assert dates.misfit_by_birth.tolist() == [False, True] and dates.misfit_by_year.tolist() == [False, True]
    dates = date_visits(cohort([rows[0], (1, 3650, 50, 0, "ICD9CM:4019", "", "")]), 0)
    assert not dates.misfit_by_birth.any() and not dates.misfit_by_year.any()


def test_a_history_too_long_for_the_past_is_refused():
    rows = [(1, 0, 5, 0, "ICD9CM:4019", "", ""), (1, 25_000, 73, 0, "ICD9CM:4019", "", "")]
    with pytest.raises(
        UserError, match="patient synthetic-0000001: the history takes more than the 68 years"
    ):
        date_visits(cohort(rows), 0)
    late = cohort([rows[0], (1, 24_000, 70, 0, "ICD9CM:4019", "", "")])
    assert date_visits(late, 0).admitted.min() > np.datetime64("1950-12-31")


def test_the_seed_draws_the_dates():
    visits = many(50, 2)
    one, same, other = (date_visits(visits, seed) for seed in (0, 0, 1))
    assert (one.admitted == same.admitted).all() and (one.birth == same.birth).all()
    assert (one.admitted != other.admitted).any()


def test_leap_days():
    days = lambda *texts: np.array(texts, "M8[D]")  # noqa: E731
    assert shift_years(days("2016-02-29", "2016-03-31"), np.array([4, 1])).astype(str).tolist() == [
        "2012-02-29",
        "2015-03-31",
    ]
    births, now = (
        days("2000-02-29", "2000-02-29", "1999-12-31"),
        days("2001-02-28", "2001-03-01", "2000-12-31"),
    )
    assert completed_years(births, now).tolist() == [0, 1, 1]
