"""How likely a model finds each patient: what an attacker who holds the model can ask it."""

import numpy as np
import torch

from cohortloom.data.examples import Examples, batches, collate, plain_pairs
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from cohortloom.runtime.devices import fast_products


def patient_scores(
    bart: PromptBartWithDemographicPrediction, data: Examples, batch_tokens: int
) -> np.ndarray:
    """Log likelihood a token of each patient of an Examples, [n_patients]: codes and terminators alike."""
    device = next(bart.parameters()).device
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), bart.config.max_position_embeddings - 2)
    losses, tokens = np.zeros(len(data)), np.zeros(len(data))
    with torch.inference_mode(), fast_products(device):
        for rows in batches(pairs, batch_tokens, None, np.ones(len(data), bool)):
            batch = {k: torch.from_numpy(v).to(device) for k, v in collate(data, pairs, rows).items()}
            scored = (batch["labels"] != -100).cpu().numpy()
            row_of_token = np.nonzero(scored)[0]
            losses[rows] = np.bincount(row_of_token, bart(**batch).token_losses.cpu().numpy(), len(rows))
            tokens[rows] = scored.sum(1)
    patient = np.cumsum(data.visit == 0) - 1
    return -np.bincount(patient, losses) / np.bincount(patient, tokens)
