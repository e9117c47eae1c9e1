"""What README.md shows is true: its tree is the repository's, its commands parse, and those it promises to run do run.

The contract, for whoever edits README.md:

Tree. The fenced block right after the line `<!-- test: tree -->` lists one entry a line: two spaces of indentation for
each folder above it, the name (a folder's ends in `/`), two spaces or more, and what it is for. It lists every entry
of the repository's root but the hidden ones and every .py file of the three packages (`__init__.py` may be left out).
It may list more, and nothing that does not exist.

Commands. Every fenced block marked `bash` holds commands as a reader would paste them: no prompt, no `...`. Lines that
end in `\\` go on; `#` starts a comment.
- What follows `train.py` or `pathmoe` is parsed by the real command line with `--print_config`, in a folder that holds
  `train.py` and `configs/` of this repository and nothing else; so what reads a checkpoint belongs in a marked block.
- `make` targets must exist. The module of `python -m` must exist.
- Other programs must be among OTHER_PROGRAMS.

Runs. The commands of a `bash` block right after the line `<!-- test: run -->` are executed instead, one after the
other, in such a folder of the block's own, with OVERRIDES after each `fit`; each must exit with 0, whether or not
`make train` has been there. At least one block must be so marked, and it holds nothing but commands of `train.py` or
`pathmoe`.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pathmoe_eval.cli import evaluation_parser

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_FOLDERS = ("pathmoe/", "kernels/pathmoe_kernels/", "eval/pathmoe_eval/")

OTHER_PROGRAMS = {"cd", "git", "pip", "tensorboard", "wandb"}

# Two steps on a little data: the commands are checked here, not what they learn.
OVERRIDES = shlex.split(
    "--data.source c-functions --data.num_documents 400 "
    "--trainer.max_steps 2 --model.schedule.warmup_steps 1 --trainer.limit_val_batches 1 --trainer.accelerator cpu"
)

TREE_LINE = re.compile(r"(?P<indent>(?:  )*)(?P<name>[^\s/]+/?)\s{2,}\S.*")


@dataclass(frozen=True)
class Block:
    """A fenced block of README.md."""

    language: str
    marker: str  # what `<!-- test: ... -->` right above it says
    lines: list[str]


def fenced_blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a text, in order."""
    fence = re.compile(r"(?:^<!-- test: (\w+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [Block(match[2], match[1] or "", match[3].splitlines()) for match in fence.finditer(markdown)]


def tree_paths(lines: list[str]) -> list[str]:
    """The paths that an annotated tree names, folders with a slash at the end."""
    paths: list[str] = []
    above: list[str] = []
    for line in lines:
        entry = TREE_LINE.fullmatch(line)
        assert entry, f"not a line of the tree (two spaces for each level, name, two spaces, what it is for): {line!r}"
        depth = len(entry["indent"]) // 2
        assert depth <= len(above), f"no folder above: {line!r}"
        above[depth:] = [entry["name"]] if entry["name"].endswith("/") else []
        paths.append("".join(above[:depth]) + entry["name"])
    return paths


def commands(lines: list[str]) -> list[list[str]]:
    """The words of each command of a bash block, without comments."""
    joined = "\n".join(lines).replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def cli_arguments(words: list[str]) -> list[str] | None:
    """What a command hands to the training command line; None for another program."""
    if words[0] == "pathmoe":
        return words[1:]
    return words[words.index("train.py") + 1 :] if "train.py" in words else None


def _readme_blocks() -> list[Block]:
    # Read at collection: a missing README is a failure of a test below, not of pytest.
    readme = ROOT / "README.md"
    return fenced_blocks(readme.read_text(encoding="utf-8")) if readme.exists() else []


def _run_blocks() -> list[Block]:
    return [block for block in _readme_blocks() if block.marker == "run"]


def _readme_commands() -> list[list[str]]:
    shown = [block for block in _readme_blocks() if block.language == "bash" and block.marker != "run"]
    return [words for block in shown for words in commands(block.lines)]


def _repository_files() -> set[str]:
    """Files that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line for line in output.splitlines() if (ROOT / line).exists()}


def test_the_tree_is_the_repository() -> None:
    trees = [block for block in _readme_blocks() if block.marker == "tree"]
    assert len(trees) == 1, "README.md has one fenced block right after <!-- test: tree -->"
    shown = tree_paths(trees[0].lines)
    assert len(shown) == len(set(shown)), "an entry is there twice"

    files = _repository_files()
    folders = {"/".join(parts[:n]) + "/" for f in files if (parts := f.split("/")) for n in range(1, len(parts))}
    in_root = {path for path in files | folders if "/" not in path.rstrip("/") and not path.startswith(".")}
    modules = {
        f for f in files if f.startswith(PACKAGE_FOLDERS) and f.endswith(".py") and not f.endswith("__init__.py")
    }

    assert (in_root | modules) - set(shown) == set(), "README.md's tree lacks these"
    assert set(shown) - files - folders == set(), "README.md's tree names these, and they do not exist"


def backticked_paths(markdown: str) -> list[str]:
    """The paths of the repository, and patterns of such, among the words in backticks."""
    prose = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    words = [word for code in re.findall(r"`([^`]+)`", prose) for word in code.split()]
    is_path = re.compile(r"(?!\.venv/)[\w.*-]+(/[\w./*-]*|\.(md|toml|txt))")
    return [word for word in words if is_path.fullmatch(word)]


def test_the_paths_in_contributing_exist() -> None:
    paths = backticked_paths((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert {"tests/test_layering.py", "constraints.txt", "configs/routers/*.yaml"} <= set(paths)
    assert [path for path in paths if not list(ROOT.glob(path))] == []


def test_there_are_commands_to_check() -> None:
    assert _readme_commands()


@pytest.mark.parametrize("words", _readme_commands(), ids=" ".join)
def test_a_command_is_valid(words: list[str], checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = cli_arguments(words)
    if arguments is not None:
        assert parses(arguments), capsys.readouterr().err
    elif words[0] == "pathmoe-eval":
        evaluation_parser().parse_args(words[1:])
    elif words[0] == "make":
        result = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), f"no module {words[2]}"
    else:
        assert words[0] in OTHER_PROGRAMS


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: what the commands need of the repository, and no runs."""
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])  # the command line rewrites it
    return tmp_path


