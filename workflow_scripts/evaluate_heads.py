"""Score the age and sex heads, and the likelihood, on the test visits."""

from pathlib import Path
from typing import Literal

import numpy as np

from cohortloom.base.ragged import patient_of_visit
from cohortloom.base.step import main, quiet_libraries
from cohortloom.data.coded import patient_groups
from cohortloom.evaluation.intervals import Estimate, ratio
from cohortloom.evaluation.records import NOT_TRAINED, Figure, save_figures

MODE = "teacher_forced"
NO_KNOWN_CODE = "no held-out visit holds a code of the vocabulary"


def evaluate_heads(
    *,
    model: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    group_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score the age and sex heads on test visits: teacher-forced, nothing revealed, dropout off.

    Losses are means over the visits that hold a code of the vocabulary. A head of weight 0 was not trained:
    its figures have no value, for they would say nothing. `seed` is the run's own and only written down;
    `group_seed` draws the groups of the intervals.
    """
    quiet_libraries()
    import torch
    from torch.nn import functional as F

    from cohortloom.data.examples import Examples
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import score_teacher_forced, unrevealed_pairs
    from cohortloom.runtime.devices import pick_device

    name, _ = pick_device(device)
    bart = PromptBartWithDemographicPrediction.from_pretrained(model).to(name)
    data = Examples.load(test)
    found = {key: np.zeros(len(data)) for key in ("years2", "years", "sex", "right", "lm", "tokens", "visit")}
    scored = np.flatnonzero(np.diff(data.offsets) > 0)
    for rows, output in score_teacher_forced(bart, data, unrevealed_pairs(bart, data), scored):
        output = {name: output[name].cpu() for name in ("age", "sex_logits", "token_losses", "visit")}
        error = output["age"].double().numpy() - data.age[rows]
        found["years2"][rows], found["years"][rows] = error**2, np.abs(error)
        sex = torch.from_numpy(data.sex[rows])
        found["sex"][rows] = F.cross_entropy(output["sex_logits"], sex, reduction="none").double().numpy()
        found["right"][rows] = (output["sex_logits"].argmax(1) == sex).numpy()
        visit = output["visit"].numpy()
        found["lm"][rows] = np.bincount(visit, output["token_losses"].numpy(), len(rows))
        found["tokens"][rows], found["visit"][rows] = np.bincount(visit, minlength=len(rows)), 1.0
    patient = patient_of_visit(data.visit)
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
    figures = [
        Figure(metric, "", ratio(sums[above], sums[below], n), None, better, NO_KNOWN_CODE)
        for metric, above, below, better in rates
    ]
    untrained = [head for head in ("age", "sex") if not getattr(bart.config, f"{head}_weight")]
    nothing = {"estimate": Estimate(np.nan, np.nan, np.nan, n), "reason": NOT_TRAINED}
    figures = [
        figure._replace(**nothing) if figure.metric.split("_head_")[0] in untrained else figure
        for figure in figures
    ]
    save_figures(records, figures, run, seed, MODE)


if __name__ == "__main__":
    main(evaluate_heads, globals().get("snakemake"), untracked="generate")
