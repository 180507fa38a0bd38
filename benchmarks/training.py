"""Measure training: target tokens a second on one core and on all, beside the machine's matrix-product peak.

    python benchmarks/training.py [--preset small] [--precision auto] [--tokens 80000] [--rounds 3]
                                  [--batch-tokens 1750] [--out FILE]

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

from cohortloom.data.examples import Examples, collate, corrupted_pairs, steps
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.model.initial import make_model
from cohortloom.runtime.devices import pick_device

STEPS = 40  # over which operations, padding and loading are counted


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

    Left out: attention itself, prompts, heads, the sums over codes, and positions that only fill up a row.
    """
    count = lambda module: sum(p.numel() for p in module.parameters() if p.ndim > 1)  # noqa: E731
    read, written = ((batch[f"{side}_visit"] >= 0).sum() for side in ("encoder", "decoder"))
    summary = model.summary
    to_logits = sum(
        p.weight.numel() for p in (summary.present, summary.hidden, summary.output, model.lm_head)
    )
    of_layers = count(model.model.encoder.layers) * read + count(model.model.decoder.layers) * written
    return 6.0 * float(of_layers + to_logits * (batch["labels"] != -100).sum())


def trained(files: dict[str, Path], folder: Path, asked: argparse.Namespace, threads: int) -> float:
    """Target tokens a second of the step itself."""
    named = {**files, "model_dir": folder / "model", "threads": threads}
    named |= {name: getattr(asked, name) for name in ("preset", "precision", "tokens", "batch_tokens")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
    _, _, log = run("train", *options, "--evaluations=1", "--device=auto", threads=threads)
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
        vocabulary, data = Vocabulary.load(files["vocabulary"]), Examples.load(files["train"])
        model = make_model(vocabulary, data, asked.preset, seed=0, dropout=0.0)
        rng = np.random.default_rng(0)
        pairs = corrupted_pairs(data, vocabulary, rng, model.config.max_position_embeddings)
        visits = rng.permutation(np.flatnonzero(np.diff(data.offsets) > 0))
        runs = steps(pairs, asked.batch_tokens, visits)[:STEPS]
        start = time.perf_counter()
        batches = [collate(data, pairs, rows) for rows in runs]
        loading = time.perf_counter() - start
        scored = sum((batch["labels"] != -100).sum() for batch in batches)
        flops = sum(training_flops(model, batch) for batch in batches) / scored
        for side in ("encoder", "decoder"):
            padded = np.concatenate([batch[f"{side}_visit"].ravel() < 0 for batch in batches]).mean()
            yield Line("padding", None, "", None, None, float(padded), f"of {side} positions")
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
        yield Line("loading a step", None, "", None, None, loading / (scored / rate), "of a step's time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small", choices=("tiny", "mini", "small", "base"))
    parser.add_argument("--precision", default="auto", choices=("auto", "float32"))
    parser.add_argument("--visits", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=80_000, help="budget of a training")
    parser.add_argument("--rounds", type=int, default=3, help="trainings, with a peak before and after each")
    parser.add_argument("--batch-tokens", type=int, default=1750, help="target tokens of a step")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report(measure(given), given.out)
