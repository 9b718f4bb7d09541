"""Files that are there whole or not at all, or grow line by line; folders that hold one run only."""

from __future__ import annotations

import fcntl
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


class Journal:
    """A JSONL file that grows by one record at a time, each on the disk before the next is written.

    Whatever kills the process, what was appended stays. A last line that was broken off is removed when the
    file is opened again. One process has it open at a time.

    Args:
        path: The file; made, with its folder, if it is missing.

    Raises:
        ValueError: Another process has it open, or a line is not JSON.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._file = path, path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.records = self._read(path)
        except BlockingIOError as error:
            self.close()
            raise ValueError(f"{path}: another process is writing it") from error
        except ValueError:
            self.close()
            raise

    def _read(self, path: Path) -> list[dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        lines = content[:whole].decode(errors="replace").split("\n")[:-1]
        return [parse_object(line, f"{path} row {number}") for number, line in enumerate(lines, start=1)]

    def append(self, record: dict[str, Any]) -> None:
        """Add a record."""
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)

    def close(self) -> None:
        """Let others have it."""
        self._file.close()


def parse_object(line: str, where: str) -> dict[str, Any]:
    """A line of a JSONL file.

    Raises:
        ValueError: It is no JSON object; the message begins with ``where``.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: is {type(record).__name__}, not an object with fields")
    return record
