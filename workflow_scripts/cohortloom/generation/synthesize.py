"""Visits from a trained model: batches of generate() calls, visit by visit, and what they returned.

What generate() returns is what is written: repeated codes, invalid tokens and cut-off visits are
counted on the raw ids, and the visits writer refuses a repeated code rather than repair it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from cohortloom.base.ragged import join_rows, ragged_range, row_offsets, select_rows
from cohortloom.base.seeds import generator, seed_of
from cohortloom.data.examples import N_PROMPTS, pad
from cohortloom.data.visits import MAX_AGE
from cohortloom.data.vocabulary import END, NOW, PAD, START, Vocabulary
from cohortloom.generation.sampling import sample_tokens
from cohortloom.runtime.devices import fast_products

DAYS_PER_YEAR = 365.25
BATCH_SIZE = 512  # patients; with 256 a visit took a fifth longer (AMX, preset small)


@dataclass
class Decoded:
    """Raw output of generate() taken apart: flat code ids, codes a visit, terminators, and its faults."""

    ids: np.ndarray
    lengths: np.ndarray
    terminators: np.ndarray
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Record:
    """Generated visits of a batch of patients, sorted by patient and time; ids are vocabulary ids."""

    patient: np.ndarray
    visit: np.ndarray
    days: np.ndarray
    age: np.ndarray
    sex: np.ndarray
    ids: np.ndarray
    offsets: np.ndarray
    counts: dict[str, int]


def decode(
    model: torch.nn.Module,
    words: Vocabulary,
    rows: tuple[np.ndarray, np.ndarray],
    age: np.ndarray,
    sex: np.ndarray,
    seed: int,
    constraint=None,
    **options,
) -> Decoded:
    """One generate() call.

    Args:
        rows: encoder tokens, flat, and their lengths [batch].
        age: years [batch]. sex: 0 F, 1 M [batch]. seed: of torch's generator, for this call alone.
        constraint: a constrained.Constraint; what it removes is added to the counts.
        options: generation options beside those saved with the model.
    """
    device = next(model.parameters()).device
    n = len(rows[1])
    prompts = (np.full(N_PROMPTS * n, START), np.full(n, N_PROMPTS))
    encoder, lengths = join_rows(prompts, rows)
    processor = constraint.of(age, sex) if constraint else None
    if processor:
        options = {**options, "logits_processor": [processor]}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), fast_products(device):
        torch.manual_seed(seed)
        raw = model.generate(
            torch.from_numpy(pad(encoder, row_offsets(lengths))).to(device),
            x_num=torch.from_numpy(np.array(age, np.float32)[:, None]).to(device),
            x_cat=torch.from_numpy(np.array(sex, np.int64)[:, None]).to(device),
            custom_generate=sample_tokens,
            **options,
        )
    decoded = take_apart(raw.cpu().numpy(), words)
    decoded.counts |= processor.counts() if processor else {}
    return decoded


def take_apart(raw: np.ndarray, words: Vocabulary) -> Decoded:
    """Codes and terminators of raw ids [batch, length], behind the prompts' places and the start token."""
    body = raw[:, N_PROMPTS + 1 :]
    is_end = (body >= END) & (body < words.first_code)
    closed = is_end.any(1)
    stop = np.where(closed, is_end.argmax(1), body.shape[1])
    inside = np.arange(body.shape[1]) < stop[:, None]
    inside &= body != PAD
    codes = inside & (body >= words.first_code)
    ordered = np.sort(np.where(codes, body, -1 - np.arange(body.shape[1])), axis=1)
    rows = np.arange(len(body))
    terminators = np.full(len(body), END)
    terminators[closed] = body[rows[closed], stop[closed]]
    counts = {
        "visits": len(body),
        "codes": int(codes.sum()),
        "duplicates": int((ordered[:, 1:] == ordered[:, :-1]).sum()),
        "invalid_tokens": int((inside & ~codes).sum()),
        "cut_off": int((~closed).sum()),
        "empty": int((codes.sum(1) == 0).sum()),
    }
    return Decoded(body[codes], codes.sum(1), terminators, counts)


def synthesize(
    model: torch.nn.Module,
    words: Vocabulary,
    age: np.ndarray,
    sex: np.ndarray,
    seed: tuple,
    batch_size: int = BATCH_SIZE,
    max_visits: int = 100,
    shard: tuple[int, int] = (1, 1),
    **options,
) -> Iterator[Record]:
    """Patients of the requested ages (years at the first visit) and sexes, batch by batch, in order.

    seed: a purpose and numbers, as `seed_of` takes them. A batch is a fixed run of `batch_size` patients with
    random numbers of its own, so that batches may be generated in any order and place. `shard` (i, k) takes
    the i-th of k parts of them.
    """
    starts = range(0, len(age), batch_size)
    for number in part_of(len(starts), *shard):
        start = starts[number]
        batch = slice(start, start + batch_size)
        yield _synthesize_batch(
            model,
            words,
            np.asarray(age[batch], float),
            np.asarray(sex[batch]),
            (*seed, number),
            start,
            max_visits,
            options,
        )


