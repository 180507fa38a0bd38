"""Figures as people read them: numbers in their unit, records in words, sentences for a reader.

Used by the report, the cards, the quality page and the terminal. The sentences themselves are in
resources/metrics.csv, with the metric they speak of (columns reader and sentence).
"""

from cohortloom.data.codes import parts, with_dot
from cohortloom.evaluation.records import ALL, HEADLINE, NOT_TRAINED, is_headline
from cohortloom.reporting.scorecard import CRITERIA, N_DIFFERS, Record, floors

SIGNS = {"<": "under", "<=": "at most", "=": "exactly", ">=": "at least", ">": "over"}
NONE = "–"


def number(value: float | None, unit: str) -> str:
    """A figure in its unit; `fraction` is written as a percentage, null as a dash.

    >>> number(0.00231, "fraction"), number(12345, "count"), number(0.4567, ""), number(None, "")
    ('0.231%', '12,345', '0.457', '–')
    """
    if value is None:
        return NONE
    if unit == "fraction":
        return _short(100 * value) + "%"
    if unit == "count":
        return f"{value:,.0f}"
    return _short(value)


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"


def interval(record: dict, unit: str) -> str:
    """The 95% interval of a record, a dash where it has none.

    >>> interval({"ci_low": 0.1, "ci_high": 0.25}, "fraction")
    '10.0% to 25.0%'
    """
    if record["ci_low"] is None or record["ci_high"] is None:
        return NONE
    return f"{number(record['ci_low'], unit)} to {number(record['ci_high'], unit)}"


def target(written: str, unit: str) -> str:
    """A target of resources/metrics.csv in words.

    >>> target("< 0.02", "fraction"), target(">= 0.42", "")
    ('under 2%', 'at least 0.42')
    """
    sign, bound = written.split()
    return f"{SIGNS[sign]} " + (f"{100 * float(bound):g}%" if unit == "fraction" else f"{float(bound):g}")


def verdict(record: dict) -> str:
    """pass or FAIL; without a verdict why, where a reader would wonder, else that it is not judged."""
    if record["pass"] is None:
        return record["reason"] if record["reason"] in (NOT_TRAINED, N_DIFFERS) else "not judged"
    return "pass" if record["pass"] else "FAIL"


def margin(record: Record, unit: str) -> str:
    """What a figure that is judged against real may be at worst: an end of real's interval, or both.

    >>> margin({"pass": True, "target": None, "higher_is_better": False, "real_low": 1, "real_high": 2}, "")
    'at most 2.00'
    """
    if record["pass"] is None or record["target"] is not None:
        return ""
    low, high = (number(record[end], unit) for end in ("real_low", "real_high"))
    if record["higher_is_better"] is None:
        return f"{low} to {high}"
    return f"at least {low}" if record["higher_is_better"] else f"at most {high}"


def in_words(record: Record, metric: dict[str, str]) -> dict[str, str]:
    """The cells of a record for a table; `metric` is its row of metrics.csv.

    `mode` is a remark: half revealed, where one expects new patients, and the column of codes where that is
    not the diagnoses. The copy method's figure is `copied`, for in a template row.copy is the method of a
    dict.
    """
    unit, reconstructs = metric["unit"], CRITERIA.get(metric["metric"]) == "reconstruct"
    expected = reconstructs or metric["group"] == "reconstruction"
    remarks = [str(record["column"])] if record["column"] not in (ALL, HEADLINE) else []
    remarks += ["half revealed"] if record["mode"] == "reconstruct" and not expected else []
    return {
        "metric": metric["metric"],
        "title": metric["title"],
        "unit": "" if unit in ("fraction", "count") else unit,
        "mode": ", ".join(remarks),
        "subset": str(record["subset"] or ""),
        "value": number(record["value"], unit),
        "interval": interval(record, unit),
        "target": target(metric["target"], unit) if record["target"] is not None else "",
        "verdict": verdict(record),
        "margin": margin(record, unit),
        "n": number(record["n"], "count"),
        "real": number(record["real"], unit),
        "copied": number(record["copy"], unit),
        "naive": number(record["naive"], unit),
        "reason": str(record.get("reason") or ""),
    }


def against_naive(records: list[Record], run: str, metrics: dict[str, dict[str, str]]) -> list[str]:
    """Whether a run beats the naive method that it must beat, a sentence a figure."""
    return [
        beats(metrics[str(record["metric"])], record["value"], method, value)
        for record, method, value in floors(records, run)
    ]


def beats(metric: dict[str, str], value: float, method: str, floor: float) -> str:
    """Whether a figure is above that of a naive method, in words.

    >>> beats({"title": "F1 on hidden codes", "unit": ""}, 0.158, "linear", 0.221)
    'F1 on hidden codes, 0.158, does not beat linear, 0.221.'
    """
    verb = "beats" if value > floor else "does not beat"
    title, unit = metric["title"], metric["unit"]
    return f"{title}, {number(value, unit)}, {verb} {method}, {number(floor, unit)}."


def sentences(
    records: list[Record], run: str, reader: str, metrics: dict[str, dict[str, str]]
) -> list[dict[str, str]]:
    """What a run's figures say to a reader (physician, steward, control), in the order of metrics.csv.

    Each entry: text and the record's own verdict; a figure without a value has none.
    """
    whole = {
        r["metric"]: r for r in records if r["run"] == run and is_headline(r) and r["mode"] != "reconstruct"
    }
    found = []
    for name, metric in metrics.items():
        record = whole.get(name)
        if metric["reader"] == reader and record is not None and record["value"] is not None:
            low, high = (number(record[end], metric["unit"]) for end in ("ci_low", "ci_high"))
            words = in_words(record, metric)
            found.append(
                {"text": metric["sentence"].format(**words, low=low, high=high), "verdict": words["verdict"]}
            )
    return found


def dotted(code: str) -> str:
    """A code SYSTEM:CODE as physicians write it; its system is added where that is not ICD-9-CM.

    >>> dotted("ICD9CM:42731"), dotted("ICD9CM:E8120"), dotted("ICD9CM:042"), dotted("ICD10CM:I4891")
    ('427.31', 'E812.0', '042', 'I48.91 (ICD10CM)')
    """
    system, _ = parts(code)
    return with_dot(code) if system == "ICD9CM" else f"{with_dot(code)} ({system})"
