"""What happens to the command line before it is parsed: configs by name, the run's folder, a checkpoint's config."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.training.arguments import expand, option_values
from pathmoe.training.config_files import find_config

TINY, PATH_B4 = find_config("tiny"), find_config("path_b4")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(name: str, *checkpoints: str) -> Path:
    run_folder = Path("runs") / name
    run_folder.mkdir(parents=True)
    for file in ("config.yaml", *checkpoints):
        (run_folder / file).write_text("a: 1" if file.endswith(".yaml") else "PK\x03\x04")
    return run_folder


WORDS = st.sampled_from(["--a", "--b", "1", "x=y", "--a=2", "--a="])


@given(st.lists(WORDS))
def test_option_values_are_those_that_argparse_sees(arguments: list[str]) -> None:
    expected, position = [], 0
    while position < len(arguments):
        if arguments[position].startswith("--a="):
            expected.append(arguments[position].removeprefix("--a="))
        elif arguments[position] == "--a":
            expected += arguments[position + 1 : position + 2]
        position += 1
    assert option_values(arguments, "--a") == expected


def test_configs_are_found_and_name_the_run() -> None:
    assert expand(["fit", "--config", "tiny", "-c", "routers/path_b4", "--data.seed_x", "1"]) == [
        *["fit", "--config", TINY, "-c", PATH_B4, "--data.seed_x", "1"],
        *["--run_dir", "runs/tiny-path_b4-seed_x=1"],
    ]
    assert expand(["fit", "--config=tiny"]) == ["fit", f"--config={TINY}", "--run_dir", "runs/tiny"]
    assert expand(["fit"]) == ["fit", "--run_dir", "runs/run"]


def test_flags_that_say_what_is_trained_name_the_run_too() -> None:
    def name(*flags: str) -> str:
        return Path(expand(["fit", *flags, "--config", "tiny"])[-1]).name

    assert name("--model.config.layers_per_router", "2") == name("--model.config.layers_per_router=2")
    assert name("--model.config.layers_per_router", "2") == "tiny-layers_per_router=2"
    assert name("--seed_everything=1", "--data.source", "c-functions") == "tiny-source=c-functions-seed_everything=1"
    assert name("--model.config.num_experts", "4", "--model.config.num_experts", "8") == "tiny-num_experts=8"
    # These may change while a run goes on.
    assert name("--trainer.max_steps", "9", "--data.num_workers=2", "--checkpoint_every_n_steps", "5") == "tiny"
    assert name("--data.cache_dir", "/tmp", "--dry_run", "--print_config") == "tiny"


def test_last_is_that_of_the_run_with_the_same_flags() -> None:
    make_run("tiny", "last.ckpt")
    flags = ["fit", "--config", "tiny", "--model.config.layers_per_router", "2"]
    assert option_values(expand([*flags, "--ckpt_path", "last"]), "--ckpt_path") == [], "there is none yet"
    run_folder = make_run("tiny-layers_per_router=2", "last.ckpt")
    assert option_values(expand([*flags, "--ckpt_path", "last"]), "--ckpt_path") == [f"{run_folder}/last.ckpt"]
    assert option_values(expand([*flags, "--ckpt_path", "runs/tiny"]), "--run_dir") == ["runs/tiny"]


def test_the_run_folder_that_is_given_wins() -> None:
    assert expand(["fit", "--config", "tiny", "--run_dir", "here"])[-2:] == ["--run_dir", "here"]
    assert expand(["fit", "--run_dir=here", "--config", "tiny"])[-2:] == ["--run_dir", "here"]


def test_last_without_a_checkpoint_starts_anew() -> None:
    start = ["fit", "--config", TINY, "--run_dir", "runs/tiny"]
    assert expand(["fit", "--config", "tiny", "--ckpt_path", "last"]) == start
    assert expand(["fit", "--config", "tiny", "--ckpt_path=last"]) == start
    make_run("tiny")  # killed before its first checkpoint
    assert expand(["fit", "--config", "tiny", "--ckpt_path", "last"]) == start


def test_last_with_a_checkpoint_goes_on_under_what_is_given() -> None:
    run_folder = make_run("tiny", "last.ckpt")
    given_flags = ["--config", TINY, "--trainer.max_steps", "9"]
    expected = ["--config", f"{run_folder}/config.yaml", *given_flags, "--ckpt_path", f"{run_folder}/last.ckpt"]
    for ckpt_path in ("last", str(run_folder), f"{run_folder}/last.ckpt"):
        arguments = ["fit", "--config", "tiny", "--ckpt_path", ckpt_path, "--trainer.max_steps", "9"]
        assert expand(arguments) == ["fit", *expected, "--run_dir", str(run_folder)]


def test_last_goes_on_from_the_best_checkpoint_where_it_is_alone() -> None:
    run_folder = make_run("tiny", "best.ckpt")  # killed before its first last.ckpt
    for more in (["--config", "tiny"], []):
        expanded = expand(["fit", *more, "--ckpt_path", "last"])
        assert option_values(expanded, "--ckpt_path") == [f"{run_folder}/best.ckpt"]
        assert option_values(expanded, "--run_dir") == [str(run_folder)]


def test_a_checkpoint_alone_brings_its_settings_and_its_folder() -> None:
    run_folder = make_run("some", "last.ckpt", "previous.ckpt", "best.ckpt")
    names = [(name, name) for name in ("last", "previous", "best")]
    for ckpt_path, file in ((f"{run_folder}/best.ckpt", "best"), *names):
        assert expand(["validate", "--ckpt_path", ckpt_path]) == [
            *["validate", "--config", f"{run_folder}/config.yaml"],
            *["--ckpt_path", f"{run_folder}/{file}.ckpt", "--run_dir", str(run_folder)],
        ]


def test_a_sharded_folder_is_a_checkpoint() -> None:
    run_folder = make_run("some")
    (run_folder / "last.ckpt").mkdir()
    (run_folder / "last.ckpt" / ".metadata").touch()
    for ckpt_path in ("last", str(run_folder), f"{run_folder}/last.ckpt"):
        expanded = expand(["validate", "--ckpt_path", ckpt_path])
        assert option_values(expanded, "--ckpt_path") == [f"{run_folder}/last.ckpt"]
        assert option_values(expanded, "--config") == [f"{run_folder}/config.yaml"]


def test_the_checkpoint_of_another_run_can_be_gone_on_with_elsewhere() -> None:
    run_folder = make_run("some", "last.ckpt")
    expanded = expand(["fit", "--ckpt_path", str(run_folder), "--run_dir", "elsewhere"])
    assert option_values(expanded, "--run_dir") == ["elsewhere"]
    assert option_values(expanded, "--ckpt_path") == [f"{run_folder}/last.ckpt"]


def test_the_last_of_several_checkpoints_given_wins() -> None:
    run_folder = make_run("some", "last.ckpt", "best.ckpt")
    best = ["--ckpt_path", f"{run_folder}/best.ckpt"]
    expanded = expand(["validate", "--ckpt_path", "nowhere.ckpt", *best])
    assert option_values(expanded, "--ckpt_path") == best[1:]


@pytest.mark.parametrize("ckpt_path", [[], ["--ckpt_path", "last"], ["--ckpt_path", "runs/some"]])
def test_what_is_expanded_can_be_expanded_again(ckpt_path: list[str]) -> None:
    """Ranks are started with what the first process has made of its command line, and do the same with it."""
    make_run("some", "last.ckpt")
    once = expand(["fit", "--config", "tiny", "--trainer.max_steps", "9", *ckpt_path])
    twice = expand(once)
    for option in ("--run_dir", "--ckpt_path"):
        assert option_values(twice, option)[-1:] == option_values(once, option)[-1:]
    assert list(dict.fromkeys(option_values(twice, "--config"))) == option_values(once, "--config")


@pytest.mark.parametrize("end", [["--config"], ["--ckpt_path"], ["--run_dir"]])
def test_a_missing_value_is_left_to_the_parser(end: list[str]) -> None:
    assert expand(["fit", "--config", "tiny", *end])[3] == end[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--config", "tinny"], r"--config \(tinny\) must be"),
        (["fit", "--ckpt_path", "last"], r"--ckpt_path \(last\) must name a run, but runs holds no \*/last\.ckpt"),
        (["fit", "--ckpt_path", "best"], r"--ckpt_path \(best\) must name a run, but runs holds no \*/best\.ckpt"),
        (["validate", "--ckpt_path", "no.ckpt"], r"--ckpt_path \(no\.ckpt\) must be an existing checkpoint"),
        (["validate", "--config", "tiny", "--ckpt_path", "last"], r"--ckpt_path \(runs/tiny/last\.ckpt\) must be an"),
        (["fit", "--ckpt_path", "best", "--config", "tiny"], r"--ckpt_path \(runs/tiny/best\.ckpt\) must be an"),
        (["fit", "--data.vocab_size", "400"], r"--data\.vocab_size \(400\) .*; give --model\.config\.vocab_size"),
        (["fit", "--model.seed=3"], r"--model\.seed \(3\) must not be given, since it follows seed_everything; give"),
    ],
)
def test_what_can_not_be_found_or_is_said_elsewhere(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand(arguments)


def test_a_checkpoint_without_its_settings() -> None:
    Path("lonely.ckpt").touch()
    with pytest.raises(ValueError, match=r"^config\.yaml must lie beside the checkpoint lonely\.ckpt; copy it"):
        expand(["validate", "--ckpt_path", "lonely.ckpt"])
