"""Measure training and generation: tokens and codes a second, beside the machine's matrix-product peak.

python benchmarks/model.py [--preset small] [--visits 4000] [--tokens 150000]

The cohort is made up (uniform codes; the lengths of a hospital discharge), for speed does not depend on
what is learnt. Everything is measured in one run, so that the ratios hold whatever the machine.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "workflow_scripts"))

import numpy as np
import pyarrow as pa
import torch

import train
from build_dataset import DATASET_SCHEMA, learn_vocabulary, with_ids
from cohortloom.constrained import Constraint
from cohortloom.devices import pick_device
from cohortloom.examples import Examples, batches, collate, corrupted_pairs
from cohortloom.forbidden import AGES
from cohortloom.generation import synthesize
from cohortloom.presets import make_model
from cohortloom.visits import list_column, sex_array, write_visits


def made_up_visits(n: int, n_codes: int, seed: int) -> pa.Table:
    """`n` visits of one patient each: 1 to 15 codes, 7 on average, of `n_codes`."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.poisson(6.3, n) + 1, 1, 15)
    codes = np.concatenate([rng.choice(n_codes, length, replace=False) for length in lengths])
    zeros = np.zeros(n, np.int32)
    return pa.table(
        [
            pa.array([str(i) for i in range(n)]),
            zeros.astype(np.int16),
            zeros,
            rng.integers(1, 90, n).astype(np.float32),
            sex_array(rng.integers(0, 2, n)),
            list_column(pa.array([f"{c:05d}" for c in codes]), np.concatenate([[0], np.cumsum(lengths)])),
        ],
        names=["patient_id", "visit", "days", "age", "sex", "diagnoses"],
    )


def matrix_peak(device: str, precision: str, size: int = 2048, seconds: float = 2.0) -> float:
    """Floating-point operations a second of a square matrix product in the training's precision."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - start))
    return best


def training_flops(model: torch.nn.Module, batch: dict[str, np.ndarray]) -> float:
    """6 x the weights that a position meets, over encoder and decoder positions and scored tokens.

    Left out: attention itself, prompts, heads, and the sums over codes.
    """
    count = lambda module: sum(p.numel() for p in module.parameters() if p.ndim > 1)  # noqa: E731
    embeddings = model.model.shared.weight.numel()
    encoder = count(model.model.encoder.layers) * (batch["input_ids"].size + 2 * len(batch["x_num"]))
    decoder = count(model.model.decoder.layers) * (batch["decoder_input_ids"].size + 2 * len(batch["x_num"]))
    layers = (model.summary.present, model.summary.hidden, model.summary.output)
    summary = sum(layer.weight.numel() for layer in layers)
    decoder += summary * batch["decoder_input_ids"].size
    return 6.0 * (encoder + decoder + embeddings * (batch["labels"] != -100).sum())


def against_constraint(model, words, data, times: int = 7) -> tuple[float, float]:
    """Least seconds of generation without and with a constraint, in turn on the same patients.

    A seventh of the codes is restricted, as in the edits, half of them forbidden at each age and sex. All
    visits are of 12 tokens: a constraint ends visits sooner, which is not to be taken for speed.
    """
    rng = np.random.default_rng(0)
    table = (rng.random((2, AGES, len(words))) < 0.5) & (rng.random(len(words)) < 1 / 7)
    table[..., : words.first_code] = False
    on_cpu = next(model.parameters()).device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter  # other work on the machine must not count
    least = [np.inf, np.inf]
    options = {"max_visits": 1, "suppress_tokens": words.terminators, "max_new_tokens": 12}
    for number in range(times):
        for constrained in (False, True):
            constraint = Constraint(words, table, next(model.parameters()).device) if constrained else None
            start = clock()
            people = (data.age[:256], data.sex[:256], number, 256)
            list(synthesize(model, words, *people, constraint=constraint, **options))
            least[constrained] = min(least[constrained], clock() - start)
    return least[0], least[1]


def trained(files: dict[str, Path], preset: str, tokens: int, threads: int) -> float:
    """Target tokens a second of the step itself, which starts a process for each thread."""
    options = [f"--{name}={path}" for name, path in files.items()]
    options += [f"--preset={preset}", f"--tokens={tokens}", f"--threads={threads}", "--evaluations=1"]
    options += ["--selection-patients=10", "--device=auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    step = [sys.executable, train.__file__, *options]
    done = subprocess.run(step, capture_output=True, text=True, check=True, env=environment)
    return float(re.search(r"tokens in \d+ s: (\d+) a second", done.stderr).group(1))


def measure(preset: str, n_visits: int, tokens: int) -> list[tuple[str, float, str]]:
    """Rows of (what, value, unit)."""
    visits = made_up_visits(n_visits, 4500, 0)
    words = learn_vocabulary(visits, 1, 1)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.parquet" for name in ("train", "val")}
        for path in files.values():
            write_visits(with_ids(visits, words), path, {}, DATASET_SCHEMA)
        data = Examples.load(files["train"])
        files |= {"vocabulary": Path(folder) / "vocabulary.json", "model": Path(folder) / "model"}
        words.save(files["vocabulary"])
        rates = {threads: trained(files, preset, tokens, threads) for threads in sorted({1, cores})}
    losses = {"age_weight": 0.3, "sex_weight": 0.2, "age_loss_unit": "standardized"}
    model = make_model(words, data, preset, 0, 0.0, 512, **losses)
    pairs = corrupted_pairs(data, words, np.random.default_rng(0), 510, 0.5, 0.05, 0.05, 0.05)
    flops = padded = cells = scored = 0.0
    for rows in batches(pairs, 256, np.random.default_rng(0), np.diff(data.offsets) > 0)[:300]:
        batch = collate(data, pairs, rows)
        flops, scored = flops + training_flops(model, batch), scored + (batch["labels"] != -100).sum()
        padded, cells = padded + (batch["labels"] == -100).sum(), cells + batch["labels"].size
    device, precision = pick_device("auto")
    peak = matrix_peak(device, precision)
    model.to(device).eval()
    generated = time.perf_counter()
    records = list(synthesize(model, words, data.age[:512], data.sex[:512], 0, 256, max_visits=1))
    generated = time.perf_counter() - generated
    codes = sum(len(record.ids) for record in records)
    free, bound = against_constraint(model, words, data)
    kind = "bf16" if precision == "bf16" else "float32"
    return [
        ("parameters", model.num_parameters() / 1e6, "million"),
        ("matrix-product peak", peak / 1e9, f"GFLOP/s ({device}, {kind}, {torch.get_num_threads()} threads)"),
        *((f"training, {n} of {cores} CPUs", rate, "target tokens a second") for n, rate in rates.items()),
        ("training, share of the peak", 100 * flops / scored * rates[cores] / peak, "%"),
        ("padding", 100 * padded / cells, "% of decoder positions"),
        ("generation", 512 / generated, "visits a second"),
        ("generation", codes / generated, "codes a second"),
        ("generation, constrained", 100 * bound / free, "% of the seconds without (least of 7 each)"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", choices=("tiny", "mini", "small", "base"))
    parser.add_argument("--visits", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=150_000, help="budget of a training")
    arguments = parser.parse_args()
    for what, value, unit in measure(arguments.preset, arguments.visits, arguments.tokens):
        print(f"{what:30s} {value:10.1f} {unit}")
