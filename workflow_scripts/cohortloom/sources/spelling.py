"""From codes as the raw tables spell them to the public ones: each distinct spelling is looked at once."""

import csv
import re
from collections import Counter, defaultdict
from pathlib import Path

from cohortloom.base.errors import UserError
from cohortloom.data.codes import CODE_COLUMNS, fault, normalize, parts, sloppiness
from cohortloom.sources.audit import Audit

NAMES = {"lower case": "codes in lower case"}
OWN = "own"  # the system of a code that is one of cohort.code_map's own already, as SYSTEM:CODE
MIN_CODES = 500  # of a column before anything is told from how its codes begin
BLANKS = " \t\r\n\u00a0\"'"
ICD10 = re.compile(r"[A-TV-Z][0-9][0-9A-Z]\.?[0-9A-Z]{0,4}")


class Spelling:
    """Maps spellings and keeps what it rejected.

    lists: system -> the codes that there are. code_map: SYSTEM:CODE -> SYSTEM:CODE of the user's choice; what
    it does not name is kept or, with `keep` false, dropped.
    """

    def __init__(
        self,
        lists: dict[str, frozenset[str]] | None = None,
        code_map: dict[str, str] | None = None,
        keep: bool = True,
    ):
        self.lists, self.code_map, self.keep = lists or {}, code_map, keep
        self.names: dict[str, int] = {}  # public code -> its id
        self.offered: Counter = Counter()  # column -> codes
        self.accepted: Counter = Counter()
        self.malformed: Counter = Counter()  # (column, system) -> codes
        self.unlisted: Counter = Counter()
        self.examples: dict[
            tuple[str, str, str], str
        ] = {}  # (column, system, what) -> the commonest spelling
        self.unlisted_spellings: set[str] = set()
        self.opening_with_zero: Counter = Counter()
        self._most: Counter = Counter()

    def map(self, found: list[tuple[str, str, str, int]], audit: Audit) -> list[tuple[str, str, str, int]]:
        """(column, system, spelling, id) of what is accepted; the last of `found` are occurrences."""
        rows = []
        sloppy: dict[str, int] = defaultdict(int)
        for column, system, written, n in found:
            if system == OWN:
                self.offered[column] += n
                self.accepted[column] += n
                rows.append((column, system, written, self.names.setdefault(written, len(self.names))))
                continue
            if system not in CODE_COLUMNS[column]:
                raise ValueError(f"the system {system!r} has no place in the column {column}")
            if not written or not written.strip(BLANKS):
                audit.drop(column, "null code", n)
                continue
            self.offered[column] += n
            code = normalize(system, written)
            if code is None:
                self._reject(self.malformed, column, system, "form", written, n)
                audit.drop(column, f"code not of the form of {system}", n)
                continue
            for kind in sloppiness(system, written):
                sloppy[NAMES.get(kind, f"codes with a {kind}")] += n
            if system in self.lists and code not in self.lists[system]:
                self._reject(self.unlisted, column, system, "list", written, n)
                self.unlisted_spellings.add(written)
            self.opening_with_zero[column, system] += n * code.startswith("0")
            name = self._mapped(column, f"{system}:{code}", n, audit)
            if name is not None:
                self.accepted[column] += n
                rows.append((column, system, written, self.names.setdefault(name, len(self.names))))
        for kind, n in sorted(sloppy.items()):
            audit.normalized[kind] += n
        for (column, system), n in self.unlisted.items():
            audit.unlisted[column, system] += n
        return rows

    def _reject(self, counts: Counter, column: str, system: str, what: str, written: str, n: int) -> None:
        counts[column, system] += n
        if n > self._most[column, system, what]:
            self._most[column, system, what] = n
            self.examples[column, system, what] = written[:40]

    def _mapped(self, column: str, name: str, n: int, audit: Audit) -> str | None:
        """The code of the user's choice, or None where it is dropped."""
        if self.code_map is None:
            return name
        if name in self.code_map:
            audit.mapped[column, "mapped"] += n
            return self.code_map[name]
        audit.mapped[column, "kept" if self.keep else "dropped"] += n
        if not self.keep:
            audit.drop(column, "not named by cohort.code_map", n)
            return None
        return name

    def check(self, max_dropped: float, key: str, orphans: Counter | None = None) -> None:
        """Raise UserError where more than `max_dropped` of a column's codes are rejected.

        Rejected are those not of their system's form, in no list of it, or (`orphans`) outside any visit.
        `key` of the config sets the limit.
        """
        for column, offered in self.offered.items():
            parts_of = [
                (n, f"not of the form of {system}, such as {self.examples[column, system, 'form']!r}")
                for (where, system), n in self.malformed.items()
                if where == column
            ]
            parts_of += [
                (n, f"in no list of {system}, such as {self.examples[column, system, 'list']!r}")
                for (where, system), n in self.unlisted.items()
                if where == column
            ]
            if orphans and orphans[column]:
                parts_of.append((orphans[column], "outside any visit"))
            rejected = sum(n for n, _ in parts_of)
            if rejected > max_dropped * offered:
                what = "; ".join(f"{n:,} {text}" for n, text in parts_of)
                share = f"{rejected:,} of {offered:,} codes ({rejected / offered:.1%})"
                raise UserError(
                    f"{column}: {share} are rejected, more than {key}"
                    f" ({max_dropped:.0%}): {what}{self.hint(column)}; correct the table, or raise that key"
                )

    def hint(self, column: str) -> str:
        """What probably happened to the codes of a column; nothing where nothing is known."""
        spelled = [text for (where, _, _), text in self.examples.items() if where == column]
        if any(re.fullmatch(r"\d+\.\d*0", text) for text in spelled):
            return ". They were read as numbers: keep codes as text"
        if any(where == column for where, _ in self.malformed) and any(map(ICD10.fullmatch, spelled)):
            return ". They look like ICD-10 codes"
        if self.lost_zeros(column):
            return ". No code begins with 0: a spreadsheet, or a reader that guesses types, took zeros away"
        return ""

    def remarks(self) -> list[str]:
        """What is said of codes that are in no list, and stay."""
        return [
            f"{column}: {n:,} codes are in no list of {system}, and stay"
            for (column, system), n in self.unlisted.items()
        ]

    def warnings(self) -> list[str]:
        """What is said where the codes of a column look damaged."""
        damaged = [column for column in CODE_COLUMNS if self.lost_zeros(column)]
        return [f"warning: {column}{self.hint(column)}" for column in damaged]

    def lost_zeros(self, column: str) -> bool:
        """Whether a column has many ICD-9 codes and none that begins with 0."""
        systems = [system for system in ("ICD9CM", "ICD9Proc") if system in CODE_COLUMNS[column]]
        known = [
            n
            for (where, system), n in self.opening_with_zero.items()
            if where == column and system in systems
        ]
        return bool(known) and not sum(known) and self.accepted[column] >= MIN_CODES


