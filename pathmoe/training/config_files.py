"""The files behind `--config`: the shipped ones are found by name, and what no parser would refuse is refused here."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

SAID_ONCE = {
    "data.vocab_size": "model.config.vocab_size",
    "model.seed": "seed_everything",
    "data.seed": "seed_everything",
}
"""Keys that are not set themselves, with the key that each takes its value from."""

_OF_THE_COMMAND_LINE = ("ckpt_path", "run_dir", "dry_run", "plan")

# jsonargparse takes a section that is no mapping for one with nothing in it, and trains the defaults.
_SECTIONS = ("model", "model.config", "model.optimizer", "model.schedule", "data", "trainer")


def config_folder() -> Path:
    """Where the shipped configs lie: inside the installed package, or in the repository that it is edited in."""
    packaged = Path(str(resources.files("pathmoe"))) / "configs"
    return packaged if packaged.is_dir() else packaged.parent.parent / "configs"


def find_config(name: str) -> str:
    """A path for `--config`: the file itself, or the shipped config of that name or path (`tiny`, `routers/omni`).

    Raises:
        ValueError: neither; several shipped configs of that name; or a file as `check_config` refuses it.
    """
    if Path(name).is_file():
        check_config(Path(name))
        return name
    shipped = config_folder()
    stem = name.removeprefix("configs/").removesuffix(".yaml")
    if (shipped / f"{stem}.yaml").is_file():
        return str(shipped / f"{stem}.yaml")
    found = sorted(path for path in shipped.rglob("*.yaml") if path.stem == stem)
    if len(found) == 1:
        return str(found[0])
    names = ", ".join(
        sorted(str(path.relative_to(shipped).with_suffix("")) for path in found or shipped.rglob("*.yaml"))
    )
    raise ValueError(f"--config ({name}) must be a file or one shipped config; choose among: {names}")


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ValueError: it is not UTF-8, not YAML, or no mapping; names the file.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8 text, but its byte {error.start} is not; save it so") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ValueError(f"{file} must be YAML, but can't be read ({reason}); mend it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold keys with their values, not {content!r}; see configs/tiny.yaml")
    return content


def check_config(file: Path) -> None:
    """Refuse what the parser would take without a word and then ignore: sections that are none, keys set elsewhere.

    Raises:
        ValueError: that, or what `read_yaml` raises.
    """
    content = read_yaml(file)
    for section in _SECTIONS:
        value = _look_up(content, section, default={})
        if not isinstance(value, dict):
            raise ValueError(f"{section} ({value!r}) in {file} must hold keys with their values; fill or remove it")
    for key, source in SAID_ONCE.items():
        value = _look_up(content, key, default=None)
        if value is not None:
            raise ValueError(f"{key} ({value!r}) in {file} must not be set, since it follows {source}; set that")
    for key in _OF_THE_COMMAND_LINE:
        if key in content:
            raise ValueError(f"{key} ({content[key]!r}) in {file} must be given on the command line, as --{key}")


def _look_up(content: dict[str, Any], dotted_key: str, default: Any) -> Any:
    *sections, key = dotted_key.split(".")
    for section in sections:
        content = content.get(section, {})
    return content.get(key, default)
