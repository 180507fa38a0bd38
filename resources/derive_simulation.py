"""Derive the aggregated counts behind the simulated source from the National Hospital Discharge Survey 2010.

    PYTHONPATH=workflow_scripts python resources/derive_simulation.py --raw-dir DIR --resources resources

A mixture of latent clinical profiles (Bernoulli per code, categorical over age group and sex) is fitted to
the 151,551 discharges by EM; what is written are expected numbers of discharges, rounded, cells below 5
left out. No record and no combination of codes is kept. NHDS 2010 is in the public domain (NCHS, CDC).
"""

import csv
import logging
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD

from cohortloom.base.files import atomic
from cohortloom.base.step import main
from cohortloom.data.visits import code_lists, read_visits, sex_index
from cohortloom.sources.simulated import (
    AGE_LOW,
    BAND_STARTS,
    MAX_RATIO,
    Careers,
    Counts,
    age_group,
    forbidden,
    read_counts,
)
from preprocess import preprocess

log = logging.getLogger("cohortloom")
SOURCE = "# source: NHDS 2010 public-use file (NCHS, CDC), aggregated by resources/derive_simulation.py"
SMALLEST_CELL = 5
MIN_VISITS_OF_A_PAIRED_CODE = 100
PAIR_SURPRISE = 25.0  # chi-square of one cell, from which a pair is kept
PATIENTS_TO_CALIBRATE = 60_000
DAMPING = 0.4  # of a step, because pairs that share a code move each other
MIN_VISITS_TO_FIT = 25  # rarer codes say nothing about a profile
# Conditions and states that stay with a patient once they are recorded, by code prefix.
CHRONIC = (
    "042 07032 07054 14 15 16 17 18 19 200 201 202 203 204 205 206 207 208 23877 240 241 242 244 250 "
    "253 255 2720 2721 2722 2724 274 277 2780 279 2810 282 28521 28522 28529 286 287 290 294 295 296 "
    "299 300 301 303 304 3051 310 31 32723 330 331 332 333 334 335 340 341 342 343 344 345 346 3482 354 "
    "355 356 357 358 359 362 365 369 389 394 395 396 397 398 401 402 403 404 405 412 413 414 416 424 "
    "425 426 427 428 4292 433 437 438 440 441 443 4466 45981 491 492 493 494 496 500 501 502 515 516 "
    "5173 518 53081 5363 555 556 5712 5714 5715 5716 5718 5719 5723 5728 5771 579 581 582 583 585 586 "
    "588 5920 5964 600 6170 625 691 696 7100 7101 7104 714 715 716 720 721 722 7230 724 725 7290 7291 "
    "7300 7330 737 741 742 745 746 747 753 7580 759 V08 V10 V420 V421 V422 V426 V427 V428 V43 V44 V45 "
    "V497 V585 V586 V8535 V8536 V8537 V8538 V8539 V854"
)
# What passes although its family stays: ventricular fibrillation, acute heart failure, acute respiratory
# failure, atelectasis and pulmonary collapse, acute chest and joint pain.
PASSING = "4274 4275 42821 42831 42841 5180 5184 51881 51882 V4582 7245 2875"


