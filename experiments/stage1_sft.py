"""Stage 1a: supervised fine-tuning on text rationales.

python experiments/stage1_sft.py fit [--config FILE] [--trainer.max_steps=20 ...]
"""

from pathlib import Path

from lightning.pytorch.cli import ArgsType

from data_modules import TextPreferenceDataModule
from lit_msrl.cli import MSRLCLI, run
from lit_msrl.stages import Stage1SFT


def main(args: ArgsType = None, cli: type[MSRLCLI] = MSRLCLI) -> MSRLCLI:
    """Parse the command line and run the stage."""
    return cli(Stage1SFT, TextPreferenceDataModule, scripts=Path(__file__).parent, after=None, args=args)


if __name__ == "__main__":
    run(main)
