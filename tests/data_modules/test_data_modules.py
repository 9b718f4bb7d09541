"""The three streams, replay, and resuming under the Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image

from data_modules.base import PreferenceDataModule
from data_modules.caption import CaptionPreferenceDataModule
from data_modules.media import MediaError
from data_modules.multimodal import MultimodalPreferenceDataModule
from data_modules.order import ShuffledSource
from data_modules.replay import Replay
from data_modules.sources import Rows
from data_modules.text import TextPreferenceDataModule
from lit_msrl.types import PreferenceExample
from tests.data_modules.made import Numbers


def ids(batches):
    return [[example.id for example in batch] for batch in batches]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    return str(tmp_path / "p.png")


def test_media_are_decoded_in_the_loader(picture):
    data = MultimodalPreferenceDataModule(Numbers(4, media=picture), batch_size=2)
    assert all(
        example.media[0].frames[0].size == (4, 4) for batch in data.train_dataloader() for example in batch
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_media_name_example_and_file(workers):
    data = MultimodalPreferenceDataModule(Numbers(4, media="absent.png"), batch_size=2, num_workers=workers)
    with pytest.raises(MediaError, match="example 'n[0-3]' of n: absent.png: no such file"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        (TextPreferenceDataModule, Numbers(4, captions=True), "is image understanding, not text"),
        (CaptionPreferenceDataModule, Numbers(4), r"\(text\) has no captions"),
        (MultimodalPreferenceDataModule, Numbers(4, captions=True), "has no media"),
    ],
)
def test_streams_refuse_what_is_not_theirs(module, source, message):
    for data in (module(source, batch_size=2), module(validation=source, batch_size=2)):
        loader = data.train_dataloader() if data.train else data.val_dataloader()
        with pytest.raises(ValueError, match=message):
            next(iter(loader))


def test_captions_leave_media_unread():
    data = CaptionPreferenceDataModule(Numbers(4, captions=True, media="absent.png"), batch_size=2)
    assert all(not example.media for batch in data.train_dataloader() for example in batch)


def test_validation_is_whole_and_in_order_each_time():
    loader = TextPreferenceDataModule(validation=Numbers(5), batch_size=2).val_dataloader()
    for _ in range(2):
        assert ids(loader) == [["n0", "n1"], ["n2", "n3"], ["n4"]]


def test_missing_source_and_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="--data.train is not set"):
        PreferenceDataModule().train_dataloader()
    with pytest.raises(ValueError, match="batch_size is 0"):
        PreferenceDataModule(batch_size=0)
    assert PreferenceDataModule().val_dataloader() == []


# ---------------------------------------------------------------------------------------------- replay


def replayed(new=44, old=7, batch_size=10, **arguments):
    return CaptionPreferenceDataModule(
        Numbers(new, "new", captions=True),
        replay=Numbers(old, "old"),
        batch_size=batch_size,
        shuffle_buffer=5,
        **arguments,
    )


def old_share(batch):
    return sum(name.startswith("old") for name in batch)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("ratio", "batch_size", "share"), [((4, 1), 10, 2), ((4, 1), 5, 1), ((1, 1), 4, 2), ((3, 2), 5, 2)]
)
def test_every_batch_holds_the_ratio(workers, ratio, batch_size, share):
    data = replayed(batch_size=batch_size, replay_ratio=ratio, num_workers=workers).train_dataloader()
    batches = ids(data) + ids(data)
    assert {old_share(batch) for batch in batches} == {share}
    new = [name for batch in batches[: len(batches) // 2] for name in batch if name.startswith("new")]
    assert len(set(new)) == len(new) >= 44 - batch_size


def test_every_rank_holds_the_ratio():
    shares = []
    for rank in range(5):  # as many ranks as a turn has examples: dealing in stripes would fail here
        data = replayed(new=200, batch_size=5)
        stream = data.train_dataloader().stream
        stream.rank, stream.world_size = rank, 5
        shares.append(ids(stream))
    assert {old_share(batch) for share in shares for batch in share} == {1}
    new = [name for share in shares for batch in share for name in batch if name.startswith("new")]
    assert len(new) == len(set(new)) == 200


def test_old_examples_go_on_from_epoch_to_epoch():
    loader = replayed(new=8, old=1000, batch_size=10).train_dataloader()
    seen = [name for _ in range(4) for batch in ids(loader) for name in batch if name.startswith("old")]
    assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_replay_resumes_exactly(workers):
    data = replayed(num_workers=workers).train_dataloader()
    whole = [next(iter(data)) for _ in range(11)]  # over the epoch's end
    again = replayed(num_workers=workers).train_dataloader()
    again.load_state_dict({"position": whole[2].state})
    assert ids(next(iter(again)) for _ in range(8)) == ids(whole[3:])


def test_a_turn_is_taken_up_in_its_middle():
    def opened():
        return Replay(ShuffledSource(Numbers(9), block=0), ShuffledSource(Numbers(9, "old"), block=0), (2, 1))

    order = opened()
    assert [next(order).id for _ in range(2)] == ["n0", "n1"]
    again, following = opened(), opened()
    again.load_state_dict(order.state_dict())
    assert [next(again).id for _ in range(2)] == ["old0", "n2"]
    following.load_state_dict(order.next_epoch(order.state_dict()))
    assert [next(following).id for _ in range(3)] == ["n0", "n1", "old0"]


@pytest.mark.parametrize(("ratio", "batch_size"), [((4, 1), 8), ((4, 1), 1), ((0, 1), 4), ((4, 0), 4)])
def test_ratio_that_no_batch_can_hold_is_refused(ratio, batch_size):
    with pytest.raises(ValueError, match="ratio"):
        replayed(batch_size=batch_size, replay_ratio=ratio)


def test_without_replay_any_batch_size_will_do():
    data = CaptionPreferenceDataModule(Numbers(8, captions=True), batch_size=3)
    assert [len(batch) for batch in data.train_dataloader()] == [3, 3]


# ----------------------------------------------------------------------------------------- the Trainer


class Recorder(LightningModule):
    """Notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[str]] = []

    def training_step(self, batch, batch_idx):
        assert all(isinstance(example, PreferenceExample) for example in batch)
        self.seen.append([example.id for example in batch])
        return self.layer(torch.ones(len(batch), 1, dtype=self.layer.weight.dtype)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(data, folder, *, checkpoint=None, precision: Any = "32-true", epochs=3, more=(), **arguments):
    module = Recorder()
    save = ModelCheckpoint(
        folder, "{step}", save_top_k=-1, every_n_train_steps=1, save_on_train_epoch_end=False
    )
    end = ModelCheckpoint(
        folder, "end-{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, precision=precision, callbacks=[save, end, *more], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1, **arguments,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module.seen


lightning_noise = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # no validation
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def noisy(test):
    for mark in lightning_noise:
        test = mark(test)
    return test


@noisy
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["text", "replay"])
def test_trainer_resumes_from_any_step(tmp_path, kind, workers):
    def data():
        if kind == "replay":
            return replayed(batch_size=10, num_workers=workers)
        return TextPreferenceDataModule(
            Numbers(22), Numbers(3), batch_size=4, num_workers=workers, shuffle_buffer=5
        )

    whole = fit(data(), tmp_path / "whole")
    assert len(whole) == 15
    for name, used in [("step=2", 2), ("step=5", 5), ("step=8", 8), ("end-epoch=0", 5), ("end-epoch=1", 10)]:
        rest = fit(data(), tmp_path / name, checkpoint=str(tmp_path / "whole" / f"{name}.ckpt"))
        assert rest == whole[used:], name


class SaveAtStart(Callback):
    """Saves when Lightning has fetched a batch but trained on none."""

    def __init__(self, path):
        self.path = path

    def on_train_start(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


@noisy
def test_a_batch_fetched_but_not_used_is_not_lost(tmp_path):
    def data():
        return TextPreferenceDataModule(Numbers(12), batch_size=4)

    whole = fit(data(), tmp_path / "a", epochs=1, more=[SaveAtStart(tmp_path / "start.ckpt")])
    assert fit(data(), tmp_path / "b", epochs=1, checkpoint=str(tmp_path / "start.ckpt")) == whole


@noisy
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_examples_pass_the_precision_plugins(tmp_path, precision):
    seen = fit(TextPreferenceDataModule(Numbers(8), batch_size=4), tmp_path, precision=precision, epochs=1)
    assert [len(batch) for batch in seen] == [4, 4]


@noisy
def test_limited_epochs_go_on_through_the_stream(tmp_path):
    seen = fit(TextPreferenceDataModule(Numbers(12), batch_size=4), tmp_path, limit_train_batches=1)
    assert len({name for batch in seen for name in batch}) == 12


@noisy
def test_other_data_are_not_resumed(tmp_path):
    fit(TextPreferenceDataModule(Numbers(8), batch_size=4), tmp_path, epochs=1)
    other = TextPreferenceDataModule(Numbers(9), batch_size=4)
    with pytest.raises(ValueError, match="stopped in '8 numbers n', but the data are '9 numbers n'"):
        fit(other, tmp_path / "again", checkpoint=str(tmp_path / "step=1.ckpt"))


# ------------------------------------------------------------------------------------ the command line


def test_sources_are_configured_by_their_short_name(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "candidate_1": "a", "candidate_2": "b", "winner": 1}\n' * 10)
    parser = ArgumentParser()
    parser.add_class_arguments(CaptionPreferenceDataModule, "data")
    arguments = [
        *("--data.train=Rows", f"--data.train.path={path}", "--data.train.adapter=generic"),
        *("--data.train.limit=3", "--data.replay=Rows", f"--data.replay.path={path}"),
        *("--data.replay_ratio=[1, 1]", "--data.batch_size=4"),
    ]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert isinstance(data.train, Rows)
    assert data.train.limit == 3
    assert data.replay_ratio == (1, 1)
