"""Files of a run that are there whole or not at all, and folders that hold one run only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_other_settings(folder: Path, settings: dict[str, Any], *, option: str) -> None:
    """Refuse to mix runs with other settings in one folder; write them down in ``settings.json``.

    Args:
        folder: The folder.
        settings: What must be the same; plain JSON values.
        option: The option that names the folder.

    Raises:
        ValueError: The folder holds a run with others.
    """
    path = folder / "settings.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
    changed = [name for name in settings if held.get(name) != settings[name]]
    if changed:
        differences = ", ".join(f"{name} {held.get(name)} instead of {settings[name]}" for name in changed)
        raise ValueError(
            f"{folder} holds a run with {differences}; choose another {option} or remove the folder"
        )
    write_whole(path, json.dumps(settings, indent=2) + "\n")
