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
        cache: of sequences of equal length; keys and values, states of linear attention, sliding windows.
        rows: numbers of rows.
    """
    return _combined([cache], lambda tensors: tensors[0][torch.tensor(rows, device=tensors[0].device)])


def join_rows(caches: Sequence[Cache]) -> Cache:
    """A cache of the rows of several, one after another; the tensors are copies.

    Args:
        caches: of one model, all of sequences of one length.
    """
    return _combined(caches, torch.cat)


def _combined(caches: Sequence[Cache], combine: Callable[[list[Tensor]], Tensor]) -> Cache:
    joined = copy.copy(caches[0])
    joined.layers = [_layer(layers, combine) for layers in zip(*(cache.layers for cache in caches), strict=True)]
    return joined


def _layer(layers: Sequence[Any], combine: Callable[[list[Tensor]], Tensor]) -> Any:
    # What is no tensor, such as a window's length, is the same in all rows.
    layer = copy.copy(layers[0])
    for name in vars(layer):
        setattr(layer, name, _value([getattr(of_cache, name) for of_cache in layers], combine))
    return layer


def _value(values: list[Any], combine: Callable[[list[Tensor]], Tensor]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return combine(values) if first.ndim else first
    if isinstance(first, list):
        return [_value(list(of_place), combine) for of_place in zip(*values, strict=True)]
    if isinstance(first, dict):
        return {key: _value([value[key] for value in values], combine) for key in first}
    return first
