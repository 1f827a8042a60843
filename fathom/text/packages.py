"""Packages of public registries as plain files: downloaded, cached, read; never imported, never installed."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class Unavailable(Exception):
    """A package or a file in it cannot be had: no network, no such version, another content than expected."""


@dataclass(frozen=True)
class Package:
    """One file of a registry. `manager` is pip, npm or apt."""

    manager: str
    name: str
    version: str
    pattern: str  # of the downloaded file

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.manager})"

    @property
    def url(self) -> str:
        if self.manager == "pip":
            return f"https://pypi.org/project/{self.name}/{self.version}/"
        if self.manager == "npm":
            return f"https://www.npmjs.com/package/{self.name}/v/{self.version}"
        return f"https://packages.debian.org/{self.name}"

    def command(self) -> list[str]:
        if self.manager == "pip":
            pinned = f"{self.name}=={self.version}"
            return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", pinned]
        if self.manager == "npm":
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        return ["apt-get", "download", "--quiet", self.name]


def fetch(package: Package, cache: Path, timeout: int = 600) -> Path:
    """The downloaded file of a package, from the cache if it is there. Raises Unavailable."""
    if found := sorted(cache.glob(package.pattern)):
        return found[0]
    parts = cache / f".{package.name}.part"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    try:
        done = subprocess.run(package.command(), cwd=parts, capture_output=True, text=True, timeout=timeout)
        found = sorted(parts.glob(package.pattern))
        if done.returncode or not found:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise Unavailable(lines[-1] if lines else f"{package.command()[0]} exited with {done.returncode}")
        return found[0].replace(cache / found[0].name)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"no answer within {timeout} s") from None
    except OSError as error:  # the package manager is not installed
        raise Unavailable(f"{package.command()[0]}: {error.strerror}") from None
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def member(archive: Path, path: str) -> bytes:
    """One file of a wheel, a tar archive or a Debian package. Raises Unavailable."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(path)
        if archive.suffix == ".deb":
            unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True, check=True).stdout
        else:
            unpacked = gzip.decompress(archive.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
            found = tar.extractfile(path)
            if found is None:
                raise KeyError(path)
            return found.read()
    except KeyError:
        raise Unavailable(f"{archive.name} has no {path}") from None
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{archive.name} cannot be read: {error}; delete it to download it again") from None


def members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of a wheel's files whose path matches, by name. Raises Unavailable."""
    try:
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(name for name in wheel.namelist() if re.fullmatch(pattern, name)):
                yield name, wheel.read(name)
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise Unavailable(f"{archive.name} cannot be read: {error}; delete it to download it again") from None
