"""The commands in the README are commands, its settings are settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.experiments.made import REPOSITORY, STAGES, call

README = REPOSITORY / "README.md"
# Files that the README names and then shows, as `my/stage1.yaml`, ... and a yaml block
SHOWN = re.compile(r"^`(my/\w+\.yaml)`[^`]*?:\n+```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The stage scripts that fenced commands run, with their arguments."""
    found = []
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            scripts = [i for i, word in enumerate(words) if re.fullmatch(r"(.*/)?experiments/\w+\.py", word)]
            if scripts and (stage := Path(words[scripts[0]]).stem) in STAGES:
                args = words[scripts[0] + 1 :]
                end = next((i for i, word in enumerate(args) if word in ("&&", ";", "|", "&")), len(args))
                found.append((stage, args[:end]))
    return found


TEXT = README.read_text() if README.is_file() else ""
COMMANDS, FILES = commands(TEXT), dict(SHOWN.findall(TEXT))
OWN = sorted(stage for stage in STAGES if f"my/{stage}.yaml" in FILES)


@pytest.fixture
def _beside_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where `experiments/` and the reader's own files are."""
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    (tmp_path / "my").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def assert_understood(stage: str, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asks = {"--help", "-h", "--print_config"} & set(args)
    with pytest.raises(SystemExit) as stop:
        call(stage, args if asks else [*args, "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


def test_commands_and_files_are_found():
    text = (
        "```bash\n# one\n.venv/bin/python experiments/stage1.py fit \\\n  --a='b c'  # why\nmake demo\n```\n"
    )
    assert commands(text) == [("stage1", ["fit", "--a=b c"])]
    text = "`my/stage1.yaml` (steps = 3), of text:\n\n```yaml\ntrainer: {}\n```\n"
    assert SHOWN.findall(text) == [("my/stage1.yaml", "trainer: {}\n")]


@pytest.mark.skipif(not README.is_file(), reason="there is no README yet")
def test_the_readme_shows_how_to_run_a_stage():
    assert COMMANDS


@pytest.mark.usefixtures("_beside_the_readme")
@pytest.mark.parametrize(("stage", "args"), COMMANDS, ids=[" ".join((s, *a)) for s, a in COMMANDS])
def test_a_command_of_the_readme_is_understood(stage, args, capsys):
    assert_understood(stage, args, capsys)


@pytest.mark.usefixtures("_beside_the_readme")
@pytest.mark.parametrize("stage", OWN)
def test_settings_of_the_readme_are_understood(stage, capsys):
    common = ["--config", "my/model.yaml"] if "my/model.yaml" in FILES else []
    assert_understood(stage, ["fit", *common, "--config", f"my/{stage}.yaml"], capsys)
