"""Figures for people: numbers in their unit, records in words, sentences for a reader.

Used by the report, the cards, the quality page and the terminal. The sentences are in resources/metrics.csv,
each in the row of its metric (columns reader and sentence).
"""

from cohortloom.data.codes import CODE_COLUMNS, parts, with_dot
from cohortloom.evaluation.records import ALL, HEADLINE, NOT_TRAINED, is_headline
from cohortloom.reporting.scorecard import (
    CRITERIA,
    MUST_BEAT,
    N_DIFFERS,
    NO_REAL,
    VOID,
    Record,
    naive_floors,
)

# mode of a record -> in words
MODES = {"synthesize": "new patients", "reconstruct": "half revealed", "teacher_forced": "teacher-forced"}
# reason of a record without a verdict -> in words; any other reason is in words already
REASONS = {
    N_DIFFERS: "by more than 5% from real's",
    VOID: "void: its control failed, so it detects too little here",
    NOT_TRAINED: "the head has weight 0",
}
SIGNS = {"<": "under", "<=": "at most", "=": "exactly", ">=": "at least", ">": "over"}
NONE = "–"


def format_number(value: float | None, unit: str) -> str:
    """A figure in its unit: a fraction as a percentage, null as a dash.

    >>> format_number(0.00231, "fraction"), format_number(12345, "count"), format_number(0.4567, ""),
    format_number(None, "") ('0.231%', '12,345', '0.457', '–')
    """
    if value is None:
        return NONE
    if unit == "fraction":
        return _significant(100 * value) + "%"
    if unit == "count":
        return f"{value:,.0f}"
    return _significant(value)


