"""Membership by the model's likelihood: a model that has memorised its patients reveals them."""

import json

import numpy as np
import pytest
import torch

from cohortloom.base.errors import UserError
from cohortloom.data.examples import Examples, collate, plain_pairs
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from cohortloom.model.scoring import patient_log_likelihoods
from cohortloom.release.gates import check_limits, read_limits
from conftest import REPOSITORY
from evaluate_likelihood import evaluate_likelihood


@pytest.fixture(scope="module")
def files(thirds, memorised):
    """A model that has memorised the training third of a cohort, and the cohort."""
    return {"model_dir": memorised, **{name: thirds[name] for name in ("train", "val", "test")}}


def attacked(files, tmp_path, **options):
    evaluate_likelihood(**files, records=tmp_path / "r.json", run="x", device="cpu", **options)
    return {record["metric"]: record for record in json.loads((tmp_path / "r.json").read_text())}


def test_memorised_patients_are_detected_and_the_control_is_at_chance(files, tmp_path):
    found, control = attacked(files, tmp_path), attacked(files, tmp_path, control=True)
    assert found["likelihood_auc"]["ci_low"] > control["likelihood_auc"]["ci_high"]
    assert control["likelihood_auc"]["ci_low"] < 0.5 < control["likelihood_auc"]["ci_high"]
    assert found["likelihood_gain"]["value"] > 0.2 > control["likelihood_gain"]["ci_low"]
    assert set(found) == {"likelihood_auc", "likelihood_tpr_1fpr", "likelihood_gain"}


def test_publishing_refuses_what_was_memorised(files, tmp_path):
    limits = read_limits(REPOSITORY / "resources" / "publication_limits.csv")
    limit = [one for one in limits if one.metric == "likelihood_auc"]
    records = [*attacked(files, tmp_path).values()]
    assert next(r for r in records if r["metric"] == "likelihood_auc")["value"] > limit[0].limit
    with pytest.raises(UserError, match="here: likelihood_auc: "):
        check_limits(records, "x", limit, {"likelihood_auc": ""}, "here")


def test_a_score_is_the_log_likelihood_a_token_of_the_visits_one_by_one(files, monkeypatch):
    model = PromptBartWithDemographicPrediction.from_pretrained(files["model_dir"]).eval()
    data = Examples.load(files["test"])
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), model.config.max_position_embeddings)
    sums = {}
    for row in range(len(data)):
        batch = {k: torch.from_numpy(v) for k, v in collate(data, pairs, np.array([row])).items()}
        with torch.inference_mode():
            losses = model(**batch).token_losses.double()
        patient = int((data.visit[: row + 1] == 0).sum()) - 1
        loss, tokens = sums.get(patient, (0.0, 0))
        sums[patient] = loss + float(losses.sum()), tokens + len(losses)
    expected = [-loss / tokens for loss, tokens in sums.values()]
    fast = patient_log_likelihoods(model, data)
    monkeypatch.setattr(
        "cohortloom.model.scoring.fast_products", lambda device: torch.autocast("cpu", enabled=False)
    )
    found = patient_log_likelihoods(model, data)
    assert found == pytest.approx(expected, abs=2e-4)  # padding moves float32 sums in their last digits
    assert found != pytest.approx(expected[::-1], abs=2e-4)
    # Where products are in bf16, by far less than patients differ.
    assert np.abs(fast - found).max() < 0.1 * found.std() and abs(fast.mean() - found.mean()) < 5e-3


def test_as_many_of_each_side(files, tmp_path):
    assert attacked(files, tmp_path, visits=20)["likelihood_auc"]["n"] == 40
