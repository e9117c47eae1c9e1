"""A mixture: several sources with the share that each has in training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from pathmoe.data.manifest import Manifest, MixedSource, SplitManifest
from pathmoe.data.sources import Source


@dataclass(frozen=True, kw_only=True)
class WeightedSource(Source):
    """One source of a mixture.

    Args:
        source: As `data.source`; likewise subset, split, text_key, num_documents and validation_split.
        weight: Its part of the training tokens is its part of the sum of all weights.
    """

    validation_split: str | None = None
    weight: float

    @property
    def plain(self) -> Source:
        """The source alone."""
        return Source(**{field.name: getattr(self, field.name) for field in fields(Source)})


def check_mixture(mixture: Sequence[WeightedSource]) -> None:
    """Raise ValueError where there is no source, one is there twice, or a weight is no positive number."""
    if not mixture:
        raise ValueError("data.mixture ([]) must hold a source at least; add one, or remove it")
    for number, entry in enumerate(mixture):
        if not (isfinite(entry.weight) and entry.weight > 0):
            raise ValueError(
                f"data.mixture: the weight ({entry.weight}) of {entry.source} must be a positive number; change it, or "
                "remove the source"
            )
        if entry.plain in [other.plain for other in mixture[:number]]:
            raise ValueError(f"data.mixture: {entry.source} must not be there twice; add up its weights")


def as_mixture(entries: Sequence[WeightedSource | Mapping[str, Any]]) -> list[WeightedSource]:
    """Sources of a mixture from plain values too, as a saved configuration holds them."""
    return [entry if isinstance(entry, WeightedSource) else WeightedSource(**entry) for entry in entries]


def labels(mixture: Sequence[WeightedSource]) -> list[str]:
    """A name for each source, all different: the last part of its own, and its number where that is not enough."""
    names = [Path(e.source if isinstance(e.source, str) else e.source[0]).name for e in mixture]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name}-{number}" for number, name in enumerate(names)]


def mix(manifests: Sequence[Manifest], mixture: Sequence[WeightedSource]) -> Manifest:
    """What a run on a mixture is trained and measured on, from the manifests of its sources."""
    total = sum(entry.weight for entry in mixture)
    train = [manifest.train for manifest in manifests if manifest.train is not None]
    validation = [manifest.validation for manifest in manifests]
    names = labels(mixture)
    parts = zip(names, mixture, validation, train, strict=True)
    return replace(
        manifests[0],
        source=names,
        subset=None,
        split=None,
        interpreter=next((manifest.interpreter for manifest in manifests if manifest.interpreter), None),
        validation=SplitManifest.of_parts(validation),
        train=SplitManifest.of_parts(train),
        mixture=[
            MixedSource(label=label, share=entry.weight / total, validation=held_out, train=trained)
            for label, entry, held_out, trained in parts
        ],
    )
