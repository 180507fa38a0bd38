"""The table of targets and its page: figures over generation seeds, compared with real data.

A figure is the mean over the generation seeds of one trained model, with Student's t interval (95%) over the
seeds. The interval covers the chance of sampling, not that of another training. The interval of the first
seed over patients is given too. Targets are lines of resources/quality_targets.csv:

- `at_n`: the figure depends on the number of scored visits. Only figures of that n (`same`: of the main run's
  n) are compared, and a target for another n is not judged. Empty for a rate, which does not depend on n.
- `of`: the bound is a multiple of this figure (real, prevalence). With the comparison `within`, the figure
  may differ by the bound from this one (real, or a number). Without `of` the bound is absolute.
- If real has too few visits for that n, copies of training patients replace it.
- `cohort`: the source of data that the target is for; empty for all. `needs`: a figure without which the line
  is left out, such as the carry-forward rate if no patient has a second visit.
"""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cohortloom.base.errors import UserError
from cohortloom.evaluation.intervals import mean_interval
from cohortloom.evaluation.records import is_headline
from cohortloom.reporting.scorecard import MUST_BEAT, REAL, VOID_UNLESS, same_size
from cohortloom.reporting.sentences import NONE, floor_sentence, format_interval, format_number

COPY = "copy"
PREVALENCE = "prevalence"
COLUMNS = ("metric", "mode", "size", "at_n", "cohort", "comparison", "bound", "of", "needs", "source")
# Metrics whose n is not the number of scored visits. Prediction is tested on n real visits and trained on
# n_reference. The others count patients or pairs of visits, whose number depends on the generator: their size
# is that of the sample, which is the n of the Jensen-Shannon distance.
SIZED_BY_REFERENCE = "prediction_auc"
SIZED_BY_SAMPLE = ("carried_codes", "ks_visits_per_patient", "sequential_bigram_r2")
COUNTS_VISITS = ("synthesize", "js_distance")
CARRIED = {
    "metric": "carried_codes",
    "mode": "synthesize",
    "size": "base",
}  # has a value if patients have several visits
MISSED = "**missed**"
Row = dict[str, Any]
Metrics = dict[str, dict[str, str]]


class Sample(NamedTuple):
    """A generated set: its run, the training or naive method that generated it, generation seed, size."""

    name: str
    source: str
    seed: int
    large: bool


class TargetRange(NamedTuple):
    """The range in which a figure must lie and its reference, or the reason for no verdict."""

    low: float | None = None
    high: float | None = None
    against: str | None = None
    reference: float | None = None
    reason: str | None = None


