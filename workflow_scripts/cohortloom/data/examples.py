"""Training examples: what the encoder sees and what the decoder must write, corrupted by a seeded generator.

Everything works on flat arrays with offsets ("ragged" rows); only `pad` makes rectangles.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cohortloom.base.ragged import join_rows, ragged_range, row_of_value, row_offsets, select_rows
from cohortloom.data.visits import code_lists, sex_index
from cohortloom.data.vocabulary import MASK, NOW, PAD, START, Vocabulary

READ = 16  # encoder tokens of a step for each of its target tokens, at most
ROW = 64  # decoder positions of a packed row: attention costs by the square, and short rows leave gaps
SLACK = 1.15  # encoder rows are so much wider than their share: rows that must fit twice fill less
REVEAL = 0.5  # half of the visits to learn filling in, half to learn writing from nothing
CORRUPT = 0.05  # of the revealed codes are masked, as many dropped and as many replaced, as in BART
IDS = "_ids"  # ends the name of a column of ids
N_PROMPTS = 2  # places in front of each visit that hold its prompts (model/prompt_bart.py)


@dataclass
class Examples:
    """The visits of one split as arrays.

    ids [n_codes] flat vocabulary ids of codes, offsets [n_visits + 1]; terminator, age, sex, visit
    [n_visits]. A patient's visits stand together in time order. first_ids: id of the first code of each
    column of codes (`Vocabulary.first_ids`); empty where there is one column.
    """

    ids: np.ndarray
    offsets: np.ndarray
    terminator: np.ndarray
    age: np.ndarray
    sex: np.ndarray
    visit: np.ndarray
    first_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.terminator)

    def select(self, rows: np.ndarray) -> "Examples":
        """The visits `rows`, in that order."""
        return Examples(
            *select_rows(self.ids, self.offsets, rows),
            *(values[rows] for values in (self.terminator, self.age, self.sex, self.visit)),
            self.first_ids,
        )

    @property
    def n_columns(self) -> int:
        """Number of columns of codes."""
        return max(1, len(self.first_ids))

    @property
    def boundaries(self) -> list[int]:
        """Ids that open the second, third ... column; they stand before the ids of codes."""
        return [self.first_ids[0] - self.n_columns + k for k in range(1, self.n_columns)]

    @property
    def n_targets(self) -> int:
        """Tokens that the decoder writes where nothing is revealed."""
        return len(self.ids) + self.n_columns * len(self)

    def column_of(self, ids: np.ndarray) -> np.ndarray:
        """Number of the column of each code id."""
        if not self.first_ids:
            return np.zeros(len(ids), np.int64)
        return np.searchsorted(self.first_ids, ids, side="right") - 1

    def lengths(self) -> np.ndarray:
        """Codes of each visit in each column [n_visits, columns]."""
        return lengths_by_column(self.offsets, self.column_of(self.ids), self.n_columns)

    @classmethod
    def load(cls, path: Path) -> "Examples":
        """Read a dataset file (train, val or test)."""
        schema = pq.read_schema(path)
        columns = [name for name in schema.names if name.endswith(IDS)]
        table = pq.read_table(path, columns=["visit", "age", "sex", *columns, "terminator"])
        lists = [code_lists(table, column) for column in columns]
        ids, lengths = join_rows(*((values.to_numpy(), np.diff(offsets)) for values, offsets in lists))
        first_ids = (schema.metadata or {}).get(b"first_ids")
        return cls(
            ids,
            row_offsets(lengths),
            table["terminator"].to_numpy(),
            table["age"].to_numpy(),
            sex_index(table).astype(np.int64),
            table["visit"].to_numpy().astype(np.int64),
            tuple(map(int, first_ids.split(b","))) if first_ids else (),
        )


def lengths_by_column(offsets: np.ndarray, column: np.ndarray, n_columns: int) -> np.ndarray:
    """Codes of each visit in each column [n_visits, n_columns]; column [n_codes] of each code."""
    n_visits = len(offsets) - 1
    key = row_of_value(offsets) * n_columns + column
    return np.bincount(key, minlength=n_visits * n_columns).reshape(n_visits, n_columns)


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


def plain_pairs(data: Examples, revealed: np.ndarray, max_positions: int) -> Pairs:
    """Encoder and decoder sequences with the codes of `revealed` [n_codes] bool shown, uncorrupted."""
    return _pairs(data, revealed, np.where(revealed, data.ids, -1), max_positions)


def first_code_pairs(data: Examples, revealed: np.ndarray, max_positions: int) -> Pairs:
    """As `plain_pairs`, but the decoder writes no code: a position a column predicts its first hidden one."""
    return _pairs(data, np.ones(len(data.ids), bool), np.where(revealed, data.ids, -1), max_positions)


def corrupted_pairs(
    data: Examples,
    words: Vocabulary,
    rng: np.random.Generator,
    max_positions: int,
    reveal: float = REVEAL,
    corrupt: float = CORRUPT,
) -> Pairs:
    """One epoch of denoising examples.

    With probability `reveal` a visit shows a uniformly drawn fraction of the codes of each column, at least
    one code, else none. Of the shown codes a share `corrupt` becomes the mask token, as many vanish and as
    many turn into a code drawn by training frequency, unless none would be left. The decoder writes every
    code that is not shown intact, column by column: in recorded order where nothing is shown, else in random
    order, so that its next code is the likeliest of all that are hidden and not just the likeliest to come
    first.
    """
    row, column = row_of_value(data.offsets), data.column_of(data.ids)
    reveals = rng.random(len(data)) < reveal
    draw = rng.random(len(data.ids))
    # The lowest draw of a visit is shown in any case: if by chance nothing were, short visits would be too
    # frequent among those of which nothing is shown, and the model would write short ones.
    lowest = np.full(len(data), 1.0)
    np.minimum.at(lowest, row, draw)
    fraction = rng.random((len(data), data.n_columns))[row, column]
    shown = reveals[row] & (draw <= np.maximum(fraction, lowest[row]))
    draw = rng.random(len(data.ids))
    damaged = shown & (draw < 3 * corrupt)
    damaged &= np.bincount(row[shown & ~damaged], minlength=len(data))[row] > 0  # nor may all of it vanish
    seen = np.where(shown & ~damaged, data.ids, -1)
    seen[damaged & (draw < corrupt)] = MASK
    wrong = np.flatnonzero(damaged & (draw >= 2 * corrupt))
    share = np.asarray(words.counts, float)
    seen[wrong] = words.first_code + rng.choice(len(share), len(wrong), p=share / share.sum())
    conditioned = np.bincount(row[seen >= 0], minlength=len(data)) > 0
    key = np.where(conditioned[row], rng.random(len(row)), np.arange(len(row)) / max(len(row), 1))
    pairs = _pairs(data, shown & ~damaged, seen, max_positions, np.lexsort((key, column, row)))
    pairs.unordered = conditioned
    return pairs


def _pairs(
    data: Examples, intact: np.ndarray, seen: np.ndarray, max_positions: int, order=slice(None)
) -> Pairs:
    """`order` [n_codes] arranges the codes of each visit for the decoder, column by column."""
    n, lengths = len(data), np.diff(data.offsets)
    row = row_of_value(data.offsets)
    past, past_lengths, dropped = history(data, max_positions - N_PROMPTS - int(lengths.max(initial=0)) - 1)
    ones = np.ones(n, np.int64)
    shown = seen >= 0
    encoder, encoder_lengths = join_rows(
        (past, past_lengths), (np.full(n, NOW), ones), (seen[shown], np.bincount(row[shown], minlength=n))
    )
    written = data.ids[order][~intact[order]]
    column, written_row = data.column_of(written), row[order][~intact[order]]
    codes = [
        (written[column == k], np.bincount(written_row[column == k], minlength=n))
        for k in range(data.n_columns)
    ]
    ends = [*((np.full(n, boundary), ones) for boundary in data.boundaries), (data.terminator, ones)]
    columns = [part for pair in zip(codes, ends, strict=True) for part in pair]
    decoder, decoder_lengths = join_rows((np.full(n, START), ones), *columns)
    return Pairs(encoder, row_offsets(encoder_lengths), decoder, row_offsets(decoder_lengths), dropped)


def steps(pairs: Pairs, tokens: int, rows: np.ndarray) -> list[np.ndarray]:
    """Cut `rows` in their order into runs of about `tokens` target tokens each.

    A run reads at most READ times as many encoder tokens, or memory would go by the longest histories.
    """
    read = np.diff(pairs.encoder_offsets)[rows]
    cost = np.cumsum(np.maximum(pairs.targets(rows), read / READ))
    return np.split(rows, np.flatnonzero(np.diff(cost // tokens)) + 1) if len(rows) else []


def assign_rows(lengths: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Row of each of n sequences whose lengths [n, kinds] fit side by side into rows of `widths` [kinds].

    First fit, the longest first: it fills some 85% of encoder and decoder rows at once.
    """
    room = np.tile(widths, (len(lengths), 1))
    row = np.empty(len(lengths), np.int64)
    for i in np.argsort(-(lengths / widths).max(1), kind="stable"):
        row[i] = np.argmax((room >= lengths[i]).all(1))
        room[row[i]] -= lengths[i]
    return row


