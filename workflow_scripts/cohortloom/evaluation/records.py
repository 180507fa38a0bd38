"""The one shape of a measured figure: a flat record."""

import math
from typing import Any

FIELDS = (
    "run",
    "seed",
    "mode",
    "metric",
    "subset",
    "value",
    "ci_low",
    "ci_high",
    "n",
    "n_reference",
    "higher_is_better",
    "real",
    "copy",
    "naive",
    "target",
    "pass",
)


def record(
    run: str,
    seed: int,
    mode: str,
    metric: str,
    subset: str = "",
    value: float | None = None,
    ci_low: float | None = None,
    ci_high: float | None = None,
    n: int | None = None,
    n_reference: int | None = None,
    higher_is_better: bool | None = None,
) -> dict[str, Any]:
    """A figure with its 95% interval; what is undefined (NaN, infinite) is null.

    `n` counts the scored visits (or what the metric names), `n_reference` those they are compared with.
    `higher_is_better` is null where the aim is to equal real data. The columns real, copy, naive, target
    and pass stay null until summarize joins the runs.
    """
    known = {
        "run": run,
        "seed": seed,
        "mode": mode,
        "metric": metric,
        "subset": subset,
        "value": _finite(value),
        "ci_low": _finite(ci_low),
        "ci_high": _finite(ci_high),
        "n": None if n is None else int(n),
        "n_reference": None if n_reference is None else int(n_reference),
        "higher_is_better": None if higher_is_better is None else bool(higher_is_better),
    }
    return {field: known.get(field) for field in FIELDS}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
