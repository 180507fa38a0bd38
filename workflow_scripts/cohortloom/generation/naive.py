"""Naive generators: the baselines that a model must beat.

A stratum is one age band and one sex.

- prevalence: codes drawn without repeats by their training prevalence in the stratum; in reconstruction, the
  most frequent codes of the stratum that are not revealed.
- markov: a chain of codes in recorded order by the bigrams of the stratum, mixed with prevalence where a code
  is rare.
- copy: whole training patients, resampled: the best fidelity, no privacy.
- echo: the revealed codes and nothing more.
- linear, in linear.py: the revealed codes, and all codes above a score of a linear model.

No method knows the length of the real visit. Apart from linear, methods draw it from the training visits of
the stratum. In reconstruction they draw from the visits that are long enough, weighted by the probability
that such a visit reveals exactly as many codes as are revealed. With the true length the figures are for
orientation only. Revealed codes are kept; a method adds codes of training visits.

Methods but linear write each column of codes by itself; only the numbers of codes of a new visit are those of
one training visit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.special import comb

from cohortloom.base.ragged import positions_in_rows, row_of_value, row_offsets
from cohortloom.data import bands
from cohortloom.data.coded import Coded, encode
from cohortloom.data.guesses import NONE
from cohortloom.data.reveal import revealed_share
from cohortloom.data.visits import MAX_AGE, sex_array, with_empty_columns

CHUNK = 512  # visits drawn at once: the random numbers of a chunk are [CHUNK, codes]
BACKOFF_COUNT = 5.0  # after a code with this many bigrams, bigrams and prevalence have equal weight
MAX_DRAWS = 30  # of a next code, as long as the visit holds the drawn one already


@dataclass(frozen=True)
class Stratum:
    """Training visits of one age band and one sex."""

    lengths: np.ndarray  # number of codes of each visit
    codes: np.ndarray  # distinct codes, most frequent first
    counts: np.ndarray  # their counts
    visits: np.ndarray  # numbers of the training visits


class TrainingStrata:
    """Training visits by stratum, which the naive methods draw from.

    An empty stratum falls back on its sex, then on all visits.
    visits: the training visits. n_codes: size of the list that their codes index.
    """

    def __init__(self, visits: Coded, n_codes: int):
        self.visits, self.n_codes = visits, n_codes
        self._key = stratum_of(visits.age, visits.sex)
        self._strata: dict[int, Stratum] = {}
        self._chains: dict[int, Chain] = {}
        self._per_patient = np.bincount(visits.patient)

    def stratum(self, key: int) -> Stratum:
        """Visits of the stratum `key`; if it has none, those of its sex, else all visits."""
        if key not in self._strata:
            is_member = members(self._key, key)
            lengths = self.visits.lengths
            codes = self.visits.codes[is_member[self.visits.visit_of_code]]
            counts = np.bincount(codes, minlength=self.n_codes)
            ranked = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
            self._strata[key] = Stratum(lengths[is_member], ranked, counts[ranked], np.flatnonzero(is_member))
        return self._strata[key]

    def chain(self, key: int) -> "Chain":
        """Bigrams of the stratum `key`."""
        if key not in self._chains:
            self._chains[key] = Chain(self.visits, self.stratum(key), self.n_codes)
        return self._chains[key]

    def timelines(
        self, ages: np.ndarray, sexes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Visits drawn for patients: patient, visit number and days [n_visits].

        ages, sexes [n_patients]: at the first visit.
        The number of visits is drawn by the stratum of the first visit, the gaps by its age band.
        """
        key = stratum_of(ages, sexes)
        training_key = self._key[self.visits.first_visits]
        counts = np.ones(len(ages), np.int64)
        for number in np.unique(key):
            donors = self._per_patient[members(training_key, number)]
            counts[key == number] = rng.choice(donors, int((key == number).sum()))
        patient, visit = np.repeat(np.arange(len(ages)), counts), positions_in_rows(counts)
        days = np.zeros(len(patient), np.int64)
        followed = self.visits.followed
        gaps = self.visits.days[followed + 1] - self.visits.days[followed]
        later = visit > 0
        band, band_of_gap = bands.band(ages)[patient], bands.band(self.visits.age[followed])
        for number in np.unique(band[later]):
            in_band = later & (band == number)
            donors = gaps[band_of_gap == number]
            days[in_band] = rng.choice(donors if len(donors) else gaps, int(in_band.sum()))
        total = np.cumsum(days)
        return patient, visit, total - total[row_offsets(counts)[patient]]

    def draw_donors(self, key: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each visit a training visit of its stratum, whose numbers of codes it takes."""
        donors = np.zeros(len(key), np.int64)
        for number in np.unique(key):
            rows = np.flatnonzero(key == number)
            donors[rows] = rng.choice(self.stratum(int(number)).visits, len(rows))
        return donors

    def guess_lengths(
        self, key: np.ndarray, revealed: np.ndarray, share: float, rng: np.random.Generator
    ) -> np.ndarray:
        """A length for each visit, given the number of revealed codes [n_visits]; `share` reveals each code.

        A length of the stratum's visits is drawn in proportion to its frequency times the probability that
        such a visit reveals this number of codes. Where no training visit is long enough it is the revealed
        number. A column in which every training visit has a code gets at least one.
        """
        least = min(1, int(self.visits.lengths.min(initial=1)))
        drawn = np.maximum(revealed, least)
        for rows, lengths, probabilities in self._length_distributions(key, revealed, share, least):
            drawn[rows] = rng.choice(lengths, len(rows), p=probabilities)
        return drawn

    def expected_hidden(self, visits: Coded, is_revealed: np.ndarray, share: float) -> np.ndarray:
        """Mean number of hidden codes [n_visits] under the distributions that `guess_lengths` draws from.

        is_revealed [codes of all visits] bool. Above 0; 1 where no training visit is long enough.
        """
        key = stratum_of(visits.age, visits.sex)
        revealed = np.diff(row_offsets(is_revealed)[visits.offsets])
        hidden = np.ones(len(key))
        for rows, lengths, probabilities in self._length_distributions(key, revealed, share, 0):
            hidden[rows] = (probabilities * lengths).sum() - revealed[rows]
        return np.maximum(hidden, 1e-9)

    def prevalences(self, key: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of visit numbers [n] and the prevalence of each code in the visit's stratum [n, n_codes].

        A code that does not occur in the stratum is not guessed.
        """
        for start in range(0, len(key), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(key)))
            scores = np.full((len(rows), self.n_codes), NONE, np.float32)
            for number in np.unique(key[rows]):
                stratum = self.stratum(int(number))
                prevalence = stratum.counts / len(stratum.visits)
                scores[np.ix_(key[rows] == number, stratum.codes)] = prevalence
            yield rows, scores

    def _length_distributions(
        self, key: np.ndarray, revealed: np.ndarray, share: float, min_length: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Visits that share stratum and number of revealed codes, lengths [k], their probabilities [k]."""
        for number in np.unique(key):
            lengths, counts = np.unique(self.stratum(int(number)).lengths, return_counts=True)
            for n_revealed in np.unique(revealed[key == number]):
                # Binomial, but for the factor share ** n_revealed, which all lengths have in common.
                likelihood = comb(lengths, n_revealed) * (1 - share) ** np.maximum(0, lengths - n_revealed)
                weights = counts * likelihood * (lengths >= max(n_revealed, min_length))
                if weights.sum() > 0:
                    rows = np.flatnonzero((key == number) & (revealed == n_revealed))
                    yield rows, lengths, weights / weights.sum()


def expected_hidden(
    train: pa.Table,
    held_out: pa.Table,
    columns: list[str],
    masks: dict[str, np.ndarray],
    prompt_prob: float,
    hide: list[str] | None = None,
) -> np.ndarray:
    """Number of hidden codes to expect in each held-out visit and column, [n_visits, columns].

    masks: of each column, which codes of the held-out visits are revealed.
    """
    expected = []
    for column in columns:
        (known, visits), codes = encode([train, held_out], column)
        share = revealed_share(column, prompt_prob, hide)
        expected.append(TrainingStrata(known, len(codes)).expected_hidden(visits, masks[column], share))
    return np.stack(expected, 1)


class Chain:
    """Markov chain over the codes of a stratum: the next code by bigrams, backing off to prevalence."""

    def __init__(self, visits: Coded, stratum: Stratum, n_codes: int):
        in_stratum = np.zeros(visits.n_visits, bool)
        in_stratum[stratum.visits] = True
        visit = visits.visit_of_code
        first = visits.offsets[:-1][in_stratum & (visits.lengths > 0)]
        followed = np.flatnonzero(in_stratum[visit[1:]] & (visit[1:] == visit[:-1]))
        self.start_state = n_codes  # before the first code
        state = np.concatenate([np.full(len(first), self.start_state), visits.codes[followed]])
        successor = np.concatenate([visits.codes[first], visits.codes[followed + 1]])
        self._successors = successor[np.argsort(state, kind="stable")]  # grouped by state
        self._n_successors = np.bincount(state, minlength=n_codes + 1)
        self._offsets = row_offsets(self._n_successors)
        self._codes, self._cumulative = stratum.codes, np.cumsum(stratum.counts)

    def step(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A next code for each state: a successor in training visits, or a code by prevalence."""
        n = len(states)
        counts = self._n_successors[states]
        index = self._offsets[states] + (rng.random(n) * counts).astype(np.int64)
        by_bigram = rng.random(n) < counts / (counts + BACKOFF_COUNT)
        rank = np.searchsorted(self._cumulative, rng.random(n) * self._cumulative[-1], side="right")
        codes = self._codes[rank]
        codes[by_bigram] = self._successors[index[by_bigram]]
        return codes


def stratum_of(ages: np.ndarray, sexes: np.ndarray) -> np.ndarray:
    """Number of the stratum of each age and sex: 2 * band + sex."""
    return 2 * bands.band(ages) + np.asarray(sexes)


def members(keys: np.ndarray, key: int) -> np.ndarray:
    """Bool: which of `keys` are the stratum `key`; if none, which have its sex; if none, all."""
    for is_member in (keys == key, keys % 2 == key % 2):
        if is_member.any():
            return is_member
    return np.ones(len(keys), bool)


def later_ages(first: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Age `days` after a visit at age `first`, in completed years or days/365.25 under one year."""
    ages = np.asarray(first, np.float64) + days * bands.DAY
    ages = np.where(days > 0, np.where(ages >= 1, np.floor(ages), ages), first)
    return np.minimum(ages, MAX_AGE).astype(np.float32)


def draw_visits(
    method: str,
    strata: TrainingStrata,
    key: np.ndarray,
    lengths: np.ndarray,
    revealed: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    most_frequent: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of visits, revealed ones first: flat codes and offsets [n_visits + 1].

    key, lengths [n_visits]: stratum and number of codes of each visit. revealed: flat revealed codes and
    their offsets. A stratum with too few codes gives shorter visits. most_frequent: the method prevalence
    takes the most frequent codes instead of drawing.
    """
    values, offsets = revealed
    parts = [(row_of_value(offsets), values)]
    n_missing = lengths - np.diff(offsets)
    for number in np.unique(key[n_missing > 0]):
        visits = np.flatnonzero((key == number) & (n_missing > 0))
        for start in range(0, len(visits), CHUNK):
            chunk = visits[start : start + CHUNK]
            known = [values[offsets[visit] : offsets[visit + 1]] for visit in chunk]
            if method == "markov":
                row, codes = draw_chain(strata, int(number), n_missing[chunk], known, rng)
            else:
                row, codes = draw_prevalence(strata, int(number), n_missing[chunk], known, rng, most_frequent)
            parts.append((chunk[row], codes))
    rows, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(rows, kind="stable")
    return values[order], row_offsets(np.bincount(rows, minlength=len(key)))


def draw_prevalence(
    strata: TrainingStrata,
    key: int,
    n_missing: np.ndarray,
    known: list[np.ndarray],
    rng: np.random.Generator,
    most_frequent: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Added codes of a chunk of visits: row in the chunk, code.

    n_missing [rows]: number of codes to add. known: the revealed codes of each row, which are not added.
    Draws without repeats: each code gets an exponential waiting time at the rate of its count, the first ones
    are drawn.
    """
    stratum = strata.stratum(key)
    rank = np.full(strata.n_codes, -1)
    rank[stratum.codes] = np.arange(len(stratum.codes))
    if most_frequent:
        time = np.tile(np.arange(len(stratum.codes), dtype=float), (len(n_missing), 1))
    else:
        time = rng.exponential(size=(len(n_missing), len(stratum.codes))) / stratum.counts
    for row, codes in enumerate(known):
        known_rank = rank[codes]
        time[row, known_rank[known_rank >= 0]] = np.inf
    n_first = min(int(n_missing.max()), time.shape[1])
    first = np.argpartition(time, n_first - 1, axis=1)[:, :n_first]
    first = np.take_along_axis(first, np.argsort(np.take_along_axis(time, first, 1), axis=1), 1)
    is_new = np.isfinite(np.take_along_axis(time, first, 1))
    rows, columns = np.nonzero(is_new & (np.arange(n_first) < n_missing[:, None]))
    return rows, stratum.codes[first[rows, columns]]


def draw_chain(
    strata: TrainingStrata,
    key: int,
    n_missing: np.ndarray,
    known: list[np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Added codes of a chunk of visits by the chain, from the last revealed code or from its start.

    Arguments and result as in `draw_prevalence`.
    """
    chain = strata.chain(key)
    has_code = np.zeros((len(n_missing), strata.n_codes), bool)
    state = np.full(len(n_missing), chain.start_state)
    for row, codes in enumerate(known):
        has_code[row, codes] = True
        if len(codes):
            state[row] = codes[-1]
    added_rows, added_codes = [], []
    for step in range(int(n_missing.max())):
        pending = np.flatnonzero(n_missing > step)
        for _ in range(MAX_DRAWS):
            code = chain.step(state[pending], rng)
            is_new = ~has_code[pending, code]
            rows, code = pending[is_new], code[is_new]
            has_code[rows, code], state[rows] = True, code
            added_rows.append(rows)
            added_codes.append(code)
            pending = pending[~is_new]
            if not len(pending):
                break
    return np.concatenate(added_rows), np.concatenate(added_codes)


def visits_table(
    patient_ids: pa.Array,
    visit: np.ndarray,
    days: np.ndarray,
    age: np.ndarray,
    sex: np.ndarray,
    columns: dict[str, pa.ListArray],
) -> pa.Table:
    """A table of visits from arrays and the columns of codes that are not empty."""
    table = pa.table(
        {
            "patient_id": patient_ids,
            "visit": pa.array(visit, pa.int16()),
            "days": pa.array(days, pa.int32()),
            "age": pa.array(age, pa.float32()),
            "sex": sex_array(sex),
            **columns,
        }
    )
    return with_empty_columns(table)
