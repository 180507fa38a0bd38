"""Records of repeated codes, invalid tokens and truncated visits in the raw ids, and of a control."""

from pathlib import Path
from typing import Literal

from cohortloom.base.files import read_json, write_json
from cohortloom.base.seeds import generator
from cohortloom.base.step import main, quiet_libraries
from cohortloom.evaluation.records import HEADLINE, log_record, record

PER_CODE = {"duplicate_rate": "duplicates", "invalid_token_rate": "invalid_tokens"}
PER_VISIT = {"cut_off_rate": "cut_off"}
CONTROL_VISITS = 500  # generated with repeats allowed


def evaluate_duplicates(
    *,
    model_dir: Path,
    test: Path,
    counts: list[Path],
    records: Path,
    run: str,
    seed: int = 0,
    control_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Rates of faults from the counts of generation, and of repeated codes when repeats are allowed.

    The control generates first visits for CONTROL_VISITS random test patients without the ban on repeats
    (no_repeat_ngram_size); its visits are not saved. `control_seed` draws the patients and their codes.
    """
    quiet_libraries()
    from cohortloom.data.examples import Examples
    from cohortloom.data.vocabulary import Vocabulary
    from cohortloom.generation.synthesize import synthesize
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.runtime.devices import pick_device

    rows = []
    for path in sorted(counts):
        total, mode = read_json(path), path.stem
        for metric, key in {**PER_CODE, **PER_VISIT}.items():
            below = total["codes"] + total["invalid_tokens"] if metric in PER_CODE else total["visits"]
            rows.append(_rate(run, seed, mode, metric, total[key], below, total["visits"]))
    device, _ = pick_device(device)
    model = PromptBartWithDemographicPrediction.from_pretrained(model_dir).eval().to(device)
    vocabulary, data = Vocabulary.load(model_dir / "vocabulary.json"), Examples.load(test)
    first = (data.visit == 0).nonzero()[0]
    first = generator("duplicates: patients", control_seed).permutation(first)[:CONTROL_VISITS]
    batches = synthesize(
        model,
        vocabulary,
        data.age[first],
        data.sex[first],
        ("duplicates", control_seed),
        max_visits=1,
        no_repeat_ngram_size=0,
    )
    control = [batch.counts for batch in batches]
    repeated, codes = (sum(part[key] for part in control) for key in ("duplicates", "codes"))
    rows.append(_rate(run, seed, "synthesize", "duplicate_rate_control", repeated, codes, len(first)))
    for row in rows:
        log_record(row)
    write_json(records, rows)


def _rate(run: str, seed: int, mode: str, metric: str, above: int, below: int, n: int) -> dict:
    """Record of a rate with the exact (Clopper-Pearson) interval of a count."""
    from scipy.stats import binomtest

    better = None if metric == "duplicate_rate_control" else False
    if not below:
        reason = "no visit was generated" if metric in PER_VISIT else "no code was generated"
        return record(run, seed, mode, metric, n=n, higher_is_better=better, reason=reason, column=HEADLINE)
    value = above / below
    low, high = binomtest(above, below).proportion_ci(method="exact")
    return record(run, seed, mode, metric, "", value, low, high, n, None, better, column=HEADLINE)


if __name__ == "__main__":
    main(evaluate_duplicates, globals().get("snakemake"), untracked="generate")
