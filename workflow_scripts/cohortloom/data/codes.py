"""Code systems: which belong to which column, how codes are written, and how sloppy ones are normalised.

A code of the visits table carries its system (SYSTEM:CODE), for undotted strings are ambiguous: E8809 is a
fall in ICD-9-CM and a metabolic disorder in ICD-10-CM. Systems have the names that OMOP gives them; `Drug` is
a drug by its name.

>>> normalize("ICD9CM", " 427.31 "), normalize("ICD10CM", "I48.91"), normalize("Drug", "Heparin  sodium ")
('42731', 'I4891', 'HEPARIN SODIUM')
>>> normalize("ICD9CM", "I48.91") is None
True
"""

import re

# Column of the visits table -> its systems. The order of the columns is that of the table.
CODE_COLUMNS = {
    "diagnoses": ("ICD9CM", "ICD10CM", "ICD10", "SNOMED"),
    "procedures": ("ICD9Proc", "ICD10PCS", "SNOMED"),
    "medications": ("Drug", "RxNorm", "ATC", "NDC"),
}
SYSTEMS = tuple(dict.fromkeys(system for systems in CODE_COLUMNS.values() for system in systems))
SYSTEM_OF_VERSION_1 = "ICD9CM"

_FORM = {  # of a code in upper case without dot and blanks
    # Three digits and up to two more; V and two to four digits; E000-E030 and E800-E999 and one digit more.
    # Other codes with E are ICD-10-CM's.
    "ICD9CM": r"[0-9]{3,5}|V[0-9]{2,4}|E(0[0-2][0-9]|030|[89][0-9]{2})[0-9]?",
    "ICD10CM": r"[A-Z][0-9][0-9A-Z][0-9A-Z]{0,4}",
    "ICD10": r"[A-Z][0-9]{2}[0-9X]{0,2}",
    "ICD9Proc": r"[0-9]{2,4}",
    "ICD10PCS": r"[0-9A-HJ-NP-Z]{7}",
    "SNOMED": r"[0-9]{6,18}",
    "RxNorm": r"[0-9]{1,8}",
    "ATC": r"[A-Z]([0-9]{2}([A-Z]([A-Z]([0-9]{2})?)?)?)?",
    "NDC": r"[0-9]{9,11}",
    "Drug": r"[^\x00-\x1f\x7f]+",
}
_FORMS = {system: re.compile(form) for system, form in _FORM.items()}
_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9]*):[^\x00-\x1f\x7f]+")
_BLANK = re.compile(r"[\s\u00a0]")
SLOPPY = ("dot", "blank", "lower case", "quote")


def parts(name: str) -> tuple[str, str]:
    """System and code of SYSTEM:CODE.

    >>> parts("ICD9CM:4019")
    ('ICD9CM', '4019')
    """
    system, _, code = name.partition(":")
    return system, code


def fault(column: str, name: str) -> str | None:
    """What is wrong with a code of a column of the visits table; None where nothing is.

    A system that no column has is one of the user's own (a group of codes, by cohort.code_map) and may stand
    in any.

    >>> fault("diagnoses", "ICD9CM:4019"), fault("diagnoses", "CCS:98"), fault("diagnoses", "4019")
    (None, None, 'is not of the form SYSTEM:CODE')
    >>> fault("procedures", "ICD9CM:4019")
    'is of a system that has no place in this column'
    """
    found = _NAMED.fullmatch(name)
    if not found:
        return "is not of the form SYSTEM:CODE"
    if found[1] in SYSTEMS and found[1] not in CODE_COLUMNS[column]:
        return "is of a system that has no place in this column"
    return None


def with_dot(name: str) -> str:
    """The code of SYSTEM:CODE as its users write it: with a dot, where the system has one.

    >>> with_dot("ICD9CM:42731"), with_dot("ICD9CM:E8120"), with_dot("ICD9Proc:0045")
    ('427.31', 'E812.0', '00.45')
    """
    system, code = parts(name)
    head = dot_after(system, code)
    return f"{code[:head]}.{code[head:]}" if head and len(code) > head else code


def dot_after(system: str, code: str) -> int:
    """After how many characters a code of the system has its dot; 0 where it has none."""
    if system == "ICD9CM":
        return 4 if code.startswith("E") else 3
    return {"ICD10CM": 3, "ICD10": 3, "ICD9Proc": 2}.get(system, 0)


def normalize(system: str, written: str) -> str | None:
    """The code in upper case without dot, blanks and quotes; None where it is not of its system's form.

    A drug's name keeps single blanks and all its signs but leading and trailing ones.
    """
    if system == "Drug":
        code = " ".join(re.sub("\u00a0", " ", written).upper().split())
    else:
        code = re.sub(r"[\"']", "", _BLANK.sub("", written)).upper()
        head, dot, tail = code.partition(".")
        if dot and (len(head) != dot_after(system, head) or "." in tail):
            return None  # a dot anywhere else is not a sloppy way of writing the code
        code = head + tail
    return code if _FORMS[system].fullmatch(code) else None


def sloppiness(system: str, written: str) -> list[str]:
    """Which of SLOPPY `normalize` fixes in this code."""
    if system == "Drug":
        found = (False, " ".join(written.split()) != written, False, False)  # names are in any case
    else:
        seen = _BLANK.search(written), written != written.upper(), re.search(r"[\"']", written)
        found = ("." in written, *seen)
    return [name for name, seen in zip(SLOPPY, found, strict=True) if seen]
