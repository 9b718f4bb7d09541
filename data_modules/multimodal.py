"""Stage 3: preferences about pictures and clips."""

from __future__ import annotations

from data_modules.base import PreferenceDataModule
from lit_msrl.types import PreferenceExample


class MultimodalPreferenceDataModule(PreferenceDataModule):
    """Streams preferences with pictures or clips; an example without is an error."""

    @staticmethod
    def check(example: PreferenceExample) -> PreferenceExample:
        """Accept examples with media.

        Raises:
            ValueError: The example has none.
        """
        if not example.media:
            raise ValueError(
                f"example {example.id!r} of {example.source!r} ({example.task_type}) has no media"
            )
        return example
