"""A run and held-out real visits are scored at one n; where they are not, there is no verdict."""

import json

import numpy as np
import pytest

from cohortloom.base.files import read_json
from cohortloom.data.visits import read_visits, write_visits
from cohortloom.reporting import scorecard
from conftest import REPOSITORY
from evaluate_classifier import evaluate_classifier
from evaluate_conditioning import evaluate_conditioning
from evaluate_fidelity import evaluate_fidelity
from evaluate_medical_validity import evaluate_medical_validity
from evaluate_privacy import evaluate_privacy
from evaluate_utility import evaluate_utility
from metric_worlds import hospital

RESOURCES = REPOSITORY / "resources"
METRICS = scorecard.read_metrics(RESOURCES / "metrics.csv")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A hospital of 4,000 training and twice 250 held-out patients, and 3,000 more of the same hospital."""
    folder, made = tmp_path_factory.mktemp("one_size"), {}
    sizes = {"train": 4000, "val": 250, "test": 250, "synthetic": 3000}
    for seed, (name, n) in enumerate(sizes.items()):
        made[name] = folder / f"{name}.parquet"
        write_visits(hospital(n, 20 + seed, name[0]), made[name], {})
    return made


def fidelity(files, out, run: str, **options) -> list[dict]:
    held = files["test"] if run == "real" else files["synthetic"]
    evaluate_fidelity(synthetic=held, train=files["train"], records=out, run=run, **options)
    return read_json(out)


def test_many_visits_do_not_beat_real_for_nothing(files, tmp_path):
    """Patients of the very same hospital: whatever they score better comes from their number alone."""
    real = fidelity(files, tmp_path / "real", "real")
    free = fidelity(files, tmp_path / "free", "many")
    capped = fidelity(files, tmp_path / "capped", "many", held_out=files["test"])
    value = {
        name: next(r for r in records if r["metric"] == "js_distance" and not r["subset"])
        for name, records in (("real", real), ("free", free), ("capped", capped))
    }
    assert value["free"]["value"] < value["real"]["ci_low"]
    assert value["real"]["ci_low"] < value["capped"]["value"] < value["real"]["ci_high"]
    assert abs(value["capped"]["n"] - value["real"]["n"]) <= 1
    judged = scorecard.join([value["free"], value["real"]], METRICS)[0]
    assert (judged["pass"], judged["reason"]) == (None, "n differs")
    judged = scorecard.join([value["capped"], value["real"]], METRICS)[0]
    assert (judged["pass"], judged["reason"]) == (True, None)


@pytest.mark.parametrize(
    "evaluate, more",
    [
        (evaluate_classifier, ("train", "test")),
        (evaluate_utility, ("train", "test")),
        (evaluate_conditioning, ("train", "test")),
        (evaluate_privacy, ("train", "val", "test")),
        (evaluate_medical_validity, ()),
    ],
)
def test_no_evaluation_takes_more_of_a_run_than_of_real(files, tmp_path, evaluate, more):
    """Both numbers of a record, of what is scored and of what it is compared with, are those of real."""
    shared = {name: files[name] for name in more}
    if evaluate is evaluate_medical_validity:
        shared["rules"] = RESOURCES / "validity"
    found = {}
    for run, release, held_out in (
        ("real", "val", None),
        ("many", "synthetic", files["val"]),
        ("free", "synthetic", None),
    ):
        out = tmp_path / f"{run}.json"
        evaluate(synthetic=files[release], records=out, run=run, held_out=held_out, **shared)
        found[run] = {(r["metric"], r["subset"]): r for r in read_json(out) if r["value"] is not None}
        # How many pairs can be matched is chance, below the 500 that are taken.
        found[run] = {where: r for where, r in found[run].items() if not where[0].startswith("flip_")}
    sizes = {
        run: [(r["n"], r["n_reference"]) for where, r in sorted(records.items()) if where in found["real"]]
        for run, records in found.items()
    }
    near = np.array(
        [
            [scorecard.same_size(*pair) for pair in zip(one, other, strict=True)]
            for one, other in zip(sizes["many"], sizes["real"], strict=True)
        ]
    )
    assert near.mean() > 0.9  # subsets such as the births of a sample differ by chance
    if evaluate is not evaluate_classifier:  # which took as many as the test set has already
        assert sizes["free"] != sizes["many"]


def test_a_run_with_fewer_visits_than_real_has_no_verdict(files, tmp_path):
    few = read_visits(files["synthetic"]).slice(0, 150)
    write_visits(few, tmp_path / "few.parquet", {})
    evaluate_fidelity(
        synthetic=tmp_path / "few.parquet",
        train=files["train"],
        records=tmp_path / "few",
        run="few",
        held_out=files["test"],
    )
    records = read_json(tmp_path / "few") + fidelity(files, tmp_path / "real", "real")
    valued = [r for r in scorecard.join(records, METRICS) if r["run"] == "few" and r["value"] is not None]
    judged = [r for r in valued if r["metric"] not in scorecard.OWN_NUMBER]
    assert 0 < len(valued) - len(judged) < len(judged)
    assert judged and {r["pass"] for r in judged} == {None}
    assert {r["reason"] for r in judged} <= {"n differs", scorecard.NO_REAL}


def test_the_control_of_duplicates_takes_patients_at_random(dataset, tmp_path, monkeypatch):
    """Not the first of the file, and others with another seed."""
    from cohortloom.data.examples import Examples
    from evaluate_duplicates import CONTROL_VISITS, evaluate_duplicates

    monkeypatch.setattr("evaluate_duplicates.CONTROL_VISITS", 100)
    asked = []
    monkeypatch.setattr(
        "cohortloom.generation.synthesize.synthesize",
        lambda model, vocabulary, age, sex, seed, **_: asked.append((age.copy(), sex.copy())) or [],
    )
    model = save_model(dataset, tmp_path / "model")
    counts = tmp_path / "synthesize.json"
    counts.write_text(
        json.dumps({"codes": 9, "visits": 3, "duplicates": 0, "invalid_tokens": 0, "cut_off": 0})
    )
    for seed in (0, 0, 1):
        evaluate_duplicates(
            model_dir=model,
            test=dataset["test"],
            counts=[counts],
            records=tmp_path / "r",
            run="x",
            control_seed=seed,
            device="cpu",
        )
    data = Examples.load(dataset["test"])
    first = np.flatnonzero(data.visit == 0)
    assert len(first) > 2 * 100 and CONTROL_VISITS == 500 and len(asked[0][0]) == 100
    people = [np.stack(one) for one in asked]
    assert not np.array_equal(people[0], np.stack([data.age[first[:100]], data.sex[first[:100]]]))
    assert np.array_equal(people[0], people[1]) and not np.array_equal(people[0], people[2])


def save_model(dataset, folder, **losses):
    """A model folder that no training touched."""
    from cohortloom.data.examples import Examples
    from cohortloom.data.vocabulary import Vocabulary
    from cohortloom.model.initial import make_model

    vocabulary = Vocabulary.load(dataset["vocabulary"])
    make_model(vocabulary, Examples.load(dataset["train"]), "tiny", 0, 0.0, **losses).save_pretrained(folder)
    (folder / "vocabulary.json").write_bytes(dataset["vocabulary"].read_bytes())
    return folder


@pytest.mark.parametrize("untrained", [("age",), ("sex",), ("age", "sex"), ()])
def test_a_head_that_was_not_trained_has_no_verdict(dataset, tmp_path, untrained):
    from cohortloom.reporting.sentences import record_cells
    from evaluate_heads import evaluate_heads

    weights = {f"{head}_weight": 0.0 if head in untrained else 0.3 for head in ("age", "sex")}
    model = save_model(dataset, tmp_path / "model", **weights)
    evaluate_heads(model_dir=model, test=dataset["test"], records=tmp_path / "r", run="x", device="cpu")
    records = {r["metric"]: r for r in scorecard.join(read_json(tmp_path / "r"), METRICS)}
    for head in ("age", "sex"):
        record = records[f"{head}_head_loss"]
        vocabulary = record_cells(record, METRICS[record["metric"]])
        if head in untrained:
            assert (record["value"], record["pass"], record["reason"]) == (None, None, "not trained")
            assert (vocabulary["value"], vocabulary["verdict"]) == ("–", "not trained")
        else:
            assert record["value"] is not None and vocabulary["verdict"] in ("pass", "FAIL")
    assert records["lm_loss"]["value"] is not None
