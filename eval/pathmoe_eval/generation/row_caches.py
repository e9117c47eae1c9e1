"""Rows of a model's cache, taken out and put together: a prefix is computed once and copied where sequences part."""

# Shapes: R rows of a batch.

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


def select_rows(cache: Cache, rows: Sequence[int]) -> Cache:
    """A cache of some rows, in this order and as often as they are named; the tensors are copies.

    Args:
        cache: as forwards without a cache make it, of sequences of equal length: keys and values, those of windows,
            states of linear attention.
        rows: numbers of rows.
    """
    return _combined([cache], lambda tensors, axis: _selected(tensors[0], rows, axis))


def join_rows(caches: Sequence[Cache]) -> Cache:
    """A cache of the rows of several, one after another; the tensors are copies.

    Args:
        caches: of one model, all of sequences of one length.
    """
    return _combined(caches, torch.cat)


Combine = Callable[[list[Tensor], int], Tensor]
"""From tensors of the same place in several caches, and the axis of their rows, to one."""

_ROW_AXIS = {"indexer_position_ids": 1}
"""By the names of what transformers keeps with the rows on another axis than the first."""


def _selected(tensor: Tensor, rows: Sequence[int], axis: int) -> Tensor:
    return tensor.index_select(axis, torch.tensor(rows, device=tensor.device))


def _combined(caches: Sequence[Cache], combine: Combine) -> Cache:
    joined = copy.copy(caches[0])
    joined.layers = [_layer(layers, combine) for layers in zip(*(cache.layers for cache in caches), strict=True)]
    return joined


def _layer(layers: Sequence[Any], combine: Combine) -> Any:
    # What is no tensor, such as a window's length, is the same in all rows.
    layer = copy.copy(layers[0])
    for name in vars(layer):
        setattr(layer, name, _value([getattr(of_cache, name) for of_cache in layers], combine, _ROW_AXIS.get(name, 0)))
    return layer


def _value(values: list[Any], combine: Combine, axis: int) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return combine(values, axis) if first.numel() and first.ndim else first
    if isinstance(first, dict):
        return {key: _value([value[key] for value in values], combine, axis) for key in first}
    return first
