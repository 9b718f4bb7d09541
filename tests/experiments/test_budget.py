"""Through the command line: a run with too long examples goes on without them, and says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.experiments.made import call, command


def test_what_is_too_long_is_shrunk_or_left_out_and_said_once(tmp_path: Path, caplog):
    options = ["--model.policy.max_length=76", "--trainer.val_check_interval=2", "--data.validation.size=8"]
    with caplog.at_level(logging.INFO):
        call("stage3", command("stage3", tmp_path, *options, "--data.train.size=16"))
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert sum(line.startswith("epoch 0: ") for line in said) == 1
    assert sum(line.startswith("validation: ") for line in said) == 1
    assert all("0 examples left out" not in line for line in said)


def test_a_completion_that_leaves_no_room_is_refused(tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        call("stage3", command("stage3", tmp_path, "--model.policy.max_length=16"))
    assert "max_completion 16 leaves no room for a prompt" in capsys.readouterr().err
