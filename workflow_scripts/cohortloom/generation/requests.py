"""Whose ages and sexes the synthetic patients take."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.seeds import generator
from cohortloom.data.visits import SEXES, read_visits, sex_index


def requested_patients(
    demographics: str, train: Path, test: Path, patients: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Age in years and sex (0 F, 1 M) of each patient to generate.

    `demographics` is test or train (first visits of those patients) or a CSV with the columns age and
    sex, in either case; with `patients` so many of them (`repeated_or_chosen`). Raises UserError for an age
    or sex that the training patients do not cover.
    """
    if demographics in ("train", "test"):
        table = read_visits(train if demographics == "train" else test)
        first = table["visit"].to_numpy() == 0
        age, sex = table["age"].to_numpy()[first], sex_index(table)[first]
    else:
        age, sex = _read_csv(Path(demographics), train)
    if patients is not None:
        chosen = repeated_or_chosen(len(age), patients, seed)
        age, sex = age[chosen], sex[chosen]
    return age, sex


def repeated_or_chosen(n: int, patients: int, seed: int) -> np.ndarray:
    """`patients` positions out of `n`, sorted: a random choice, or each as often as any other but for one."""
    return np.sort(np.resize(generator("requested patients", seed).permutation(n), patients))


def drawn_patients(visits: pa.Table, patients: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Age in years and sex (0 F, 1 M) of so many patients, drawn with replacement from first visits.

    Age and sex are drawn together, for they go together.
    """
    first = np.flatnonzero(visits["visit"].to_numpy() == 0)
    chosen = generator("drawn patients", seed).choice(first, patients)
    return visits["age"].to_numpy()[chosen], sex_index(visits)[chosen]


def write_requested(path: Path, age: np.ndarray, sex: np.ndarray) -> None:
    """Write a CSV that `requested_patients` reads: age in years and sex (0 F, 1 M), a line a patient."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("age", "sex"))
        writer.writerows((years, SEXES[which]) for years, which in zip(age.tolist(), sex, strict=True))


def _read_csv(path: Path, train: Path) -> tuple[np.ndarray, np.ndarray]:
    seen = read_visits(train)
    first = seen["visit"].to_numpy() == 0
    ages, sexes = seen["age"].to_numpy()[first], sex_index(seen)[first]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"{path}: cannot be read ({reason}); generate.demographics is test, train or a CSV file"
        ) from None
    made: list[tuple[float, int]] = []
    reader = csv.DictReader(lines)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    for column in ("age", "sex"):
        if column not in reader.fieldnames:
            found = ", ".join(reader.fieldnames) or "nothing"
            raise UserError(
                f"{path}: column {column} is missing; the header must hold age and sex and holds {found}"
            )
    for row in reader:
        line = f"{path}: line {reader.line_num}"
        sex = (row["sex"] or "").strip().upper()
        if sex not in SEXES or not (sexes == SEXES.index(sex)).any():
            raise UserError(
                f"{line}: column sex: {row['sex']!r} is not a sex of the training patients (F or M)"
            )
        of_sex = ages[sexes == SEXES.index(sex)]
        try:
            age = float(row["age"])
        except (TypeError, ValueError):
            raise UserError(f"{line}: column age: {row['age']!r} is not a number of years") from None
        if not of_sex.min() <= age <= of_sex.max():
            raise UserError(
                f"{line}: column age: {row['age']!r} lies outside the training range of sex {sex}, "
                f"{of_sex.min():g} to {of_sex.max():g} years"
            )
        made.append((np.floor(age) if age >= 1 else age, SEXES.index(sex)))
    if not made:
        raise UserError(f"{path}: no patient below the header; give one line a patient")
    return np.array([age for age, _ in made], np.float32), np.array([sex for _, sex in made])