def read_targets(path: Path) -> list[dict[str, str]]:
    """Lines of the table of targets, in order.

    Raises UserError with the line and the column of a wrong cell.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
            raise UserError(f"{path}: column {missing[0]} is missing; restore it")
        targets = []
        for row in reader:
            where = f"{path}: line {reader.line_num}: column"
            checks = {
                "comparison": r"<=|>=|within",
                "bound": r"\d+(\.\d+)?",
                "of": rf"|{REAL}|{PREVALENCE}|\d+(\.\d+)?",
                "size": r"|base|large",
                "at_n": r"|same|\d+",
            }
            for column, pattern in checks.items():
                if not re.fullmatch(pattern, row[column] or ""):
                    raise UserError(f"{where} {column}: {row[column]!r} is not one of its values; correct it")
            if row["comparison"] == "within" and not row["of"]:
                raise UserError(f"{where} of: empty; give the figure to lie within {row['bound']} of")
            targets.append(row)
    return targets


def table(records: list[Row], samples: list[Sample], targets: list[dict[str, str]], cohort: str) -> list[Row]:
    """One row for each target and run: the runs and methods in the order of `samples`, then real.

    records: of the samples, of held-out visits and of the runs' reconstruction. In a row, `n` is the number
    of visits of the figure; `mean`, `ci_low` and `ci_high` are over `seeds` samples; `value`, `patients_low`
    and `patients_high` are of the first sample, over patients. The first source is the main run; real is
    compared at its n.
    """
    by_key = {(r["run"], r["mode"], r["metric"]): r for r in records if is_headline(r)}
    by_key = {where: {**record, "size": _size(record, by_key)} for where, record in by_key.items()}
    sources = _with_reconstructing(list(dict.fromkeys(sample.source for sample in samples)), by_key)
    rows: list[Row] = []
    with_history = [source for source in sources if _records(by_key, samples, source, CARRIED)]
    for target in targets:
        if target["needs"] and not with_history:
            continue
        figures = {source: _records(by_key, samples, source, target) for source in sources}
        of_main = figures[sources[0]]
        size = of_main[0]["size"] if of_main else None
        real = _real(by_key, target, size)
        allowed = _target_range(target, cohort, size, real, figures)
        for run, own in [*figures.items(), (REAL, [real] if real else [])]:
            row = _row(target, run, own, allowed, real, figures)
            row["pass"] = _passes(row, allowed, target["metric"]) if run != REAL else None
            rows.append(row)
    return rows


def _with_reconstructing(sources: list[str], by_key: dict[tuple, Row]) -> list[str]:
    """The sources and, after prevalence, the methods to beat that only reconstruct and have no sample."""
    methods = {method for method in MUST_BEAT.values() if method not in sources}
    methods &= {run for run, mode, _ in by_key if mode == "reconstruct"}
    position = sources.index(PREVALENCE) + 1 if PREVALENCE in sources else len(sources)
    return [*sources[:position], *sorted(methods), *sources[position:]]


def _records(by_key, samples: list[Sample], source: str, target: dict[str, str]) -> list[Row]:
    """Records of a source that have a value, in the order of their seeds."""
    names = [
        sample.name
        for sample in sorted(samples, key=lambda sample: sample.seed)
        if sample.source == source and sample.large == (target["size"] == "large")
    ]
    names = names if target["size"] else [source]
    records = [by_key.get((name, target["mode"], target["metric"])) for name in names]
    return [record for record in records if record is not None and record["value"] is not None]


def _real(by_key, target: dict[str, str], size: int | None) -> Row | None:
    """Real's record: of `size` visits if the figure depends on n, else of all held-out patients."""
    for name in (f"quality-{REAL}", REAL):
        record = by_key.get((name, target["mode"], target["metric"]))
        if record is None or record["value"] is None:
            continue
        if not target["at_n"] or _same(record["size"], size):
            return record
    return None


def _size(record: Row, by_key: dict[tuple, Row]) -> int | None:
    """Number of visits that the figure of a record depends on."""
    if record["metric"] == SIZED_BY_REFERENCE:
        return record["n_reference"]
    if record["metric"] in SIZED_BY_SAMPLE:
        record = by_key.get((record["run"], *COUNTS_VISITS), record)
    return record["n"]


def _same(n: int | None, other: int | None) -> bool:
    return bool(n and other) and same_size(n, other)


def _mean(records: list[Row]) -> float | None:
    return mean_interval([record["value"] for record in records])[0] if records else None


def _target_range(target, cohort: str, size: int | None, real: Row | None, figures) -> TargetRange:
    """The range in which the figure must lie, or the reason why there is none."""
    if target["cohort"] not in ("", cohort):
        return TargetRange(reason=f"the target is for {target['cohort']}")
    if target["at_n"].isdecimal() and not _same(size, int(target["at_n"])):
        return TargetRange(reason=f"the target is for n = {int(target['at_n']):,}")
    against, reference = None, None
    if target["of"] == REAL:
        against, reference = (REAL, real["value"]) if real else (COPY, None)
        if not real and target["at_n"]:  # copies cannot replace real in a rate
            reference = _mean([r for r in figures.get(COPY, []) if _same(r["size"], size)])
    elif target["of"] == PREVALENCE:
        against, reference = PREVALENCE, _mean(figures.get(PREVALENCE, []))
    elif target["of"]:
        reference = float(target["of"])
    if target["of"] and reference is None:
        return TargetRange(reason=f"nothing to compare with: no figure of {target['of']}")
    if (reason := _void(target["metric"], figures)) is not None:
        return TargetRange(reason=reason)
    bound = float(target["bound"])
    if target["comparison"] == "within":
        return TargetRange(reference - bound, reference + bound, against, reference)
    end = bound if reference is None else bound * reference
    low, high = (end, None) if target["comparison"] == ">=" else (None, end)
    return TargetRange(low, high, against, reference)


