"""Data: sources, tokenizer, packed blocks, and the Lightning data module that serves them."""

from pathmoe.data.blocks import Blocks
from pathmoe.data.c_functions import c_functions, c_program
from pathmoe.data.datamodule import TokenDataModule
from pathmoe.data.document import Document
from pathmoe.data.loader import MicroBatches, TrainLoader, ValidationLoader
from pathmoe.data.manifest import Manifest, SplitManifest
from pathmoe.data.mixture import WeightedSource
from pathmoe.data.order import BatchGeometry, block_indices, permute
from pathmoe.data.packing import IGNORE_INDEX, block_to_batch
from pathmoe.data.python_stdlib import python_stdlib
from pathmoe.data.sources import Source, read_documents, stream_documents
from pathmoe.data.tokenizer import TRAIN_BPE, encode, load_tokenizer, train_bpe

__all__ = [
    "IGNORE_INDEX",
    "TRAIN_BPE",
    "BatchGeometry",
    "Blocks",
    "Document",
    "Manifest",
    "MicroBatches",
    "Source",
    "SplitManifest",
    "TokenDataModule",
    "TrainLoader",
    "ValidationLoader",
    "WeightedSource",
    "block_indices",
    "block_to_batch",
    "c_functions",
    "c_program",
    "encode",
    "load_tokenizer",
    "permute",
    "python_stdlib",
    "read_documents",
    "stream_documents",
    "train_bpe",
]
