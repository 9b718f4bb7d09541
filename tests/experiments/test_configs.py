"""Every configuration is one its script can read, write and read again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from lit_msrl.rewards import RewardSum
from tests.experiments.made import REPOSITORY, STAGES, call

CONFIGS = REPOSITORY / "experiments" / "configs"
ADAPTERS = REPOSITORY / "data_modules" / "datasets"


def printed(stage: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What ``--print_config`` prints."""
    with pytest.raises(SystemExit) as stop:
        call(stage, ["fit", *options, "--print_config"])
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    return out


def leaves(node: object, path: tuple = ()) -> dict[tuple, object]:
    """The settings of a file by their path; a list is one setting."""
    if not isinstance(node, dict):
        return {path: node}
    return {key: value for name, child in node.items() for key, value in leaves(child, (*path, name)).items()}


def test_every_stage_has_a_configuration_and_every_configuration_a_stage():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_configuration_is_read_and_all_it_says_counts(stage, capsys):
    config = yaml.safe_load(printed(stage, capsys))
    assert config["trainer"]["logger"]["init_args"]["name"] == stage
    wanted = leaves(yaml.safe_load((CONFIGS / f"{stage}.yaml").read_text()))
    found = leaves(config)
    assert {path: found.get(path) for path in wanted} == wanted


@pytest.mark.parametrize("path", sorted((CONFIGS / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_read_by_the_stage_it_is_called_like_and_names_adapters_that_exist(path, capsys):
    config = yaml.safe_load(printed(path.stem, capsys, f"--config={path}"))
    wanted = leaves(yaml.safe_load(path.read_text()))
    found = leaves(config)
    for name in ("batch_size", "replay_ratio"):
        assert found.get(("data", name)) == wanted.get(("data", name))
    for role in ("train", "validation", "replay"):
        source = config["data"].get(role)
        for rows in source["init_args"].get("sources", [source]) if source else []:
            assert (ADAPTERS / f"{rows['init_args']['adapter']}.py").is_file()


def test_the_recipes_hold_the_papers_numbers():
    files = (CONFIGS / "data").glob("*.yaml")
    recipes = {path.stem: yaml.safe_load(path.read_text())["data"] for path in files}
    assert recipes["stage1"]["train"]["init_args"]["limit"] == 400_000
    assert sum(recipes["stage2"]["train"]["init_args"]["counts"]) == 19_442
    assert recipes["cmkd"]["train"] == recipes["stage2"]["train"]
    assert sum(recipes["stage3"]["train"]["init_args"]["counts"]) == 20_038


@pytest.mark.parametrize("stage", STAGES)
def test_a_printed_configuration_reads_back_as_itself(stage, capsys, tmp_path: Path):
    options = ["--trainer.max_steps=7", "--data.train.seed=5", "--outputs=elsewhere"]
    first = printed(stage, capsys, *options)
    path = tmp_path / "config.yaml"
    path.write_text(first)
    assert printed(stage, capsys, f"--config={path}") == first
    assert yaml.safe_load(first)["outputs"] == "elsewhere"


def test_dotted_options_override_the_configuration(capsys):
    options = ["--model.loss=GRPOLoss", "--model.loss.clip_range=0.1", "--trainer.max_steps=20"]
    config = yaml.safe_load(printed("stage1", capsys, *options))
    assert config["model"]["loss"]["class_path"] == "lit_msrl.losses.GRPOLoss"
    assert config["model"]["loss"]["init_args"]["clip_range"] == 0.1
    assert config["trainer"]["max_steps"] == 20


@pytest.mark.parametrize(
    ("loss", "options", "kept"),
    [
        ("GRPOLoss", {"clip_range": 0.1, "scale": "batch"}, {"clip_range_high": None, "aggregate": "token"}),
        ("DrGRPOLoss", {"clip_range": 0.1}, {"scale": "none", "aggregate": "constant"}),
        ("DAPOLoss", {"clip_range_high": 0.3}, {"clip_range": 0.2, "scale": "group", "aggregate": "token"}),
        ("GSPOLoss", {"clip_range": 1e-3}, {"clip_range_high": 4e-4, "aggregate": "sequence"}),
        ("CISPOLoss", {"clip_range_high": 2.0}, {"scale": "group", "aggregate": "token"}),
        ("SAPOLoss", {"tau_negative": 1.1}, {"tau_positive": 1.0, "aggregate": "sequence"}),
        ("RLOOLoss", {"entropy_coef": 0.1}, {"clip_range": 0.2, "aggregate": "sequence"}),
        ("ReinforcePlusPlusLoss", {"group_baseline": True}, {"scale": "batch", "kl": "k2"}),
    ],
)
def test_every_loss_is_chosen_by_its_name_and_has_its_own_defaults(
    loss, options, kept, capsys, tmp_path: Path
):
    """Not those of the loss that the stage's file names: on the command line and in a file."""
    chosen = [f"--model.loss.{name}={value}" for name, value in options.items()]
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"model": {"loss": {"class_path": f"lit_msrl.losses.{loss}", "init_args": options}}})
    )
    for arguments in ([f"--model.loss={loss}", *chosen], [f"--config={path}"]):
        found = yaml.safe_load(printed("stage2", capsys, *arguments))["model"]["loss"]
        assert found["class_path"] == f"lit_msrl.losses.{loss}"
        assert {name: found["init_args"][name] for name in options | kept} == options | kept


