"""What a fresh model starts from: its size by name, and what is counted on the training visits.

The output layer has a bias for each token and each group of age and sex: the log frequency of the token in
the training visits of the group, smoothed. So the network learns how a visit departs from its group and not
the group itself, and what never occurs at an age starts out as all but impossible. To learn that by gradient
took it more tokens than there are: docs/trials.md. What recurs, when a visit ends and which codes occur
together (pairs.py) start likewise.
"""

import numpy as np
import torch

from cohortloom.base.ragged import row_of_value, row_offsets
from cohortloom.base.seeds import seed_of
from cohortloom.data.bands import DAY, FINE, band
from cohortloom.data.examples import N_PROMPTS, Examples, history
from cohortloom.data.vocabulary import NOW, PAD, START, Vocabulary
from cohortloom.model.pairs import start_from_pairs
from cohortloom.model.prompt_bart import PromptBartConfig, PromptBartWithDemographicPrediction
from cohortloom.model.record import MAX_COUNT

# d_model, encoder layers, decoder layers, heads, feed-forward
PRESETS = {
    "tiny": (64, 1, 1, 2, 128),
    "mini": (192, 2, 2, 4, 384),
    "small": (256, 2, 2, 4, 512),
    "base": (768, 6, 6, 12, 3072),
}
POSITIONS = 512  # of a visit with its history; the latest visits are kept
# Chosen between the likelihood of validation visits under these shares alone and what is impossible;
# docs/quality.md.
DISCOUNT = 0.5  # occurrences that every token seen gives up to the wider group
WEIGHT = 300.0  # tokens that age and sex apart count for, in a group of both


def make_model(
    vocabulary: Vocabulary, data: Examples, preset: str, seed: int, dropout: float, **losses
) -> PromptBartWithDemographicPrediction:
    """A fresh model of the preset for training visits `data`, its biases set to what they count.

    losses: the keywords of PromptBartConfig that weigh the terms of the loss and say what the heads read.
    """
    d_model, encoder_layers, decoder_layers, heads, ffn = PRESETS[preset]
    longest = int(np.diff(data.offsets).max())
    positions = max(POSITIONS, 2 * (longest + 16))
    torch.manual_seed(seed_of("initial weights", seed))
    config = PromptBartConfig(
        vocab_size=len(vocabulary),
        d_model=d_model,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        max_position_embeddings=positions,
        dropout=dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        activation_function="relu",
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=vocabulary.terminators,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
        now_id=NOW,
        first_code_id=vocabulary.first_code,
        group_ages=[max(0.0, edge - DAY / 2) for edge in FINE],
        age_mean=float(data.age.mean()),
        age_std=float(max(data.age.std(), 1e-3)),
        **losses,
    )
    model = PromptBartWithDemographicPrediction(config)
    shares = smoothed_shares(token_counts(data, len(vocabulary)))
    with torch.no_grad():
        model.summary.group_bias.copy_(torch.from_numpy(np.log(shares)))
        model.summary.recurrence.copy_(torch.from_numpy(recurrence(data, shares, positions - N_PROMPTS)))
        for kind, rows in enumerate((data.visit == 0, data.visit > 0)):
            model.summary.ending[kind] = torch.from_numpy(ending(data, rows, shares, MAX_COUNT))
    start_from_pairs(model, data, seed)
    generation = model.generation_config
    generation.do_sample, generation.temperature = True, 1.0
    generation.top_k, generation.top_p = 0, 1.0
    generation.no_repeat_ngram_size = 1
    generation.max_length, generation.max_new_tokens = None, longest + 8
    generation.eos_token_id, generation.pad_token_id = vocabulary.terminators, PAD
    generation.decoder_start_token_id = generation.bos_token_id = START
    generation.forced_eos_token_id = None
    return model


def group_of(age: np.ndarray, sex: np.ndarray) -> np.ndarray:
    """Group [n] of ages in years and sexes (0 F, 1 M): the bands of `FINE`, women first."""
    return sex * len(FINE) + band(age)


