"""The catalogue of planted faults, and a table of who finds them.

python tests/planted_faults.py [--peers] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import planted_activation
import planted_convolution
import planted_dense
import planted_layers
import planted_loss
import planted_overridden
import planted_piecewise_activation
import planted_pooling
import planted_small
import planted_smooth_activation
import planted_structure
from planted_base import CAUSES, Fault, really_wrong

import jaxcnn

__all__ = ["CAUSES", "FAULTS", "Fault", "cause_given", "family", "really_wrong"]

FAULTS: list[Fault] = [
    *planted_convolution.FAULTS,
    *planted_pooling.FAULTS,
    *planted_activation.FAULTS,
    *planted_piecewise_activation.FAULTS,
    *planted_smooth_activation.FAULTS,
    *planted_dense.FAULTS,
    *planted_loss.FAULTS,
    *planted_small.FAULTS,
    *planted_overridden.FAULTS,
    *planted_layers.FAULTS,
    *planted_structure.FAULTS,
]


def family(fault: Fault) -> str:
    """What the fault is counted under: its rule, max_pool with its ties, the loss with its labels, or "layer"."""
    if isinstance(fault.rule, jaxcnn.Layer):
        return "layer"
    name = fault.rule.name
    if name == "max_pool":
        return f"max_pool {fault.static.get('ties', 'first')}"
    if name == "softmax_cross_entropy":
        return f"{name} {'rows' if fault.arrays[1].ndim == 2 else 'indices'}"
    return name if name in BUILT_IN else f"own: {name}"


BUILT_IN = (
    *("conv2d", "relu", "sigmoid", "flatten", "dense"),
    *("relu6", "leaky_relu", "prelu", "elu", "selu", "hard_sigmoid", "hard_swish"),
    *("tanh", "softplus", "silu", "gelu", "softmax", "log_softmax"),
)


def cause_given(fault: Fault) -> str:
    """The first cause that `jaxcnn.verify` gives; "missed" where it finds nothing."""
    report = jaxcnn.verify(fault.rule, *fault.arrays, **fault.static)
    return "missed" if report.ok else report.findings[0].cause


class Row(NamedTuple):
    fault: Fault
    given: str
    seconds: float
    peers: dict[str, str]  # for each peer "found", "missed", or "n/a: " and the reason

    @property
    def named(self) -> bool:
        return self.given in self.fault.causes


def rows(with_peers: bool = False) -> list[Row]:
    from rich.progress import track

    if with_peers:
        from planted_peers import PEERS
    result = []
    for fault in track(FAULTS, "verifying"):
        start = time.perf_counter()
        given = cause_given(fault)
        seconds = time.perf_counter() - start
        result.append(Row(fault, given, seconds, {n: p(fault) for n, p in PEERS.items()} if with_peers else {}))
    return result


def counts(rows: list[Row]) -> dict:
    one_name = [r for r in rows if len(r.fault.causes) == 1 and r.fault.causes != ("unknown",)]
    return {
        "faults": len(rows),
        "found": sum(r.given != "missed" for r in rows),
        "named right": sum(r.named for r in rows),
        "of one right name": len(one_name),
        "of these named right": sum(r.named for r in one_name),
        "peers": {peer: dict(Counter(r.peers[peer].split(":")[0] for r in rows)) for peer in rows[0].peers},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="also ask check_grads, chex and torch (minutes)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    from rich.console import Console
    from rich.table import Table

    every = rows(arguments.peers)
    table = Table("fault", "rule", "wanted", "jaxcnn.verify", *every[0].peers)
    for row in every:
        style = "red" if row.given == "missed" else "" if row.named else "yellow"
        table.add_row(
            row.fault.name,
            family(row.fault),
            " or ".join(row.fault.causes),
            row.given,
            *row.peers.values(),
            style=style,
        )
    console = Console()
    console.print(table)
    summary = counts(every)
    for what, count in summary.items():
        if what != "peers":
            console.print(f"{what}: {count}")
    for peer, found in summary["peers"].items():
        console.print(f"{peer}: " + ", ".join(f"{count} {how}" for how, count in sorted(found.items())))
    if arguments.json:
        table = [
            {
                "fault": r.fault.name,
                "rule": family(r.fault),
                "causes": r.fault.causes,
                "note": r.fault.note,
                "given": r.given,
                "seconds": round(r.seconds, 3),
                **r.peers,
            }
            for r in every
        ]
        arguments.json.write_text(json.dumps({"counts": summary, "faults": table}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
