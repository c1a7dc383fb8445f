"""An inspection for programs: plain numbers, nothing to be looked up elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crate_dsl.inspection.measures import EPS, PUBLISHED_EPS
from crate_dsl.inspection.report import Report
from crate_dsl.inspection.summary import missing, sentences

#: Digits of what is drawn as a picture.
DIGITS = 4


def as_data(report: Report) -> dict[str, Any]:
    """The report as JSON takes it; `docs/inspection.md` says what each entry is."""
    subject, graph = report.subject, report.subject.graph
    features = report.features
    return {
        "format": 1,
        "network": {
            "target": subject.target,
            "model": graph.model,
            "variant": graph.variant,
            "parameters": graph.parameters,
            "flops": graph.flops,
            "weights": subject.weights,
        },
        "data": {
            "source": subject.supply.text,
            "size": list(subject.size),
            subject.supply.noun: subject.count,
            "chosen": subject.chosen_n.tolist(),
            "shown": report.shown,
        },
        "eps": {"published": PUBLISHED_EPS, "rate": EPS},
        "summary": sentences(report),
        "missing": missing(report),
        "layers": [asdict(layer) for layer in report.layers],
        "pairs": [asdict(pair) for pair in report.pairs],
        "promises": [asdict(promise) for promise in report.promises],
        "attention": [
            {
                "layer": maps.layer,
                "step": maps.step,
                "query": maps.query,
                "maps": _rounded(maps.maps_bhrc),
            }
            for maps in report.maps
        ],
        "features": features
        and {
            "layer": features.layer,
            "tap": features.tap,
            "explained": list(features.explained),
            "components": _rounded(features.components_brck),
            "objects": [[mark.astype(int).tolist() for mark in marks] for marks in features.objects],
        },
        "completion": report.completion and asdict(report.completion),
        "training": [dict(row) for row in subject.epochs],
        "test": dict(subject.test) if subject.test else None,
        "capacity": [asdict(edge) for edge in report.capacity],
    }


def _rounded(array: NDArray[Any]) -> Any:
    return np.round(array, DIGITS).tolist()
