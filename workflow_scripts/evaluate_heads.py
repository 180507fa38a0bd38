"""Score the age and sex heads, and the likelihood, on the test visits."""

from pathlib import Path
from typing import Literal

import numpy as np

from cohortloom.base.files import write_json
from cohortloom.base.step import log, main, quiet_libraries
from cohortloom.data.coded import patient_groups
from cohortloom.evaluation.intervals import ratio
from cohortloom.evaluation.records import record

MODE = "teacher_forced"


def evaluate_heads(
    *,
    model: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    group_seed: int = 0,
    batch_tokens: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score the age and sex heads on test visits: teacher-forced, nothing revealed, dropout off.

    Losses are means over the visits that hold a code of the vocabulary. `seed` is the run's own and only
    written down; `group_seed` draws the groups of the intervals.
    """
    quiet_libraries()
    import torch
    from torch.nn import functional as F

    from cohortloom.data.examples import Examples, batches, collate, plain_pairs
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.runtime.devices import READ_TOKENS, fast_products, pick_device

    name, _ = pick_device(device)
    bart = PromptBartWithDemographicPrediction.from_pretrained(model).eval().to(name)
    data = Examples.load(test)
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), bart.config.max_position_embeddings - 2)
    found = {key: np.zeros(len(data)) for key in ("years2", "years", "sex", "right", "lm", "tokens", "visit")}
    with torch.inference_mode(), fast_products(bart.device):
        for rows in batches(pairs, batch_tokens or READ_TOKENS[name], None, np.diff(data.offsets) > 0):
            batch = {k: torch.from_numpy(v).to(name) for k, v in collate(data, pairs, rows).items()}
            output = bart(**batch)
            error = (output.age - batch["x_num"][:, 0]).double().cpu().numpy()
            cross_entropy = F.cross_entropy(output.sex_logits, batch["x_cat"][:, 0], reduction="none")
            scored = (batch["labels"] != -100).cpu().numpy()
            row_of_token, tokens = np.nonzero(scored)[0], scored.sum(1)
            found["years2"][rows], found["years"][rows] = error**2, np.abs(error)
            found["sex"][rows] = cross_entropy.double().cpu().numpy()
            found["right"][rows] = (output.sex_logits.argmax(1) == batch["x_cat"][:, 0]).cpu().numpy()
            found["lm"][rows] = np.bincount(row_of_token, output.token_losses.cpu().numpy(), len(rows))
            found["tokens"][rows], found["visit"][rows] = tokens, 1.0
    patient = np.cumsum(data.visit == 0) - 1
    group = patient_groups(int(patient[-1]) + 1, group_seed)[patient]
    sums = {key: np.bincount(group, values, group.max() + 1) for key, values in found.items()}
    n = int(sums["visit"].sum())
    rates = [
        ("age_head_loss", "years2", "visit", False),
        ("age_head_error_years", "years", "visit", False),
        ("sex_head_loss", "sex", "visit", False),
        ("sex_head_accuracy", "right", "visit", True),
        ("lm_loss", "lm", "tokens", False),
    ]
    made = []
    for metric, above, below, better in rates:
        part = ratio(sums[above], sums[below], n)
        made.append(
            record(run, seed, MODE, metric, "", part.value, part.low, part.high, part.n, None, better)
        )
        log.info("%s: %s %.5g (%.5g to %.5g), n %d", run, metric, part.value, part.low, part.high, n)
    write_json(records, made)


if __name__ == "__main__":
    main(evaluate_heads, globals().get("snakemake"), untracked="generate")
