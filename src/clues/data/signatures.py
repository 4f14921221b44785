"""What a file is by its first bytes, where it is none that holds rows, and what to do about it."""

_EXPORT = "Export the sheet as CSV in UTF-8"
# First bytes, what they are the first bytes of, and the way out.
_FOREIGN = (
    (
        (b"version https://git-lfs",),
        "a Git LFS pointer: it says where the file is, and is not the file",
        "Fetch the file: git lfs pull",
    ),
    (
        (b"/annex/objects/", b".git/annex/"),
        "a git-annex pointer: it says where the file is, and is not the file",
        "Fetch the file: git annex get",
    ),
    ((b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",), "an older Excel or Office file", _EXPORT),
    ((b"7z\xbc\xaf\x27\x1c",), "a 7z archive", "Unpack it, and name the file inside"),
    ((b"Rar!\x1a\x07",), "a rar archive", "Unpack it, and name the file inside"),
    ((b"\x04\x22\x4d\x18",), "packed with lz4", "Unpack it with: lz4 -d"),
    ((b"SQLite format 3\0",), "an SQLite database", "Export the table as CSV in UTF-8"),
    ((b"\x89HDF",), "an HDF5 file", "Export the table as parquet or CSV"),
    ((b"Obj\x01",), "an Avro file", "Write the rows as parquet or jsonl"),
    ((b"ORC",), "an ORC file", "Write the rows as parquet or jsonl"),
    ((b"FEA1",), "a file of the first Feather version", "Write the rows as arrow or parquet"),
    (
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a file of Python objects, which can run any program and is never opened",
        "Write the rows as parquet or jsonl",
    ),
    ((b"\x93NUMPY",), "an array of NumPy", "Write the rows as parquet or jsonl"),
    ((b"%PDF",), "a PDF", "Give the rows themselves"),
    ((b"\x89PNG", b"\xff\xd8\xff", b"GIF8"), "a picture", "Give rows of text"),
    (
        (b"<!doctype html", b"<!DOCTYPE html", b"<!DOCTYPE HTML", b"<html", b"<HTML"),
        "a page of HTML, such as a server gives instead of a file",
        "Download the file itself",
    ),
    ((b"<?xml",), "XML", "Write the rows as jsonl or CSV"),
)
_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"


def foreign(data: bytes) -> str:
    """Say what data is and what to do; empty where its first bytes promise rows."""
    if data.startswith((_ZIP, _EMPTY_ZIP)):
        return _zip(data)
    # A tar archive says so behind the first file's name.
    if data[257:262] == b"ustar":
        return "this is a tar archive. Unpack it with tar -xf, and name the file inside."
    start = data.lstrip()[:64] if data[:1] in b" \t\r\n" else data[:64]
    for firsts, what, advice in _FOREIGN:
        if start.startswith(firsts):
            return f"this is {what}. {advice}."
    return ""


def _zip(data: bytes) -> str:
    # Names of the files inside stand in the clear, at the start and at the end.
    if b"xl/" in data[:4096] or b"xl/workbook" in data:
        return f"this is an Excel file. {_EXPORT}, and name that file."
    if b"mimetypeapplication/vnd.oasis.opendocument.spreadsheet" in data[:200]:
        return f"this is an OpenDocument sheet. {_EXPORT}, and name that file."
    if b"word/" in data[:4096] or b"ppt/" in data[:4096]:
        return "this is an Office document. Give rows in a table or in lines of JSON."
    if b".npy" in data[:200]:
        return "this is an archive of NumPy arrays. Write the rows as parquet or jsonl."
    return "this is a zip archive. Unpack it with unzip, and name the file inside."
