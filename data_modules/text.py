"""Stage 1: text preferences."""

from __future__ import annotations

from data_modules.base import PreferenceDataModule
from lit_msrl.types import PreferenceExample


class TextPreferenceDataModule(PreferenceDataModule):
    """Streams text preferences only; anything else is an error."""

    @staticmethod
    def check(example: PreferenceExample) -> PreferenceExample:
        """Accept text.

        Raises:
            ValueError: The example is of another task.
        """
        if example.task_type != "text":
            raise ValueError(f"example {example.id!r} of {example.source!r} is {example.task_type}, not text")
        return example