def parses(arguments: list[str]) -> bool:
    """Whether the training command line accepts the arguments, without doing what they say."""
    from pathmoe.training.cli import main

    with pytest.raises(SystemExit) as end:
        main([*arguments, "--print_config"])
    return end.value.code in (None, 0)


def test_there_are_commands_to_run() -> None:
    assert _run_blocks(), "README.md marks no block with <!-- test: run -->"


def make_train_command() -> list[str]:
    """What `make train` runs."""
    result = subprocess.run(["make", "-n", "train"], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = [line for line in result.stdout.splitlines() if "train.py" in line]
    return shlex.split(line)


@pytest.mark.slow
@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("is_trained", [False, True], ids=["in an empty folder", "after make train"])
@pytest.mark.parametrize("block", _run_blocks(), ids=lambda block: " ".join(commands(block.lines)[0]))
def test_the_marked_commands_run(block: Block, is_trained: bool) -> None:
    words_of_all = commands(block.lines)
    if is_trained:
        # What the other commands read is the same then.
        words_of_all = [make_train_command(), *(words for words in words_of_all if "fit" in words)]
    for words in words_of_all:
        arguments = cli_arguments(words)
        assert arguments, f"only the training command line is run here, not {words}"
        overrides = OVERRIDES if arguments[0] == "fit" else []
        command = [sys.executable, "train.py", *arguments, *overrides]
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(
    "arguments", [["fit", "--no_such_key", "1"], ["fit", "--config", "no_such_file.yaml"], ["fitt"]]
)
def test_a_wrong_command_is_seen(arguments: list[str]) -> None:
    assert not parses(arguments)


def test_a_wrong_evaluation_command_is_seen() -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluation_parser().parse_args(["paths", "--no_such_option", "1", "--out", "x"])


def test_blocks_commands_and_trees_are_read_as_the_contract_says() -> None:
    markdown = """text

<!-- test: tree -->
```
a/    folder
  b/    inside
    c.py  file
d.md  last
```

<!-- test: run -->
```bash
# first
python train.py fit \\
  --x 1  # why
make test
```

```python
x
```
"""
    tree, run, other = fenced_blocks(markdown)
    assert tree_paths(tree.lines) == ["a/", "a/b/", "a/b/c.py", "d.md"]
    assert (tree.marker, run.marker, run.language, other.marker) == ("tree", "run", "bash", "")
    assert commands(run.lines) == [["python", "train.py", "fit", "--x", "1"], ["make", "test"]]
    assert [cli_arguments(words) for words in commands(run.lines)] == [["fit", "--x", "1"], None]
    assert cli_arguments(["pathmoe", "fit"]) == ["fit"]
    assert cli_arguments(["cd", "pathmoe"]) is None
    markdown = "`a/b.py`, `pytest c/*.py -q` `d/`\n```\n`e/`\n```\n`README.md` `.venv/bin/x`, `f.py` `x_TD`, g/h"
    assert backticked_paths(markdown) == ["a/b.py", "c/*.py", "d/", "README.md"]
    with pytest.raises(AssertionError, match="not a line of the tree"):
        tree_paths(["a.py"])
    with pytest.raises(AssertionError, match="no folder above"):
        tree_paths(["a.py  file", "  b.py  file"])
