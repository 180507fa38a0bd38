"""Patients from a trained model: one generate() call for each visit of a batch of patients.

The output of generate() is saved as it is. Repeated codes, invalid tokens and truncated visits are counted on
the raw ids; the writer of visits refuses a repeated code instead of repairing it.
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
from cohortloom.generation.grammar import Grammar
from cohortloom.generation.sampling import sample_tokens
from cohortloom.runtime.devices import fast_products

DAYS_PER_YEAR = 365.25
BATCH_SIZE = 512  # patients; with 256 a visit takes a fifth longer (AMX, preset small)


@dataclass
class GeneratedVisits:
    """One generated visit of each patient in a batch.

    ids [n_codes]: flat vocabulary ids. lengths [batch]: codes of each visit. terminators [batch]. counts: of
    visits, codes and faults.
    """

    ids: np.ndarray
    lengths: np.ndarray
    terminators: np.ndarray
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class GeneratedPatients:
    """All generated visits of a batch of patients, sorted by patient and time; ids are vocabulary ids."""

    patient: np.ndarray
    visit: np.ndarray
    days: np.ndarray
    age: np.ndarray
    sex: np.ndarray
    ids: np.ndarray
    offsets: np.ndarray
    counts: dict[str, int]


def generate_visits(
    model: torch.nn.Module,
    vocabulary: Vocabulary,
    rows: tuple[np.ndarray, np.ndarray],
    age: np.ndarray,
    sex: np.ndarray,
    seed: int,
    constraint=None,
    needs_code: bool = False,
    **options,
) -> GeneratedVisits:
    """One visit of each patient: one generate() call.

    Args:
        rows: encoder tokens, flat, and their lengths [batch].
        age: years [batch]. sex: 0 F, 1 M [batch]. seed: of torch's generator, for this call alone.
        constraint: a constrained.Constraint; its counts are added to those of the visits.
        needs_code: a visit cannot end without a code.
        options: generation options that replace those saved with the model.
    """
    device = next(model.parameters()).device
    n = len(rows[1])
    prompts = (np.full(N_PROMPTS * n, START), np.full(n, N_PROMPTS))
    encoder, lengths = join_rows(prompts, rows)
    processor = constraint.processor(age, sex) if constraint else None
    processors = [Grammar(vocabulary, rows, needs_code, device), *([processor] if processor else [])]
    processors += options.pop("logits_processor", ())
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), fast_products(device):
        torch.manual_seed(seed)
        raw = model.generate(
            torch.from_numpy(pad(encoder, row_offsets(lengths))).to(device),
            x_num=torch.from_numpy(np.array(age, np.float32)[:, None]).to(device),
            x_cat=torch.from_numpy(np.array(sex, np.int64)[:, None]).to(device),
            custom_generate=sample_tokens,
            logits_processor=processors,
            **options,
        )
    visits = parse_ids(raw.cpu().numpy(), vocabulary)
    visits.counts |= processor.counts() if processor else {}
    return visits


def parse_ids(raw: np.ndarray, vocabulary: Vocabulary) -> GeneratedVisits:
    """Codes and terminators of raw ids [batch, length], after the prompts' positions and the start token."""
    body = raw[:, N_PROMPTS + 1 :]
    is_end = (body >= END) & (body < vocabulary.first_boundary)
    has_end = is_end.any(1)
    end = np.where(has_end, is_end.argmax(1), body.shape[1])
    before_end = (np.arange(body.shape[1]) < end[:, None]) & (body != PAD)
    is_code = before_end & (body >= vocabulary.first_code)
    # Sorted, a repeated code stands beside itself; other tokens become distinct negative numbers.
    ordered = np.sort(np.where(is_code, body, -1 - np.arange(body.shape[1])), axis=1)
    terminators = np.full(len(body), END)
    terminators[has_end] = body[np.flatnonzero(has_end), end[has_end]]
    counts = {
        "visits": len(body),
        "codes": int(is_code.sum()),
        "duplicates": int((ordered[:, 1:] == ordered[:, :-1]).sum()),
        "invalid_tokens": int((before_end & (body < vocabulary.first_boundary)).sum()),
        "cut_off": int((~has_end).sum()),
        "empty": int((is_code.sum(1) == 0).sum()),
    }
    return GeneratedVisits(body[is_code], is_code.sum(1), terminators, counts)


