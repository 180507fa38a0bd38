"""After training: what dropout and few steps left askew is set by counting and by least squares.

Visits are to end as often after each number of codes as training visits do. The bias on ending
(record_summary.py) follows the other weights with a delay, and visits of one code are too few to pull it
along: they came out a fifth to a half too rare. Whether and where visits end is a plain count, so the bias is
set by counting in the end. The age head is fitted to the states that it will read, those without dropout.
"""

import numpy as np
import torch
from sklearn.linear_model import Ridge

from cohortloom.examples import Examples, Pairs, batches, collate, corrupted_pairs, plain_pairs
from cohortloom.vocabulary import Vocabulary

VISITS = 20_000
SHRINKAGE = 3e-3  # of the change of the age head, in mean variances of what it reads
LEAST = 50  # visits that get so far; below, a count says too little


@torch.no_grad()
def calibrate_ending(model, words: Vocabulary, data: Examples, seed: int, max_tokens: int, tensors) -> None:
    """Shift `model.summary.ending` [3, counts] in place.

    data: training visits, of which up to 20,000 are read, once with nothing revealed and once with a part.
    tensors: turns a batch of arrays into the model's tensors. The shift of an average is not quite the
    average of shifts, hence two rounds.
    """
    model.eval()
    keep, shown = _sample(words, data, seed, max_tokens)
    for _ in range(2):
        ending = model.summary.ending
        expected, observed, reached = (torch.zeros_like(ending, dtype=torch.float64) for _ in range(3))
        for pairs in shown:
            for rows in batches(pairs, 2048, None, keep):
                batch = tensors(collate(data, pairs, rows))
                labels, prefix = batch.pop("labels"), batch["decoder_input_ids"]
                person = (batch["x_num"], batch["x_cat"])
                context, token_bias, known = model.read(batch["input_ids"], *person)
                logits = model(**batch, context=context, token_bias=token_bias, known=known).logits
                first, last = words.terminators[0], words.terminators[-1]
                ends = logits.float().softmax(-1)[..., first : last + 1].sum(-1)
                scored = labels != -100
                place = tuple(index[scored] for index in model.summary.end_place(known, prefix))
                for sums, values in (
                    (expected, ends),
                    (observed, (labels >= first) & (labels <= last)),
                    (reached, scored),
                ):
                    sums.index_put_(place, values[scored].double(), accumulate=True)
        shift = _log_odds(observed, reached) - _log_odds(expected, reached)
        ending += torch.where(reached >= LEAST, shift, 0.0).to(ending.dtype)


@torch.no_grad()
def calibrate_age(model, words: Vocabulary, data: Examples, seed: int, max_tokens: int, tensors) -> None:
    """Fit the last layer of `model.age_predictor` again, in place, by least squares with dropout off.

    Under dropout the head learns from states that scatter, and reads the others with a bias: after 5 million
    tokens with dropout 0.2 it erred by 4 years² in training and by 9 without dropout. Arguments as above.
    """
    model.eval()
    keep, shown = _sample(words, data, seed, max_tokens)
    last, read, features, target = model.age_predictor[-1], [], [], []
    hook = last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    for pairs in shown:
        for rows in batches(pairs, 2048, None, keep):
            readable = model(**tensors(collate(data, pairs, rows))).has_codes.cpu().numpy()
            features.append(read.pop().float().cpu().numpy()[readable])
            target.append(data.age[rows][readable])
    hook.remove()
    states = np.concatenate(features).astype(np.float64)
    ages = (np.concatenate(target) - model.config.age_mean) / model.config.age_std
    weight = last.weight[0].double().cpu().numpy()
    # The change is kept small, so that states which hardly vary gain no weight: only what is off is mended.
    penalty = SHRINKAGE * len(states) * max(float(states.var(0).mean()), 1e-12)
    change = Ridge(alpha=penalty).fit(states, ages - states @ weight)
    last.weight += torch.from_numpy(change.coef_[None]).to(last.weight)
    last.bias.fill_(float(change.intercept_))


def _sample(words: Vocabulary, data: Examples, seed: int, max_tokens: int) -> tuple[np.ndarray, list[Pairs]]:
    """Rows to read [n] bool, and all visits with nothing revealed and with a part of their codes."""
    rng = np.random.default_rng([seed, 4])
    keep = np.zeros(len(data), bool)
    keep[rng.permutation(np.flatnonzero(np.diff(data.offsets) > 0))[:VISITS]] = True
    nothing = plain_pairs(data, np.zeros(len(data.ids), bool), max_tokens)
    return keep, [nothing, corrupted_pairs(data, words, rng, max_tokens, 1.0, 0.0, 0.0, 0.0)]


def _log_odds(ended: torch.Tensor, reached: torch.Tensor) -> torch.Tensor:
    return torch.log((ended + 0.5) / (reached - ended + 0.5))
