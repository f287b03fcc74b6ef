"""A page of metrics in Prometheus' text format; asks nobody for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """The samples of one page.

    Attributes:
        samples: by name.
    """

    samples: Mapping[str, tuple[Sample, ...]]

    @classmethod
    def parse(cls, text: str) -> "MetricsPage":
        """Read the text."""
        found: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample)
        return cls({name: tuple(samples) for name, samples in found.items()})

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of all samples with these labels among theirs; None if there are none."""
        values = [
            sample.value
            for sample in self.samples.get(name, ())
            if labels.items() <= sample.labels.items()
        ]
        return math.fsum(values) if values else None
