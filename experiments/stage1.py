"""Stage 1b: RLVR on text preferences.

python experiments/stage1.py fit [--config FILE] [--model.loss.clip_range=0.1 ...]
"""

from pathlib import Path

from lightning.pytorch.cli import ArgsType

from data_modules import TextPreferenceDataModule
from lit_msrl.cli import MSRLCLI, run
from lit_msrl.stages import Stage1


def main(args: ArgsType = None, cli: type[MSRLCLI] = MSRLCLI) -> MSRLCLI:
    """Parse the command line and run the stage."""
    return cli(Stage1, TextPreferenceDataModule, scripts=Path(__file__).parent, after="stage1_sft", args=args)


if __name__ == "__main__":
    run(main)
