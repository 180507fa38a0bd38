"""The simulated hospital: its tables, its flaws, its seeds, and how near it is to the survey behind it."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.bands import BROAD, band
from cohortloom.data.coded import encode, pairs_within
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import code_lists, read_visits, sex_index, write_visits
from cohortloom.evaluation.fidelity import pair_figures
from cohortloom.evaluation.reconstruction import overlap
from cohortloom.sources.simulated import AGE_LOW, Counts, age_group
from generate_naive import generate_naive
from preprocess import preprocess
from simulate_raw import ETHNICITY, simulate_raw

REPOSITORY = Path(__file__).parents[1]
RESOURCES = REPOSITORY / "resources"
MIMIC3 = ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD", "PROCEDURES_ICD", "PRESCRIPTIONS")
DIGESTS = ["a056002d8f56", "414a54e89c58", "82113904d355"]  # of 60 patients, seed 5
COUNTS = sorted(RESOURCES.glob("simulation_*.csv"))
SURVEY = REPOSITORY.parent / "shared" / "data" / "nhds2010"
beside = pytest.mark.skipif(not SURVEY.is_dir(), reason="the NHDS 2010 file is not beside the repository")


def simulate(folder: Path, patients: int, seed: int, **other) -> Path:
    """The folder with the three tables."""
    tables = [folder / f"{name}.csv.gz" for name in MIMIC3]
    keywords = {"counts": COUNTS, "rules": RESOURCES / "validity", **other}
    names = (
        "patients_table",
        "admissions_table",
        "diagnoses_table",
        "procedures_table",
        "prescriptions_table",
    )
    simulate_raw(**dict(zip(names, tables, strict=True)), patients=patients, seed=seed, **keywords)
    return folder


def table_of(folder: Path, name: str) -> pa.Table:
    convert = pa.csv.ConvertOptions(strings_can_be_null=False, column_types={"ICD9_CODE": pa.string()})
    with gzip.open(folder / f"{name}.csv.gz") as file:
        return pa.csv.read_csv(file, convert_options=convert)


def preprocessed(folder: Path, raw: Path, source: str, *columns: str) -> tuple[pa.Table, dict]:
    files = {"visits": folder / "visits.parquet", "audit": folder / "audit.json"}
    preprocess(raw_dir=raw, source=source, columns=list(columns) or None, **files)
    return read_visits(folder / "visits.parquet"), json.loads((folder / "audit.json").read_text())


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Raw folder, visits and account of 4,000 patients, diagnoses alone."""
    folder = tmp_path_factory.mktemp("hospital")
    raw = simulate(folder / "raw", 4000, seed=11)
    return raw, *preprocessed(folder, raw, "simulated", "diagnoses")


@pytest.fixture(scope="module")
def treated(hospital, tmp_path_factory):
    """Visits and account of the same patients with procedures and medications."""
    return preprocessed(tmp_path_factory.mktemp("treated"), hospital[0], "simulated")


