"""Folders of shards: read whole, and never run."""

from __future__ import annotations

import os
import pickle
import warnings
from enum import Enum
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from lit_msrl import sharded


def write(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A folder as FSDP2 writes it, of one rank."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_state(
            {f"state_dict.{name}": t for name, t in weights.items()}, checkpoint_id=folder, no_dist=True
        )
    torch.save({"stage": "stage3", "global_step": 7}, folder / "meta.pt")
    return folder


def test_weights_and_the_rest(tmp_path: Path) -> None:
    weights = {"policy.a": torch.arange(6.0).view(2, 3), "policy.b": torch.ones(4, dtype=torch.bfloat16)}
    folder = write(tmp_path / "x.ckpt", weights)
    assert sharded.is_sharded(folder)
    assert not sharded.is_sharded(folder / "meta.pt")
    found = sharded.load(folder)
    assert (found["stage"], found["global_step"]) == ("stage3", 7)
    assert found["state_dict"].keys() == weights.keys()
    assert all(found["state_dict"][name].equal(tensor) for name, tensor in weights.items())


class Style(Enum):
    BOLD = 1


@pytest.mark.parametrize(("kind", "name"), [(os, "mkdir"), (str, "format"), (Style, "__class__")])
def test_only_members_of_enumerations_are_looked_up_by_name(tmp_path: Path, kind, name) -> None:
    """Python 3.11.0 to 3.11.3 write ``getattr(kind, name)`` for them."""
    with (tmp_path / "x").open("w+b") as file:
        find = sharded._Unpickler(file).find_class("builtins", "getattr")
    assert find(Style, "BOLD") is Style.BOLD
    with pytest.raises(pickle.UnpicklingError, match=f"asks for {name} of"):
        find(kind, name)


class Bad:
    def __reduce__(self):
        return os.mkdir, (os.environ["BAD_PLACE"],)


def test_a_table_of_contents_that_would_run_code_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BAD_PLACE", str(tmp_path / "ran"))
    folder = write(tmp_path / "x.ckpt", {"policy.a": torch.ones(2)})
    (folder / ".metadata").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(ValueError, match=r"not a checkpoint of a stage .*asks for posix\.mkdir"):
        sharded.load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path / "x.ckpt", {"policy.a": torch.ones(2)})
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(ValueError, match="not a checkpoint of a stage"):
        sharded.load(folder)
