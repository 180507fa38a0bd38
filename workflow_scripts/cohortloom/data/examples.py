"""Training examples: what the encoder sees and what the decoder must write, corrupted by a seeded generator.

Everything works on flat arrays with offsets ("ragged" rows); only `pad` makes rectangles.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cohortloom.base.ragged import join_rows, ragged_range, row_offsets
from cohortloom.data.visits import code_lists, sex_index
from cohortloom.data.vocabulary import MASK, NOW, PAD, START, Vocabulary

READ = 16  # encoder tokens of a batch for each of its decoder tokens, at most


@dataclass
class Examples:
    """The visits of one split as arrays.

    ids [n_codes] flat vocabulary ids, offsets [n_visits + 1]; terminator, age, sex, visit [n_visits].
    A patient's visits stand together in time order.
    """

    ids: np.ndarray
    offsets: np.ndarray
    terminator: np.ndarray
    age: np.ndarray
    sex: np.ndarray
    visit: np.ndarray

    def __len__(self) -> int:
        return len(self.terminator)

    @classmethod
    def load(cls, path: Path) -> "Examples":
        """Read a dataset file (train, val or test)."""
        table = pq.read_table(path, columns=["visit", "age", "sex", "diagnoses_ids", "terminator"])
        values, offsets = code_lists(table, "diagnoses_ids")
        return cls(
            values.to_numpy(),
            offsets.astype(np.int64),
            table["terminator"].to_numpy(),
            table["age"].to_numpy(),
            sex_index(table).astype(np.int64),
            table["visit"].to_numpy().astype(np.int64),
        )


@dataclass
class Pairs:
    """Encoder and decoder sequences of n examples, ragged; `dropped_visits` of history did not fit.

    unordered: [n] bool, the decoder's codes stand in random order; None where all are as recorded.
    """

    encoder_ids: np.ndarray
    encoder_offsets: np.ndarray
    decoder_ids: np.ndarray
    decoder_offsets: np.ndarray
    dropped_visits: int = 0
    unordered: np.ndarray | None = None

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """Target tokens of each of these rows: all that the decoder writes after the start token."""
        return self.decoder_offsets[rows + 1] - self.decoder_offsets[rows] - 1


def history(data: Examples, max_tokens: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Earlier visits of each visit: flat ids, lengths, and how many earlier visits did not fit.

    An earlier visit is its codes and its terminator. The latest visits are kept, whole.
    """
    n = len(data)
    stream, stream_lengths = join_rows(
        (data.ids, np.diff(data.offsets)), (data.terminator, np.ones(n, np.int64))
    )
    starts = row_offsets(stream_lengths)
    rows = np.arange(n)
    first = rows - data.visit
    # the first row whose stream still fits in front of this visit
    fitting = np.searchsorted(starts, starts[:-1] - max_tokens, side="left")
    begin = np.minimum(np.maximum(first, fitting), rows)
    lengths = starts[rows] - starts[begin]
    return stream[ragged_range(starts[begin], lengths)], lengths, int((begin - first).sum())


def plain_pairs(data: Examples, revealed: np.ndarray, max_tokens: int) -> Pairs:
    """Encoder and decoder sequences with the codes of `revealed` [n_codes] bool shown, uncorrupted."""
    return _pairs(data, revealed, np.where(revealed, data.ids, -1), max_tokens)


def corrupted_pairs(
    data: Examples,
    words: Vocabulary,
    rng: np.random.Generator,
    max_tokens: int,
    reveal_probability: float,
    mask: float,
    delete: float,
    replace: float,
) -> Pairs:
    """One epoch of denoising examples.

    With `reveal_probability` a visit shows a uniformly drawn fraction of its codes, at least one, else none.
    Of the shown codes, `mask` become the mask token, `delete` vanish and `replace` turn into a code drawn by
    training frequency, unless none would be left. The decoder writes every code that is not shown intact: in
    recorded order where nothing is shown, else in random order, so that its next code is the likeliest of all
    that are hidden and not just the likeliest to come first.
    """
    lengths = np.diff(data.offsets)
    row = np.repeat(np.arange(len(data)), lengths)
    reveal = rng.random(len(data)) < reveal_probability
    draw = rng.random(len(data.ids))
    # The lowest draw of a visit is shown in any case: if by chance nothing were, short visits would be too
    # frequent among those of which nothing is shown, and the model would write short ones.
    lowest = np.full(len(data), 1.0)
    np.minimum.at(lowest, row, draw)
    shown = reveal[row] & (draw <= np.maximum(rng.random(len(data)), lowest)[row])
    draw = rng.random(len(data.ids))
    damaged = shown & (draw < mask + delete + replace)
    damaged &= np.bincount(row[shown & ~damaged], minlength=len(data))[row] > 0  # nor may all of it vanish
    seen = np.where(shown & ~damaged, data.ids, -1)
    seen[damaged & (draw < mask)] = MASK
    wrong = np.flatnonzero(damaged & (draw >= mask + delete))
    share = np.asarray(words.counts, float)
    seen[wrong] = words.first_code + rng.choice(len(share), len(wrong), p=share / share.sum())
    conditioned = np.bincount(row[seen >= 0], minlength=len(data)) > 0
    key = np.where(conditioned[row], rng.random(len(row)), np.arange(len(row)) / max(len(row), 1))
    pairs = _pairs(data, shown & ~damaged, seen, max_tokens, np.lexsort((key, row)))
    pairs.unordered = conditioned
    return pairs


