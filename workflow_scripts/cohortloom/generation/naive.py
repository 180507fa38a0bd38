"""Naive generators: the baselines that a model must beat.

- prevalence: codes drawn without repeats by their training prevalence in the band of age and the sex; when
  codes are revealed, the most frequent ones that are not.
- markov: a chain of codes in recorded order, from the bigrams of the band and sex, mixed with prevalence
  where a code was seldom seen.
- copy: whole training patients drawn again: the best fidelity, no privacy at all.
- echo: the revealed codes and nothing more.
- linear, in linear.py: the revealed codes, and those that pairs of codes make likely.

A method may not know how long the real visit is. linear adds all codes above one score. For the others the
length is drawn from the training visits of the band and sex; when codes are revealed, from those that have at
least as many codes, weighted by how likely each would be to reveal just so many. The true length serves for a
figure of orientation alone. Revealed codes are kept as they are; what a method adds are training codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.special import comb

from cohortloom.base.ragged import positions_in_rows, row_of_value, row_offsets
from cohortloom.data import bands
from cohortloom.data.coded import Coded
from cohortloom.data.guesses import NONE
from cohortloom.data.visits import MAX_AGE, list_column, sex_array, with_empty_columns

CHUNK = 512  # visits drawn at once: the noise of a chunk is [CHUNK, codes]
BACK_OFF = 5.0  # a code seen this often is followed by its bigrams and by prevalence half and half
TRIES = 30  # draws of a next code before one that the visit holds already is given up


@dataclass(frozen=True)
class Stratum:
    """Training visits of one band of age and one sex."""

    lengths: np.ndarray  # codes of each visit
    codes: np.ndarray  # codes that occur, most frequent first
    counts: np.ndarray  # their counts
    visits: np.ndarray  # training visit numbers


class Training:
    """What the naive methods know: training visits by band and sex, with wider ones for what is empty.

    `visits` are the training visits; `n_codes` is the size of the list that their codes index.
    """

    def __init__(self, visits: Coded, n_codes: int):
        self.visits, self.n_codes = visits, n_codes
        self._key = stratum_of(visits.age, visits.sex)
        self._strata: dict[int, Stratum] = {}
        self._chains: dict[int, Chain] = {}
        self._per_patient = np.bincount(visits.patient)

    def stratum(self, key: int) -> Stratum:
        """Visits of a band and sex; of the sex, then of everyone, where there are none."""
        if key not in self._strata:
            chosen = _fall_back(self._key, key)
            lengths = self.visits.lengths
            counts = np.bincount(self.visits.codes[chosen[self.visits.visit_of_code]], minlength=self.n_codes)
            codes = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
            self._strata[key] = Stratum(lengths[chosen], codes, counts[codes], np.flatnonzero(chosen))
        return self._strata[key]

    def chain(self, key: int) -> "Chain":
        """Bigrams of a band and sex."""
        if key not in self._chains:
            self._chains[key] = Chain(self.visits, self.stratum(key), self.n_codes)
        return self._chains[key]

    def timelines(
        self, ages: np.ndarray, sexes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Visits drawn for patients of these first ages and sexes: patient, visit number and days [n_visits].

        Number of visits by band and sex of the first visit, gaps by band of the first visit.
        """
        key = stratum_of(ages, sexes)
        known = self._key[self.visits.first_visits]
        counts = np.ones(len(ages), np.int64)
        for number in np.unique(key):
            donors = self._per_patient[_fall_back(known, number)]
            counts[key == number] = rng.choice(donors, int((key == number).sum()))
        patient, visit = np.repeat(np.arange(len(ages)), counts), positions_in_rows(counts)
        days = np.zeros(len(patient), np.int64)
        followed = self.visits.followed
        gaps = self.visits.days[followed + 1] - self.visits.days[followed]
        later = visit > 0
        band, of_gap = bands.band(ages)[patient], bands.band(self.visits.age[followed])
        for number in np.unique(band[later]):
            wanted = later & (band == number)
            donors = gaps[of_gap == number]
            days[wanted] = rng.choice(donors if len(donors) else gaps, int(wanted.sum()))
        total = np.cumsum(days)
        return patient, visit, total - total[row_offsets(counts)[patient]]

    def draw_lengths(self, key: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A training length for each visit, from its stratum."""
        out = np.zeros(len(key), np.int64)
        for number in np.unique(key):
            rows = np.flatnonzero(key == number)
            out[rows] = rng.choice(self.stratum(int(number)).lengths, len(rows))
        return out

    def guess_lengths(
        self, key: np.ndarray, revealed: np.ndarray, share: float, rng: np.random.Generator
    ) -> np.ndarray:
        """A length for each visit of which `revealed` codes are known, each code with probability `share`.

        Drawn from the stratum's lengths of at least that many codes, in proportion to how often and to how
        likely such a visit would reveal just so many; the revealed number where no visit is long enough.
        """
        out = np.maximum(revealed, 1)
        for rows, lengths, weights in self._likely_lengths(key, revealed, share, 1):
            out[rows] = rng.choice(lengths, len(rows), p=weights)
        return out

    def expected_hidden(self, key: np.ndarray, revealed: np.ndarray, share: float) -> np.ndarray:
        """How many codes are still hidden on average, by the lengths that `guess_lengths` draws from.

        [n_visits]; 1 where no training visit is long enough.
        """
        out = np.ones(len(key))
        for rows, lengths, weights in self._likely_lengths(key, revealed, share, 0):
            out[rows] = (weights * lengths).sum() - revealed[rows]
        return out

    def prevalences(self, key: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of visit numbers [n] and the share of the stratum's visits with each code [n, n_codes].

        A code that the stratum never has is not guessed.
        """
        for start in range(0, len(key), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(key)))
            scores = np.full((len(rows), self.n_codes), NONE, np.float32)
            for number in np.unique(key[rows]):
                stratum = self.stratum(int(number))
                share = stratum.counts / len(stratum.visits)
                scores[np.ix_(key[rows] == number, stratum.codes)] = share
            yield rows, scores

    def _likely_lengths(
        self, key: np.ndarray, revealed: np.ndarray, share: float, least: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Visits of one stratum and number revealed, lengths of its training visits, their probabilities."""
        for number in np.unique(key):
            lengths, counts = np.unique(self.stratum(int(number)).lengths, return_counts=True)
            for known in np.unique(revealed[key == number]):
                likely = comb(lengths, known) * (1 - share) ** np.maximum(0, lengths - known)
                weights = counts * likely * (lengths >= max(known, least))
                if weights.sum() > 0:
                    rows = np.flatnonzero((key == number) & (revealed == known))
                    yield rows, lengths, weights / weights.sum()


class Chain:
    """Next code given this one within a stratum: its bigrams, else prevalence."""

    def __init__(self, visits: Coded, stratum: Stratum, n_codes: int):
        inside = np.zeros(visits.n_visits, bool)
        inside[stratum.visits] = True
        owner = visits.visit_of_code
        starts = visits.offsets[:-1][inside & (visits.lengths > 0)]
        follows = np.flatnonzero(inside[owner[1:]] & (owner[1:] == owner[:-1]))
        # The state n_codes is the one before the first code.
        self._from = np.concatenate([np.full(len(starts), n_codes), visits.codes[follows]])
        to = np.concatenate([visits.codes[starts], visits.codes[follows + 1]])
        order = np.argsort(self._from, kind="stable")
        self._to = to[order]
        self._count = np.bincount(self._from, minlength=n_codes + 1)
        self._start = row_offsets(self._count)
        self._codes, self._cumulative = stratum.codes, np.cumsum(stratum.counts)
        self.start_state = n_codes

    def step(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A next code for each state; any successor that training saw, or one by prevalence."""
        n = len(states)
        counts = self._count[states]
        place = self._start[states] + (rng.random(n) * counts).astype(np.int64)
        by_bigram = rng.random(n) < counts / (counts + BACK_OFF)
        rank = np.searchsorted(self._cumulative, rng.random(n) * self._cumulative[-1], side="right")
        chosen = self._codes[rank]
        chosen[by_bigram] = self._to[place[by_bigram]]
        return chosen


def stratum_of(ages: np.ndarray, sexes: np.ndarray) -> np.ndarray:
    """Number of the band of age and sex: 2 * band + sex."""
    return 2 * bands.band(ages) + np.asarray(sexes)


def _fall_back(keys: np.ndarray, key: int) -> np.ndarray:
    """Which of `keys` are `key`; of its sex, then all, where none is."""
    for chosen in (keys == key, keys % 2 == key % 2):
        if chosen.any():
            return chosen
    return np.ones(len(keys), bool)


def later_ages(first: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Age `days` after a visit at age `first`, in completed years or days/365.25 under one year."""
    ages = np.asarray(first, np.float64) + days * bands.DAY
    ages = np.where(days > 0, np.where(ages >= 1, np.floor(ages), ages), first)
    return np.minimum(ages, MAX_AGE).astype(np.float32)


def draw_visits(
    method: str,
    training: Training,
    key: np.ndarray,
    lengths: np.ndarray,
    shown: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    frequent: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of visits, revealed ones first: flat codes and offsets [n_visits + 1].

    `key` is each visit's stratum, `lengths` how many codes it shall hold, `shown` the flat revealed codes
    with their offsets. A stratum with too few codes gives shorter visits. `frequent` takes the most
    frequent codes instead of drawing (method prevalence).
    """
    values, offsets = shown
    parts = [(row_of_value(offsets), values)]
    missing = lengths - np.diff(offsets)
    for number in np.unique(key[missing > 0]):
        wanted = np.flatnonzero((key == number) & (missing > 0))
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            taken = [values[offsets[row] : offsets[row + 1]] for row in chunk]
            if method == "markov":
                row, codes = draw_chain(training, int(number), missing[chunk], taken, rng)
            else:
                row, codes = draw_prevalence(training, int(number), missing[chunk], taken, rng, frequent)
            parts.append((chunk[row], codes))
    rows, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(rows, kind="stable")
    return values[order], row_offsets(np.bincount(rows, minlength=len(key)))


def draw_prevalence(
    training: Training,
    key: int,
    missing: np.ndarray,
    taken: list[np.ndarray],
    rng: np.random.Generator,
    frequent: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """New codes of a chunk of visits: row in the chunk and code. Exponential clocks draw without repeats."""
    stratum = training.stratum(key)
    rank = np.full(training.n_codes, -1)
    rank[stratum.codes] = np.arange(len(stratum.codes))
    if frequent:
        time = np.tile(np.arange(len(stratum.codes), dtype=float), (len(missing), 1))
    else:
        time = rng.exponential(size=(len(missing), len(stratum.codes))) / stratum.counts
    for row, codes in enumerate(taken):
        known = rank[codes]
        time[row, known[known >= 0]] = np.inf
    most = min(int(missing.max()), time.shape[1])
    first = np.argpartition(time, most - 1, axis=1)[:, :most]
    first = np.take_along_axis(first, np.argsort(np.take_along_axis(time, first, 1), axis=1), 1)
    free = np.isfinite(np.take_along_axis(time, first, 1))
    rows, columns = np.nonzero(free & (np.arange(most) < missing[:, None]))
    return rows, stratum.codes[first[rows, columns]]


def draw_chain(
    training: Training,
    key: int,
    missing: np.ndarray,
    taken: list[np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """New codes of a chunk of visits by the chain, from the last revealed code or from the start."""
    chain = training.chain(key)
    held = np.zeros((len(missing), training.n_codes), bool)
    state = np.full(len(missing), chain.start_state)
    for row, codes in enumerate(taken):
        held[row, codes] = True
        if len(codes):
            state[row] = codes[-1]
    rows, found = [], []
    for step in range(int(missing.max())):
        waiting = np.flatnonzero(missing > step)
        for _ in range(TRIES):
            code = chain.step(state[waiting], rng)
            new = ~held[waiting, code]
            settled, code = waiting[new], code[new]
            held[settled, code], state[settled] = True, code
            rows.append(settled)
            found.append(code)
            waiting = waiting[~new]
            if not len(waiting):
                break
    return np.concatenate(rows), np.concatenate(found)


def visits_table(
    patient_ids: pa.Array,
    visit: np.ndarray,
    days: np.ndarray,
    age: np.ndarray,
    sex: np.ndarray,
    codes: tuple[np.ndarray, np.ndarray],
    names: list[str],
) -> pa.Table:
    """The public columns from arrays; `codes` are flat indices into `names` with their offsets."""
    table = pa.table(
        {
            "patient_id": patient_ids,
            "visit": pa.array(visit, pa.int16()),
            "days": pa.array(days, pa.int32()),
            "age": pa.array(age, pa.float32()),
            "sex": sex_array(sex),
            "diagnoses": code_column(codes, names),
        }
    )
    return with_empty_columns(table)


def code_column(codes: tuple[np.ndarray, np.ndarray], names: list[str]) -> pa.ListArray:
    """List column of code strings."""
    return list_column(pa.array(names, pa.string()).take(pa.array(codes[0], pa.int64())), codes[1])
