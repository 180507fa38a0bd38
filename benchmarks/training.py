"""Measure training: target tokens a second on one core and on all, beside the machine's matrix-product peak.

    python benchmarks/training.py [--preset small] [--precision auto] [--tokens 80000] [--rounds 3]
                                  [--batch-tokens 2048] [--out FILE]

The cohort is made up (uniform codes; the lengths of a hospital discharge), for speed does not depend on what
is learnt. Everything is measured in one run, so that the ratios hold whatever the machine. On a shared
machine the peak itself moves by the minute, threefold at times. So trainings and peaks take turns, and a
training is compared with the mean of the peaks before and after it, the median of all rounds; beside it
stands the share of the best peak of all. Muon's products are the same for a step of any size and not among
the operations counted: for the base preset take --batch-tokens 16384 and --visits 20000, so that an epoch
holds several such steps; on a GPU --batch-tokens 65536 --visits 100000 --tokens 3000000, so that the seconds
of the start and of the evaluation at the end weigh little.
"""

import argparse
import inspect
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measures import SCRIPTS, Line, report, run

sys.path.append(str(SCRIPTS))

import numpy as np
import torch
from made_up import dataset

from cohortloom.data.examples import Examples, batches, collate, corrupted_pairs
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.model.initial import make_model
from cohortloom.runtime.devices import pick_device
from train import train

PARTS = 300  # of batches, over which operations, padding and loading are counted


def matrix_peak(device: str, precision: str, threads: int, seconds: float = 2.0) -> float:
    """Floating-point operations a second of a square matrix product in the training's precision."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    size = 8192 if device == "cuda" else 2048
    torch.set_num_threads(threads)
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


def trained(files: dict[str, Path], folder: Path, asked: argparse.Namespace, threads: int) -> float:
    """Target tokens a second of the step itself, which on a CPU starts a process for each thread."""
    named = {**files, "model": folder / "model", "threads": threads}
    named |= {name: getattr(asked, name) for name in ("preset", "precision", "tokens", "batch_tokens")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
    options += ["--evaluations=1", "--selection-patients=10", "--device=auto"]
    _, _, log = run("train", *options, threads=threads)
    if not (rate := re.search(r"tokens in \d+ s: (\d+) a second", log)):
        sys.exit(f"error: train said no rate:\n{log[-2000:]}")
    return float(rate.group(1))


def measure(asked: argparse.Namespace) -> Iterator[Line]:
    """Lines of the table: the peak, what a token costs, and the step itself."""
    cores = len(os.sched_getaffinity(0))
    device, precision = pick_device("auto", precision=asked.precision)
    kind = "bf16" if precision == "bf16" else "float32"
    wheres = {n: f"{n} of {cores} cores" for n in sorted({1, cores})} if device == "cpu" else {cores: device}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = dataset(folder, asked.visits)
        words, data = Vocabulary.load(files["vocabulary"]), Examples.load(files["train"])
        losses = {"age_weight": 0.3, "sex_weight": 0.2, "age_loss_unit": "standardized"}
        model = make_model(words, data, asked.preset, 0, 0.0, 512, **losses)
        pairs = corrupted_pairs(data, words, np.random.default_rng(0), 510, 0.5, 0.05, 0.05, 0.05)
        part = asked.batch_tokens // inspect.signature(train).parameters["parts_per_step"].default
        parts = batches(pairs, part, np.random.default_rng(0), np.diff(data.offsets) > 0)[:PARTS]
        start = time.perf_counter()
        made = [collate(data, pairs, rows) for rows in parts]
        loading = time.perf_counter() - start
        scored = sum((batch["labels"] != -100).sum() for batch in made)
        cells = sum(batch["labels"].size for batch in made)
        flops = sum(training_flops(model, batch) for batch in made) / scored
        yield Line("padding", None, "", None, None, 1 - scored / cells, "of decoder positions")
        name = f"training, {asked.preset}, {model.num_parameters() / 1e6:.1f} million"
        for threads, where in wheres.items():
            peaks, rates = [matrix_peak(device, precision, threads)], []
            for _ in range(asked.rounds):
                rates.append(trained(files, folder, asked, threads))
                peaks.append(matrix_peak(device, precision, threads))
            for which, peak in zip(("least", "median", "best"), np.quantile(peaks, (0, 0.5, 1)), strict=True):
                yield Line(f"peak, {where}, {which}", None, f"GFLOP ({kind})", None, peak / 1e9)
            around = [flops * rate * 2 / sum(peaks[i : i + 2]) for i, rate in enumerate(rates)]
            rate, tokens = float(np.median(rates)), asked.tokens
            spread = f"({min(around):.3f} to {max(around):.3f})"
            shares = {f"of the peaks around it {spread}": float(np.median(around))}
            shares["of the best peak"] = flops * rate / max(peaks)
            for of, share in shares.items():
                yield Line(f"{name}, {where}", tokens, "target tokens", tokens / rate, rate, share, of)
        yield Line("loading a batch", None, "", None, None, loading / (scored / rate), "of a step's time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small", choices=("tiny", "mini", "small", "base"))
    parser.add_argument("--precision", default="auto", choices=("auto", "float32"))
    parser.add_argument("--visits", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=80_000, help="budget of a training")
    parser.add_argument("--rounds", type=int, default=3, help="trainings, with a peak before and after each")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="target tokens of a step")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report(measure(given), given.out)