def test_a_seed_gives_its_own_bytes(tmp_path):
    first, again, other = (
        simulate(tmp_path / name, 60, seed) for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    for name in MIMIC3:
        content = (first / f"{name}.csv.gz").read_bytes()
        assert content == (again / f"{name}.csv.gz").read_bytes()
        assert content != (other / f"{name}.csv.gz").read_bytes()


def test_the_tables_have_the_shape_and_the_flaws_of_mimic3(hospital):
    raw, _, audit = hospital
    patients, admissions, diagnoses, *_ = (table_of(raw, name) for name in MIMIC3)
    assert patients.num_rows == 4000
    assert {"INSURANCE", "LANGUAGE", "RELIGION", "MARITAL_STATUS", "ETHNICITY"} <= set(
        admissions.column_names
    )
    spelled = set(admissions["ETHNICITY"].to_pylist())
    assert len(spelled) > 10 and spelled <= set(ETHNICITY)
    assert "" in diagnoses["ICD9_CODE"].to_pylist()
    without = set(admissions["HADM_ID"].to_pylist()) - set(diagnoses["HADM_ID"].to_pylist())
    dropped = {(row["what"], row["reason"]): row["rows"] for row in audit["dropped"]}
    assert dropped["diagnoses", "null code"] == diagnoses["ICD9_CODE"].to_pylist().count("") > 0
    assert dropped["visits", "no code"] >= len(without) > 0
    assert ("diagnoses", "code not of the form of ICD9CM") not in dropped
    assert dropped["diagnoses", "code repeated in its visit"] == 0
    born = patients["DOB"].cast(pa.timestamp("s")).to_numpy().astype("datetime64[Y]").astype(int) + 1970
    assert 0 < (born < 1950).sum() < 400  # older than 89: shifted by 300 years


def test_everyone_is_there_and_returns(hospital):
    _, visits, _ = hospital
    ages, sexes = visits["age"].to_numpy(), sex_index(visits)
    values, offsets = code_lists(visits)
    owner = np.repeat(np.arange(visits.num_rows), np.diff(offsets))
    codes = np.array(values.to_pylist())
    assert (ages == 0).mean() > 0.05 and ((ages > 0) & (ages < 18)).mean() > 0.03
    assert (ages >= 65).mean() > 0.25 and (ages == 90).any()
    mothers = np.unique(owner[np.char.startswith(codes, "ICD9CM:V27")])
    assert len(mothers) > 0.05 * visits.num_rows and (sexes[mothers] == 0).all()
    assert len(np.unique(codes)) >= 1500
    per_patient = np.unique(visits["patient_id"].to_numpy(), return_counts=True)[1]
    assert 0.2 < (per_patient > 1).mean() < 0.32
    again = np.flatnonzero(visits["visit"].to_numpy() > 0)
    gaps = visits["days"].to_numpy()[again] - visits["days"].to_numpy()[again - 1]
    assert gaps.min() >= 1 and np.quantile(gaps, 0.2) < 30 and np.quantile(gaps, 0.9) > 365


def test_chronic_codes_recur_and_acute_ones_seldom(hospital):
    _, visits, _ = hospital
    lists = visits["diagnoses"].to_pylist()
    again = [row for row, visit in enumerate(visits["visit"].to_pylist()) if visit > 0]

    def carried(code: str) -> float:
        before = [row for row in again if code in lists[row - 1]]
        return np.mean([code in lists[row] for row in before])

    assert carried("ICD9CM:4019") > 0.55 and carried("ICD9CM:25000") > 0.55
    assert carried("ICD9CM:5990") < 0.3 and carried("ICD9CM:2768") < 0.4


def test_no_code_breaks_an_edit(hospital):
    _, visits, _ = hospital
    rules = load_rules(RESOURCES / "validity")
    values, offsets = code_lists(visits)
    ages, sexes = (
        np.repeat(column, np.diff(offsets)) for column in (visits["age"].to_numpy(), sex_index(visits))
    )
    assert not rules.violations(values, ages, sexes).any.any()
    assert rules.violations(values, ages, 1 - sexes).any.mean() > 0.03  # the control


def test_principal_diagnosis_comes_first(hospital):
    _, visits, _ = hospital
    newborns = visits.filter(pa.array(visits["age"].to_numpy() == 0))
    first = [codes[0] for codes in newborns["diagnoses"].to_pylist()]
    assert np.mean([code.startswith("ICD9CM:V3") for code in first]) > 0.9
    assert not any(
        code.startswith("ICD9CM:E") for codes in visits["diagnoses"].to_pylist() for code in codes[:1]
    )


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(UserError, match="patients: 0 is out of range"):
        simulate(tmp_path, 0, 1)
    with pytest.raises(UserError, match="simulation_codes.csv is missing"):
        simulate(tmp_path, 10, 1, counts=[file for file in COUNTS if file.name != "simulation_codes.csv"])
    assert not list(tmp_path.iterdir())


SOURCES = {
    "simulation_drugs": "NHANES 2013 to March 2020",
    "simulation_reasons": "General Equivalence Mappings",
}


def test_the_counts_are_aggregates_with_their_source():
    for file in COUNTS:
        header, _, *lines = file.read_text().splitlines()
        assert header.startswith(f"# source: {SOURCES.get(file.stem, 'NHDS 2010')}")
        assert file.stat().st_size < 900_000
        if file.stem == "simulation_reasons":  # a map, no counts
            continue
        column = file.read_text().splitlines()[1].split(",").index("visits")
        cells = [int(line.split(",")[column]) for line in lines]
        assert all(cell >= 5 or (cell == 0 and file.stem == "simulation_pairs") for cell in cells)


def test_age_groups_hold_the_ages_of_the_edits():
    assert age_group(np.array([0, 0.5, 1, 11, 12, 14, 15, 17, 18, 55, 56, 90])).tolist() == [
        AGE_LOW.index(low) for low in (-1, 0, 1, 10, 12, 12, 15, 15, 18, 50, 56, 90)
    ]


def test_shares_are_probabilities():
    counts = Counts.read(COUNTS)
    assert counts.profiles.sum(1) == pytest.approx(np.ones(len(counts.cells)))
    assert counts.share.max() <= 1 and counts.target.max() <= 1 and counts.lengths[:, 0].max() == 0


def naive_figures(folder: Path, visits: pa.Table) -> tuple[float, float]:
    """Jaccard and bigram R² of the prevalence method, patients split 80/10/10."""
    patient = np.cumsum(visits["visit"].to_numpy() == 0) - 1
    place = np.random.default_rng(3).permutation(patient[-1] + 1)[patient] / (patient[-1] + 1)
    train, test = visits.filter(pa.array(place < 0.8)), visits.filter(pa.array(place >= 0.9))
    files = {"train": folder / "train.parquet", "test": folder / "test.parquet"}
    for name, table in (("train", train), ("test", test)):
        write_visits(table, files[name], {})
    found = {}
    for mode in ("reconstruct", "synthesize"):
        out = {"synthetic": folder / f"{mode}.parquet", "counts": folder / f"{mode}.json"}
        generate_naive(**files, **out, method="prevalence", mode=mode, seed=0, true_length=True)
        found[mode] = read_visits(out["synthetic"])
    sizes = overlap(found["reconstruct"], test)
    jaccard = (sizes.common / (sizes.real + sizes.reconstructed - sizes.common)).mean()
    (known, scored), names = encode([train, found["synthesize"]])
    pairs = (pairs_within(part, len(names)) for part in (known, scored))
    figures = pair_figures(known, scored, *pairs, *scored.groups(0))
    return float(jaccard), next(estimate.value for name, _, estimate, *_ in figures if name == "bigram_r2")


@beside
def test_as_hard_to_model_as_the_survey(tmp_path):
    """30,000 patients against as many visits of NHDS 2010: lengths, prevalences, and the naive method."""
    simulated, _ = preprocessed(
        tmp_path / "s", simulate(tmp_path / "raw", 30_000, seed=1), "simulated", "diagnoses"
    )
    survey, _ = preprocessed(tmp_path / "n", SURVEY, "nhds2010", "diagnoses")
    lengths = [np.diff(code_lists(table)[1]) for table in (simulated, survey)]
    shares = [np.cumsum(np.bincount(length, minlength=16)) / len(length) for length in lengths]
    assert np.abs(shares[0] - shares[1]).max() < 0.05

    values, _ = code_lists(survey)
    counted = values.value_counts()
    order = np.argsort(-counted.field("counts").to_numpy(), kind="stable")[:300]
    frequent = counted.field("values").take(pa.array(order)).to_pylist()
    found = [prevalences(table, frequent) for table in (simulated, survey)]
    both = (found[0] > 0) & (found[1] > 0)
    assert both.sum() > 1800
    assert np.corrcoef(np.log(found[0][both]), np.log(found[1][both]))[0, 1] > 0.9

    chosen = np.sort(np.random.default_rng(1).choice(survey.num_rows, simulated.num_rows, replace=False))
    real, made = (
        naive_figures(tmp_path / name, table)
        for name, table in (("real", survey.take(pa.array(chosen))), ("made", simulated))
    )
    assert made[0] == pytest.approx(real[0], abs=0.03)
    assert made[1] == pytest.approx(real[1], abs=0.05)


def prevalences(visits: pa.Table, codes: list[str]) -> np.ndarray:
    """Share of the visits of each broad age band and sex that hold each code, [cells, codes]."""
    values, offsets = code_lists(visits)
    cell = band(visits["age"].to_numpy(), BROAD) * 2 + sex_index(visits)
    at = {code: number for number, code in enumerate(codes)}
    index = np.array([at.get(code, -1) for code in values.to_pylist()])
    of_cell = np.repeat(cell, np.diff(offsets))[index >= 0]
    cells = 2 * len(BROAD)
    counts = np.bincount(of_cell * len(codes) + index[index >= 0], minlength=cells * len(codes))
    return counts.reshape(cells, -1) / np.bincount(cell, minlength=cells)[:, None]


def test_procedures_suit_the_principal_diagnosis_and_the_sex(treated):
    visits, audit = treated
    lists = visits["procedures"].to_pylist()
    per_visit = np.mean([len(codes) for codes in lists])
    assert 1.0 < per_visit < 1.6  # 1.44 in the survey, of which rare pairs with a diagnosis are left out
    sexes = np.array(visits["sex"].to_pylist())
    births = np.array(["ICD9Proc:740" in codes or "ICD9Proc:741" in codes for codes in lists])  # caesarean
    assert births.sum() > 20 and (sexes[births] == "F").all()
    principal = [codes[0] if codes else "" for codes in visits["diagnoses"].to_pylist()]
    stents = [p for p, codes in zip(principal, lists, strict=True) if "ICD9Proc:3607" in codes]
    assert len(stents) > 5 and np.mean([p.startswith(("ICD9CM:41", "ICD9CM:99")) for p in stents]) > 0.8
    assert audit["cohort"]["by_system"][-1]["system"] == "ICD9Proc"


def test_drugs_suit_the_diagnoses_and_stay_with_the_patient(treated):
    visits, _ = treated
    drugs, codes = visits["medications"].to_pylist(), visits["diagnoses"].to_pylist()
    diabetic = np.array([any(code.startswith("ICD9CM:250") for code in one) for one in codes])
    treated = np.array(["Drug:METFORMIN" in one for one in drugs])
    assert treated[diabetic].mean() > 20 * max(treated[~diabetic].mean(), 0.005)
    number = visits["visit"].to_numpy()
    again = [row for row in np.flatnonzero(number > 0) if treated[row - 1] and diabetic[row]]
    assert len(again) > 10 and np.mean(treated[again]) > 0.8


def test_the_other_tables_do_not_depend_on_treatments(tmp_path):
    """A cohort of diagnoses alone is what it was before there were procedures."""
    import hashlib

    raw = simulate(tmp_path, 60, 5)
    digests = [
        hashlib.sha256(gzip.decompress((raw / f"{n}.csv.gz").read_bytes())).hexdigest() for n in MIMIC3[:3]
    ]
    assert [digest[:12] for digest in digests] == DIGESTS
