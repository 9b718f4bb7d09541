"""Stage 2a: RLVR on captions, with replay.

python experiments/stage2.py fit [--config FILE] [--model.loss.clip_range=0.1 ...]
"""

from pathlib import Path

from lightning.pytorch.cli import ArgsType

from data_modules import CaptionPreferenceDataModule
from lit_msrl.cli import MSRLCLI, run
from lit_msrl.stages import Stage2


def main(args: ArgsType = None, cli: type[MSRLCLI] = MSRLCLI) -> MSRLCLI:
    """Parse the command line and run the stage."""
    return cli(Stage2, CaptionPreferenceDataModule, scripts=Path(__file__).parent, after="stage1", args=args)


if __name__ == "__main__":
    run(main)
