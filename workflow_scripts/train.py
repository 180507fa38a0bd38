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
from cohortloom.base.files import check_own_folder, replace_own_folder, sha256
from cohortloom.base.imports import imported_files
from cohortloom.base.step import log, main, quiet_libraries
from cohortloom.data.validity import load_rules
from cohortloom.data.vocabulary import Vocabulary

MAX_EPOCHS = 50  # more passes over the training visits would only memorise them
MODEL_FILES = (
    *("model.safetensors", "config.json", "generation_config.json", "vocabulary.json", "history.csv"),
    "README.md",
)
PLANTED = """**Not for release.** {canaries} invented patients (canaries) were planted into the training, up
to {canary_repeats} times each, to measure what the model remembers. What it writes may hold their codes.

"""


def train(
    *,
    train: Path,
    val: Path,
    vocabulary: Path,
    model: Path,
    checkpoints: Path | None = None,
    rules: Path | None = None,
    preset: Literal["tiny", "mini", "small", "base"] = "mini",
    seed: int = 0,
    age_weight: float = 0.3,
    sex_weight: float = 0.2,
    age_loss_unit: Literal["standardized", "years"] = "standardized",
    heads: Literal["states", "codes", "expected"] = "states",
    forbidden_weight: float = 0.0,
    tokens: int = 350_000,
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

    `tokens` is the budget in target tokens, cut to MAX_EPOCHS passes over the training visits; a step takes
    about `batch_tokens` of them. `learning_rate` scales the rates of training/optimizers.py. Checkpoints go
    to the folder `checkpoints` (none without it), at SIGTERM too, and the same call goes on from the newest.
    `devices` GPUs (None: one; on a CPU so many processes, for tests) train on each of `nodes` nodes; on a CPU
    one process trains with `threads` (None: as many as torch has). `forbidden_weight` weighs the probability
    on codes that the full edit of `rules` forbids. `canaries` invented patients are planted 1, 4, 16 ...
    times, up to `canary_repeats`: the model is then for measuring what it remembers and not for release.
    Raises UserError for a missing GPU, a loss that is not finite, an unwritable folder, one that another job
    trains into and a `model` folder with files of others; Interrupted after a signal.
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
    from cohortloom.training.canaries import invent, repeats_of, with_canaries
    from cohortloom.training.checkpoints import Checkpoints
    from cohortloom.training.trainer import Plan, Trainer

    check_own_folder(model, MODEL_FILES)
    edits = [rules] if forbidden_weight or canaries else []
    if edits and not rules:
        raise UserError("train: forbidden_weight and canaries need a validity table; give rules")
    repeats = repeats_of(canaries, canary_repeats) if canaries else None
    pick_device(device, devices or 1)
    if (devices or 1) * nodes > 1 and not is_worker():
        launch("train", keywords, devices or 1, nodes, threads or 1)
        return
    keep_freed_memory()
    if threads and not is_worker():
        torch.set_num_threads(threads)

    words, data = Vocabulary.load(vocabulary), Examples.load(train)
    if canaries:
        planted, _ = invent(data, words, load_rules(rules), seed, canaries)
        data = with_canaries(data, planted, repeats)
        log.info(
            "%d invented patients are planted, %d with repeats: not for release", canaries, repeats.sum()
        )
    plan = Plan(
        seed=seed,
        tokens=min(tokens, MAX_EPOCHS * (len(data.ids) + len(data))),
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
    forbidden = forbidden_table(words, load_rules(rules)) if forbidden_weight else None
    fresh = make_model(words, data, seed=seed, **shape, **losses)
    log.info(
        "%s: %.1f million parameters, %d training visits, %d target tokens an epoch",
        preset,
        sum(p.numel() for p in fresh.parameters()) / 1e6,
        len(data),
        len(data.ids) + len(data),
    )
    parameters = vars(plan) | shape | losses
    if canaries:
        parameters |= dict(canaries=canaries, canary_repeats=canary_repeats)
    shaping = [train, val, vocabulary, *edits]
    kept = Checkpoints(checkpoints, digest(shaping, parameters))
    with Stop() as stop, kept.claimed() if is_first() else nullcontext():
        trainer = Trainer(
            fresh,
            words,
            data,
            Examples.load(val),
            plan,
            kept,
            device,
            checkpoint_every_minutes,
            stop,
            forbidden,
        )
        trained = trainer.fit()
        if is_first():
            parameters |= machine(trainer.accelerator)
            write_model(trained, model, vocabulary, trainer.state.history, parameters)


def digest(inputs: list[Path], parameters: dict) -> str:
    """Hex digest of all that shapes the weights: the dataset, the parameters and this code."""
    parts = [sha256(path) for path in (*inputs, *imported_files("train"))] + [
        json.dumps(parameters, sort_keys=True)
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_model(trained, folder: Path, vocabulary: Path, history: list[dict], parameters: dict) -> None:
    """Write the model folder as a whole, in place of one that an earlier training wrote."""
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
    """What else the weights depend on: dropout is drawn by each process, and sums depend on threads."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    threads = torch.get_num_threads()
    return dict(
        device=accelerator.device.type, processes=accelerator.num_processes, threads=threads, **versions
    )


def model_card(trained, history: list[dict], parameters: dict) -> str:
    """A model card in Markdown: what it is, how it was trained, what it may be used for."""
    saved = [row for row in history if row["split"] == "saved"][-1]
    rows = "\n".join(f"| {key} | {value} |" for key, value in parameters.items())
    warning = PLANTED.format(**parameters) if "canaries" in parameters else ""
    return f"""# PromptBartWithDemographicPrediction

A BART of {trained.num_parameters():,} parameters that writes the ICD-9-CM codes of hospital visits, prompted
with age and sex. Trained by Cohortloom; ids are in vocabulary.json, the loss curve in history.csv.

{warning}Validation losses of these weights, nothing revealed: lm {saved["lm_loss"]:.4f} nats a token, age
{saved["age_loss_years2"]:.3f} years², sex {saved["sex_loss"]:.5f}. They are the checkpoint at token
{saved["tokens"]}, calibrated. Calibration set the share of the linear autoencoder in the distribution over
codes ({trained.config.linear_share:.2f}), how often visits end, and the last layer of the age head, on these
validation visits. It set how frequent codes are, where later visits end and how many codes recur in
what the model generates by counts of the training visits, with which fidelity is compared too.

`group_bias` in the weights holds smoothed counts of the training visits by age and sex, and the biases on
length and recurrence hold others: of a small group, whether a code occurred can be read from them.

| parameter | value |
|---|---|
{rows}

A model can repeat what it was trained on. Weights trained on data under a use agreement, MIMIC-III among
them, fall under that agreement and may not be published. The model is for making synthetic records and
not for decisions about patients.
"""


if __name__ == "__main__":
    main(train, globals().get("snakemake"), untracked="train")
