"""A generator of hospital careers from aggregated counts: patients, visits, gaps, profiles, codes.

A visit belongs to a latent clinical profile, drawn by age group and sex. Its codes are the first L arrivals
of an exponential race in which code c runs at the rate -log(1 - q), q being the share of the profile's
visits that hold c; L is drawn from the profile's own counts. q is raked so that prevalences by age group
and sex are those of the tables; rare codes, which have no cell in a profile, run at the rate of the age
group alone. Codes that an age or sex edit forbids have the rate 0. Later visits keep the profile with
PERSISTENCE and each chronic code with CARRY; new chronic codes are rarer there by as much.

The tables are written by resources/derive_simulation.py, which states their source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import scipy.sparse as sp

from cohortloom.base.errors import UserError
from cohortloom.base.ragged import positions_in_rows, ragged_range, row_offsets
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import MAX_AGE

TABLES = tuple(
    f"simulation_{name}"
    for name in ("profiles", "profile_codes", "lengths", "prevalence", "prevalence_rest", "pairs", "codes")
)
# Lowest age in completed years of each age group; -1 is newborns (day 0), 0 the rest under 1.
AGE_LOW = (-1, 0, 1, 5, 10, 12, 15, 18, 20, 25, 30, 35, 40, 45, 50, 56, 60, 65, 70, 75, 80, 85, 90)
BAND_STARTS = (0, 1, 7, 13, 17)  # groups at which a broad band begins: newborn, child, 18, 45, 65
OLDEST_GROUP_SPAN = 9  # ages 90 to 98 in the last group
MAX_VISITS = 12
SECOND_VISIT = (0.06, 0.15, 0.20, 0.31, 0.36)  # probability of a second visit, by broad band
FURTHER_VISIT = 0.40  # and of each one after it
ALWAYS = 1e4  # rate of a code that arrives before all others
PERSISTENCE, CARRY = 0.5, 0.75
READMISSION = 0.3  # share of gaps that are early readmissions
MAX_RATIO = 12.0  # of a pair: rare companions would take the whole visit
BATCH = 2000  # visits drawn at once: 2000 x 5000 rates of 4 bytes
FIRST_DAY = np.datetime64("2100-01-01")
AFTER_DELIVERY = 320  # days at least from a delivery (V27) to the next stay


def ages(birth: np.ndarray, admitted: np.ndarray) -> np.ndarray:
    """Age at each admission from datetime64 pairs: completed years by the calendar, at most 90.

    Under one year the days since birth / 365.25, so 0 for a newborn. Whole dates are compared before
    anything is subtracted in nanoseconds, where 300 years overflow.
    """
    born, day = birth.astype("datetime64[D]"), admitted.astype("datetime64[D]")
    years = day.astype("datetime64[Y]").astype(int) - born.astype("datetime64[Y]").astype(int)
    years = years - (_month_and_day(day) < _month_and_day(born))  # before the birthday of that year
    days = (day - born).astype(int)
    return np.where(years < 1, days / 365.25, np.minimum(years, MAX_AGE))


def _month_and_day(date: np.ndarray) -> np.ndarray:
    month = date.astype("datetime64[M]")
    return (month.astype(int) % 12) * 31 + (date - month.astype("datetime64[D]")).astype(int)


def age_group(age: np.ndarray) -> np.ndarray:
    """Index into AGE_LOW of ages in years, 0 being a newborn."""
    return np.where(age == 0, 0, np.searchsorted(AGE_LOW, np.floor(age), side="right") - 1)


@dataclass
class Counts:
    """The aggregated tables as arrays: P profiles, C codes, cells = age group * 2 + sex (F 0, M 1)."""

    codes: np.ndarray  # [C] str
    chronic: np.ndarray  # [C] bool
    principal: np.ndarray  # [C] share of its visits in which the code is first
    rate: np.ndarray  # [C] factor of the code's rate that makes its prevalence come out
    position: np.ndarray  # [C] mean relative position, 0 first to 1 last
    cells: np.ndarray  # [cells] visits
    profiles: np.ndarray  # [cells, P] probability of a profile
    lengths: np.ndarray  # [P, longest + 1] probability of a number of codes
    share: np.ndarray  # [P, C] share of the profile's visits that hold the code
    target: np.ndarray  # [cells, C] share of the cell's visits that hold the code
    pairs: sp.csr_matrix  # [C, C] how often two codes occur together, as a ratio to what profiles explain

    @classmethod
    def read(cls, files: list[Path]) -> "Counts":
        """From the seven resources/simulation_*.csv files, in any order."""
        by_name = {Path(file).stem: file for file in files}
        if missing := [name for name in TABLES if name not in by_name]:
            raise UserError(
                f"the counts file {missing[0]}.csv is missing; give all resources/simulation_*.csv"
            )
        profiles, profile_codes, lengths, prevalence, prevalence_rest, pairs, codes = map(by_name.get, TABLES)
        table = read_counts(codes)
        names, visits = table["code"], table["visits"]
        at = {name: number for number, name in enumerate(names.tolist())}
        n_codes = len(names)

        def code(column: np.ndarray) -> np.ndarray:
            return np.array([at[name] for name in column.tolist()], np.int64)

        def cell(table: dict, column: str) -> np.ndarray:
            return np.searchsorted(AGE_LOW, table[column]) * 2 + (table["sex"] == "M")

        rows = read_counts(profiles)
        by_cell = np.zeros((len(AGE_LOW) * 2, int(rows["profile"].max()) + 1))
        by_cell[cell(rows, "age_from"), rows["profile"]] = rows["visits"]
        size = by_cell.sum(1)

        rows = read_counts(lengths)
        by_length = np.zeros((by_cell.shape[1], int(rows["codes"].max()) + 1))
        by_length[rows["profile"], rows["codes"]] = rows["visits"]
        share = np.zeros((by_cell.shape[1], n_codes))
        rows = read_counts(profile_codes)
        share[rows["profile"], code(rows["code"])] = rows["visits"]
        share /= np.maximum(by_length.sum(1, keepdims=True), 1)

        target = np.zeros((len(size), n_codes))
        rows = read_counts(prevalence)
        target[cell(rows, "age_from"), code(rows["code"])] = rows["visits"]
        rows = read_counts(prevalence_rest)
        rest = np.zeros((len(BAND_STARTS), 2, n_codes))
        band = np.searchsorted(np.array(AGE_LOW)[list(BAND_STARTS)], rows["band_from"])
        rest[band, (rows["sex"] == "M").astype(int), code(rows["code"])] = rows["visits"]
        open_cells = np.where(target == 0, size[:, None], 0).reshape(len(AGE_LOW), 2, n_codes)
        room = np.add.reduceat(open_cells, BAND_STARTS, axis=0)
        group_band = broad_band(np.arange(len(AGE_LOW)))
        spread = open_cells * (rest / np.maximum(room, 1))[group_band]
        target += spread.reshape(target.shape)
        return cls(
            names,
            table["chronic"] == 1,
            table["principal"] / visits,
            table["rate"],
            table["position"],
            size,
            by_cell / np.maximum(size[:, None], 1),
            by_length / np.maximum(by_length.sum(1, keepdims=True), 1),
            np.minimum(share, 1),
            target / np.maximum(size[:, None], 1),
            _ratios(read_counts(pairs), code, n_codes),
        )


def _ratios(rows: dict[str, np.ndarray], code, n_codes: int) -> sp.csr_matrix:
    """Symmetric ratios of pairs [C, C]; a millionth for codes that exclude each other."""
    a, b, ratio = code(rows["code"]), code(rows["other"]), np.clip(rows["ratio"], 1e-6, MAX_RATIO)
    return sp.csr_matrix((np.r_[ratio, ratio], (np.r_[a, b], np.r_[b, a])), (n_codes, n_codes), np.float32)


def forbidden(rules: Path | Sequence[Path], codes: np.ndarray) -> np.ndarray:
    """Whether the full edit forbids an ICD-9-CM code: [91 completed years, 2 sexes, C]."""
    age, sex = np.arange(91)[:, None, None], np.arange(2)[None, :, None]
    return (
        load_rules(rules)
        .of([f"ICD9CM:{code}" for code in codes.tolist()])
        .forbidden(np.arange(len(codes)), age, sex)
    )


def read_counts(path: Path) -> dict[str, np.ndarray]:
    """Columns of one simulation_*.csv; codes and sexes as strings."""
    convert = pa.csv.ConvertOptions(
        column_types={"code": pa.string(), "other": pa.string(), "sex": pa.string()}
    )
    table = pa.csv.read_csv(path, pa.csv.ReadOptions(skip_rows=1, use_threads=False), None, convert)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def broad_band(group: np.ndarray) -> np.ndarray:
    """Index into BAND_STARTS of age groups."""
    return np.searchsorted(BAND_STARTS, group, side="right") - 1


@dataclass
class Cohort:
    """n patients and their admissions, sorted by patient and time; days are datetime64[D]."""

    sex: np.ndarray  # [n] 0 F, 1 M
    birth: np.ndarray  # [n]; 300 years before the first admission for those who are ever older than 89
    patient: np.ndarray  # [visits] row of the patient
    day: np.ndarray  # [visits] of admission
    stay: np.ndarray  # [visits] days
    age: np.ndarray  # [visits] as the record gives it, see `ages`
    length: np.ndarray  # [visits] number of codes
    code: np.ndarray  # [codes] number of the code, visit by visit in recorded order


class Careers:
    """Draws patients and their visits; the same counts, rules and generator give the same cohort."""

    def __init__(self, counts: Counts, forbidden: np.ndarray, rng: np.random.Generator):
        """`forbidden`: [91 ages in completed years, 2 sexes, C] bool."""
        self.counts, self.rng = counts, rng
        self.allowed = (~forbidden).astype(np.float32)
        self.lengths = np.cumsum(counts.lengths, 1)
        self.profiles = np.cumsum(counts.profiles, 1)
        missing = counts.lengths @ np.arange(counts.lengths.shape[1]) - counts.share.sum(1)
        self.missing = np.maximum(missing, 0.05)  # [P] codes a visit too rare to have a cell in the profile
        self.birth = np.array([name.startswith("V3") for name in counts.codes.tolist()])
        self.delivery = np.array([name.startswith("V27") for name in counts.codes.tolist()])

    def draw(self, n: int) -> Cohort:
        """n patients with all their visits."""
        sex, group, age_days, visits = self.patients(n)
        longest = self.counts.lengths.shape[1]
        first = FIRST_DAY + self.rng.integers(0, 36_524, n)
        birth = first - age_days
        patient, round_ = np.repeat(np.arange(n), visits), positions_in_rows(visits)
        start = row_offsets(visits)[:-1]
        stay = self.rng.geometric(0.2, len(patient))
        day = np.empty(len(patient), "datetime64[D]")
        age, profile = np.empty(len(patient)), np.full(len(patient), -1)
        code = np.full((len(patient), longest), -1, np.int16)
        length = np.zeros(len(patient), np.int64)
        delivered = np.zeros(len(patient), bool)
        for number in range(int(visits.max())):
            rows = np.flatnonzero(round_ == number)
            who = patient[rows]
            if number == 0:
                day[rows] = first
            else:
                day[rows] = day[rows - 1] + stay[rows - 1] + self.gaps(delivered[rows - 1])
            age[rows] = ages(birth[who], day[rows])
            cell = age_group(age[rows]) * 2 + sex[who]
            profile[rows] = self.profile(cell, profile[rows - 1] if number else np.full(len(rows), -1))
            for at in np.unique(cell):
                for batch in np.array_split(rows[cell == at], 1 + (cell == at).sum() // BATCH):
                    seen = self._seen(code, batch, start[patient[batch]], number) if number else None
                    chosen, length[batch] = self.codes(
                        at, np.floor(age[batch]).astype(int), profile[batch], seen
                    )
                    code[batch, : chosen.shape[1]] = chosen
            delivered[rows] = (self.delivery[code[rows]] & (code[rows] >= 0)).any(1)
        # Those who are ever older than 89 are hidden as MIMIC-III hides them.
        oldest = np.maximum.reduceat(age, start) > 89
        shifted = (first.astype("datetime64[Y]") - 300).astype("datetime64[D]")
        birth = np.where(oldest, shifted, birth)
        return Cohort(sex, birth, patient, day, stay, ages(birth[patient], day), length, code[code >= 0])

    def _seen(self, code: np.ndarray, rows: np.ndarray, start: np.ndarray, number: int) -> np.ndarray:
        """Chronic codes in the `number` visits of each patient before `rows`, [len(rows), C] bool."""
        seen = np.zeros((len(rows), len(self.counts.codes) + 1), bool)
        for earlier in range(number):
            np.put_along_axis(seen, code[start + earlier].astype(np.int64), True, 1)
        return seen[:, :-1] & self.counts.chronic

    def patients(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Sex (0 F, 1 M), age group, age in days and number of visits of n patients at their first visit."""
        second = np.array(SECOND_VISIT)[broad_band(np.arange(len(AGE_LOW)))]
        weight = self.counts.cells / np.repeat(1 + second / (1 - FURTHER_VISIT), 2)
        cell = self.rng.choice(len(weight), n, p=weight / weight.sum())
        group, sex = cell // 2, cell % 2
        low = np.maximum(np.array(AGE_LOW), 0)
        high = np.r_[0, low[2:], AGE_LOW[-1] + OLDEST_GROUP_SPAN]
        years = low[group] + np.floor(self.rng.random(n) * np.maximum(high - low, 1)[group])
        # A margin of two days keeps clear of birthdays; the age that counts is taken from the dates.
        days = np.floor(years * 365.2425 + 2 + self.rng.random(n) * 361)
        days[group == 0] = 0
        more = self.rng.random(n) < second[group]
        visits = 1 + more * self.rng.geometric(1 - FURTHER_VISIT, n)
        return sex, group, days.astype(np.int64), np.minimum(visits, MAX_VISITS)

    def gaps(self, delivered: np.ndarray) -> np.ndarray:
        """Days to the next admission, [n]: readmissions within weeks, others after months or years."""
        n = len(delivered)
        early = 2 + self.rng.exponential(12, n)
        late = np.exp(self.rng.normal(np.log(220), 1.25, n))
        gap = np.where(self.rng.random(n) < READMISSION, early, late) + delivered * AFTER_DELIVERY
        return np.clip(gap, 2, 3650).astype(np.int64)

    def profile(self, cell: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Profile of each visit; `before` is that of the visit before, or -1."""
        draw = self.rng.random(len(cell))
        total = self.profiles[:, -1][cell]
        new = np.empty(len(cell), np.int64)
        for at in np.unique(cell):
            here = cell == at
            new[here] = np.searchsorted(self.profiles[at], draw[here] * total[here], side="right")
        new = np.minimum(new, self.profiles.shape[1] - 1)
        stays = (before >= 0) & (self.counts.profiles[cell, before] > 0)
        return np.where(stays & (self.rng.random(len(cell)) < PERSISTENCE), before, new)

    def codes(
        self, at: int, years: np.ndarray, profile: np.ndarray, seen: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes of visits of the cell `at`: numbers [n, longest] in recorded order, then -1; lengths.

        years: completed years [n]. seen: chronic codes of earlier visits, [n, C] bool, or None.
        """
        counts, n = self.counts, len(profile)
        distinct, which = np.unique(profile, return_inverse=True)
        rates = self._rates(at, distinct)[which]
        if seen is not None:
            rates = np.where(counts.chronic & ~seen, rates * (1 - CARRY), rates)
            kept = seen & (self.rng.random(seen.shape, dtype=np.float32) < CARRY)
            rates[seen] = 0
            rates[kept] = ALWAYS
        rates *= self.allowed[np.minimum(years, 90), at % 2]
        total = self.lengths[profile, -1]
        draw = self.rng.random(n) * total
        length = np.maximum(1, (self.lengths[profile] <= draw[:, None]).sum(1))
        race = self.rng.standard_exponential(rates.shape, dtype=np.float32)
        np.maximum(race, np.finfo(np.float32).tiny, out=race)  # not 0, which by a rate of 0 has no ratio
        with np.errstate(divide="ignore"):
            arrival = np.divide(race, rates, out=race)
        leads = counts.principal > 0
        if at // 2 == 0:  # a newborn's record opens with the birth, V30 to V39, and holds no other one
            leads = self.birth
            born = np.where(leads, arrival, np.inf).argmin(1)
            arrival[:, leads] = np.where(np.flatnonzero(leads) == born[:, None], arrival[:, leads], np.inf)
        length = np.minimum(length, np.isfinite(arrival).sum(1))
        chosen = self._race(arrival, int(length.max()), leads)
        inside = np.arange(chosen.shape[1]) < length[:, None]
        return np.where(inside, self._recorded_order(chosen, inside), -1), length

    def _race(self, arrival: np.ndarray, longest: int, leads: np.ndarray) -> np.ndarray:
        """The first `longest` codes to arrive in each row, [n, longest]; one of `leads` [C] is always in.

        What has arrived hastens its companions and stops what excludes it: as waiting times are
        exponential, the time a code still needs is divided by the ratio of the pair.
        """
        n, pairs = len(arrival), self.counts.pairs
        degree = np.diff(pairs.indptr)
        chosen = np.empty((n, longest), np.int64)
        everyone = np.arange(n)
        for place in range(longest):
            code = (arrival if place else np.where(leads, arrival, np.inf)).argmin(1)
            now = arrival[everyone, code] if place else np.zeros(n, np.float32)
            chosen[:, place] = code
            arrival[everyone, code] = np.inf
            row = np.repeat(everyone, degree[code])
            at = ragged_range(pairs.indptr[code], degree[code])
            ends = np.isfinite(now)[row]  # beyond the last code that can arrive nothing moves any more
            row, at = row[ends], at[ends]
            waiting = arrival[row, pairs.indices[at]] - now[row]
            arrival[row, pairs.indices[at]] = now[row] + waiting / pairs.data[at]
        return chosen

    def _rates(self, at: int, profiles: np.ndarray) -> np.ndarray:
        """Rates of the race in cell `at` for some profiles, [len(profiles), C] float32."""
        counts = self.counts
        predicted = counts.profiles[at] @ counts.share
        ratio = np.minimum(counts.target[at] / np.maximum(predicted, 1e-9), 10)
        raked = np.minimum(counts.share[profiles] * ratio, 0.995)
        tail = np.maximum(counts.target[at] - predicted * ratio, 0)
        mean = counts.profiles[at] @ self.missing
        share = np.minimum(raked + tail * (self.missing[profiles] / mean)[:, None], 0.995)
        return (-np.log1p(-share) * counts.rate).astype(np.float32)

    def _recorded_order(self, chosen: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """The principal diagnosis first, the others around their usual places."""
        principal = self.counts.principal[chosen]
        race = self.rng.exponential(size=chosen.shape) / (principal / (1.001 - principal) + 1e-6)
        first = np.argmin(np.where(inside, race, np.inf), 1)
        place = self.counts.position[chosen] + self.rng.normal(0, 0.2, chosen.shape)
        place[np.arange(len(place)), first] = -np.inf
        order = np.argsort(np.where(inside, place, np.inf), 1, kind="stable")
        return np.take_along_axis(chosen, order, 1)
