"""A raw file before DuckDB reads it: what it is by its first bytes, its digest, its header, its records."""

import bz2
import codecs
import csv
import gzip
import hashlib
import io
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cohortloom.base.errors import UserError

BOM = codecs.BOM_UTF8
CHUNK = 1 << 22
DELIMITERS = {";": "a semicolon", "\t": "a tab", "|": "a bar"}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, zipfile.BadZipFile)
# First bytes of what a file may be, whatever its name says.
KINDS = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"PK\x03\x04", "zip"), (b"PAR1", "parquet"))


def kind_of(path: Path) -> str:
    """gzip, bz2, zip, parquet or plain. Raises UserError for a missing, unreadable or empty file."""
    try:
        with open(path, "rb") as file:
            first = file.read(8)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from None
    if not first or first == BOM:
        raise UserError(f"{path}: the file is empty; download it again")
    return next((kind for magic, kind in KINDS if first.startswith(magic)), "plain")


def open_bytes(path: Path) -> IO[bytes]:
    """The decompressed content of a plain, gzip, bz2 or zip file as a stream."""
    kind = kind_of(path)
    if kind == "gzip":
        return gzip.open(path, "rb")
    if kind == "bz2":
        return bz2.open(path, "rb")
    if kind == "zip":
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile:
            raise damaged(path) from None
        members = [item for item in archive.infolist() if not item.is_dir()]
        if len(members) != 1:
            raise UserError(f"{path}: holds {len(members)} files where one is expected; unpack it")
        return archive.open(members[0])
    return open(path, "rb")


def damaged(path: Path) -> UserError:
    """What to raise for a compressed file that ends too soon or does not match its checksum."""
    return UserError(f"{path}: the compressed file is truncated or damaged; download it again")


def unpacked(path: Path, folder: Path) -> Path:
    """The file itself, or the content of a zip or bz2 file, which DuckDB does not read, in `folder`."""
    if kind_of(path) not in ("zip", "bz2"):
        return path
    target = folder / f"{path.name}.unpacked"
    try:
        with open_bytes(path) as packed, open(target, "wb") as file:
            shutil.copyfileobj(packed, file, CHUNK)
    except DAMAGED:
        raise damaged(path) from None
    return target


@dataclass(frozen=True)
class Form:
    """What the whole content of a file shows."""

    sha256: str  # of the file as it lies
    crlf: bool
    bare_lf: bool
    quoted: bool
    byte_order_mark: bool
    ends_with_line: bool


def inspect(path: Path, plain: Path) -> Form:
    """Read a file once; `plain` is its content where it had to be unpacked, else the file itself.

    Raises UserError where it is truncated or damaged.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if kind_of(path) == "parquet":
        return Form(digest, False, False, False, False, True)
    crlf = bare_lf = quoted = mark = False
    last = b""
    try:
        with open_bytes(plain) as file:
            first = True
            while chunk := file.read(CHUNK):
                mark = mark or (first and chunk.startswith(BOM))
                first = False
                seam = last + chunk[:1]
                crlf = crlf or seam == b"\r\n" or b"\r\n" in chunk
                if crlf and not bare_lf:
                    bare_lf = chunk.count(b"\n") > chunk.count(b"\r\n") + (seam == b"\r\n")
                elif not crlf:
                    bare_lf = bare_lf or b"\n" in chunk
                quoted = quoted or b'"' in chunk
                last = chunk[-1:]
    except DAMAGED:
        raise damaged(path) from None
    return Form(digest, crlf, bare_lf, quoted, mark, last in (b"\n", b"\x1a"))


def header(plain: Path, path: Path) -> list[str]:
    """Names of the columns of a CSV table as written; `path` is the file that messages name.

    Raises UserError for an empty file, one in UTF-16 and a web page.
    """
    try:
        with open_bytes(plain) as file:
            content = file.read(1 << 16)
    except DAMAGED:
        raise damaged(path) from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")
    content = content.removeprefix(BOM)
    if not content or content.isspace():
        raise UserError(f"{path}: the file is empty; download it again")
    if content.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: is a web page, not a table; download the table itself")
    text = io.StringIO(content.decode("utf-8", "replace"), newline="")
    return [name.strip() for name in next(csv.reader(text))]


def check_delimiter(path: Path, names: list[str]) -> None:
    """Raise UserError where the names of the columns are one cell, for they are separated otherwise."""
    for delimiter, word in DELIMITERS.items():
        if len(names) <= 2 and delimiter in "".join(names):
            raise UserError(
                f"{path}: line 1: the delimiter is {word}, not a comma; save the table with commas"
            )


def records(plain: Path, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(first line, values) of each record of a CSV table that is no blank line, its header included.

    `path` is the file that messages name. Bytes that are no UTF-8 are surrogates. Raises UserError for a
    quotation mark that is never closed.
    """
    with open_bytes(plain) as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        reader, line = csv.reader(text), 1
        try:
            for values in reader:
                if values:
                    yield line, values
                line = reader.line_num + 1
        except DAMAGED:
            raise damaged(path) from None
        except csv.Error:
            raise UserError(
                f"{path}: line {line}: a value is longer than {csv.field_size_limit():,} characters;"
                " a quotation mark is not closed, or the file is no CSV table"
            ) from None


def lines(plain: Path, path: Path) -> Iterator[tuple[int, str]]:
    """(number, text without its end) of each line of a text file, the byte-order mark left out."""
    try:
        with open_bytes(plain) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(BOM)
                yield number, line.decode("latin-1").rstrip("\r\n")
    except DAMAGED:
        raise damaged(path) from None