def _significant(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"


def format_interval(record: dict, unit: str) -> str:
    """The 95% interval of a record; a dash if it has none.

    >>> format_interval({"ci_low": 0.1, "ci_high": 0.25}, "fraction")
    '10.0% to 25.0%'
    """
    if record["ci_low"] is None or record["ci_high"] is None:
        return NONE
    return f"{format_number(record['ci_low'], unit)} to {format_number(record['ci_high'], unit)}"


def format_target(target: str, unit: str) -> str:
    """A target of resources/metrics.csv in words.

    >>> format_target("< 0.02", "fraction"), format_target(">= 0.42", "")
    ('under 2%', 'at least 0.42')
    """
    sign, bound = target.split()
    return f"{SIGNS[sign]} " + (f"{100 * float(bound):g}%" if unit == "fraction" else f"{float(bound):g}")


def format_verdict(record: dict) -> str:
    """pass or FAIL; without a verdict the reason if a reader needs it, else `not judged`."""
    if record["pass"] is None:
        return record["reason"] if record["reason"] in (NOT_TRAINED, N_DIFFERS) else "not judged"
    return "pass" if record["pass"] else "FAIL"


def verdict_reason(record: Record, metric: dict[str, str]) -> str:
    """Why a record has its verdict, or none, in a few words for a reader; `metric` is its row in metrics.csv.

    >>> record = {"pass": False, "target": None, "higher_is_better": False, "real_low": 0.8, "real_high": 1}
    >>> verdict_reason(record, {"metric": "js_distance", "unit": ""})
    "above 1.00, the worse end of real's interval"
    """
    passed, unit = record["pass"], metric["unit"]
    if passed is None:
        if record["reason"] == NO_REAL:
            return (
                "no such figure of real data" if record["real"] is None else "real's figure has no interval"
            )
        return REASONS.get(str(record["reason"]), str(record["reason"] or ""))
    if record["target"] is not None:
        return ("" if passed else "not ") + format_target(metric["target"], unit)
    if metric["metric"] in MUST_BEAT:
        return ("above" if passed else "not above") + f" the naive method {MUST_BEAT[metric['metric']]}"
    low, high = (format_number(record[end], unit) for end in ("real_low", "real_high"))
    if record["higher_is_better"] is None:
        return f"{'within' if passed else 'outside'} real's interval, {low} to {high}"
    if record["higher_is_better"]:
        return f"{'at least' if passed else 'below'} {low}, the worse end of real's interval"
    return f"{'at most' if passed else 'above'} {high}, the worse end of real's interval"


def record_cells(record: Record, metric: dict[str, str]) -> dict[str, str]:
    """The cells of a record for a table; `metric` is its row of metrics.csv.

    The cell `mode` is a remark: "half revealed" where a reader expects new patients, and the column of codes
    if it is not the diagnoses; `how` is the mode itself in words.
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
        "column": str(record["column"]),
        "how": MODES.get(str(record["mode"]), ""),
        "subset": str(record["subset"] or ""),
        "value": format_number(record["value"], unit),
        "interval": format_interval(record, unit),
        "target": format_target(metric["target"], unit) if record["target"] is not None else "",
        "verdict": format_verdict(record),
        "why": verdict_reason(record, metric),
        "n": format_number(record["n"], "count"),
        "real": format_number(record["real"], unit),
        "naive": format_number(record["naive"], unit),
        "reason": str(record.get("reason") or ""),
    }


def against_naive(records: list[Record], run: str, metrics: dict[str, dict[str, str]]) -> list[str]:
    """Sentences on whether a run beats the naive method that it must beat, one a figure."""
    said = []
    for record, method, value in sorted(naive_floors(records, run), key=lambda floor: column_order(floor[0])):
        metric = metrics[str(record["metric"])]
        if not is_headline(record):
            metric = metric | {"title": f"{metric['title']} ({record['column']})"}
        said.append(floor_sentence(metric, record["value"], method, value))
    return said


def floor_sentence(metric: dict[str, str], value: float, method: str, floor: float) -> str:
    """A sentence on whether a figure is above that of a naive method.

    >>> beats({"title": "F1 on hidden codes", "unit": ""}, 0.158, "linear", 0.221)
    'F1 on hidden codes, 0.158, does not beat linear, 0.221.'
    """
    verb = "beats" if value > floor else "does not beat"
    title, unit = metric["title"], metric["unit"]
    return f"{title}, {format_number(value, unit)}, {verb} {method}, {format_number(floor, unit)}."


def sentences(
    records: list[Record], run: str, reader: str, metrics: dict[str, dict[str, str]]
) -> list[dict[str, str]]:
    """Sentences on a run's figures for a reader (physician, steward, control), in the order of metrics.csv.

    A sentence that names {column} is made for each column of codes but the diagnoses, any other for the
    diagnoses. Each entry has text, verdict and why. A figure without a value has no sentence.
    """
    by_metric: dict[str, list[Record]] = {}
    for record in records:
        of_new_patients = record["mode"] != "reconstruct" and not record["subset"]
        if record["run"] == run and of_new_patients and record["value"] is not None:
            by_metric.setdefault(str(record["metric"]), []).append(record)
    result = []
    for name, metric in metrics.items():
        by_column = "{column}" in metric["sentence"]
        own = by_metric.get(name, []) if metric["reader"] == reader else []
        for record in sorted((r for r in own if is_headline(r) != by_column), key=column_order):
            low, high = (format_number(record[end], metric["unit"]) for end in ("ci_low", "ci_high"))
            cells = record_cells(record, metric)
            text = metric["sentence"].format(**cells, low=low, high=high)
            result.append({"text": text, "verdict": cells["verdict"], "why": cells["why"]})
    return result


def column_order(record: Record) -> int:
    """Place of a record's column among those of the visits table, after the figures of no single column."""
    columns = (ALL, *CODE_COLUMNS)
    return columns.index(record["column"]) if record["column"] in columns else len(columns)


def dotted(code: str) -> str:
    """The code of SYSTEM:CODE with its dot; the system is added if it is not ICD-9-CM.

    >>> dotted("ICD9CM:42731"), dotted("ICD9CM:E8120"), dotted("ICD9CM:042"), dotted("ICD10CM:I4891")
    ('427.31', 'E812.0', '042', 'I48.91 (ICD10CM)')
    """
    system, _ = parts(code)
    return with_dot(code) if system == "ICD9CM" else f"{with_dot(code)} ({system})"
