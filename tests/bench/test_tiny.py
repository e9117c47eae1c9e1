import yaml

from pathmoe.bench.tiny import tiny_run
from pathmoe.training.config_files import config_folder


def test_settings_are_those_of_the_shipped_files() -> None:
    run = tiny_run("low_rank")
    tiny = yaml.safe_load((config_folder() / "tiny.yaml").read_text())
    router = yaml.safe_load((config_folder() / "routers" / "low_rank.yaml").read_text())
    for name, value in (tiny["model"]["config"] | router["model"]["config"]).items():
        assert getattr(run.config, name) == value, name
    for name, value in tiny["model"]["optimizer"].items():
        assert getattr(run.optimizer, name) == value, name
    for name, value in tiny["model"]["schedule"].items():
        assert getattr(run.schedule, name) == value, name
    assert run.max_steps == tiny["trainer"]["max_steps"]
    assert run.gradient_clip_val == tiny["trainer"]["gradient_clip_val"]
    batch = next(run.data.train_batches())
    blocks = tiny["data"]["micro_batch_size"] * tiny["trainer"].get("accumulate_grad_batches", 1)
    assert batch["input_ids"].shape == (blocks, tiny["data"]["sequence_length"])