def collate(data: Examples, pairs: Pairs, rows: np.ndarray) -> dict[str, np.ndarray]:
    """A batch as `forward` of model/prompt_bart.py takes it, several visits packed into a row.

    Visits are numbered by their place in `rows`: x_num[k] is of visit rows[k]. Rows have ROW decoder
    positions and as many encoder positions as these visits need for them, more where a visit is longer.
    """
    read = N_PROMPTS + np.diff(pairs.encoder_offsets)[rows]
    write = N_PROMPTS + pairs.targets(rows)
    share = SLACK * read.sum() / write.sum()
    width = max(ROW, int(write.max()), int(np.ceil(read.max() / share)))
    widths = np.array([max(int(np.ceil(width * share)), int(read.max())), width])
    row = assign_rows(np.stack([read, write], 1), widths)

    def laid_out(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Flat place of each visit's first token in rows of `width`, and the visit of each place."""
        order = np.argsort(row, kind="stable")
        before = row_offsets(lengths[order])[:-1]  # tokens of all visits in front
        _, first = np.unique(row[order], return_index=True)
        in_row = before - before[first][row[order]]  # of those in the same row
        start = np.empty(len(rows), np.int64)
        start[order] = row[order] * width + in_row
        visit = np.full((row.max() + 1) * width, -1)
        visit[ragged_range(start, lengths)] = row_of_value(row_offsets(lengths))
        return start, visit.reshape(-1, width)

    def tokens(starts: np.ndarray, lengths: np.ndarray, values: np.ndarray, shape, fill: int) -> np.ndarray:
        out = np.full(shape, fill)
        out.flat[ragged_range(starts, lengths)] = values
        return out

    encoder_start, encoder_visit = laid_out(read, widths[0])
    decoder_start, decoder_visit = laid_out(write, widths[1])
    encoder = pairs.encoder_ids[ragged_range(pairs.encoder_offsets[rows], read - N_PROMPTS)]
    begin, n = pairs.decoder_offsets[rows], write - N_PROMPTS
    order = {} if pairs.unordered is None else {"unordered": pairs.unordered[rows]}
    at = decoder_start + N_PROMPTS
    return {
        **order,
        "input_ids": tokens(encoder_start + N_PROMPTS, read - N_PROMPTS, encoder, encoder_visit.shape, PAD),
        "encoder_visit": encoder_visit,
        "decoder_input_ids": tokens(
            at, n, pairs.decoder_ids[ragged_range(begin, n)], decoder_visit.shape, PAD
        ),
        "decoder_visit": decoder_visit,
        "labels": tokens(at, n, pairs.decoder_ids[ragged_range(begin + 1, n)], decoder_visit.shape, -100),
        "x_num": data.age[rows, None],
        "x_cat": data.sex[rows, None],
    }


def pad(values: np.ndarray, offsets: np.ndarray, fill: int = PAD) -> np.ndarray:
    """Ragged rows as a right-padded rectangle [n, longest]."""
    lengths = np.diff(offsets)
    out = np.full((len(lengths), int(lengths.max(initial=0))), fill, np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = values
    return out