def synthesize(
    model: torch.nn.Module,
    vocabulary: Vocabulary,
    age: np.ndarray,
    sex: np.ndarray,
    seed: tuple,
    batch_size: int = BATCH_SIZE,
    max_visits: int = 100,
    shard: tuple[int, int] = (1, 1),
    **options,
) -> Iterator[GeneratedPatients]:
    """Patients of the requested ages (years at the first visit) and sexes, batch by batch, in order.

    seed: a purpose and numbers, as `seed_of` takes them. Each batch of `batch_size` patients has random
    numbers of its own, so batches may be generated in any order and by any job. `shard` (i, k): only the i-th
    of k parts of the batches.
    """
    starts = range(0, len(age), batch_size)
    for number in shard_batches(len(starts), *shard):
        start = starts[number]
        batch = slice(start, start + batch_size)
        yield _synthesize_batch(
            model,
            vocabulary,
            np.asarray(age[batch], float),
            np.asarray(sex[batch]),
            (*seed, number),
            start,
            max_visits,
            options,
        )


def reserved_positions(max_new_tokens: int) -> int:
    """Positions that a history leaves free, for the visit and the prompts."""
    return max_new_tokens + N_PROMPTS + 6


def shard_batches(batches: int, shard: int, shards: int) -> range:
    """Numbers of the batches of part `shard` (from 1) of `shards`; the first parts may have one more."""
    shortest, longer = divmod(batches, shards)
    start = (shard - 1) * shortest + min(shard - 1, longer)
    return range(start, start + shortest + (shard <= longer))


def _synthesize_batch(model, vocabulary, age, sex, seed, start, max_visits, options) -> GeneratedPatients:
    purpose, *numbers = seed
    rng = generator(f"{purpose}: birthdays and gaps", *numbers)
    # Completed years hide the birthday: it is drawn once a patient, so that later ages advance on that day.
    exact_age = age + np.where((age >= 1) & (age < MAX_AGE), rng.random(len(age)), 0.0)
    reserved = reserved_positions(model.generation_config.max_new_tokens)
    max_history = model.config.max_position_embeddings - reserved
    active = np.arange(len(age))  # patients whose record has not ended
    past = (np.empty(0, np.int64), np.zeros(len(age), np.int64))
    days = np.zeros(len(age), np.int64)
    parts: list[tuple[np.ndarray, ...]] = []
    totals: dict[str, int] = {}
    for visit in range(max_visits):
        history, shortened = latest_visits(past, max_history, vocabulary)
        rows = join_rows(history, (np.full(len(active), NOW), np.ones(len(active), np.int64)))
        totals["short_history"] = totals.get("short_history", 0) + shortened
        current_age = age_at(exact_age[active], age[active], days[active])
        visits = generate_visits(
            model,
            vocabulary,
            rows,
            current_age,
            sex[active],
            seed_of(*seed, visit),
            needs_code=True,
            **options,
        )
        for key, value in visits.counts.items():
            totals[key] = totals.get(key, 0) + value
        number = np.full(len(active), visit)
        parts.append((active, number, days[active], current_age, visits.ids, visits.lengths))
        goes_on = visits.terminators != END
        if not goes_on.any():
            break
        past = join_rows(
            past, (visits.ids, visits.lengths), (visits.terminators, np.ones(len(active), np.int64))
        )
        past = (past[0][np.repeat(goes_on, past[1])], past[1][goes_on])
        active = active[goes_on]
        days[active] += vocabulary.draw_gap(visits.terminators[goes_on], rng)
    else:
        totals["cut_off_records"] = int(goes_on.sum())
    return _sorted_patients(parts, sex, start, totals)


def _sorted_patients(parts, sex, start, totals) -> GeneratedPatients:
    patient, visit, days, age, ids, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.lexsort((visit, patient))
    return GeneratedPatients(
        patient[order] + start,
        visit[order],
        days[order],
        age[order],
        sex[patient[order]],
        *select_rows(ids, row_offsets(lengths), order),
        totals,
    )


def age_at(exact: np.ndarray, first: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Age as the visits table has it `days` after the first visit: completed years from 1 on, capped at 90.

    exact: age at the first visit with the drawn birthday. first: the same age as the table has it.
    """
    later = exact + days / DAYS_PER_YEAR
    later = np.where(later >= 1, np.floor(later), later)
    return np.where(days == 0, first, np.minimum(np.maximum(later, np.minimum(first, MAX_AGE)), MAX_AGE))


def latest_visits(
    past: tuple[np.ndarray, np.ndarray], max_tokens: int, vocabulary: Vocabulary
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """The latest whole visits of each history that fit `max_tokens`, and how many histories were cut.

    past: flat tokens and their lengths [n]; each visit is its codes and a terminator.
    """
    tokens, lengths = past
    offsets = row_offsets(lengths)
    is_terminator = (tokens >= END) & (tokens < vocabulary.first_code)
    visit_starts = np.append(0, np.flatnonzero(is_terminator) + 1)  # each history ends with a terminator
    first_fitting = np.searchsorted(visit_starts, np.maximum(offsets[:-1], offsets[1:] - max_tokens))
    begin = visit_starts[first_fitting]
    latest_lengths = offsets[1:] - begin
    latest = tokens[ragged_range(begin, latest_lengths)], latest_lengths
    return latest, int((latest_lengths < lengths).sum())
