"""The table of targets as a page to read: a line a figure, a column a run, and what was missed."""

from typing import Any

from cohortloom.reporting import wording

Row = dict[str, Any]
MISSED, UNJUDGED = "**missed**", "not judged"


def page(content: dict[str, Any], meanings: dict[str, dict[str, str]]) -> str:
    """quality.md from the content of quality.json and the rows of metrics.csv by metric."""
    rows, run = content["rows"], content["run"]
    seeds = content["seeds"]
    lines = [f"# Quality of {content['experiment']}", ""]
    lines += [
        f"Made by the target `quality`. Generation seeds {seeds[0]} to {seeds[-1]}, one trained model a run, "
        f"{content['patients']:,} patients a seed with the ages and sexes of held-out patients; one sample "
        f"of {content['large']:,} patients. Constrained decoding: {content['constrained']}. "
        f"{_machine(content)}",
        "",
        f"Seconds of generation, a mean over the seeds and for the large sample: {_times(content)}.",
        "",
        "## Means over generation seeds",
        "",
        "In brackets the 95% interval over generation seeds (Student's t); with † one sample was scored, or "
        "all gave the same figure, and the interval is over the patients of the first. "
        f"{MISSED}: the target is not met.",
        "",
        *_table(rows, meanings, _over_seeds, content),
        "",
        f"## What {run} is held to",
        "",
        *(f"- {sentence}" for sentence in verdict(rows, run, meanings)),
        "",
        "## The first seed, with intervals over patients",
        "",
        *_table(rows, meanings, _over_patients, content),
    ]
    return "\n".join(lines) + "\n"


def verdict(rows: list[Row], run: str, meanings: dict[str, dict[str, str]]) -> list[str]:
    """How many targets a run meets, which it misses and by what, and which are not judged and why."""
    own = [row for row in rows if row["run"] == run]
    judged = [row for row in own if row["pass"] is not None]
    sentences = [f"{sum(row['pass'] for row in judged)} of {len(judged)} targets met."]
    for row in own:
        title, unit = _title(row, meanings)
        if row["pass"] is False:
            value = wording.number(row["mean"], unit)
            sentences.append(f"Missed: {title}, {value}; target {target(row, unit)}.")
        elif row["pass"] is None:
            sentences.append(f"Not judged: {title} ({row['reason'] or 'no figure'}).")
    return sentences


def target(row: Row, unit: str) -> str:
    """A row's target in words, with the figure of what it is relative to; a dash where none applies.

    >>> row = {"reason": None, "comparison": ">=", "bound": 0.9, "of": "real", "against": "copy"}
    >>> target({**row, "target_low": 3638.5, "target_high": None, "reference": 4042.8}, "count")
    ">= 3,638 (0.9 times copy's)"
    """
    if row["reason"]:
        return wording.NONE
    low, high = (wording.number(row[end], unit) for end in ("target_low", "target_high"))
    if row["comparison"] == "within":
        return f"{low} to {high}" + (f" ({row['against']}'s)" if row["against"] else "")
    end = f"{row['comparison']} {low if row['comparison'] == '>=' else high}"
    times = "" if row["bound"] == 1 else f"{row['bound']:g} times "
    return f"{end} ({times}{row['against']}'s)" if row["against"] else end


def _table(rows: list[Row], meanings, cell, content: dict[str, Any]) -> list[str]:
    runs = list(dict.fromkeys(row["run"] for row in rows))
    by_line: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        by_line.setdefault((row["metric"], row["mode"], row["size"]), {})[row["run"]] = row
    lines = ["| figure | n | target | " + " | ".join(runs) + " |", "|---" * (3 + len(runs)) + "|"]
    for found in by_line.values():
        first = next(iter(found.values()))
        title, unit = _title(first, meanings)
        n = {"base": content["patients"], "large": content["large"]}.get(first["size"], first["n"])
        if first["at_n"] and first["n"]:
            n = min(n, first["n"])  # the classifier has no more than the held-out visits
        cells = [title, wording.number(n, "count"), target(first, unit)]
        cells += [cell(found[run], unit) for run in runs]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _title(row: Row, meanings: dict[str, dict[str, str]]) -> tuple[str, str]:
    meaning = meanings[row["metric"]]
    return meaning["title"], meaning["unit"]


def _over_seeds(row: Row, unit: str) -> str:
    low = row["ci_low"]
    if low is not None and unit in ("fraction", "count"):
        low = max(low, 0.0)  # Student's t knows no bounds
    ends = wording.interval({**row, "ci_low": low}, unit)
    text = (
        _over_patients(row, unit, " †")
        if ends == wording.NONE
        else f"{wording.number(row['mean'], unit)} ({ends})"
    )
    return f"{text} {MISSED}" if row["pass"] is False else text


def _over_patients(row: Row, unit: str, mark: str = "") -> str:
    ends = wording.interval({"ci_low": row["patients_low"], "ci_high": row["patients_high"]}, unit)
    return wording.number(row["value"], unit) + ("" if ends == wording.NONE else f" ({ends}{mark})")


def _times(content: dict[str, Any]) -> str:
    """Seconds of a source's samples: the mean of the ordinary ones, then the large one."""
    found: dict[str, list[float]] = {}
    large: dict[str, float] = {}
    for name, spent in content["generation_seconds"].items():
        source, _, part = name.removeprefix("quality-").rpartition("-")
        if spent is not None and part == "large":
            large[source] = spent
        elif spent is not None:
            found.setdefault(source, []).append(spent)
    parts = [
        f"{source} {sum(spent) / len(spent):,.0f}" + (f" and {large[source]:,.0f}" if source in large else "")
        for source, spent in found.items()
    ]
    return ", ".join(parts) or "not kept"


def _machine(content: dict[str, Any]) -> str:
    hardware, git = content["hardware"], content["git"]
    text = f"Machine: {hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB"
    text += "".join(f", {gpu}" for gpu in hardware["gpus"]) + "."
    if git:
        text += f" Commit {git['commit'][:12]}" + (" with changes." if git["modified"] else ".")
    return text