def _void(metric: str, figures: dict[str, list[Row]]) -> str | None:
    """Reason why a measure is void: its control failed; None if it is not void."""
    method, minimum = VOID_UNLESS.get(metric, (None, 0.0))
    if method is None:
        return None
    control = _mean(figures.get(method, []))
    if control is not None and control >= minimum:
        return None
    scored = "was not scored" if control is None else f"scores {control:.3f}"
    return f"void: the control {method} {scored}, {minimum:.2f} is needed"


def _row(target, run: str, records: list[Row], allowed: TargetRange, real: Row | None, figures) -> Row:
    first = records[0] if records else {}
    mean, low, high = mean_interval([record["value"] for record in records]) if records else (None,) * 3
    # Seeds with exactly equal values (such as a rate of 0) give no interval, not one of width 0.
    has_spread = len({record["value"] for record in records}) > 1
    return {
        "metric": target["metric"],
        "mode": target["mode"],
        "size": target["size"] or None,
        "at_n": target["at_n"] or None,
        "run": run,
        "n": first.get("size"),
        "seeds": len(records) if run != REAL else None,
        "mean": mean,
        "ci_low": low if has_spread else None,
        "ci_high": high if has_spread else None,
        "value": first.get("value"),
        "patients_low": first.get("ci_low"),
        "patients_high": first.get("ci_high"),
        "real": real["value"] if real else None,
        "copy": _mean(figures.get(COPY, [])),
        "comparison": target["comparison"],
        "bound": float(target["bound"]),
        "of": target["of"] or None,
        "against": allowed.against,
        "reference": allowed.reference,
        "target_low": allowed.low,
        "target_high": allowed.high,
        "source": target["source"],
        "reason": allowed.reason,
    }


def _passes(row: Row, allowed: TargetRange, metric: str) -> bool | None:
    """Whether the mean lies in the range; null without a verdict, and for the reference itself."""
    references = (allowed.against, VOID_UNLESS.get(metric, ("",))[0])
    if allowed.reason or row["mean"] is None or row["run"] in references:
        return None
    above = allowed.low is None or row["mean"] >= allowed.low
    below = allowed.high is None or row["mean"] <= allowed.high
    return bool(above and below)


def page(content: dict[str, Any], metrics: Metrics) -> str:
    """quality.md from the content of quality.json and the rows of metrics.csv by metric."""
    rows, run, seeds = content["rows"], content["run"], content["seeds"]
    hardware, git = content["hardware"], content["git"]
    gpus = "".join(f", {gpu}" for gpu in hardware["gpus"])
    commit = f" Commit {git['commit'][:12]}{' with changes' * git['modified']}." if git else ""
    targets = "\n".join(f"- {sentence}" for sentence in verdict_sentences(rows, run, metrics))
    return f"""# Quality of {content["experiment"]}

Made by the target `quality`. Generation seeds {seeds[0]} to {seeds[-1]}, one trained model a run, \
{content["patients"]:,} patients a seed with the ages and sexes of held-out patients; one sample of \
{content["large"]:,} patients. Constrained decoding: {content["constrained"]}. \
Machine: {hardware["processor"]}, {hardware["cores"]} cores, {hardware["memory_gib"]} GiB{gpus}.{commit}

Seconds of generation, a mean over the seeds and for the large sample: {_times(content)}.

## Means over generation seeds

In brackets the 95% interval over generation seeds (Student's t); with † one sample was scored, or all gave \
the same figure, and the interval is over the patients of the first. {MISSED}: the target is not met.

{_table(content, metrics, _over_seeds)}

## Targets of {run}

{targets}

## The first seed, with intervals over patients

{_table(content, metrics, _over_patients)}
"""


