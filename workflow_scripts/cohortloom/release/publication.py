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
from cohortloom.data.coded import encode
from cohortloom.data.validity import load_rules
from cohortloom.evaluation import privacy
from cohortloom.evaluation.medical_validity import medical_validity
from cohortloom.evaluation.records import as_records, record
from cohortloom.generation.synthesize import visit_room
from cohortloom.reporting.scorecard import REAL, Record

MEGABYTE = 1_000_000
SETTINGS = ("config.json", "generation_config.json", "vocabulary.json")
POSITIONS = "embed_positions.weight"  # how the names of the two tables of positions end
OFFSET = 2  # rows of such a table before that of the first position, by BART's design
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
    room = visit_room(read_json(model / "generation_config.json")["max_new_tokens"])
    wanted = int(pc.max(longest["size_sum"]).as_py()) + room
    return min(wanted, read_json(model / "config.json")["max_position_embeddings"])


def without_unreached(weights: dict[str, torch.Tensor], positions: int) -> dict[str, torch.Tensor]:
    """The weights with the first `positions` rows of both tables of positions."""
    return {
        name: tensor[: positions + OFFSET].clone() if name.endswith(POSITIONS) else tensor
        for name, tensor in weights.items()
    }


def check_size(weights: dict[str, torch.Tensor], model: Path, max_megabytes: float) -> float:
    """Megabytes (of 10**6 bytes) that the published folder takes, its cards left out.

    Raises UserError where that is more than `max_megabytes`.
    """
    size = sum(tensor.nbytes for tensor in weights.values())
    size = (size + sum((model / name).stat().st_size for name in SETTINGS)) / MEGABYTE
    if size > max_megabytes:
        raise UserError(
            f"{model}: takes {size:.1f} MB in bf16, more than publish.max_megabytes: {max_megabytes:g}; "
            "train a smaller train.preset or raise the limit"
        )
    return size


def check_copies(found: Record | None, held_out: Record | None, where: str) -> None:
    """Raise UserError where visits repeat training visits more often than held-out real ones do.

    Both are records of copy_share; the limit is the upper end of held-out's 95% interval. A share that was
    not measured is refused too: nothing then speaks for publishing.
    """
    value, limit = (found or {}).get("value"), (held_out or {}).get("ci_high")
    if value is None or limit is None:
        raise UserError(
            f"{where}: copy_share: not measured, so copies of training visits cannot be excluded; "
            "score more visits of 5 codes or more"
        )
    if value > limit:
        raise UserError(
            f"{where}: copy_share: {100 * value:.2f}% of the visits equal a training visit, "
            f"held-out real ones {100 * held_out['value']:.2f}% (at most {100 * limit:.2f}%); "
            "train with a smaller train.tokens or train.preset"
        )


def find(records: list[Record], run: str, metric: str) -> Record | None:
    """The record of a whole figure of a run on new patients; None where there is none."""
    mine = (r for r in records if r["run"] == run and r["metric"] == metric)
    return next((r for r in mine if r["mode"] == "synthesize" and not r["subset"]), None)


def check_scorecard(card: dict[str, Any], run: str, where: Path) -> None:
    """Raise UserError where a scorecard's run copies more than held-out real visits do."""
    records = card["records"]
    check_copies(find(records, run, "copy_share"), find(records, REAL, "copy_share"), f"{where}: {run}")


def check_cohort(records: list[Record]) -> None:
    """Raise UserError where the published visits copy more than the held-out visits beside them."""
    check_copies(find(records, COHORT, "copy_share"), find(records, REAL, "copy_share"), COHORT)


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

    Violations of the edits, and visits that equal a training visit; `seed` draws the groups of the intervals.
    """
    edits, found = load_rules(rules), []
    coded, names = encode([train, cohort, test])
    for run, table, release in ((COHORT, cohort, coded[1]), (REAL, test, coded[2])):
        figures = [
            *medical_validity(table, edits, seed),
            *privacy.copy_share(coded[0], release, len(names), seed),
        ]
        found += as_records(figures, run, 0, "synthesize")
        mean = record(run, 0, "synthesize", "mean_codes_per_visit", "", float(np.mean(release.lengths)))
        found.append(mean | {"n": release.n_visits})
    return found
