"""Measure generation: patients and codes a second, beside plain generate() calls of the same model.

    python benchmarks/generation.py [--model FOLDER] [--patients 10000 30000 100000] [--out FILE]

The model is a trained one, so that visits are as long as it writes them: published/nhds2010 by default. Plain
are transformers' own loop in batches of 64, and one patient at a time, in float32; ours multiplies in bf16
where the CPU is fast in it. Both draw from the same distribution but for that (tests/test_sampling.py). Time
and memory by the number of patients are those of the step itself.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measures import REPOSITORY, SCRIPTS, Line, growth, report, run

sys.path.append(str(SCRIPTS))

import numpy as np
import torch

from cohortloom.base.step import quiet_libraries
from cohortloom.data.examples import N_PROMPTS
from cohortloom.data.forbidden import AGES
from cohortloom.data.visits import patient_starts, read_visits, sex_index
from cohortloom.data.vocabulary import NOW, START, Vocabulary
from cohortloom.generation.constrained import Constraint
from cohortloom.generation.synthesize import BATCH_SIZE, parse_ids, synthesize
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from cohortloom.runtime.devices import pick_device

PUBLISHED = REPOSITORY / "published" / "nhds2010" / "model"


def plain(model, vocabulary: Vocabulary, age: np.ndarray, sex: np.ndarray, batch: int) -> tuple[int, float]:
    """Codes written and seconds taken for one visit of each patient, by the library's own loop."""
    device, codes, start = next(model.parameters()).device, 0, time.perf_counter()
    for at in range(0, len(age), batch):
        rows = slice(at, at + batch)
        x_num, x_cat = (torch.from_numpy(values[rows][:, None]).to(device) for values in (age, sex))
        ids = torch.tensor([[*N_PROMPTS * [START], NOW]], device=device).repeat(len(x_cat), 1)
        made = model.generate(
            ids, x_num=x_num.float(), x_cat=x_cat, begin_suppress_tokens=vocabulary.terminators
        )
        codes += int(parse_ids(made.cpu().numpy(), vocabulary).lengths.sum())
    return codes, time.perf_counter() - start


def ours(model, vocabulary: Vocabulary, age: np.ndarray, sex: np.ndarray, **options) -> tuple[int, float]:
    """The same by `synthesize`."""
    start = time.perf_counter()
    records = synthesize(model, vocabulary, age, sex, ("benchmark", 0), max_visits=1, **options)
    return sum(len(record.ids) for record in records), time.perf_counter() - start


def against_constraint(model, vocabulary, age, sex, times: int = 30) -> float:
    """Seconds with a constraint over seconds without, the least of each, in turn on the same patients.

    A seventh of the codes is restricted, as in the edits, half of them forbidden at each age and sex. All
    visits are of 12 tokens: a constraint ends visits sooner, which is not to be taken for speed.
    """
    rng = np.random.default_rng(0)
    table = (rng.random((2, AGES, len(vocabulary))) < 0.5) & (rng.random(len(vocabulary)) < 1 / 7)
    table[..., : vocabulary.first_code] = False
    bound = Constraint(vocabulary, table, next(model.parameters()).device)
    least = {False: np.inf, True: np.inf}
    options = {"suppress_tokens": vocabulary.terminators, "max_new_tokens": 12}
    for _ in range(times):
        for constrained in least:
            constraint = bound if constrained else None
            seconds = ours(model, vocabulary, age, sex, constraint=constraint, **options)[1]
            least[constrained] = min(least[constrained], seconds)
    return least[True] / least[False]


def measure(folder: Path, cohort: Path, sizes: list[int]) -> Iterator[Line]:
    """Lines of the table."""
    quiet_libraries()
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    device, _ = pick_device("auto")
    model = PromptBartWithDemographicPrediction.from_pretrained(folder).float().eval().to(device)
    visits = read_visits(cohort)
    first = patient_starts(visits)
    age, sex = visits["age"].to_numpy()[first], sex_index(visits)[first].astype(np.int64)
    age, sex = np.resize(age, 4096), np.resize(sex, 4096)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    torch.manual_seed(0)
    ours(model, vocabulary, age[:BATCH_SIZE], sex[:BATCH_SIZE])  # warms up, as the next line does
    plain(model, vocabulary, age[:BATCH_SIZE], sex[:BATCH_SIZE], 64)
    made, seconds = ours(model, vocabulary, age, sex)
    per_visit = {}
    for name, batch, n in (("plain generate(), 64 at a time", 64, 2048), ("plain generate(), one", 1, 128)):
        codes, took = plain(model, vocabulary, age[:n], sex[:n], batch)
        per_visit[name] = took / n
        yield Line(name, n, "visits", took, n / took)
        yield Line(f"{name}: codes", codes, "codes", took, codes / took)
    for name, each in per_visit.items():
        ratio = each / (seconds / len(age))
        yield Line(
            f"ours, {cores} threads", len(age), "visits", seconds, len(age) / seconds, ratio, f"x {name}"
        )
    yield Line(f"ours, {cores} threads: codes", made, "codes", seconds, made / seconds)
    torch.set_num_threads(1)
    made, seconds = ours(model, vocabulary, age, sex)
    yield Line("ours, one thread: codes", made, "codes", seconds, made / seconds)
    torch.set_num_threads(cores)
    ratio = against_constraint(model, vocabulary, age[:BATCH_SIZE], sex[:BATCH_SIZE])
    yield Line("ours, constrained", BATCH_SIZE, "visits", None, None, ratio, "x the seconds without")
    lines = []
    with tempfile.TemporaryDirectory() as name:
        written = ("--synthetic", f"{name}/visits.parquet", "--counts", f"{name}/counts.json")
        for size in sizes:
            asked = ("--model-dir", folder, "--train", cohort, "--test", cohort, "--patients", size)
            seconds, memory, _ = run("generate", *asked, *written)
            lines.append(Line("generate", size, "patients", seconds, size / seconds, memory=memory))
            yield lines[-1]
    if len(sizes) > 1:
        yield growth(lines, "generate")
        # The start, of some seconds, is in both sizes.
        further, seconds = sizes[-1] - sizes[0], lines[-1].seconds - lines[0].seconds
        for name, each in per_visit.items():
            ratio = each / (seconds / further)
            yield Line(
                "generate, after its start",
                further,
                "patients",
                seconds,
                further / seconds,
                ratio,
                f"x {name}",
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=PUBLISHED)
    parser.add_argument("--cohort", type=Path, default=PUBLISHED.parent / "cohort" / "visits.parquet")
    parser.add_argument("--patients", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report(measure(given.model, given.cohort, given.patients), given.out)