def verdict_sentences(rows: list[Row], run: str, metrics: Metrics) -> list[str]:
    """Sentences on a run: targets met, targets missed with the figure, not judged with the reason."""
    own = [row for row in rows if row["run"] == run]
    judged = [row["pass"] for row in own if row["pass"] is not None]
    sentences = [f"{sum(judged)} of {len(judged)} targets met."]
    for row in own:
        title, unit = metrics[row["metric"]]["title"], metrics[row["metric"]]["unit"]
        if row["pass"] is False:
            value = format_number(row["mean"], unit)
            sentences.append(f"Missed: {title}, {value}; target {target_in_words(row, unit)}.")
        elif row["pass"] is None:
            sentences.append(f"Not judged: {title} ({row['reason'] or 'no figure'}).")
        method = MUST_BEAT.get(row["metric"])
        floor = next((r["mean"] for r in rows if (r["run"], r["metric"]) == (method, row["metric"])), None)
        if floor is not None and row["mean"] is not None:
            sentences.append(floor_sentence(metrics[row["metric"]], row["mean"], method, floor))
    return sentences


def target_in_words(row: Row, unit: str) -> str:
    """A row's target with its reference; a dash if there is none.

    >>> row = {"reason": None, "comparison": ">=", "bound": 0.9, "of": "real", "against": "copy"}
    >>> target_in_words({**row, "target_low": 3638.5, "target_high": None, "reference": 4042.8}, "count")
    ">= 3,638 (0.9 times copy's)"
    """
    if row["reason"]:
        return NONE
    low, high = (format_number(row[end], unit) for end in ("target_low", "target_high"))
    if row["comparison"] == "within":
        return f"{low} to {high}" + (f" ({row['against']}'s)" if row["against"] else "")
    end = f"{row['comparison']} {low if row['comparison'] == '>=' else high}"
    times = "" if row["bound"] == 1 else f"{row['bound']:g} times "
    return f"{end} ({times}{row['against']}'s)" if row["against"] else end


def _table(content: dict[str, Any], metrics: Metrics, cell: Callable[[Row, str], str]) -> str:
    runs = list(dict.fromkeys(row["run"] for row in content["rows"]))
    by_line: dict[tuple, dict[str, Row]] = {}
    for row in content["rows"]:
        by_line.setdefault((row["metric"], row["mode"], row["size"]), {})[row["run"]] = row
    lines = [["figure", "n", "target", *runs], ["---"] * (3 + len(runs))]
    for by_key in by_line.values():
        first = next(iter(by_key.values()))
        unit = metrics[first["metric"]]["unit"]
        n = {"base": content["patients"], "large": content["large"]}.get(first["size"], first["n"])
        if first["at_n"] and first["n"]:
            n = min(n, first["n"])  # the classifier scores at most as many visits as are held out
        head = [metrics[first["metric"]]["title"], format_number(n, "count"), target_in_words(first, unit)]
        lines.append([*head, *(cell(by_key[run], unit) for run in runs)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _over_seeds(row: Row, unit: str) -> str:
    low = row["ci_low"]
    if low is not None and unit in ("fraction", "count"):
        low = max(low, 0.0)  # Student's t has no bounds
    ends = format_interval({**row, "ci_low": low}, unit)
    text = _over_patients(row, unit, " †") if ends == NONE else f"{format_number(row['mean'], unit)} ({ends})"
    return f"{text} {MISSED}" if row["pass"] is False else text


def _over_patients(row: Row, unit: str, mark: str = "") -> str:
    ends = format_interval({"ci_low": row["patients_low"], "ci_high": row["patients_high"]}, unit)
    return format_number(row["value"], unit) + ("" if ends == NONE else f" ({ends}{mark})")


def _times(content: dict[str, Any]) -> str:
    """Seconds of generation of each source: the mean of its samples, then of the large one."""
    seconds: dict[str, list[float]] = {}
    large: dict[str, str] = {}
    for name, spent in content["generation_seconds"].items():
        source, _, part = name.removeprefix("quality-").rpartition("-")
        if spent is not None and part == "large":
            large[source] = f" and {spent:,.0f}"
        elif spent is not None:
            seconds.setdefault(source, []).append(spent)
    means = [f"{source} {sum(s) / len(s):,.0f}{large.get(source, '')}" for source, s in seconds.items()]
    return ", ".join(means) or "not recorded"
