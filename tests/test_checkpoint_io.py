"""A checkpoint is there whole or not at all."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lit_msrl.checkpoint_io import WholeCheckpoints

SMALL, LARGE = {"weights": torch.arange(10.0)}, {"weights": torch.zeros(1_000_000)}


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The operating system refuses to write more, as on a full disk (the signal is one Python ignores)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_saved_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    for checkpoint in (LARGE, SMALL):  # the second replaces the first
        WholeCheckpoints().save_checkpoint(checkpoint, path)
        assert torch.load(path, weights_only=True)["weights"].equal(checkpoint["weights"])
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_failed_write_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(SMALL, path)
    before = path.read_bytes()
    with files_of_at_most(100_000), pytest.raises(OSError, match=r"last\.ckpt could not be written.*intact"):
        WholeCheckpoints().save_checkpoint(LARGE, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_first_write_may_fail_too(tmp_path: Path) -> None:
    with files_of_at_most(100_000), pytest.raises(OSError, match="could not be written"):
        WholeCheckpoints().save_checkpoint(LARGE, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_nothing_is_seen_of_an_unfinished_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any moment before the renaming, the run leaves the checkpoint before."""
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(SMALL, path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpoints().save_checkpoint(LARGE, path)
    assert torch.load(path, weights_only=True)["weights"].equal(SMALL["weights"])
