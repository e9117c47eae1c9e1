"""From the description of a source to its documents: read through, or streamed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value, load_dataset

from pathmoe.data.c_functions import c_functions
from pathmoe.data.document import Document
from pathmoe.data.local_files import SUFFIXES, find_files, read_file, text_of
from pathmoe.data.python_stdlib import python_stdlib

PYTHON_STDLIB = "python-stdlib"
C_FUNCTIONS = "c-functions"

_C_FUNCTIONS_SEED = 0  # the corpus is the same for every data.seed, which only orders it
_C_FUNCTIONS_DOCUMENTS = 20_000
_FEATURES = Features({"text": Value("string")})


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents come from; the fields are the arguments of the same names of `TokenDataModule`."""

    source: str | list[str] = PYTHON_STDLIB
    subset: str | None = None
    split: str = "train"
    text_key: str = "text"
    num_documents: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that this source would ignore."""
        if self.num_documents is not None and self.source != C_FUNCTIONS:
            raise ValueError(
                f"data.num_documents ({self.num_documents}) must be null unless data.source ({self.source}) is "
                f"{C_FUNCTIONS}; remove it"
            )
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
            # A dataset card, or files or folders named after the train split, mark the layout of the hub.
            return any(any(path.glob(pattern)) for pattern in ("README.md", "train*", "data/train*"))
        looks_like_files = path.exists() or path.suffix in SUFFIXES or any(c in self.source for c in "*?[")
        return not looks_like_files


def read_documents(source: Source) -> Iterator[Document]:
    """All documents of a source that are not empty, in its order, in constant memory; the same at every call.

    Raises ValueError naming `data.source` or the file, and what is wrong, where it cannot be read.
    """
    if source.has_splits:
        dataset: Dataset = _load(source, streaming=False)
        for first in range(0, len(dataset), 1000):
            for number, text in enumerate(dataset[first : first + 1000][source.text_key], start=first):
                where = f"{source.source}, {source.split} row {number}"
                if checked := text_of({source.text_key: text}, source.text_key, where):
                    yield Document(checked, name=where)
    elif source.source == PYTHON_STDLIB:
        yield from python_stdlib()
    elif source.source == C_FUNCTIONS:
        yield from c_functions(_C_FUNCTIONS_SEED, source.num_documents or _C_FUNCTIONS_DOCUMENTS)
    else:
        for file in find_files(source.source):
            yield from read_file(file, source.text_key)


def stream_documents(source: Source) -> IterableDataset:
    """The same documents as an IterableDataset with the single column `text`; files are its shards.

    Nothing is downloaded as a whole or written; hub data sets are read over the network as they are used.
    """
    if source.has_splits:
        dataset: IterableDataset = _load(source, streaming=True)
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


def _load(source: Source, streaming: bool) -> Any:
    path = str(Path(str(source.source)).expanduser())
    try:
        dataset = load_dataset(path, name=source.subset, split=source.split, streaming=streaming)
    except Exception as error:
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