def _pairs(data: Examples, intact: np.ndarray, seen: np.ndarray, max_tokens: int, order=slice(None)) -> Pairs:
    """`order` [n_codes] arranges the codes of each visit for the decoder."""
    n, lengths = len(data), np.diff(data.offsets)
    row = np.repeat(np.arange(n), lengths)
    past, past_lengths, dropped = history(data, max_tokens - int(lengths.max(initial=0)) - 1)
    ones = np.ones(n, np.int64)
    shown = seen >= 0
    encoder, encoder_lengths = join_rows(
        (past, past_lengths), (np.full(n, NOW), ones), (seen[shown], np.bincount(row[shown], minlength=n))
    )
    decoder, decoder_lengths = join_rows(
        (np.full(n, START), ones),
        (data.ids[order][~intact[order]], np.bincount(row[~intact], minlength=n)),
        (data.terminator, ones),
    )
    return Pairs(encoder, row_offsets(encoder_lengths), decoder, row_offsets(decoder_lengths), dropped)


def batches(
    pairs: Pairs, batch_tokens: int, rng: np.random.Generator | None, keep: np.ndarray
) -> list[np.ndarray]:
    """Rows of each batch: of near lengths, at most `batch_tokens` decoder tokens after padding.

    A batch reads at most 16 times as many encoder tokens, or memory would go by the longest histories.

    keep [n] bool: rows to use. With a generator rows of one length and the batches are shuffled.
    """
    decoder, encoder = np.diff(pairs.decoder_offsets), np.diff(pairs.encoder_offsets)
    rows = np.flatnonzero(keep)
    if rng is not None:
        rows = rng.permutation(rows)
    # Encoder lengths in steps of 8: rows of one decoder length that read about as much history.
    rows = rows[np.lexsort((encoder[rows] // 8, decoder[rows]))]
    made, start = [], 0
    while start < len(rows):
        size = max(1, batch_tokens // int(decoder[rows[start]]))
        # rows are sorted by length: the last one fitting tells how many fit
        while (
            size > 1 and start + size <= len(rows) and size * decoder[rows[start + size - 1]] > batch_tokens
        ):
            size -= 1
        longest = np.maximum.accumulate(encoder[rows[start : start + size]])
        fits = np.arange(1, len(longest) + 1) * longest <= READ * batch_tokens
        size = max(1, int(fits.sum()))
        made.append(rows[start : start + size])
        start += size
    return [made[i] for i in rng.permutation(len(made))] if rng is not None else made


def pad(
    values: np.ndarray, offsets: np.ndarray, rows: np.ndarray, fill: int = PAD
) -> tuple[np.ndarray, np.ndarray]:
    """Rows as a right-padded rectangle [n, longest] and their lengths [n]."""
    lengths = offsets[rows + 1] - offsets[rows]
    out = np.full((len(rows), int(lengths.max(initial=0))), fill, np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = values[ragged_range(offsets[rows], lengths)]
    return out, lengths


def collate(data: Examples, pairs: Pairs, rows: np.ndarray) -> dict[str, np.ndarray]:
    """A batch as arrays: input_ids, attention_mask, decoder_input_ids, labels, x_num, x_cat, unordered."""
    encoder, encoder_lengths = pad(pairs.encoder_ids, pairs.encoder_offsets, rows)
    decoder, lengths = pad(pairs.decoder_ids, pairs.decoder_offsets, rows)
    inside = np.arange(decoder.shape[1] - 1) < (lengths - 1)[:, None]
    order = {} if pairs.unordered is None else {"unordered": pairs.unordered[rows]}
    return {
        **order,
        "input_ids": encoder,
        "attention_mask": (np.arange(encoder.shape[1]) < encoder_lengths[:, None]).astype(np.int64),
        "decoder_input_ids": np.where(inside, decoder[:, :-1], PAD),
        "labels": np.where(inside, decoder[:, 1:], -100),
        "x_num": data.age[rows, None],
        "x_cat": data.sex[rows, None],
    }
