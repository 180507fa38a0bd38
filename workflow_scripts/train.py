"""Train PromptBartWithDemographicPrediction on the training visits."""

import csv
import hashlib
import importlib.metadata
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from cohortloom.base.errors import UserError
from cohortloom.base.files import check_own_folder, replace_own_folder, sha256, tables_in
from cohortloom.base.imports import imported_files
from cohortloom.base.step import log, main, quiet_libraries
from cohortloom.data.validity import load_rules
from cohortloom.data.vocabulary import Vocabulary

MAX_EPOCHS = 50  # with more passes over the training visits the model only memorises them
MODEL_FILES = (
    *("model.safetensors", "config.json", "generation_config.json", "vocabulary.json", "history.csv"),
    "README.md",
)
CANARY_WARNING = """**Not for release.** {canaries} invented patients (canaries) were planted into the
training, up to {canary_repeats} times each, to measure what the model memorises. Generated visits may hold
their codes.

"""


def train(
    *,
    train: Path,
    val: Path,
    vocabulary: Path,
    model_dir: Path,
    checkpoints: Path | None = None,
    rules: list[Path] | None = None,
    preset: Literal["tiny", "mini", "small", "base"] = "mini",
    seed: int = 0,
    age_weight: float = 0.3,
    sex_weight: float = 0.2,
    age_loss_unit: Literal["standardized", "years"] = "standardized",
    heads: Literal["states", "codes", "expected"] = "states",
    forbidden_weight: float = 0.0,
    tokens: int = 500_000,
    batch_tokens: int = 1750,
    learning_rate: float = 1.0,
    dropout: float = 0.3,
    evaluations: int = 2,
    canaries: int = 0,
    canary_repeats: int = 16,
    precision: Literal["auto", "float32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    devices: int | None = None,
    nodes: int = 1,
    threads: int | None = None,
    checkpoint_every_minutes: float = 10.0,
) -> None:
    """Train on train.parquet; write a save_pretrained folder, vocabulary.json, history.csv, a model card.

    `tokens` is the budget in target tokens, at most MAX_EPOCHS passes over the training visits; a step takes
    about `batch_tokens`. `learning_rate` scales the rates of training/optimizers.py. `forbidden_weight` is
    the weight of the probability of codes that the full edit of `rules` forbids.

    `canaries` invented patients are planted 1, 4, 16 ... times, up to `canary_repeats`. Such a model is for
    measuring what it memorises, not for release.

    Checkpoints go to the folder `checkpoints` every `checkpoint_every_minutes` and at SIGTERM; the same call
    resumes from the newest. Without the folder there are none. Each of `nodes` nodes trains on `devices` GPUs
    (None: one). On a CPU one process trains with `threads` threads (None: torch's default); `devices`
    processes are for tests.

    Raises UserError for a missing GPU, a loss that is not finite, a folder that cannot be written or that
    another job trains into, and a `model_dir` with foreign files; Interrupted after a signal.
    """
    keywords = dict(locals())
    quiet_libraries()
    import torch

    from cohortloom.data.examples import Examples
    from cohortloom.data.forbidden import forbidden_table
    from cohortloom.model.initial import make_model
    from cohortloom.runtime.devices import keep_freed_memory, pick_device
    from cohortloom.runtime.interrupt import Stop
    from cohortloom.runtime.processes import is_first, is_worker, launch
    from cohortloom.training.canaries import assign_repeats, invent_patients, with_canaries
    from cohortloom.training.checkpoints import Checkpoints
    from cohortloom.training.trainer import Plan, Trainer

    check_own_folder(model_dir, MODEL_FILES)
    if (forbidden_weight or canaries) and not rules:
        raise UserError("train: forbidden_weight and canaries need validity tables; give rules")
    edits = tables_in(rules) if forbidden_weight or canaries else []
    repeats = assign_repeats(canaries, canary_repeats) if canaries else None
    pick_device(device, devices or 1)
    if (devices or 1) * nodes > 1 and not is_worker():
        launch("train", keywords, devices or 1, nodes, threads or 1)
        return
    keep_freed_memory()
    if threads and not is_worker():
        torch.set_num_threads(threads)

    vocab, data = Vocabulary.load(vocabulary), Examples.load(train)
    if canaries:
        planted, _ = invent_patients(data, vocab, load_rules(rules), seed, canaries)
        data = with_canaries(data, planted, repeats)
        log.info(
            "%d invented patients are planted, %d with repeats: not for release", canaries, repeats.sum()
        )
    plan = Plan(
        seed=seed,
        tokens=min(tokens, MAX_EPOCHS * data.n_targets),
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        evaluations=evaluations,
        precision=precision,
    )
    shape = dict(dropout=dropout, preset=preset)
    losses = dict(
        age_weight=age_weight,
        sex_weight=sex_weight,
        age_loss_unit=age_loss_unit,
        heads=heads,
        forbidden_weight=forbidden_weight,
    )
    forbidden = forbidden_table(vocab, load_rules(rules)) if forbidden_weight else None
    fresh = make_model(vocab, data, seed=seed, **shape, **losses)
    log.info(
        "%s: %.1f million parameters, %d training visits, %d target tokens an epoch",
        preset,
        sum(p.numel() for p in fresh.parameters()) / 1e6,
        len(data),
        data.n_targets,
    )
    parameters = vars(plan) | shape | losses
    if canaries:
        parameters |= dict(canaries=canaries, canary_repeats=canary_repeats)
    inputs = [train, val, vocabulary, *edits]
    store = Checkpoints(checkpoints, digest(inputs, parameters))
    with Stop() as stop, store.claimed() if is_first() else nullcontext():
        trainer = Trainer(
            fresh,
            vocab,
            data,
            Examples.load(val),
            plan,
            store,
            device,
            checkpoint_every_minutes,
            stop,
            forbidden,
        )
        trained = trainer.fit()
        if is_first():
            parameters |= machine(trainer.accelerator)
            write_model(trained, model_dir, vocabulary, trainer.state.history, parameters)


def digest(inputs: list[Path], parameters: dict) -> str:
    """Hex digest of everything that shapes the weights: dataset, parameters, code."""
    parts = [sha256(path) for path in (*inputs, *imported_files("train"))] + [
        json.dumps(parameters, sort_keys=True)
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_model(trained, folder: Path, vocabulary: Path, history: list[dict], parameters: dict) -> None:
    """Write the model folder as a whole; it replaces one that an earlier training wrote."""
    with replace_own_folder(folder, MODEL_FILES) as temporary:
        trained.save_pretrained(temporary)
        shutil.copyfile(vocabulary, temporary / "vocabulary.json")
        with open(temporary / "history.csv", "w", newline="", encoding="utf-8") as file:
            columns = list(dict.fromkeys(key for row in history for key in row))
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(history)
        (temporary / "README.md").write_text(model_card(trained, history, parameters), encoding="utf-8")


def machine(accelerator) -> dict[str, str | int]:
    """What the weights depend on beside the parameters: processes draw dropout, threads change sums."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    threads = torch.get_num_threads()
    return dict(
        device=accelerator.device.type, processes=accelerator.num_processes, threads=threads, **versions
    )


def model_card(trained, history: list[dict], parameters: dict) -> str:
    """The model card in Markdown: what the model is, how it was trained, what it may be used for."""
    saved = [row for row in history if row["split"] == "saved"][-1]
    rows = "\n".join(f"| {key} | {value} |" for key, value in parameters.items())
    warning = CANARY_WARNING.format(**parameters) if "canaries" in parameters else ""
    return f"""# PromptBartWithDemographicPrediction

A BART of {trained.num_parameters():,} parameters that generates the codes of hospital visits,
prompted with age and sex. Trained by Cohortloom; ids are in vocabulary.json, the loss curve in history.csv.

{warning}Validation losses of these weights, with no code revealed: lm {saved["lm_loss"]:.4f} nats a token,
age {saved["age_loss_years2"]:.3f} years², sex {saved["sex_loss"]:.5f}. The weights are those at token
{saved["tokens"]}, calibrated. The share of the linear autoencoder in the distribution over codes
({trained.config.linear_share:.2f}), the bias on ending a column and the last layer of the age head are fitted
on the same validation visits. Code frequencies, the numbers of codes and the carry-forward rates of
generated visits are fitted to counts of the training visits. Fidelity is measured against the same counts.

`group_bias` in the weights holds smoothed counts of the training visits by age and sex; the biases on length
and recurrence hold other counts. They reveal whether a code occurred in a small group.

| parameter | value |
|---|---|
{rows}

A model can repeat patients it was trained on. Weights trained on data under a use agreement, such as
MIMIC-III, fall under that agreement and may not be published. The model is for generating synthetic records,
not for decisions about patients.
"""


if __name__ == "__main__":
    main(train, globals().get("snakemake"), untracked="train")
