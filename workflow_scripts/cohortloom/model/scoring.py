"""Teacher-forced scoring: the model's output for existing visits, without dropout and gradients."""

from collections.abc import Iterator

import numpy as np
import torch

from cohortloom.base.ragged import patient_of_visit
from cohortloom.data.examples import Examples, Pairs, collate, first_code_pairs, plain_pairs, steps
from cohortloom.data.forbidden import age_row
from cohortloom.model.prompt_bart import BY_VISIT, PromptBartOutput, PromptBartWithDemographicPrediction
from cohortloom.runtime.devices import READ_TOKENS, fast_products


def as_tensors(
    batch: dict[str, np.ndarray], device: torch.device, forbidden: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """A collated batch on `device`.

    forbidden [2, 91, vocabulary]: table of forbidden codes (data/forbidden.py); the batch then holds those of
    its visits.
    """
    tensors = {name: torch.from_numpy(values).to(device, non_blocking=True) for name, values in batch.items()}
    if forbidden is not None:
        years = torch.from_numpy(age_row(batch["x_num"][:, 0])).to(device)
        tensors["forbidden"] = forbidden[tensors["x_cat"][:, 0], years]
    return tensors


def unrevealed_pairs(model: PromptBartWithDemographicPrediction, data: Examples) -> Pairs:
    """Sequences of visits with no code revealed and as much history as the model has positions for."""
    return plain_pairs(data, np.zeros(len(data.ids), bool), model.config.max_position_embeddings)


def score_teacher_forced(
    model: PromptBartWithDemographicPrediction,
    data: Examples,
    pairs: Pairs,
    rows: np.ndarray | None = None,
    forbidden: torch.Tensor | None = None,
) -> Iterator[tuple[np.ndarray, PromptBartOutput]]:
    """Batches of visit numbers and the model's output for each.

    rows: the visits to score, all by default. Visit k of an output is visit batch[k] of `data`. The model
    stays in eval mode.
    """
    model.eval()
    rows = np.arange(len(data)) if rows is None else rows
    for batch in steps(pairs, READ_TOKENS[model.device.type], rows):
        with torch.no_grad(), fast_products(model.device):
            output = model(**as_tensors(collate(data, pairs, batch), model.device, forbidden))
        yield batch, output


def mean_losses(model, data: Examples, forbidden: torch.Tensor | None = None) -> dict[str, float]:
    """Mean of each term of the loss, and their weighted sum as `loss`, with no code revealed.

    Visits without a code are left out. The terms of the heads are means over visits, all others over tokens.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    rows = np.flatnonzero(np.diff(data.offsets) > 0)
    for batch, output in score_teacher_forced(model, data, unrevealed_pairs(model, data), rows, forbidden):
        for name, value in output.terms.items():
            n = len(batch) if name in BY_VISIT else len(output.visit)
            sums[name] = sums.get(name, 0.0) + n * float(value)
            counts[name] = counts.get(name, 0) + n
    means = {name: total / counts[name] for name, total in sums.items()}
    return {**means, "loss": float(model.weighted_sum(means))}


def patient_log_likelihoods(model: PromptBartWithDemographicPrediction, data: Examples) -> np.ndarray:
    """Mean log likelihood of a token in nats, [n_patients]: the score of a membership attack."""
    losses, tokens = np.zeros(len(data)), np.zeros(len(data))
    for batch, output in score_teacher_forced(model, data, unrevealed_pairs(model, data)):
        visit = output.visit.cpu().numpy()
        losses[batch] = np.bincount(visit, output.token_losses.double().cpu().numpy(), len(batch))
        tokens[batch] = np.bincount(visit, minlength=len(batch))
    patient = patient_of_visit(data.visit)
    return -np.bincount(patient, losses) / np.bincount(patient, tokens)


def first_code_log_probs(
    model: PromptBartWithDemographicPrediction, data: Examples, revealed: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of visit numbers [n] and log probabilities [n, vocabulary]: of each code as the first generated
    one of its column.

    revealed [n_codes] bool: codes of `data` that the encoder reads, after all codes of the earlier visits.
    """
    pairs = first_code_pairs(data, revealed, model.config.max_position_embeddings)
    for rows, output in score_teacher_forced(model, data, pairs):
        # One position a column; each code has a probability at that of its own column alone.
        log_probs = np.full((len(rows), output.logits.shape[1]), -np.inf, np.float32)
        visit, column = output.visit.cpu().numpy(), output.column.cpu().numpy()
        of_position = output.logits.float().log_softmax(-1).cpu().numpy()
        for number in range(data.n_columns):
            in_column = column == number
            np.maximum.at(log_probs, visit[in_column], of_position[in_column])
        yield rows, log_probs
