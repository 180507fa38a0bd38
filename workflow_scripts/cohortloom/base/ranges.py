"""The permitted range of each option, read from config/schema.yaml so that no script repeats it."""

import functools
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from cohortloom.base.errors import UserError
from cohortloom.base.imports import SCRIPTS

SCHEMA = SCRIPTS.parent / "config" / "schema.yaml"
LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
# Options that are not keys of the config.
OTHERS = {
    "shard": {"minimum": 1},
    "show": {"minimum": 0},
    "threads": {"minimum": 1},
}


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise UserError for the first number out of the range of its option."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        ranges = ranges_of(name)
        if ranges and not any(_is_inside(value, limits) for limits in ranges):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option}: {value} is out of range; give a number {range_in_words(ranges[0])}")


def ranges_of(name: str) -> list[dict[str, float]]:
    """The permitted ranges of an option, the widest first; a key of several sections has one of each."""
    name = "seed" if name.endswith("_seed") else name
    ranges = [OTHERS[name]] if name in OTHERS else _schema_ranges().get(name, [])
    return sorted(ranges, key=lambda limits: (_low(limits), -limits.get("maximum", math.inf)))


def range_in_words(limits: Mapping[str, float]) -> str:
    """A range in words.

    >>> range_in_words({"minimum": 1}), range_in_words({"exclusiveMinimum": 0, "exclusiveMaximum": 1})
    ('of at least 1', 'above 0 and below 1')
    """
    words = {"minimum": "of at least", "exclusiveMinimum": "above"}
    words |= {"maximum": "of at most", "exclusiveMaximum": "below"}
    return " and ".join(f"{words[key]} {limits[key]}" for key in LIMITS if key in limits)


def _low(limits: Mapping[str, float]) -> float:
    return limits.get("minimum", limits.get("exclusiveMinimum", -math.inf))


def _is_inside(value: float, limits: Mapping[str, float]) -> bool:
    """Whether a number lies in a range; NaN lies in none."""
    tests = {
        "minimum": operator.ge,
        "exclusiveMinimum": operator.gt,
        "maximum": operator.le,
        "exclusiveMaximum": operator.lt,
    }
    return math.isfinite(value) and all(tests[key](value, limit) for key, limit in limits.items())


@functools.cache
def _schema_ranges() -> dict[str, list[dict[str, float]]]:
    """Key -> its ranges in all sections of the schema."""
    import yaml

    with open(SCHEMA, encoding="utf-8") as file:
        schema = yaml.safe_load(file)
    ranges: dict[str, list[dict[str, float]]] = {}
    for name, part in _keys(schema):
        limits = {key: part[key] for key in LIMITS if key in part}
        if limits and limits not in ranges.setdefault(name, []):
            ranges[name].append(limits)
    return ranges


def _keys(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and schema of every key, at any depth."""
    for name, part in schema.get("properties", {}).items():
        yield name, part
        yield from _keys(part)
