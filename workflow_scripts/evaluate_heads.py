"""Records of the age and sex heads and of the likelihood on the test visits."""

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
    model_dir: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    group_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score the age and sex heads on test visits: teacher-forced, no code revealed, no dropout.

    Losses are means over the visits with a code of the vocabulary. A head of weight 0 is not trained, so its
    figures have no value. `seed` is the run's; it is only recorded. `group_seed` draws the groups of the
    intervals.
    """
    quiet_libraries()
    import torch
    from torch.nn import functional as F

    from cohortloom.data.examples import Examples
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import score_teacher_forced, unrevealed_pairs
    from cohortloom.runtime.devices import pick_device

    device, _ = pick_device(device)
    model = PromptBartWithDemographicPrediction.from_pretrained(model_dir).to(device)
    data = Examples.load(test)
    names = ("years2", "years", "sex", "right", "lm", "tokens", "visit")
    values = {name: np.zeros(len(data)) for name in names}
    scored = np.flatnonzero(np.diff(data.offsets) > 0)
    for rows, output in score_teacher_forced(model, data, unrevealed_pairs(model, data), scored):
        output = {name: output[name].cpu() for name in ("age", "sex_logits", "token_losses", "visit")}
        error = output["age"].double().numpy() - data.age[rows]
        values["years2"][rows], values["years"][rows] = error**2, np.abs(error)
        sex = torch.from_numpy(data.sex[rows])
        values["sex"][rows] = F.cross_entropy(output["sex_logits"], sex, reduction="none").double().numpy()
        values["right"][rows] = (output["sex_logits"].argmax(1) == sex).numpy()
        visit = output["visit"].numpy()
        values["lm"][rows] = np.bincount(visit, output["token_losses"].numpy(), len(rows))
        values["tokens"][rows], values["visit"][rows] = np.bincount(visit, minlength=len(rows)), 1.0
    patient = patient_of_visit(data.visit)
    group = patient_groups(int(patient[-1]) + 1, group_seed)[patient]
    sums = {name: np.bincount(group, of_visit, group.max() + 1) for name, of_visit in values.items()}
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
    untrained = [head for head in ("age", "sex") if not getattr(model.config, f"{head}_weight")]
    no_value = {"estimate": Estimate(np.nan, np.nan, np.nan, n), "reason": NOT_TRAINED}
    figures = [
        figure._replace(**no_value) if figure.metric.split("_head_")[0] in untrained else figure
        for figure in figures
    ]
    save_figures(records, figures, run, seed, MODE)


if __name__ == "__main__":
    main(evaluate_heads, globals().get("snakemake"), untracked="generate")
