"""The discriminative baseline: a scalar head, trained by the Bradley-Terry loss.

python experiments/discriminative.py fit [--config FILE] [--trainer.max_steps=20 ...]
"""

from pathlib import Path

from lightning.pytorch.cli import ArgsType

from data_modules import MultimodalPreferenceDataModule
from lit_msrl.cli import MSRLCLI, run
from lit_msrl.stages import DiscriminativeRM


def main(args: ArgsType = None, cli: type[MSRLCLI] = MSRLCLI) -> MSRLCLI:
    """Parse the command line and run the stage."""
    return cli(
        DiscriminativeRM, MultimodalPreferenceDataModule, scripts=Path(__file__).parent, after=None, args=args
    )


if __name__ == "__main__":
    run(main)