def visit_room(max_new_tokens: int) -> int:
    """Positions that are kept free after a history, for a visit and the prompts."""
    return max_new_tokens + N_PROMPTS + 6


def part_of(batches: int, shard: int, shards: int) -> range:
    """Numbers of the batches of part `shard` (from 1) of `shards`: in order, the first parts the longer."""
    shortest, longer = divmod(batches, shards)
    start = (shard - 1) * shortest + min(shard - 1, longer)
    return range(start, start + shortest + (shard <= longer))


def _synthesize_batch(model, words, age, sex, seed, start, max_visits, options) -> Record:
    purpose, *numbers = seed
    rng = generator(f"{purpose}: birthdays and gaps", *numbers)
    # Completed years hide the birthday: it is drawn once a patient, so that ages grow as they should.
    exact = age + np.where((age >= 1) & (age < MAX_AGE), rng.random(len(age)), 0.0)
    max_history = model.config.max_position_embeddings - visit_room(model.generation_config.max_new_tokens)
    alive = np.arange(len(age))
    past = (np.empty(0, np.int64), np.zeros(len(age), np.int64))
    days = np.zeros(len(age), np.int64)
    made: list[tuple[np.ndarray, ...]] = []
    totals: dict[str, int] = {}
    for visit in range(max_visits):
        history, shortened = latest_visits(past, max_history, words)
        rows = join_rows(history, (np.full(len(alive), NOW), np.ones(len(alive), np.int64)))
        totals["short_history"] = totals.get("short_history", 0) + shortened
        current = age_at(exact[alive], age[alive], days[alive])
        # A visit without a code is no visit: as its first token a terminator is not offered.
        decoded = decode(
            model,
            words,
            rows,
            current,
            sex[alive],
            seed_of(*seed, visit),
            begin_suppress_tokens=words.terminators,
            **options,
        )
        for key, value in decoded.counts.items():
            totals[key] = totals.get(key, 0) + value
        made.append((alive, np.full(len(alive), visit), days[alive], current, decoded.ids, decoded.lengths))
        on = decoded.terminators != END
        if not on.any():
            break
        past = join_rows(
            past, (decoded.ids, decoded.lengths), (decoded.terminators, np.ones(len(alive), np.int64))
        )
        keep = np.repeat(on, past[1])
        past = (past[0][keep], past[1][on])
        alive = alive[on]
        days[alive] += words.draw_gap(decoded.terminators[on], rng)
    else:
        totals["cut_off_records"] = int(on.sum())
    return _sorted_record(made, sex, start, totals)


def _sorted_record(made, sex, start, totals) -> Record:
    patient, visit, days, age = (np.concatenate([part[i] for part in made]) for i in range(4))
    ids, lengths = np.concatenate([part[4] for part in made]), np.concatenate([part[5] for part in made])
    order = np.lexsort((visit, patient))
    return Record(
        patient[order] + start,
        visit[order],
        days[order],
        age[order],
        sex[patient[order]],
        *select_rows(ids, row_offsets(lengths), order),
        totals,
    )


def age_at(exact: np.ndarray, first: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Age in the table's terms `days` after the first visit: completed years from 1 on, capped at 90."""
    later = exact + days / DAYS_PER_YEAR
    later = np.where(later >= 1, np.floor(later), later)
    return np.where(days == 0, first, np.minimum(np.maximum(later, np.minimum(first, MAX_AGE)), MAX_AGE))


def latest_visits(
    past: tuple[np.ndarray, np.ndarray], longest: int, words: Vocabulary
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """The latest whole visits of each history that `longest` tokens hold, and how many histories were cut.

    past: flat tokens and their lengths [n]; each visit is its codes and a terminator.
    """
    tokens, lengths = past
    offsets = row_offsets(lengths)
    is_terminator = (tokens >= END) & (tokens < words.first_code)
    begins = np.append(0, np.flatnonzero(is_terminator) + 1)  # of visits; each history ends with a terminator
    begin = begins[np.searchsorted(begins, np.maximum(offsets[:-1], offsets[1:] - longest))]
    fitting = offsets[1:] - begin
    return (tokens[ragged_range(begin, fitting)], fitting), int((fitting < lengths).sum())
