"""Ages and sexes requested for the synthetic patients."""

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

    demographics: test or train (first visits of those patients), or a CSV file with the columns age and sex
    (upper or lower case). patients: number of them (`resampled_positions`). Raises UserError for an age or
    sex that the training patients do not cover.
    """
    if demographics in ("train", "test"):
        table = read_visits(train if demographics == "train" else test)
        first = table["visit"].to_numpy() == 0
        age, sex = table["age"].to_numpy()[first], sex_index(table)[first]
    else:
        age, sex = _read_csv(Path(demographics), train)
    if patients is not None:
        positions = resampled_positions(len(age), patients, seed)
        age, sex = age[positions], sex[positions]
    return age, sex


def resampled_positions(n: int, patients: int, seed: int) -> np.ndarray:
    """`patients` positions out of `n`, sorted: a random choice; beyond `n` each about equally often."""
    return np.sort(np.resize(generator("requested patients", seed).permutation(n), patients))


def draw_patients(visits: pa.Table, patients: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Age in years and sex (0 F, 1 M) of `patients` patients, drawn with replacement from first visits.

    Age and sex are drawn together, for they depend on each other.
    """
    first = np.flatnonzero(visits["visit"].to_numpy() == 0)
    chosen = generator("drawn patients", seed).choice(first, patients)
    return visits["age"].to_numpy()[chosen], sex_index(visits)[chosen]


def write_demographics(path: Path, age: np.ndarray, sex: np.ndarray) -> None:
    """Write a CSV that `requested_patients` reads: a line a patient; age in years, sex 0 F, 1 M."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("age", "sex"))
        writer.writerows((years, SEXES[index]) for years, index in zip(age.tolist(), sex, strict=True))


def _read_csv(path: Path, train: Path) -> tuple[np.ndarray, np.ndarray]:
    visits = read_visits(train)
    first = visits["visit"].to_numpy() == 0
    ages, sexes = visits["age"].to_numpy()[first], sex_index(visits)[first]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"{path}: cannot be read ({reason}); generate.demographics is test, train or a CSV file"
        ) from None
    patients: list[tuple[float, int]] = []
    reader = csv.DictReader(lines)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    for column in ("age", "sex"):
        if column not in reader.fieldnames:
            header = ", ".join(reader.fieldnames) or "nothing"
            raise UserError(
                f"{path}: column {column} is missing; the header must hold age and sex and holds {header}"
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
        patients.append((np.floor(age) if age >= 1 else age, SEXES.index(sex)))
    if not patients:
        raise UserError(f"{path}: no patient below the header; give one line a patient")
    return np.array([age for age, _ in patients], np.float32), np.array([sex for _, sex in patients])
