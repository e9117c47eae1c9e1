import hashlib
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.document import Document
from pathmoe.data.splitting import hold_out, join_surveys, measure, without_texts

SIZED_GROUPS = st.lists(st.tuples(st.integers(0, 15), st.integers(1, 1000)), min_size=1, max_size=60)


@given(documents=SIZED_GROUPS, fraction=st.floats(0.01, 0.9))
def test_whole_groups_are_held_out_up_to_the_fraction(documents: list[tuple[int, int]], fraction: float) -> None:
    groups = np.array([group for group, _ in documents], dtype=np.uint64)
    sizes = np.array([size for _, size in documents], dtype=np.int64)
    held_out = hold_out(groups, sizes, fraction)
    assert not set(groups[held_out]) & set(groups[~held_out])
    group_sizes = [int(sizes[groups == group].sum()) for group in np.unique(groups)]
    room = fraction * sizes.sum() - sizes[held_out].sum()
    if len(group_sizes) == 1:
        assert not held_out.any()
    elif min(group_sizes) > int(fraction * sizes.sum()):
        assert sizes[held_out].sum() == min(group_sizes)
    else:
        assert room >= 0
        # and no group that was left out would still fit
        assert all(sizes[groups == group].sum() > int(room) for group in np.unique(groups[~held_out]))


def test_survey_hashes_and_measures() -> None:
    documents = [Document("aé", "g"), Document("b", "g"), Document("aé", "h"), Document("c"), Document("c")]
    found = join_surveys([measure(documents)])
    assert found.num_bytes.tolist() == [3, 1, 3, 1, 1]
    assert (found.texts[0], found.groups[0], found.texts[3]) == (found.texts[2], found.groups[1], found.groups[3])
    assert len(np.unique(found.texts)) == 3 and len(np.unique(found.groups)) == 3
    digests = b"".join(hashlib.sha256(document.text.encode()).digest() for document in documents)
    assert found.content_sha256 == hashlib.sha256(digests).hexdigest()
    assert join_surveys([measure(documents[::-1])]).content_sha256 != found.content_sha256


@given(cut=st.integers(0, 5), texts=st.lists(st.text(max_size=5), min_size=5, max_size=5))
def test_a_survey_of_pieces_is_that_of_the_whole(cut: int, texts: list[str]) -> None:
    documents = [Document(text, text[:1] or None) for text in texts]
    whole, pieces = (join_surveys(map(measure, parts)) for parts in ([documents], [documents[:cut], documents[cut:]]))
    assert pieces.documents_of_pieces == [cut, 5 - cut]
    for field in ("texts", "groups", "num_bytes"):
        assert np.array_equal(getattr(pieces, field), getattr(whole, field))
    assert pieces.content_sha256 == whole.content_sha256


def test_copies_of_held_out_texts_leave_training() -> None:
    texts = np.array([1, 2, 3, 2, 4], dtype=np.uint64)
    assert without_texts(texts, texts[[1]]).tolist() == [True, False, True, False, True]


def test_a_split_takes_90_bytes_of_memory_a_document() -> None:
    num_documents = 100_000
    texts = np.random.default_rng(0).integers(2**63, size=num_documents, dtype=np.uint64)
    tracemalloc.start()
    try:
        groups, num_bytes = texts.copy(), np.full(num_documents, 5000)
        held_out = hold_out(groups, num_bytes, 0.005)
        without_texts(texts, texts[held_out])
        peak = texts.nbytes + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 90 * num_documents
