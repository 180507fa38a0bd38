"""Planted patients: who they are, the figures by hand, and that a model which learnt them is found."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import sparse

from cohortloom.base.errors import UserError
from cohortloom.data.examples import Examples
from cohortloom.data.forbidden import age_row, forbidden_table
from cohortloom.data.validity import load_rules
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.evaluation.canaries import exposure, extraction_figures, ranking_figures
from cohortloom.model.initial import make_model, token_counts
from cohortloom.model.scoring import patient_log_likelihoods
from cohortloom.training.canaries import assign_repeats, invent_patients, repeat_levels, with_canaries
from conftest import MEMORISING, REPOSITORY
from evaluate_canaries import HELD_OUT, evaluate_canaries
from generate import generate
from test_runs import runs_of
from train import train

RULES = REPOSITORY / "resources" / "validity"
PLANTED = {"canaries": 20, "canary_repeats": 16}


@pytest.fixture(scope="module")
def files(thirds) -> dict[str, Path]:
    return thirds


def world(files) -> tuple[Examples, Vocabulary]:
    return Examples.load(files["train"]), Vocabulary.load(files["vocabulary"])


def invented(files, seed: int = 0, planted: int = 200, held_out: int = 200) -> tuple[Examples, Examples]:
    return invent_patients(*world(files), load_rules(RULES), seed, planted, held_out)


def code_sets(data: Examples) -> list[tuple[int, ...]]:
    return [tuple(sorted(part.tolist())) for part in np.split(data.ids, data.offsets[1:-1])]


def same(one: Examples, other: Examples) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_canaries_obey_the_rules_and_equal_no_patient(files):
    data, vocabulary = world(files)
    barred = forbidden_table(vocabulary, load_rules(RULES))
    assert barred.any()  # codes of one sex
    people = {*zip(data.age.tolist(), data.sex.tolist(), strict=True)}
    both = [one for part in invented(files) for one in code_sets(part)]
    assert len(set(both)) == 400 and not set(both) & set(code_sets(data))
    for part in invented(files):
        lengths = np.diff(part.offsets)
        assert set(lengths) == {6, 7, 8} and (part.visit == 0).all()
        assert all(len(set(one)) == len(one) for one in code_sets(part))
        sex, age = np.repeat(part.sex, lengths), np.repeat(age_row(part.age), lengths)
        assert (part.ids >= vocabulary.first_code).all() and not barred[sex, age, part.ids].any()
        assert barred[1 - sex, age, part.ids].any()  # the check can fail
        assert {*zip(part.age.tolist(), part.sex.tolist(), strict=True)} <= people
        assert set(part.ids) == set(range(vocabulary.first_code, len(vocabulary)))


def test_the_seed_decides_and_held_out_ones_change_nothing(files):
    assert all(same(one, other) for one, other in zip(invented(files), invented(files), strict=True))
    assert not same(invented(files, seed=1)[0], invented(files)[0])
    assert same(invented(files, held_out=0)[0], invented(files)[0])


def test_planting_appends_each_so_many_times(files):
    data, vocabulary = world(files)
    some, _ = invented(files, planted=3)
    more = with_canaries(data, some, np.array([1, 4, 2]))
    assert len(more) == len(data) + 7 and (more.visit[len(data) :] == 0).all()
    assert code_sets(more)[: len(data)] == code_sets(data)
    assert code_sets(more)[len(data) :] == [code_sets(some)[i] for i in (0, 1, 1, 1, 1, 2, 2)]
    assert more.first_ids == data.first_ids
    names = ("ids", "offsets", "terminator", "age", "sex", "visit")
    assert all(getattr(more, name).dtype == getattr(data, name).dtype for name in names)
    # the model starts from counts, in which they are as any training patient
    added = token_counts(more, len(vocabulary)) - token_counts(data, len(vocabulary))
    assert added.sum() == (np.diff(some.offsets) + 1) @ [1, 4, 2]


def test_repeats_are_shared_out_and_bad_values_refused(files):
    assert [repeat_levels(most) for most in (1, 4, 5, 16)] == [[1], [1, 4], [1, 4, 5], [1, 4, 16]]
    assert np.bincount(assign_repeats(30, 16))[[1, 4, 16]].tolist() == [10, 10, 10]
    for count, most, message in (
        (9, 4, "9 are too few"),
        (-1, 4, "too few"),
        (10, 0, "canary_repeats: 0 is"),
    ):
        with pytest.raises(UserError, match=message):
            assign_repeats(count, most)
    data, vocabulary = world(files)
    few = Vocabulary(vocabulary.codes[:9], vocabulary.counts[:9], vocabulary.gap_bins)
    with pytest.raises(UserError, match="the 9 codes permitted at an age and sex are too few") as caught:
        invent_patients(data, few, load_rules(RULES), 0, 500)
    assert "\n" not in str(caught.value)
    names = {name: files[name] for name in ("train", "val", "vocabulary")}
    with pytest.raises(UserError, match="need validity tables"):
        train(**names, model_dir=Path("none"), canaries=10)


def test_exposure_and_auc_by_hand():
    held_out = np.arange(7.0)
    assert exposure(np.array([9.0, 5.5, -1.0, 6.0]), held_out) == pytest.approx(
        [3, 2, 0, 3 - np.log2(1.5)]  # before all; behind one; behind all; level with the first
    )
    repeats = np.repeat([1, 4], 10)
    scores = np.concatenate([np.full(10, 3.0), np.full(10, 9.0)])
    found = {(m, s): part for m, s, part, *_ in ranking_figures(scores, held_out, repeats, 0)}
    assert found["canary_auc", "repeats 1"].value == 0.5 and found["canary_auc", "repeats 4"].value == 1
    assert found["canary_auc", ""].value == 0.75 and found["canary_auc", ""].n == 20
    assert found["canary_exposure", "repeats 4"].value == 3
    assert {subset for _, subset in found} == {"", "repeats 1", "repeats 4"}


def test_by_chance_the_figures_are_those_of_guessing():
    """The interval holds 0.5 about as often as it says."""
    rng = np.random.default_rng(0)
    inside, bits = 0, []
    for trial in range(60):
        made = ranking_figures(rng.normal(size=50), rng.normal(size=1000), np.ones(50, int), trial)
        found = {m: part for m, s, part, *_ in made if s}
        inside += found["canary_auc"].low <= 0.5 <= found["canary_auc"].high
        bits.append(found["canary_exposure"].value)
    assert inside >= 53 and np.mean(bits) == pytest.approx(np.log2(np.e), abs=0.1)


def matrix(*sets: set[int]) -> sparse.csr_matrix:
    return sparse.csr_matrix([[float(code in one) for code in range(12)] for one in sets])


def test_extraction_sees_the_same_set_and_most_of_it():
    ours = matrix({0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 6}, {6, 7, 8, 9, 10, 11})
    cases = {
        "the same": ({0, 1, 2, 3, 4, 5}, [1 / 3, 2 / 3]),
        "one more": ({0, 1, 2, 3, 4, 5, 9}, [0, 2 / 3]),
        "five of six": ({0, 1, 2, 3, 5}, [0, 1 / 3]),
        "four of six": ({0, 1, 2, 3}, [0, 0]),
    }
    for released, expected in cases.values():
        made = extraction_figures(ours, matrix({7}, released), np.array([1, 1, 1]), 0)
        assert [part.value for _, subset, part, *_ in made if not subset] == pytest.approx(expected)


@pytest.fixture(scope="module")
def learnt(files, memorised, tmp_path_factory) -> dict[str, Path]:
    """Models that have memorised a tiny cohort: with canaries, and without."""
    folder = tmp_path_factory.mktemp("learnt") / "with"
    names = {name: files[name] for name in ("train", "val", "vocabulary")}
    before = {name: hashlib.sha256(path.read_bytes()).digest() for name, path in files.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.MAX_EPOCHS", 1000)
        train(**names, model_dir=folder, rules=RULES, **PLANTED, **MEMORISING)
    assert before == {name: hashlib.sha256(path.read_bytes()).digest() for name, path in files.items()}
    return {"with": folder, "without": memorised}


def scored(files, model: Path, folder: Path, patients: int = 600) -> dict[tuple[str, str], dict]:
    """Records of what a model and patients of its own give away, by metric and subset."""
    given = {name: files[name] for name in ("train", "vocabulary")}
    release = {"synthetic": folder / "s.parquet", "counts": folder / "s.json"}
    whose = {"demographics": "train", "patients": patients}
    generate(model_dir=model, train=files["train"], test=files["test"], device="cpu", **release, **whose)
    options = {**PLANTED, "canary_seed": 0, "device": "cpu"}
    evaluate_canaries(
        model_dir=model,
        synthetic=release["synthetic"],
        rules=RULES,
        records=folder / "r",
        run="x",
        **given,
        **options,
    )
    return {(r["metric"], r["subset"]): r for r in json.loads((folder / "r").read_text())}


def test_only_a_model_that_memorised_canaries_is_detected(files, learnt, tmp_path):
    found, control = (scored(files, learnt[name], tmp_path) for name in ("with", "without"))
    often = "repeats 16"
    assert found["canary_auc", often]["value"] > 0.95 > 0.8 > control["canary_auc", often]["value"]
    assert control["canary_auc", ""]["ci_low"] < 0.5 < control["canary_auc", ""]["ci_high"]
    assert found["canary_auc", ""]["ci_low"] > control["canary_auc", ""]["value"]
    assert found["canary_exposure", often]["value"] > 6 > 3 > control["canary_exposure", often]["value"]
    assert found["canary_exposure", often]["n_reference"] == HELD_OUT
    assert found["canary_auc", "repeats 1"]["value"] <= found["canary_auc", often]["value"]
    assert found["canary_extracted", often]["value"] > 0.3 > control["canary_extracted", ""]["value"] == 0
    assert found["canary_extracted_80", often]["value"] >= found["canary_extracted", often]["value"]
    assert {m for m, _ in found} == {
        "canary_auc",
        "canary_exposure",
        "canary_extracted",
        "canary_extracted_80",
    }


def test_an_untrained_model_knows_none_of_them(files):
    data, vocabulary = world(files)
    parts = invented(files, planted=100, held_out=300)
    fresh = make_model(vocabulary, data, preset="tiny", seed=0, dropout=0.0).eval()
    scores = [patient_log_likelihoods(fresh, part) for part in parts]
    found = {m: part for m, s, part, *_ in ranking_figures(*scores, np.ones(100, int), 0) if s}
    assert found["canary_auc"].low < 0.5 < found["canary_auc"].high
    assert found["canary_exposure"].low < np.log2(np.e) < found["canary_exposure"].high


def test_the_model_card_names_the_canaries(learnt):
    cards = {name: (folder / "README.md").read_text() for name, folder in learnt.items()}
    assert (
        "**Not for release.** 20 invented patients" in cards["with"] and "| canaries | 20 |" in cards["with"]
    )
    assert "canar" not in cards["without"] and "Not for release" not in cards["without"]


def test_the_overlay_adds_a_run_like_the_main_one():
    overlay = yaml.safe_load((REPOSITORY / "config" / "canaries.yaml").read_text())
    assert set(overlay) == {"runs"} and set(overlay["runs"]) == {"canaries"}
    runs = runs_of(**overlay)
    ours, main = runs["canaries"], runs["multitask"]
    assert {key for key in main.train if ours.train[key] != main.train[key]} == {"canaries"}