def derive_simulation(
    *,
    raw_dir: Path,
    resources: Path,
    profiles: int = 240,
    rounds: int = 40,
    calibrations: int = 8,
    seed: int = 1,
) -> None:
    """Fit the profiles to the NHDS 2010 file in raw_dir and write resources/simulation_*.csv."""
    visits = read_survey(raw_dir, "diagnoses")
    values, offsets = code_lists(visits)
    encoded = values.dictionary_encode()
    codes = np.array([name.removeprefix("ICD9CM:") for name in encoded.dictionary.to_pylist()])
    index, lengths = encoded.indices.to_numpy(), np.diff(offsets)
    n, rows = len(lengths), np.repeat(np.arange(len(lengths)), lengths)
    holds = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, index)), shape=(n, len(codes)))
    cell = age_group(visits["age"].to_numpy()) * 2 + sex_index(visits)

    often = np.asarray(holds.sum(0)).ravel() >= MIN_VISITS_TO_FIT
    share = fit(holds[:, often], cell, profiles, rounds, seed)  # [n, profiles]

    of_code = sp.csr_matrix(holds.T @ sp.csr_matrix(share))
    of_cell = np.zeros((profiles, len(AGE_LOW) * 2))
    of_length = np.zeros((profiles, lengths.max() + 1))
    np.add.at(of_cell.T, cell, share)
    np.add.at(of_length.T, lengths, share)
    prevalence = np.zeros((len(AGE_LOW) * 2, len(codes)))
    np.add.at(prevalence, (cell[rows], index), 1)

    def write(name: str, counts: np.ndarray, columns) -> None:
        first, second = np.nonzero(np.rint(counts) >= SMALLEST_CELL)
        table = columns(first, second)
        table["visits"] = np.rint(counts[first, second]).astype(int)
        save(resources / f"simulation_{name}.csv", table)

    by_cell = lambda at: {"age_from": np.array(AGE_LOW)[at // 2], "sex": np.array(["F", "M"])[at % 2]}  # noqa: E731
    write("profiles", of_cell, lambda k, at: {"profile": k, **by_cell(at)})
    write("profile_codes", of_code.T.toarray(), lambda k, c: {"profile": k, "code": codes[c]})
    write("lengths", of_length, lambda k, length: {"profile": k, "codes": length})
    write("prevalence", prevalence, lambda at, c: {**by_cell(at), "code": codes[c]})
    rest = np.where(prevalence < SMALLEST_CELL, prevalence, 0).reshape(len(AGE_LOW), 2, -1)
    rest = np.add.reduceat(rest, BAND_STARTS, axis=0).reshape(len(BAND_STARTS) * 2, -1)
    starts = np.array(AGE_LOW)[list(BAND_STARTS)]
    write(
        "prevalence_rest",
        rest,
        lambda at, c: {"band_from": starts[at // 2], "sex": np.array(["F", "M"])[at % 2], "code": codes[c]},
    )

    place = (np.arange(len(rows)) - np.repeat(offsets[:-1], lengths)) / np.maximum(
        1, np.repeat(lengths, lengths) - 1
    )
    total = np.bincount(index)
    principal = np.bincount(index[offsets[:-1]], minlength=len(codes))
    later = np.repeat(lengths, lengths) > 1
    position = np.bincount(index[later], place[later], len(codes)) / np.maximum(
        1, np.bincount(index[later], minlength=len(codes))
    )
    stays, passes = tuple(CHRONIC.split()), tuple(PASSING.split())
    chronic = [c.startswith(stays) and not c.startswith(passes) for c in codes.tolist()]
    keep = np.flatnonzero(total >= SMALLEST_CELL)
    keep = keep[np.argsort(codes[keep])]
    save(
        resources / "simulation_codes.csv",
        {
            "code": codes[keep],
            "visits": total[keep],
            "principal": np.where(principal >= SMALLEST_CELL, principal, 0)[keep],
            "position": np.round(position[keep], 3),
            "chronic": np.array(chronic)[keep].astype(int),
        },
    )
    calibrate(resources, resources / "validity", holds, codes, calibrations, seed)


def read_survey(raw_dir: Path, *columns: str) -> pa.Table:
    """Visits of the NHDS 2010 file in raw_dir with these columns of codes."""
    with tempfile.TemporaryDirectory() as folder:
        visits, audit = Path(folder) / "visits.parquet", Path(folder) / "audit.json"
        preprocess(raw_dir=raw_dir, visits=visits, audit=audit, source="nhds2010", columns=list(columns))
        return read_visits(visits)


def fit(holds: sp.csr_matrix, cell: np.ndarray, profiles: int, rounds: int, seed: int) -> np.ndarray:
    """Probability [n, profiles] that a visit belongs to a profile, by EM from a k-means start.

    holds: [n, codes] 0/1. cell: [n] age group and sex, a categorical variable of the profile.
    """
    n, cells = holds.shape[0], int(cell.max()) + 1
    overall = np.asarray(holds.mean(0)).ravel()
    demographics = sp.csr_matrix((np.ones(n, np.float32), (np.arange(n), cell)), shape=(n, cells))
    weighted = holds @ sp.diags(np.sqrt(1 / np.maximum(overall, 1e-3)).astype(np.float32))
    vectors = TruncatedSVD(60, random_state=seed).fit_transform(
        sp.hstack([weighted, 5 * demographics]).tocsr()
    )
    start = MiniBatchKMeans(profiles, random_state=seed, n_init=3, batch_size=4096).fit_predict(vectors)
    share = np.full((n, profiles), 0.02 / profiles, np.float32)
    share[np.arange(n), start] += 0.98
    previous = -np.inf
    for step in range(rounds):
        size = share.sum(0) + 1e-3
        rate = (holds.T @ share + 0.5 * overall[:, None]) / (size + 0.5)  # [codes, profiles]
        rate = np.clip(rate, 1e-6, 0.999)
        spread = (demographics.T @ share + 0.01) / (size + 0.01 * cells)
        odds = np.log(rate) - np.log1p(-rate)
        joint = holds @ odds.astype(np.float32) + np.log(spread)[cell]
        joint += (np.log1p(-rate).sum(0) + np.log(size / n)).astype(np.float32)
        top = joint.max(1, keepdims=True)
        share = np.exp(joint - top).astype(np.float32)
        total = share.sum(1, keepdims=True)
        share /= total
        likelihood = float((top + np.log(total)).mean())
        log.info("round %d: log-likelihood a visit %.4f", step, likelihood)
        if likelihood - previous < 1e-4:
            break
        previous = likelihood
    return share


def calibrate(
    resources: Path, rules: Path, holds: sp.csr_matrix, codes: np.ndarray, rounds: int, seed: int
) -> None:
    """Fit simulation_pairs.csv, and the rates in simulation_codes.csv, to what the generator itself draws.

    Round by round a cohort is drawn and compared with NHDS (`holds` [n, C], `codes` [C]): codes that come
    out too often run slower, and pairs of codes that stand together more or less often than in NHDS get a
    ratio, 0 where NHDS has no such pair (fewer than SMALLEST_CELL).
    """
    at = {code: number for number, code in enumerate(codes.tolist())}
    total = np.asarray(holds.sum(0)).ravel()
    common = np.flatnonzero(total >= MIN_VISITS_OF_A_PAIRED_CODE)
    together = np.triu((holds[:, common].T @ holds[:, common]).toarray(), 1)
    ratio = np.ones_like(together)
    rate = np.ones(len(codes))
    for step in range(rounds):
        table = read_counts(resources / "simulation_codes.csv")
        known = np.array([at[code] for code in table["code"].tolist()])
        a, b = np.nonzero(ratio != 1)
        save(
            resources / "simulation_pairs.csv",
            {
                "code": codes[common][a],
                "other": codes[common][b],
                "visits": np.where(together[a, b] < SMALLEST_CELL, 0, together[a, b]).astype(int),
                "ratio": np.round(ratio[a, b], 3),
            },
        )
        save(resources / "simulation_codes.csv", {**table, "rate": np.round(rate[known], 3)})
        counts = Counts.read(sorted(resources.glob("simulation_*.csv")))
        careers = Careers(counts, forbidden(rules, counts.codes), np.random.default_rng([seed, step]))
        cohort = careers.draw(PATIENTS_TO_CALIBRATE)
        visit = np.repeat(np.arange(len(cohort.length)), cohort.length)
        drawn = sp.csr_matrix(
            (np.ones(len(visit), np.float32), (visit, known[cohort.code])), (len(cohort.length), len(codes))
        )
        scale = holds.shape[0] / drawn.shape[0]
        often = np.asarray(drawn.sum(0)).ravel() * scale
        rate *= np.clip((total + 20) / (often + 20), 0.5, 2) ** DAMPING
        expected = np.triu((drawn[:, common].T @ drawn[:, common]).toarray(), 1) * scale
        surprise = (together - expected) ** 2 / (expected + 1)
        enough = np.maximum(together, expected) >= 3 * SMALLEST_CELL
        update = ratio != 1
        if step < rounds / 2:
            update |= (surprise > PAIR_SURPRISE) & enough
        step_size = ((together + 4) / (expected + 4)) ** DAMPING
        ratio = np.where(update, np.clip(ratio * step_size, 0.02, MAX_RATIO), ratio)
        ratio[update & (together < SMALLEST_CELL)] = 0
        error = ((together - expected) ** 2).sum() / ((together - together.mean()) ** 2).sum()
        log.info("calibration %d: %d pairs, squared error of pairs %.4f", step, update.sum(), error)


def save(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write columns as CSV below one comment line that states the source; fractions to three places."""
    texts = [
        [f"{value:.4g}" if isinstance(value, float) else value for value in values.tolist()]
        for values in columns.values()
    ]
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(SOURCE + "\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*texts, strict=True))
    log.info("%s: %d rows, %d bytes", path, len(texts[0]), path.stat().st_size)


if __name__ == "__main__":
    main(derive_simulation, globals().get("snakemake"))
