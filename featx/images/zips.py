"""Images inside a zip file, which are read without unpacking it.

A crafted archive costs little: names that leave it are refused; a member is inflated up to its stated size only, which
is limited; and an archive that states to hold hundreds of times its own size is refused before anything is inflated.
"""

from __future__ import annotations

import stat
import zipfile
from functools import cached_property
from typing import Any

from featx.errors import FeatxError, ImageError, SourceError, readable
from featx.images import limits
from featx.images.members import ContainingFile, Member, is_hidden, is_image, refuse_name, unpickled

_MAX_RATIO = 200  # of inflated to stored bytes
_ANY_RATIO_BYTES = 2**24  # up to which any ratio is accepted
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile inflates others without a limit


class ZipArchive:
    """A zip file whose directory was read."""

    def __init__(self, file: ContainingFile) -> None:
        self.file = file

    @cached_property
    def zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.file.opened())

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickled, (ZipArchive, self.file)


class ZipMember(Member):
    """An image in a zip file; `name` is the name that zipfile gives it."""

    def __init__(self, archive: ZipArchive, name: str) -> None:
        super().__init__(archive.file, name)
        self._archive = archive

    def _content(self) -> bytes:
        try:
            info = self._archive.zip.getinfo(self.name)
            _refuse_member(info)
            with self._archive.zip.open(info) as file:
                content = file.read(info.file_size + 1)
        except (FeatxError, MemoryError):
            raise
        except Exception as error:  # zipfile and zlib raise many types on damaged data
            raise ImageError("damaged", "its data in the zip file is damaged or cut short") from error
        if len(content) != info.file_size:
            raise ImageError("damaged", "its data in the zip file is damaged or cut short")
        return content


def zip_members(file: ContainingFile, folder: str = "") -> tuple[list[tuple[str, ZipMember]], int]:
    """The images in a zip file, or in a folder inside it, as a folder on disk would list them.

    Parameters
    ----------
    folder : str
        "photos/" for those in this folder, with names relative to it.

    Returns
    -------
    members : list of (name, ZipMember), sorted by path
    passed_over : number of other files

    Raises
    ------
    SourceError
        It is no zip file, is encrypted or a zip bomb, or contains a name that is no path inside it.
    """
    archive, where = ZipArchive(file), file.path
    try:
        infos = archive.zip.infolist()
    except ImageError as error:
        raise SourceError(f"cannot read {where}: {error}") from error
    except (SourceError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(f"{where} is not a zip file, or its directory is damaged") from error
    members, passed_over = [], 0
    for info in infos:
        name = _name(info)
        refuse_name(where, name.removesuffix("/"))
        if info.is_dir() or not name.startswith(folder) or is_hidden(name.removeprefix(folder)):
            continue
        if not is_image(name):
            passed_over += 1
            continue
        if info.flag_bits & 1:
            raise SourceError(f"{where} is encrypted ({name!r}); unpack it")
        members.append((name.removeprefix(folder), ZipMember(archive, info.filename)))
    total = sum(info.file_size for info in infos)
    if total > _ANY_RATIO_BYTES and total > _MAX_RATIO * file.size:
        raise SourceError(
            f"{where} is a zip bomb: {readable(file.size)} that would inflate to {readable(total)}; at most "
            f"{_MAX_RATIO} times its size is accepted"
        )
    return sorted(members, key=lambda member: member[0].split("/")), passed_over


def _name(info: zipfile.ZipInfo) -> str:
    """The name as UTF-8, which many programs write without saying so; other bytes as surrogates."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    return info.orig_filename.encode("cp437").decode("utf-8", "surrogateescape")


def _refuse_member(info: zipfile.ZipInfo) -> None:
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ImageError("unreadable", "it cannot be read: it is a link")
    if info.compress_type not in _METHODS:
        raise ImageError("unreadable", "it is neither stored nor deflated in the zip file; make the archive anew")
    limits.refuse_file(info.file_size)
    if info.file_size > max(_ANY_RATIO_BYTES, _MAX_RATIO * info.compress_size):
        sizes = f"{readable(info.compress_size)} that would inflate to {readable(info.file_size)}"
        raise ImageError("too-large", f"{sizes}; at most {_MAX_RATIO} times the size is accepted")
