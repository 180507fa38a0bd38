"""Bytes of a raw file, plain or compressed, with its digest; a damaged file is refused."""

import bz2
import gzip
import hashlib
import io
import lzma
import zipfile
import zlib
from pathlib import Path

from cohortloom.base.errors import UserError

BOM = b"\xef\xbb\xbf"


def read_bytes(path: Path) -> tuple[bytes, str]:
    """Decompressed content of a plain, .gz, .bz2 or .zip file, and the sha256 of the file as it lies.

    Raises UserError for a missing, unreadable, empty, truncated or damaged file.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check raw_dir") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check raw_dir and its rights") from None
    try:
        content = _decompress(raw, Path(path))
    except (EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, zipfile.BadZipFile):
        raise UserError(f"{path}: the compressed file is truncated or damaged; download it again") from None
    if not content or content.isspace():
        raise UserError(f"{path}: the file is empty; download it again")
    return content, hashlib.sha256(raw).hexdigest()


def _decompress(raw: bytes, path: Path) -> bytes:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.decompress(raw)
    if suffix == ".bz2":
        return _bz2(raw)
    if suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = [item for item in archive.infolist() if not item.is_dir()]
            if len(members) != 1:
                raise UserError(f"{path}: holds {len(members)} files where one is expected; unpack it")
            return archive.read(members[0])
    return raw


def _bz2(raw: bytes) -> bytes:
    """bz2.decompress returns what a cut file still gives where a whole stream came before: check the end."""
    out, rest = [], raw
    while rest:
        stream = bz2.BZ2Decompressor()
        out.append(stream.decompress(rest))
        if not stream.eof:
            raise EOFError
        rest = stream.unused_data
    return b"".join(out)
