"""Stage 3: multimodal RLVR.

python experiments/stage3.py fit [--config FILE] [--model.loss.clip_range=0.1 ...]
"""

from pathlib import Path

from lightning.pytorch.cli import ArgsType

from data_modules import MultimodalPreferenceDataModule
from lit_msrl.cli import MSRLCLI, run
from lit_msrl.stages import Stage3


def main(args: ArgsType = None, cli: type[MSRLCLI] = MSRLCLI) -> MSRLCLI:
    """Parse the command line and run the stage."""
    return cli(Stage3, MultimodalPreferenceDataModule, scripts=Path(__file__).parent, after="cmkd", args=args)


if __name__ == "__main__":
    run(main)
