"""The written form of ICD-9-CM diagnosis codes: what is one, and how a sloppy one is normalised.

>>> normalize(" 427.31 ")
'42731'
>>> normalize("I48.91") is None     # ICD-10
True
"""

import re

# Three digits and up to two more; V and two digits and up to two more; E, three digits and one more.
_FORM = re.compile(r"[0-9]{3,5}|V[0-9]{2,4}|E[0-9]{3,4}")
SLOPPY = ("dot", "blank", "lower case", "quote")


def is_icd9cm(code: str) -> bool:
    """Whether `code` has the form of an ICD-9-CM diagnosis code: upper case, no dot, no blank."""
    return _FORM.fullmatch(code) is not None


def normalize(code: str) -> str | None:
    """The code in upper case without dot, blanks and quotes; None where it is not of ICD-9-CM form."""
    bare = re.sub(r"[\s\"'\u00a0]", "", code).upper()
    head, dot, tail = bare.partition(".")
    if dot and (len(head) != (4 if head.startswith("E") else 3) or "." in tail):
        return None  # a dot anywhere else is not a sloppy way of writing the code
    return head + tail if is_icd9cm(head + tail) else None


def sloppiness(code: str) -> list[str]:
    """Which of SLOPPY `normalize` fixes in this code."""
    found = ("." in code, re.search(r"[\s\u00a0]", code), code != code.upper(), re.search(r"[\"']", code))
    return [name for name, seen in zip(SLOPPY, found, strict=True) if seen]