def test_options_of_the_same_loss_add_up(capsys):
    config = yaml.safe_load(
        printed(
            "stage1", capsys, "--model.loss=GSPOLoss", "--model.loss.kl_coef=0.1", "--model.loss=GSPOLoss"
        )
    )
    assert config["model"]["loss"]["init_args"]["kl_coef"] == 0.1


def test_later_files_and_options_win(capsys, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("trainer: {max_steps: 3}\nmodel: {group_size: 6}\ncheckpoint: {every_n_train_steps: 4}\n")
    config = yaml.safe_load(printed("stage3", capsys, f"--config={path}", "--trainer.max_steps=5"))
    assert (config["trainer"]["max_steps"], config["model"]["group_size"]) == (5, 6)
    assert config["checkpoint"]["every_n_train_steps"] == 4
    assert config["model"]["style"] == "compact"  # as the stage's own file has it


def test_data_are_named_by_their_short_class_names(capsys, tmp_path: Path):
    options = ["--data.train=Rows", f"--data.train.path={tmp_path}/mine.jsonl", "--data.train.limit=3"]
    train = yaml.safe_load(printed("stage1", capsys, *options))["data"]["train"]
    assert train["class_path"].endswith("Rows")
    assert train["init_args"]["limit"] == 3


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--trainer.max_stepz=2", "--trainer.max_stepz"),
        ("--model.los=GRPOLoss", "--model.los"),
        ("--model.loss=GRPOLos", "GRPOLos"),
        ("--model.loss.clip_rangee=0.1", "clip_rangee"),
        ("--model.group_size=many", "model.group_size"),
        ("--model.view=sideways", "model.view"),
        ("--data.train=Wrld", "Wrld"),
        ("--config=/nowhere/at/all.yaml", "/nowhere/at/all.yaml"),
    ],
)
def test_a_typo_gets_one_line_that_names_it(option, named, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        call("stage1", ["fit", option])
    out, err = capsys.readouterr()
    assert stop.value.code == 1
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert named in err
    assert not list(tmp_path.iterdir())


def test_a_typo_in_a_file_gets_one_line_that_names_it(capsys, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {grup_size: 6}\n")
    with pytest.raises(SystemExit):
        call("stage1", ["fit", f"--config={path}"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "grup_size" in err


def test_the_reference_preset_is_the_public_scripts(capsys):
    """The same weights and reading as ``RewardSum.reference``, and the scripts' clipping."""
    preset = CONFIGS / "presets" / "reference.yaml"
    config = yaml.safe_load(printed("stage2", capsys, f"--config={preset}"))["model"]
    weights = {reward.name: reward.weight for reward in RewardSum.reference().rewards}
    chosen = config["reward"]["init_args"]
    assert {name: chosen[name] for name in weights} == weights
    assert chosen["reading"] == RewardSum.reference().reading
    loss = config["loss"]["init_args"]
    assert (loss["clip_range"], loss["clip_range_high"], loss["kl_coef"]) == (0.2, 0.28, 0.0)
    assert (loss["scale"], loss["aggregate"]) == ("none", "sequence")


TRAINERS = sorted(path.stem for path in (CONFIGS / "trainer").glob("*.yaml"))


def test_the_trainers_are_all_there():
    assert TRAINERS == ["cpu", "ddp", "fsdp", "fsdp_multi_node", "qlora", "single_gpu"]


@pytest.mark.parametrize("stage", ["stage1_sft", "stage3"])
@pytest.mark.parametrize("trainer", [name for name in TRAINERS if name != "cpu"])  # that one is the default
def test_a_trainer_is_understood_on_top_of_a_stage(trainer, stage, capsys):
    path = CONFIGS / "trainer" / f"{trainer}.yaml"
    wanted = leaves(yaml.safe_load(path.read_text()))
    config = yaml.safe_load(printed(stage, capsys, f"--config={path}"))
    found = leaves(config)
    assert {key: found.get(key) for key in wanted} == wanted
    assert config["model"]["policy"]["init_args"]["model_name"] == "tiny"  # as the stage's own file has it
    assert config["trainer"]["logger"]["init_args"]["name"] == stage


def test_the_cluster_script_is_a_shell_script():
    script = CONFIGS.parent / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "experiments/configs/trainer/fsdp_multi_node.yaml" in script.read_text()
