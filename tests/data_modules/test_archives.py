"""Archives are read in place, and nothing in them leads anywhere else."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_modules import archives
from data_modules.archives import ArchiveError

FILES = {"a/1.txt": b"one", "./a/2.txt": b"two", "b.txt": b"three"}


def make(path: Path, files: dict[str, bytes] = FILES) -> str:
    """A zip or tar of these files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in files.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as packed:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))
    return str(path)


@pytest.fixture(params=["x.zip", "x.tar", "x.tar.gz", "x.tgz"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return make(tmp_path / request.param)


def test_files_are_found_by_their_names(archive):
    assert archives.names(archive) == ["a/1.txt", "a/2.txt", "b.txt"]
    assert [archives.read(archive, name, 10) for name in ("a/1.txt", "./a/2.txt", "b.txt")] == [
        b"one",
        b"two",
        b"three",
    ]
    assert archives.contains(archive, "a")
    assert archives.contains(archive, "a/2.txt")
    assert not archives.contains(archive, "c")


def test_a_changed_archive_is_read_anew(tmp_path):
    path = tmp_path / "x.zip"
    assert archives.read(make(path), "b.txt", 10) == b"three"
    path.unlink()
    assert archives.read(make(path, {"b.txt": b"four"}), "b.txt", 10) == b"four"


@pytest.mark.parametrize("member", ["../b.txt", "/etc/passwd", "a/../../b.txt", "..\\b.txt"])
def test_no_name_leads_out(archive, member):
    with pytest.raises(ArchiveError, match="leads out of the archive"):
        archives.read(archive, member, 10)


def test_names_that_lead_out_are_not_even_listed(tmp_path):
    for name in ("x.zip", "x.tar"):
        path = make(tmp_path / name, {"../evil.txt": b"x", "/abs.txt": b"x", "good.txt": b"x"})
        assert archives.names(path) == ["good.txt"]


def test_links_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        for name, kind in (("soft.txt", tarfile.SYMTYPE), ("hard.txt", tarfile.LNKTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            packed.addfile(entry)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        link = zipfile.ZipInfo("soft.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    for archive, member in (("x.tar", "soft.txt"), ("x.tar", "hard.txt"), ("x.zip", "soft.txt")):
        path = str(tmp_path / archive)
        assert archives.names(path) == []
        with pytest.raises(ArchiveError, match=f"{archive}/{member}: is a link"):
            archives.read(path, member, 100)


def test_a_file_is_never_larger_than_asked_for(archive, tmp_path):
    with pytest.raises(ArchiveError, match="b.txt: more than max_bytes=4"):
        archives.read(archive, "b.txt", 4)
    bomb = make(tmp_path / "bomb.zip", {"zeros": bytes(10_000_000)})
    assert Path(bomb).stat().st_size < 20_000
    with pytest.raises(ArchiveError, match="more than max_bytes=1000"):
        archives.read(bomb, "zeros", 1000)


def test_damage_is_named(archive, tmp_path):
    content = Path(archive).read_bytes()
    for cut in (content[:40], b"no archive at all"):
        Path(archive).write_bytes(cut)
        with pytest.raises(ArchiveError, match=r"x\.(zip|tar|tar\.gz|tgz): not a readable archive") as caught:
            archives.names(archive)
        assert "\n" not in str(caught.value)
    flipped = bytearray(Path(make(tmp_path / "y.zip", {"a": bytes(range(256)) * 9})).read_bytes())
    flipped[40:60] = bytes(20)
    (tmp_path / "y.zip").write_bytes(flipped)
    with pytest.raises(ArchiveError, match="y.zip/a: cannot be read"):
        archives.read(str(tmp_path / "y.zip"), "a", 10_000)


def test_missing_and_encrypted_files_are_named(archive, tmp_path):
    with pytest.raises(ArchiveError, match="c.txt: no such file in the archive"):
        archives.read(archive, "c.txt", 10)
    secret = bytearray(Path(make(tmp_path / "s.zip", {"a": b"x"})).read_bytes())
    secret[secret.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    (tmp_path / "s.zip").write_bytes(secret)
    with pytest.raises(ArchiveError, match="s.zip/a: is encrypted"):
        archives.read(str(tmp_path / "s.zip"), "a", 10)


def test_a_large_compressed_tar_is_not_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_COMPRESSED_TAR", 10)
    with pytest.raises(ArchiveError, match="unpack it"):
        archives.read(make(tmp_path / "x.tar.gz"), "b.txt", 10)


def test_a_folder_may_be_called_like_an_archive(tmp_path):
    (tmp_path / "photos.zip").mkdir()
    assert archives.split(str(tmp_path / "photos.zip" / "a.png")) is None
