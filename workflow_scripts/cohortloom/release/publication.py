"""Publication of a model: its weights in bf16, a cohort, and the checks before.

Matrices are stored in bf16, which halves the file. Vectors (norms, biases, edges of the age bands) stay in
float32: they are small, and rounding an edge would move patients into another band. The config says float32,
so that from_pretrained computes in float32: most processors are slow in bf16, and bf16 logits are coarse.
Positions that no training patient's record reaches are untrained and left out; of a longer history the model
reads the latest visits.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load_file, save_file

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json
from cohortloom.data.coded import encode, sample_patients
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import used_columns
from cohortloom.evaluation import privacy
from cohortloom.evaluation.medical_validity import medical_validity
from cohortloom.evaluation.records import HEADLINE, as_records, of_column, record
from cohortloom.generation.synthesize import reserved_positions
from cohortloom.reporting.scorecard import REAL, Record

MEGABYTE = 1_000_000
MAX_MEGABYTES = 10.0  # git keeps every version of a file, so the model must be small
SETTINGS = ("config.json", "generation_config.json", "vocabulary.json")
POSITIONS = "embed_positions.weight"  # suffix of the names of the two tables of position embeddings
POSITION_OFFSET = 2  # rows of such a table before the first position, by BART's design
ATTACKED_VISITS = 20_000  # of each side at most, the default of evaluate.visits
COHORT = "published cohort"  # name of the run in the records of the published visits


def round_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file by name: matrices rounded to bf16, vectors and integers unchanged."""
    return {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in load_file(path).items()
    }


def reached_positions(train: pa.Table, model_dir: Path) -> int:
    """Number of positions of the longest record of the training visits with one more visit.

    At most those of the model.
    """
    size: Any = 1  # the end of each visit, and its codes
    for column in used_columns(train):
        size = pc.add(pc.list_value_length(train[column]), size)
    longest = (
        pa.table({"patient": train["patient_id"], "size": size})
        .group_by("patient")
        .aggregate([("size", "sum")])
    )
    reserved = reserved_positions(read_json(model_dir / "generation_config.json")["max_new_tokens"])
    reached = int(pc.max(longest["size_sum"]).as_py()) + reserved
    return min(reached, read_json(model_dir / "config.json")["max_position_embeddings"])


def keep_positions(weights: dict[str, torch.Tensor], positions: int) -> dict[str, torch.Tensor]:
    """The weights with only the first `positions` positions in both tables of position embeddings."""
    return {
        name: tensor[: positions + POSITION_OFFSET].clone() if name.endswith(POSITIONS) else tensor
        for name, tensor in weights.items()
    }


def check_size(weights: dict[str, torch.Tensor], model_dir: Path) -> float:
    """Size in megabytes (10**6 bytes) of the published model without its card.

    Raises UserError if it is above MAX_MEGABYTES.
    """
    size = sum(tensor.nbytes for tensor in weights.values())
    size = (size + sum((model_dir / name).stat().st_size for name in SETTINGS)) / MEGABYTE
    if size > MAX_MEGABYTES:
        raise UserError(
            f"{model_dir}: takes {size:.1f} MB in bf16, more than the {MAX_MEGABYTES:g} MB "
            "that are published at most; train a smaller train.preset"
        )
    return size


def write_model(
    weights: dict[str, torch.Tensor],
    model_dir: Path,
    folder: Path,
    sampling: dict[str, Any],
) -> None:
    """Write a save_pretrained folder with these weights and the settings of the model in `model_dir`.

    sampling: generation options that replace the model's. The number of positions is that of the weights.
    """
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name in SETTINGS:
        shutil.copyfile(model_dir / name, folder / name)
    tables = [tensor for name, tensor in weights.items() if name.endswith(POSITIONS)]
    positions = len(tables[0]) - POSITION_OFFSET
    settings = {"dtype": "float32", "max_position_embeddings": positions}
    settings = read_json(model_dir / "config.json") | settings
    generation = read_json(model_dir / "generation_config.json") | sampling
    for name, content in (("config.json", settings), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    # safetensors makes a file that only its owner can read.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def validation_losses(model_dirs: list[Path], visits: Path) -> list[float]:
    """Loss in nats a token of each model on the visits of a dataset file, with no code revealed."""
    from cohortloom.data.examples import Examples
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import mean_losses

    data = Examples.load(visits)
    models = (PromptBartWithDemographicPrediction.from_pretrained(folder) for folder in model_dirs)
    return [mean_losses(model, data)["lm"] for model in models]


def cohort_records(
    cohort: pa.Table, train: pa.Table, test: pa.Table, rules: list[Path], seed: int
) -> list[Record]:
    """Records of the published visits and, as run `real`, of the held-out test visits.

    Violations of the edits and copies of training visits; of the published visits also the attacks by
    distance and by attribute inference, in which the attacker has all of them. `seed` draws the attacked
    patients and the groups of the intervals.
    """
    edits, records = load_rules(rules), []
    size = min(ATTACKED_VISITS, train.num_rows, test.num_rows)
    attacked = [sample_patients(part, size, seed) for part in (train, test)]
    coded, names = encode([train, cohort, test, *attacked])
    n_codes, (training, release, held_out, *sides) = len(names), coded
    attacks = [
        # The fraction 0.5 affects only the gain, which is not used here.
        *(f for f in privacy.membership(*sides, release, n_codes, seed, 0.5) if f.metric == "membership_auc"),
        *privacy.attribute_inference(training, *sides, release, n_codes, seed),
    ]
    for run, table, visits, of_attacks in ((COHORT, cohort, release, attacks), (REAL, test, held_out, [])):
        figures = [
            *medical_validity(table, edits, seed),
            *privacy.copy_share(training, visits, n_codes, seed),
            *of_attacks,
        ]
        records += as_records(of_column(HEADLINE, figures), run, 0, "synthesize")
        mean, n = float(np.mean(visits.lengths)), visits.n_visits
        records.append(record(run, 0, "synthesize", "mean_codes_per_visit", value=mean, n=n, column=HEADLINE))
    return records
