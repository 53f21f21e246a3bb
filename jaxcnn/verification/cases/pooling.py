"""Cases of average pooling and of pooling over the whole image."""

from __future__ import annotations

from jaxcnn.layers import pooling as layers
from jaxcnn.rules.average_pooling import adaptive_avg_pool, avg_pool, global_avg_pool, global_max_pool
from jaxcnn.verification.cases.case import Case, case, normal, tied


def short() -> list[Case]:
    """Every rule at every rank it takes, and every layer."""
    return [
        case(avg_pool, "H×W", normal(6, 4)),
        case(avg_pool, "H×W×C", normal(6, 4, 3)),
        case(avg_pool, "N×H×W×C", normal(2, 6, 4, 3)),
        case(global_avg_pool, "H×W×C", normal(5, 4, 3)),
        case(global_avg_pool, "N×H×W×C", normal(2, 5, 4, 3)),
        case(global_max_pool, "H×W×C", normal(5, 4, 3)),
        case(global_max_pool, "N×H×W×C", normal(2, 5, 4, 3)),
        case(adaptive_avg_pool, "H×W", normal(5, 7), size=3),
        case(adaptive_avg_pool, "H×W×C", normal(5, 7, 3), size=3),
        case(adaptive_avg_pool, "N×H×W×C", normal(2, 5, 7, 3), size=3),
        case(layers.AvgPool(2), "layer", normal(2, 6, 5, 3)),
        case(layers.GlobalAvgPool(), "layer", normal(2, 6, 5, 3)),
        case(layers.GlobalMaxPool(), "layer", normal(2, 6, 5, 3)),
        case(layers.AdaptiveAvgPool(3), "layer", normal(2, 6, 5, 3)),
    ]


def more() -> list[Case]:
    """Odd sizes, overlaps, gaps, padding counted and not, ties, single pixels, large values."""
    return [*_averages(), *_others()]


def _averages() -> list[Case]:
    shapes = {
        "odd size": ((2, 7, 5, 3), {}),
        "SAME": ((2, 7, 5, 3), {"padding": "SAME"}),
        "overlap": ((2, 7, 8, 3), {"window": 3, "stride": 2}),
        "overlap, padded": ((2, 6, 7, 3), {"window": 3, "stride": 1, "padding": ((1, 2), (0, 1))}),
        "gaps": ((2, 8, 7, 3), {"window": 2, "stride": 3}),
        "oblong": ((2, 6, 6, 3), {"window": (2, 3), "stride": (1, 2)}),
        "one window": ((1, 4, 4, 1), {"window": 4}),
        "one pixel": ((2, 1, 1, 3), {"window": 3, "padding": "SAME"}),
    }
    return [
        case(
            avg_pool, f"{what}{', padding counted' if counted else ''}", normal(*shape), count_padding=counted, **static
        )
        for what, (shape, static) in shapes.items()
        for counted in ((False, True) if "padding" in static else (False,))
    ]


def _others() -> list[Case]:
    return [
        case(avg_pool, "values 1e15", lambda g: 1e15 * g.standard_normal((2, 6, 4, 3)), window=3, stride=1),
        case(global_avg_pool, "one pixel", normal(2, 1, 1, 3)),
        case(global_max_pool, "one pixel", normal(2, 1, 1, 3)),
        *(case(global_max_pool, f"ties {ties}", tied(2, 5, 4, 3), ties=ties) for ties in ("first", "split", "all")),
        case(adaptive_avg_pool, "divides", normal(2, 6, 4, 3), size=2),
        case(adaptive_avg_pool, "one place", normal(2, 5, 4, 3), size=1),
        case(adaptive_avg_pool, "the same size", normal(2, 5, 4, 3), size=(5, 4)),
        case(adaptive_avg_pool, "larger than the image", normal(2, 3, 2, 3), size=(5, 7)),
        case(layers.AvgPool(3, stride=2, padding="SAME"), "layer, SAME", normal(2, 6, 5, 3)),
        case(layers.GlobalMaxPool(ties="split"), "layer, ties split", tied(2, 6, 5, 3)),
    ]
