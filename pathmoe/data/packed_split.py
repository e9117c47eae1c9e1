"""From the texts of a split to tables of blocks, with the counts that its manifest keeps."""

# Shapes: V vocabulary, N tokens of a stream, B blocks, S sequence, T = S + 1 tokens of a block.

import hashlib
from collections.abc import Callable, Iterable

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from pathmoe.data.blocks import to_table
from pathmoe.data.manifest import SplitManifest
from pathmoe.data.packing import cut_blocks, empty_stream, is_target, join, to_stream
from pathmoe.data.splitting import text_hash
from pathmoe.data.tokenizer import encode, text_batches, token_byte_lengths

_CHARACTERS_PER_BATCH = 2_000_000


def pack_split(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    write: Callable[[pa.Table], None],
) -> SplitManifest:
    """Tokenise texts in batches, pack them, and hand the tables of blocks to `write`, in order; the counts."""
    token_bytes_V = token_byte_lengths(tokenizer)
    vocab_size, bos_id, eos_id = len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id
    content = hashlib.sha256()
    num_documents = num_bytes = num_tokens = blocks = targets = stream_bytes = target_bytes = 0
    rest = empty_stream(vocab_size)
    for batch in text_batches(texts, _CHARACTERS_PER_BATCH, len):
        for text in batch:
            content.update(text_hash(text))
        stream = to_stream(encode(tokenizer, batch), bos_id, eos_id, vocab_size)
        num_documents += len(batch)
        num_bytes += sum(len(text.encode()) for text in batch)
        num_tokens += len(stream.tokens_N)
        stream_bytes += int(token_bytes_V[stream.tokens_N].sum())
        tokens_BT, starts_BT, rest = cut_blocks(join(rest, stream), sequence_length)
        target_BS = is_target(starts_BT)
        blocks += len(tokens_BT)
        targets += int(target_BS.sum())
        target_bytes += int(token_bytes_V[tokens_BT[:, 1:]].sum(where=target_BS))
        write(to_table(tokens_BT, starts_BT))
    return SplitManifest(
        content_sha256=content.hexdigest(),
        documents=num_documents,
        bytes=num_bytes,
        tokens=num_tokens,
        blocks=blocks,
        targets=targets,
        # The rest begins with the last token of the last block.
        dropped_tokens=len(rest.tokens_N) - (blocks > 0),
        # num_bytes and stream_bytes are equal, and drop out, for a byte-level tokenizer.
        bytes_per_target=num_bytes * target_bytes / (stream_bytes * targets) if targets else 0.0,
    )
