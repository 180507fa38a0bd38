"""A fresh model: its size by the name of a preset, its biases from counts on the training visits.

The output layer has a bias for each token and each group of age and sex: the smoothed log frequency of the
token in the group's training visits. The network then learns only how a visit differs from its group, and a
code that never occurs at an age starts out nearly impossible. Learning this by gradient needs more tokens
than there are (docs/trials.md). Recurrence, the ends of visits and pairs of codes (pairs.py) also start from
counts.
"""

import numpy as np
import torch

from cohortloom.base.ragged import row_of_value, row_offsets
from cohortloom.base.seeds import seed_of
from cohortloom.data.bands import DAY, FINE, group_of
from cohortloom.data.examples import N_PROMPTS, Examples, history
from cohortloom.data.vocabulary import NOW, PAD, START, Vocabulary
from cohortloom.model.linear import WEIGHTS, fit_linear_autoencoder
from cohortloom.model.pairs import initialize_pairs
from cohortloom.model.prompt_bart import PromptBartConfig, PromptBartWithDemographicPrediction
from cohortloom.model.record import N_KINDS

# d_model, encoder layers, decoder layers, heads, feed-forward
PRESETS = {
    "tiny": (64, 1, 1, 2, 128),
    "mini": (192, 2, 2, 4, 384),
    "small": (256, 2, 2, 4, 512),
    "base": (768, 6, 6, 12, 3072),
}
MIN_COUNT = 64  # cells of the bias on ending, at least: generated visits may be longer than the training ones
MIN_POSITIONS = 512  # of a visit with its history; of a longer history the latest visits are kept
# Chosen by the likelihood of validation visits under these shares alone, and by how probable impossible codes
# remain: docs/quality.md.
DISCOUNT = 0.5  # occurrences that each observed token gives up to the wider group
PRIOR_TOKENS = 300.0  # tokens that the prior (age and sex as if independent) counts for in a group of both


def make_model(
    vocabulary: Vocabulary, data: Examples, preset: str, seed: int, dropout: float, **losses
) -> PromptBartWithDemographicPrediction:
    """A fresh model of the preset, whose biases are counted on the training visits `data`.

    losses: keywords of PromptBartConfig for the weights of the loss and the input of the heads.
    """
    d_model, encoder_layers, decoder_layers, heads, ffn = PRESETS[preset]
    longest, longest_column = int(np.diff(data.offsets).max()), int(data.lengths().max())
    positions = max(MIN_POSITIONS, 2 * (longest + 16))
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
        first_ids=list(vocabulary.first_ids),
        max_count=max(MIN_COUNT, longest_column + 1),
        group_ages=[max(0.0, edge - DAY / 2) for edge in FINE],
        age_mean=float(data.age.mean()),
        age_std=float(max(data.age.std(), 1e-3)),
        # Without earlier visits none of their codes has a weight.
        n_linear_weights=(WEIGHTS, WEIGHTS if data.visit.any() else 0),
        **losses,
    )
    model = PromptBartWithDemographicPrediction(config)
    shares = smoothed_shares(token_counts(data, len(vocabulary)))
    with torch.no_grad():
        model.summary.group_bias.copy_(torch.from_numpy(np.log(shares)))
        model.summary.recurrence.copy_(torch.from_numpy(recurrence_bias(data, shares, positions - N_PROMPTS)))
        model.summary.ending.copy_(torch.from_numpy(ending_biases(data, shares, config)))
    initialize_pairs(model, data, seed)
    fit_linear_autoencoder(model, data, group_of(data.age, data.sex), shares)
    generation = model.generation_config
    generation.do_sample, generation.temperature = True, 1.0
    generation.top_k, generation.top_p = 0, 1.0
    generation.no_repeat_ngram_size = 1
    generation.max_length, generation.max_new_tokens = None, longest + 8
    generation.eos_token_id, generation.pad_token_id = vocabulary.terminators, PAD
    generation.decoder_start_token_id = generation.bos_token_id = START
    generation.forced_eos_token_id = None
    return model


def token_counts(data: Examples, size: int) -> np.ndarray:
    """Number of each of the decoder's tokens, codes and ends of columns, in each group: [groups, size]."""
    group = group_of(data.age, data.sex)
    counts = np.zeros((2 * len(FINE), size))
    np.add.at(counts, (np.repeat(group, np.diff(data.offsets)), data.ids), 1)
    np.add.at(counts, (group, data.terminator), 1)
    for boundary in data.boundaries:
        np.add.at(counts[:, boundary], group, 1)
    return counts


