"""build_dataset: the split by patient, the vocabulary of training patients, token ids."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from build_dataset import build_dataset, learn_vocabulary, split_of_visits, with_ids
from cohortloom.base.errors import UserError
from cohortloom.data.absent import absent
from cohortloom.data.visits import code_lists, read_visits, with_empty_columns, write_visits
from cohortloom.data.vocabulary import END, Vocabulary, gap_bins
from grammar import grammar_visits
from metric_tables import visits_of


def build(folder, visits, **options):
    folder.mkdir(exist_ok=True)
    write_visits(visits, folder / "visits.parquet", {"source": "test"})
    names = {name: folder / f"{name}.parquet" for name in ("train", "val", "test")}
    vocabulary = folder / "vocabulary.json"
    build_dataset(visits=folder / "visits.parquet", vocabulary=vocabulary, **names, **options)
    return {name: pq.read_table(path) for name, path in names.items()}, Vocabulary.load(vocabulary)


def test_split_keeps_patients_whole_and_fractions(tmp_path):
    parts, _ = build(tmp_path, grammar_visits(400, 0))
    owners = {name: set(part["patient_id"].to_pylist()) for name, part in parts.items()}
    assert [len(owners[name]) for name in ("train", "val", "test")] == [320, 40, 40]
    assert len(set.union(*owners.values())) == 400


def test_split_follows_the_seed():
    visits = grammar_visits(100, 0)
    once, again, other = (split_of_visits(visits, 0.1, 0.1, seed) for seed in (1, 1, 2))
    assert (once == again).all() and (once != other).any()


def test_vocabulary_is_learnt_from_training_patients_alone(tmp_path):
    visits = grammar_visits(200, 0)
    held_out = split_of_visits(visits, 0.1, 0.1, 0) != 0
    marked = [
        [*codes, "ICD9CM:E8889"] if out else codes
        for codes, out in zip(visits["diagnoses"].to_pylist(), held_out, strict=True)
    ]
    visits = visits.set_column(5, "diagnoses", pa.array(marked))
    parts, words = build(tmp_path, visits, min_patients_per_code=1)
    assert "ICD9CM:E8889" not in words.codes and "ICD9CM:4019" in words.codes
    # the code stays among the held-out codes, which the evaluation scores, and has no id
    assert "ICD9CM:E8889" in code_lists(parts["test"])[0].to_pylist()
    assert len(code_lists(parts["test"], "diagnoses_ids")[0]) < len(code_lists(parts["test"])[0])


def test_codes_of_few_patients_leave_the_vocabulary():
    rows = {
        "patient_id": ["a", "a", "b", "c"],
        "visit": [0, 1, 0, 0],
        "days": [0, 9, 0, 0],
        "age": [1.0, 1.0, 2.0, 3.0],
        "sex": ["F", "F", "M", "M"],
        "diagnoses": [["ICD9CM:4019"], ["ICD9CM:4019"], ["ICD9CM:4019", "ICD9CM:25000"], ["ICD9CM:25000"]],
    }
    table = with_empty_columns(pa.table(rows))
    assert learn_vocabulary(table, 2, 4).codes == ("ICD9CM:25000", "ICD9CM:4019")
    # twice in one patient is one patient
    assert learn_vocabulary(table.slice(0, 2), 1, 4).counts == (1,)
    assert learn_vocabulary(table.slice(0, 2), 2, 4).codes == ()


def test_ids_decode_to_the_codes_and_terminators_to_the_gap(tmp_path):
    parts, words = build(tmp_path, grammar_visits(400, 0))
    train = parts["train"]
    ids, offsets = code_lists(train, "diagnoses_ids")
    assert words.decode(ids.to_numpy()).to_pylist() == code_lists(train)[0].to_pylist()
    visit, days = train["visit"].to_numpy(), train["days"].to_numpy()
    edges = {row["id"]: row for row in json.loads((tmp_path / "vocabulary.json").read_text())["terminators"]}
    for row, terminator in enumerate(train["terminator"].to_pylist()):
        followed = row + 1 < len(visit) and visit[row + 1] > 0
        assert followed == (terminator != END)
        if followed:
            gap = days[row + 1] - days[row]
            assert edges[terminator]["low_days"] <= gap <= edges[terminator]["high_days"]


def test_gap_bins_are_log_spaced_cover_training_and_hold_their_draws():
    gaps = np.array([1, 2, 5, 30, 31, 400])
    bins = gap_bins(gaps, 6)
    assert bins == ((1, 2), (5, 5), (30, 31), (400, 400))
    words = Vocabulary(("ICD9CM:4019",), (6,), bins)
    terminators = words.terminator_of_gap(gaps)
    drawn = words.draw_gap(np.repeat(terminators, 50), np.random.default_rng(0))
    assert (words.terminator_of_gap(drawn) == np.repeat(terminators, 50)).all()
    assert words.terminator_of_gap(np.array([9999]))[0] == words.terminators[-1]
    assert gap_bins(np.array([]), 6) == ()


def test_same_seed_same_files(tmp_path):
    visits = grammar_visits(100, 0)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(tmp_path / name, visits, seed=seed)
    content = {name: (tmp_path / name / "train.parquet").read_bytes() for name in "abc"}
    assert content["a"] == content["b"] != content["c"]


def test_too_few_patients_are_refused(tmp_path):
    with pytest.raises(UserError, match="too few patients"):
        build(tmp_path, grammar_visits(2, 0))
    assert not (tmp_path / "train.parquet").exists()


def test_dataset_files_read_as_visits(tmp_path):
    build(tmp_path, grammar_visits(50, 0))
    assert "diagnoses_ids" not in read_visits(tmp_path / "test.parquet").column_names


def test_ids_of_unknown_codes_are_left_out():
    words = Vocabulary(("ICD9CM:4019",), (1,))
    part = grammar_visits(20, 0)
    ids = code_lists(with_ids(part, words), "diagnoses_ids")[0].to_numpy()
    assert len(ids) and (ids == words.first_code).all()


def test_validation_visits_without_a_known_code_are_refused(tmp_path):
    """A checkpoint is chosen by their losses."""
    split = split_of_visits(visits_of([["401"]] * 10), 0.1, 0.1, 0)
    alone = visits_of([["250" if number == 1 else "401"] for number in split])
    write_visits(alone, tmp_path / "visits.parquet", {})
    files = {name: tmp_path / f"{name}.parquet" for name in ("train", "val", "test")}
    keywords = {**files, "visits": tmp_path / "visits.parquet", "vocabulary": tmp_path / "vocabulary.json"}
    with pytest.raises(UserError, match="no validation visit holds a code of the vocabulary"):
        build_dataset(**keywords, min_patients_per_code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["visits.parquet"]


def test_a_visit_of_drugs_alone_is_a_visit(tmp_path):
    visits = grammar_visits(100, 0)
    lists = visits.schema.field("diagnoses").type
    twice = visits["visit"].to_numpy() > 0
    codes = [[] if again else row for again, row in zip(twice, visits["diagnoses"].to_pylist(), strict=True)]
    visits = visits.set_column(5, "diagnoses", pa.array(codes, lists))
    drugs = [["Drug:HEPARIN"]] * visits.num_rows
    visits = visits.set_column(7, "medications", pa.array(drugs, lists))
    parts, words = build(tmp_path, visits)
    assert [name for name, _ in words.columns] == ["diagnoses", "medications"]
    assert sum(part.num_rows for part in parts.values()) == visits.num_rows
    for part in parts.values():
        assert "procedures_ids" not in part.column_names
        assert set(code_lists(part, "medications_ids")[0].to_pylist()) == {words.first_ids[1]}


def test_a_placeholder_of_days_is_handed_on(tmp_path):
    for name, metadata in (("known", {}), ("unknown", {"days": "placeholder"})):
        folder = tmp_path / name
        folder.mkdir()
        write_visits(grammar_visits(100, 0), folder / "visits.parquet", metadata)
        files = {part: folder / f"{part}.parquet" for part in ("train", "val", "test")}
        build_dataset(visits=folder / "visits.parquet", vocabulary=folder / "vocabulary.json", **files)
        assert {absent(path) for path in files.values()} == {frozenset({"days"} if metadata else ())}
