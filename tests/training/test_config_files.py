"""The files behind `--config`: found by name from anywhere, and refused where the parser would look away."""

from pathlib import Path

import pytest
import yaml

from pathmoe.training.config_files import SAID_ONCE, check_config, config_folder, find_config, read_yaml

SHIPPED = sorted(config_folder().rglob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(config_folder())))
def test_a_shipped_config_is_found_by_path_and_by_name(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(file.relative_to(config_folder()).with_suffix(""))
    for name in (path, f"{path}.yaml", f"configs/{path}.yaml", str(file), file.stem):
        assert Path(find_config(name)).samefile(file)
    check_config(file)


def test_an_installation_has_them_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").touch()
    monkeypatch.setattr("pathmoe.training.config_files.resources.files", {"pathmoe": tmp_path}.get)
    assert config_folder() == tmp_path / "configs"
    assert find_config("tiny") == str(tmp_path / "configs" / "tiny.yaml")


def test_a_file_of_the_user_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_text("model: {}\n")
    assert find_config("tiny") == "tiny"


@pytest.mark.parametrize("name", ["no_such", "configs/no_such.yaml", "", "/", "routers", "tiny.yml"])
def test_a_config_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=rf"--config \({name}\) must be a file or .*; choose among: .*routers/path_b4"):
        find_config(name)


def test_two_shipped_configs_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("data", "routers"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.yaml").touch()
    monkeypatch.setattr("pathmoe.training.config_files.config_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"--config \(same\) must .*choose among: data/same, routers/same$"):
        find_config("same")
    assert find_config("data/same") == str(tmp_path / "data" / "same.yaml")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"model: {config: [1, 2\n", r"must be YAML, but can't be read \(.*line 1, column 17.*\); mend it"),
        (b"model:\n  config:\n x: 1\n", r"must be YAML, but can't be read \(.*line 3, column 2.*\); mend it"),
        (b"model: \xff\xfe\n", r"must be UTF-8 text, but its byte 7 is not; save it so"),
        (b"", r"must hold keys with their values, not None; see"),
        (b"- 1\n- 2\n", r"must hold keys with their values, not \[1, 2\]; see"),
        (b"just text\n", r"must hold keys with their values, not 'just text'; see"),
    ],
)
def test_a_file_that_is_no_configuration(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        read_yaml(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data:\n", r"^data \(None\) in {} must hold keys"),
        ("model: 3\n", r"^model \(3\) in {} must hold keys"),
        ("model: {config: big}\n", r"^model\.config \('big'\) in {} must hold keys"),
        ("model: {optimizer: [muon]}\n", r"^model\.optimizer \(\['muon'\]\) in {} must hold keys"),
        (
            "data: {vocab_size: 400}\n",
            r"^data\.vocab_size \(400\) in {} .* follows model\.config\.vocab_size; set that",
        ),
        ("model: {seed: 1}\n", r"^model\.seed \(1\) in {} must not be set, since it follows seed_everything; set that"),
        ("plan: {gpu: h100}\n", r"^plan .* in {} must be given on the command line, as --plan"),
        ("run_dir: mine\n", r"^run_dir \('mine'\) in {} must be given on the command line, as --run_dir"),
        ("ckpt_path: last\n", r"^ckpt_path \('last'\) in {} must be given on the command line, as --ckpt_path"),
    ],
)
def test_what_would_be_ignored_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message.format(file)):
        check_config(file)


def test_what_is_said_once_is_said_nowhere_in_the_shipped_configs() -> None:
    for file in SHIPPED:
        content = yaml.safe_load(file.read_text())
        for key in SAID_ONCE:
            section, name = key.split(".")
            assert name not in content.get(section, {})