def smoothed_shares(counts: np.ndarray) -> np.ndarray:
    """Share of each token in each group from counts [groups, size]; rows sum to 1, no share is 0.

    Absolute discounting (Ney, Essen and Kneser 1994). The prior of a group of age and sex is what its age
    band and its sex give as if they were independent. The prior of these is the number of groups that hold a
    token, not the number of its occurrences (Kneser and Ney 1995): delivery is a frequent code, yet
    improbable in a group that has none.
    """

    def discount(counts: np.ndarray, prior: np.ndarray, prior_tokens: float) -> np.ndarray:
        discounts = np.minimum(counts, DISCOUNT)
        smoothed = counts - discounts
        smoothed = smoothed + np.maximum(discounts.sum(-1, keepdims=True) + prior_tokens, 1e-9) * prior
        return smoothed / smoothed.sum(-1, keepdims=True)

    counts = counts.reshape(2, len(FINE), -1)
    overall, n_groups = (np.maximum(values.sum((0, 1)), 0.5) for values in (counts, counts > 0))
    overall, prior = overall / overall.sum(), n_groups / n_groups.sum()
    by_sex, by_band = discount(counts.sum(1), prior, 0.0), discount(counts.sum(0), prior, 0.0)
    independent = by_sex[:, None] * by_band[None] / overall
    independent = independent / independent.sum(-1, keepdims=True)
    return discount(counts, independent, PRIOR_TOKENS).reshape(2 * len(FINE), -1)


def recurrence_bias(data: Examples, shares: np.ndarray, max_tokens: int) -> np.ndarray:
    """Log of the factor by which an earlier visit with a code raises the code's share: [size].

    shares [groups, size]: of `smoothed_shares`. A common factor of all codes is set so that as many
    recurrences are expected as are observed; each code's own factor is shrunk towards it (gamma-Poisson). A
    visit of n tokens holds a code with probability 1 - (1 - p)^n, where p is the raised share.
    """
    size = shares.shape[1]
    past, lengths, _ = history(data, max_tokens)
    row = row_of_value(row_offsets(lengths))
    earlier = np.unique(row * size + past)  # a code counts once, however many earlier visits hold it
    earlier = earlier[~np.isin(earlier % size, data.terminator)]
    row, token = earlier // size, earlier % size
    share, tokens = shares[group_of(data.age, data.sex)[row], token], np.diff(data.offsets)[row] + 1
    current = row_of_value(data.offsets) * size + data.ids
    is_recurring = np.isin(earlier, current)

    def expected(factor: float) -> np.ndarray:
        raised = share * factor
        total = 1 + np.bincount(row, raised - share, len(data))[row]
        return -np.expm1(tokens * np.log1p(-np.minimum(raised / total, 1 - 1e-9)))

    low, high = 1.0, 1e4
    for _ in range(40):
        factor = np.sqrt(low * high)
        low, high = (factor, high) if expected(factor).sum() < is_recurring.sum() else (low, factor)
    expected_of_code = np.bincount(token, expected(factor), size)
    return np.log(factor * (np.bincount(token, is_recurring, size) + 1) / (expected_of_code + 1))


def ending_biases(data: Examples, shares: np.ndarray, config: PromptBartConfig) -> np.ndarray:
    """`RecordSummary.ending` [kinds * columns, max_count] of each column, for first and for later visits.

    shares [groups, vocabulary]: of `smoothed_shares`.
    """
    column_of_token, lengths = np.array(config.column_of_token()), data.lengths()
    group, biases = group_of(data.age, data.sex), np.zeros((N_KINDS * data.n_columns, config.max_count))
    for column in range(data.n_columns):
        in_column = column_of_token == column
        is_end = in_column & (np.arange(len(in_column)) < config.first_code_id)
        end_share = (shares[:, is_end].sum(1) / shares[:, in_column].sum(1))[group]
        for kind, is_counted in enumerate((data.visit == 0, data.visit > 0)):
            mean_share = end_share[is_counted].mean() if is_counted.any() else end_share.mean()
            bias = ending_bias(lengths[is_counted, column], mean_share, config.max_count)
            biases[N_KINDS * column + kind] = bias
    return biases


def ending_bias(lengths: np.ndarray, mean_share: float, n_cells: int) -> np.ndarray:
    """Log odds that a column ends after 0, 1, ... n_cells - 1 codes, minus those of the groups: [n_cells].

    lengths [n]: codes of each visit in the column. mean_share: probability of the column's end, by age and
    sex alone, on average.
    """
    ended = np.bincount(np.minimum(lengths, n_cells - 1), minlength=n_cells)
    reached = ended[::-1].cumsum()[::-1]
    odds = (ended + 0.5) / (reached - ended + 0.5)
    return np.log(odds) - np.log(mean_share / (1 - mean_share))
