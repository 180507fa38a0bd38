"""What is published of a model: its weights in bf16 and a cohort; and what must hold before it is.

Matrices are stored in bf16, which halves the file. Vectors keep float32: norms, biases and the edges of the
age bands take next to no room, and an edge that moves puts patients into another band. The config says
float32, so that from_pretrained computes in it: most processors are slow in bf16, and logits rounded to bf16
are coarse. Positions that no training patient's record reaches were never trained and are left out; a patient
whose history is longer is read from the latest codes, as ever.
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
from cohortloom.evaluation import privacy
from cohortloom.evaluation.medical_validity import medical_validity
from cohortloom.evaluation.records import HEADLINE, as_records, of_column, record
from cohortloom.generation.synthesize import reserved_positions
from cohortloom.reporting.scorecard import REAL, Record

MEGABYTE = 1_000_000
# git keeps every version of what it holds: a larger model does not belong beside the code.
MAX_MEGABYTES = 10.0
SETTINGS = ("config.json", "generation_config.json", "vocabulary.json")
POSITIONS = "embed_positions.weight"  # how the names of the two tables of positions end
OFFSET = 2  # rows of such a table before that of the first position, by BART's design
ATTACKED_VISITS = 20_000  # at most so many of each side, as evaluate.visits has it for the scorecard
COHORT = "published cohort"  # the run in the records of the published visits


def rounded_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file by name, matrices in bf16, vectors and whole numbers as they are."""
    return {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in load_file(path).items()
    }


def reached_positions(train: pa.Table, model: Path) -> int:
    """Positions that the longest record of the training visits takes, another visit after it included.

    At most those of the model folder.
    """
    size = pc.add(pc.list_value_length(train["diagnoses"]), 1)  # the codes and the end of each visit
    longest = (
        pa.table({"patient": train["patient_id"], "size": size})
        .group_by("patient")
        .aggregate([("size", "sum")])
    )
    room = reserved_positions(read_json(model / "generation_config.json")["max_new_tokens"])
    wanted = int(pc.max(longest["size_sum"]).as_py()) + room
    return min(wanted, read_json(model / "config.json")["max_position_embeddings"])


def without_unreached(weights: dict[str, torch.Tensor], positions: int) -> dict[str, torch.Tensor]:
    """The weights with the first `positions` rows of both tables of positions."""
    return {
        name: tensor[: positions + OFFSET].clone() if name.endswith(POSITIONS) else tensor
        for name, tensor in weights.items()
    }


def check_size(weights: dict[str, torch.Tensor], model: Path) -> float:
    """Megabytes (of 10**6 bytes) that the published folder takes, its cards left out.

    Raises UserError where that is more than MAX_MEGABYTES.
    """
    size = sum(tensor.nbytes for tensor in weights.values())
    size = (size + sum((model / name).stat().st_size for name in SETTINGS)) / MEGABYTE
    if size > MAX_MEGABYTES:
        raise UserError(
            f"{model}: takes {size:.1f} MB in bf16, more than the {MAX_MEGABYTES:g} MB that are published "
            "at most; train a smaller train.preset"
        )
    return size


def write_model(
    weights: dict[str, torch.Tensor],
    model: Path,
    folder: Path,
    sampling: dict[str, Any],
) -> None:
    """Write a save_pretrained folder with the settings of `model`, which generates by `sampling`.

    `sampling` holds generation options that differ from the model's own. The weights say how many positions
    the model has.
    """
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name in SETTINGS:
        shutil.copyfile(model / name, folder / name)
    positions = next(len(tensor) - OFFSET for name, tensor in weights.items() if name.endswith(POSITIONS))
    settings = read_json(model / "config.json") | {"dtype": "float32", "max_position_embeddings": positions}
    decoding = read_json(model / "generation_config.json") | sampling
    for name, content in (("config.json", settings), ("generation_config.json", decoding)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copymode(
        folder / "config.json", folder / "model.safetensors"
    )  # safetensors writes for its owner alone


def losses(models: list[Path], visits: Path) -> list[float]:
    """Loss a token (nats) of each model folder on the visits of a dataset file, nothing revealed."""
    from cohortloom.data.examples import Examples
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import mean_losses

    data = Examples.load(visits)
    loaded = (PromptBartWithDemographicPrediction.from_pretrained(folder) for folder in models)
    return [mean_losses(model, data)["lm"] for model in loaded]


def cohort_records(cohort: pa.Table, train: pa.Table, test: pa.Table, rules: Path, seed: int) -> list[Record]:
    """Records of the published visits and, as run `real`, of the held-out test visits by the same code.

    Violations of the edits and visits that equal a training visit; of the published visits also what the
    attacks by distance and by attribute inference find, with all of them known to the attacker. `seed` draws
    the attacked patients and the groups of the intervals.
    """
    edits, found = load_rules(rules), []
    size = min(ATTACKED_VISITS, train.num_rows, test.num_rows)
    attacked = [sample_patients(part, size, seed) for part in (train, test)]
    coded, names = encode([train, cohort, test, *attacked])
    n_codes, (training, release, held_out, *sides) = len(names), coded
    attacks = [
        # The fraction matters for the gain alone, which is not asked for.
        *(f for f in privacy.membership(*sides, release, n_codes, seed, 0.5) if f.metric == "membership_auc"),
        *privacy.attribute_inference(training, *sides, release, n_codes, seed),
    ]
    for run, table, visits, more in ((COHORT, cohort, release, attacks), (REAL, test, held_out, [])):
        figures = [
            *medical_validity(table, edits, seed),
            *privacy.copy_share(training, visits, n_codes, seed),
            *more,
        ]
        found += as_records(of_column(HEADLINE, figures), run, 0, "synthesize")
        mean = float(np.mean(visits.lengths))
        found.append(record(run, 0, "synthesize", "mean_codes_per_visit", value=mean, column=HEADLINE))
        found[-1]["n"] = visits.n_visits
    return found