def read_code_map(path: Path) -> dict[str, str]:
    """cohort.code_map, a CSV of from and to, each SYSTEM:CODE. Raises UserError for a faulty line."""
    found: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for name in ("from", "to"):
                if name not in (reader.fieldnames or []):
                    raise UserError(f"{path}: line 1: column {name} is missing; give the columns from and to")
            for row in reader:
                where = f"{path}: line {reader.line_num}: column"
                old, new = (row[name] or "" for name in ("from", "to"))
                system, code = parts(old.strip())
                public = normalize(system, code) if any(system in s for s in CODE_COLUMNS.values()) else None
                if public is None:
                    raise UserError(f"{where} from: {old!r} is no code; write it as ICD9CM:4019")
                new = new.strip()
                columns = [column for column, systems in CODE_COLUMNS.items() if system in systems]
                if not any(fault(column, new) is None for column in columns):
                    raise UserError(f"{where} to: {new!r} is no code for this column; write SYSTEM:CODE")
                if found.setdefault(f"{system}:{public}", new) != new:
                    raise UserError(
                        f"{where} from: {old!r} stands in an earlier line with another code; keep one"
                    )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct cohort.code_map in the config") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    if not found:
        raise UserError(f"{path}: names no code; give lines of from and to, or leave cohort.code_map out")
    return found


def read_list(path: Path) -> frozenset[str]:
    """The column code of a table of titles."""
    with open(path, newline="", encoding="utf-8") as file:
        return frozenset(row["code"] for row in csv.DictReader(file))
