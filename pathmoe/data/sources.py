"""From the description of a source to its documents: read through, or streamed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features, IterableDataset, Value, load_dataset

from pathmoe.data.c_functions import c_functions
from pathmoe.data.document import Document
from pathmoe.data.hub import go_offline_without_hub, looks_like_path
from pathmoe.data.local_files import SUFFIXES, find_files, read_file, text_of
from pathmoe.data.python_stdlib import python_stdlib

PYTHON_STDLIB = "python-stdlib"
C_FUNCTIONS = "c-functions"

_C_FUNCTIONS_SEED = 0  # the corpus is the same for every data.seed, which only orders it
_C_FUNCTIONS_DOCUMENTS = 20_000
_ROWS_PER_READ = 1000
_FEATURES = Features({"text": Value("string")})

_CARD = "README.md"
_DATA_SUFFIXES = (*SUFFIXES, ".csv", ".arrow", ".gz", ".zst")  # what `load_dataset` reads


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents come from; the fields are the arguments of the same names of `TokenDataModule`."""

    source: str | list[str] = PYTHON_STDLIB
    subset: str | None = None
    split: str = "train"
    text_key: str = "text"
    num_documents: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that this source would ignore, and numbers of documents that there can't be."""
        if self.num_documents is not None and self.source != C_FUNCTIONS:
            raise ValueError(
                f"data.num_documents ({self.num_documents}) must be null unless data.source ({self.source}) is "
                f"{C_FUNCTIONS}; remove it"
            )
        if self.num_documents is not None and self.num_documents < 1:
            raise ValueError(f"data.num_documents ({self.num_documents}) must be at least 1; raise it")
        if not self.has_splits:
            for key, value, default in (("subset", self.subset, None), ("split", self.split, "train")):
                if value != default:
                    raise ValueError(
                        f"data.{key} ({value}) must not be set where data.source ({self.source}) has none; remove it"
                    )

    @property
    def has_splits(self) -> bool:
        """Whether it is a data set with named splits: on the hub, or a local folder laid out like one."""
        if isinstance(self.source, list) or self.source in (PYTHON_STDLIB, C_FUNCTIONS):
            return False
        path = Path(self.source).expanduser()
        if path.is_dir():
            return _has_card(path) or _has_train_files(path) or _has_train_files(path / "data")
        looks_like_files = path.exists() or path.suffix in SUFFIXES or any(c in self.source for c in "*?[")
        return not looks_like_files and not looks_like_path(self.source)

    @property
    def named_split(self) -> str | None:
        """The split, where the source has named ones."""
        return self.split if self.has_splits else None

    @property
    def places(self) -> list[str]:
        """Absolute paths and patterns of what is local, as the current folder makes them; other names as they are."""
        entries = [self.source] if isinstance(self.source, str) else self.source
        if self.source in (PYTHON_STDLIB, C_FUNCTIONS):
            return entries
        paths = [Path(entry).expanduser() for entry in entries]
        is_remote = self.has_splits and not paths[0].is_dir()
        return entries if is_remote else [str(path.resolve()) for path in paths]


def _has_card(folder: Path) -> bool:
    """Whether a card describes the folder's data: the hub's README.md, not just any."""
    card = folder / _CARD
    if not card.is_file():
        return False
    front_matter = re.match(r"---\n(.*?)\n---\s", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        content = yaml.safe_load(front_matter[1]) if front_matter else None
    except yaml.YAMLError:
        return False
    return isinstance(content, dict) and not content.keys().isdisjoint(("configs", "dataset_info"))


def _has_train_files(folder: Path) -> bool:
    """Whether data files, or a folder of them, are named after the train split."""
    named = [path for path in folder.glob("train*") if re.match(r"train([-._]|$)", path.name)]
    files = (file for path in named for file in (path.rglob("*") if path.is_dir() else [path]))
    return any(file.suffix in _DATA_SUFFIXES for file in files)


def read_documents(source: Source) -> Iterator[Document]:
    """All documents of a source that are not empty, in its order, in constant memory; the same at every call.

    Raises ValueError naming `data.source` or the file, and what is wrong, where it cannot be read.
    """
    if source.has_splits:
        dataset: Dataset = load_rows(source, streaming=False)
        yield from read_rows(source, dataset, 0, len(dataset))
    elif source.source == PYTHON_STDLIB:
        yield from python_stdlib()
    elif source.source == C_FUNCTIONS:
        num_documents = _C_FUNCTIONS_DOCUMENTS if source.num_documents is None else source.num_documents
        yield from c_functions(_C_FUNCTIONS_SEED, num_documents)
    else:
        for file in find_files(source.source):
            yield from read_file(file, source.text_key)


def read_rows(source: Source, dataset: Dataset, start: int, stop: int) -> Iterator[Document]:
    """Documents of these rows of a source with named splits, which `load_rows` gave."""
    for first in range(start, stop, _ROWS_PER_READ):
        texts = dataset[first : min(first + _ROWS_PER_READ, stop)][source.text_key]
        for number, text in enumerate(texts, start=first):
            where = f"{source.source}, {source.split} row {number}"
            if checked := text_of({source.text_key: text}, source.text_key, where):
                yield Document(checked)


def stream_documents(source: Source) -> IterableDataset:
    """The same documents as an IterableDataset with the single column `text`; files are its shards.

    Nothing is downloaded as a whole or written; hub data sets are read over the network as they are used.
    """
    if source.has_splits:
        dataset: IterableDataset = load_rows(source, streaming=True)
        return dataset.select_columns([source.text_key]).rename_columns(
            {source.text_key: "text"} if source.text_key != "text" else {}
        )
    if source.source in (PYTHON_STDLIB, C_FUNCTIONS):
        return IterableDataset.from_generator(_rows, features=_FEATURES, gen_kwargs={"source": source})
    kwargs = {"files": find_files(source.source), "text_key": source.text_key}
    return IterableDataset.from_generator(_file_rows, features=_FEATURES, gen_kwargs=kwargs)


def _rows(source: Source) -> Iterator[dict[str, str]]:
    for document in read_documents(source):
        yield {"text": document.text}


def _file_rows(files: list[Path], text_key: str) -> Iterator[dict[str, str]]:
    for file in files:
        for document in read_file(file, text_key):
            yield {"text": document.text}


def load_rows(source: Source, streaming: bool) -> Any:
    """The split of a source that has named ones, as a Dataset, or as an IterableDataset when streaming.

    Raises ValueError naming `data.source` where it cannot be loaded, or `data.text_key` where that is no column.
    """
    path = str(Path(str(source.source)).expanduser())
    has_hub = Path(path).is_dir() or go_offline_without_hub()
    try:
        dataset = load_dataset(path, name=source.subset, split=source.split, streaming=streaming)
    except Exception as error:
        if not has_hub and isinstance(error, OSError):
            raise ValueError(
                f"data.source ({source.source}) must be a file or folder that is there, or a data set of the hub, "
                "which can't be reached; check the path, or the network"
            ) from error
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"data.source ({source.source}, data.subset {source.subset}, data.split {source.split}) could not be "
            f"loaded ({reason}); give a file or folder that is there or a data set of the hub"
        ) from error
    columns = dataset.column_names or list(next(iter(dataset)))
    if source.text_key not in columns:
        raise ValueError(
            f"data.text_key ({source.text_key}) must be one of the columns of data.source ({source.source}): "
            f"{', '.join(columns)}; set data.text_key"
        )
    return dataset