def token_counts(data: Examples, size: int) -> np.ndarray:
    """Tokens that the decoder writes, codes and terminators, by group: [groups, size]."""
    group = group_of(data.age, data.sex)
    counts = np.zeros((2 * len(FINE), size))
    np.add.at(counts, (np.repeat(group, np.diff(data.offsets)), data.ids), 1)
    np.add.at(counts, (group, data.terminator), 1)
    return counts


def smoothed_shares(counts: np.ndarray) -> np.ndarray:
    """Share of each token in each group from counts [groups, size]; rows sum to 1, none is 0.

    Absolute discounting (Ney, Essen and Kneser 1994): a group borrows from age and sex apart, as if they were
    independent. These borrow from all by the number of groups that a token occurs in and not by how often it
    does (Kneser and Ney 1995): a delivery is frequent, but where there was none it is not likely.
    """

    def borrow(some: np.ndarray, share: np.ndarray, weight: float) -> np.ndarray:
        taken = np.minimum(some, DISCOUNT)
        mixed = some - taken + np.maximum(taken.sum(-1, keepdims=True) + weight, 1e-9) * share
        return mixed / mixed.sum(-1, keepdims=True)

    counts = counts.reshape(2, len(FINE), -1)
    overall, spread = (np.maximum(by.sum((0, 1)), 0.5) for by in (counts, counts > 0))
    overall, spread = overall / overall.sum(), spread / spread.sum()
    by_sex, by_band = borrow(counts.sum(1), spread, 0.0), borrow(counts.sum(0), spread, 0.0)
    apart = by_sex[:, None] * by_band[None] / overall
    return borrow(counts, apart / apart.sum(-1, keepdims=True), WEIGHT).reshape(2 * len(FINE), -1)


def recurrence(data: Examples, shares: np.ndarray, max_tokens: int) -> np.ndarray:
    """By what factor a code is likelier after an earlier visit that holds it, as a log: [size].

    shares: of the groups. A first factor, the same for all codes, makes as many recurrences expected as are
    observed; each code's own is shrunk towards it (gamma-Poisson). A code is expected in a visit of n tokens
    with probability 1 - (1 - p)^n, where p is its raised share.
    """
    size = shares.shape[1]
    past, lengths, _ = history(data, max_tokens)
    row = row_of_value(row_offsets(lengths))
    seen = np.unique(row * size + past)  # a code counts once, however many visits hold it
    seen = seen[~np.isin(seen % size, data.terminator)]
    row, token = seen // size, seen % size
    share, tokens = shares[group_of(data.age, data.sex)[row], token], np.diff(data.offsets)[row] + 1
    now = row_of_value(data.offsets) * size + data.ids
    observed = np.isin(seen, now)

    def expected(factor: float) -> np.ndarray:
        raised = share * factor
        total = 1 + np.bincount(row, raised - share, len(data))[row]
        return -np.expm1(tokens * np.log1p(-np.minimum(raised / total, 1 - 1e-9)))

    low, high = 1.0, 1e4
    for _ in range(40):
        factor = np.sqrt(low * high)
        low, high = (factor, high) if expected(factor).sum() < observed.sum() else (low, factor)
    each = np.bincount(token, expected(factor), size)
    return np.log(factor * (np.bincount(token, observed, size) + 1) / (each + 1))


def ending(data: Examples, rows: np.ndarray, shares: np.ndarray, count: int) -> np.ndarray:
    """Log odds that a visit ends after 0, 1, ... count - 1 codes, less those of the groups alone: [count].

    rows [n_visits] bool: visits to count.
    """
    lengths = np.diff(data.offsets)[rows]
    ended = np.bincount(np.minimum(lengths, count - 1), minlength=count)
    reached = ended[::-1].cumsum()[::-1]
    odds = (ended + 0.5) / (reached - ended + 0.5)
    ends = shares[:, np.unique(data.terminator)].sum(1)[group_of(data.age, data.sex)]
    alone = ends[rows].mean() if rows.any() else ends.mean()
    return np.log(odds) - np.log(alone / (1 - alone))
