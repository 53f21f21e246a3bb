"""The catalogue of planted faults, and a table of who finds them.

python tests/planted_faults.py [--peers] [--json FILE]
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import planted_activation
import planted_average_pooling
import planted_convolution
import planted_convolution_1d_3d
import planted_dense
import planted_dropout
import planted_join
import planted_layers
import planted_loss
import planted_losses
import planted_normalization
import planted_normalization_of_samples
import planted_overridden
import planted_piecewise_activation
import planted_pooling
import planted_resize
import planted_small
import planted_smooth_activation
import planted_structure
import planted_transposed
import planted_upsampling
from planted_base import CAUSES, Fault, really_wrong

import jaxcnn
from jaxcnn.rules.pooling import TIES

__all__ = ["CAUSES", "FAMILIES", "FAULTS", "Fault", "cause_given", "family", "really_wrong"]

FAULTS: list[Fault] = [
    *planted_convolution.FAULTS,
    *planted_convolution_1d_3d.FAULTS,
    *planted_transposed.FAULTS,
    *planted_pooling.FAULTS,
    *planted_average_pooling.FAULTS,
    *planted_resize.FAULTS,
    *planted_upsampling.FAULTS,
    *planted_normalization.FAULTS,
    *planted_normalization_of_samples.FAULTS,
    *planted_dropout.FAULTS,
    *planted_activation.FAULTS,
    *planted_piecewise_activation.FAULTS,
    *planted_smooth_activation.FAULTS,
    *planted_dense.FAULTS,
    *planted_loss.FAULTS,
    *planted_losses.FAULTS,
    *planted_small.FAULTS,
    *planted_overridden.FAULTS,
    *planted_join.FAULTS,
    *planted_layers.FAULTS,
    *planted_structure.FAULTS,
]


PUBLIC = {rule.name: rule for name in jaxcnn.__all__ if isinstance(rule := getattr(jaxcnn, name), jaxcnn.Rule)}


def variants(rule: jaxcnn.Rule) -> list[str]:
    """What the faults of a public rule are counted under: its name, with each convention for ties, kind of labels."""
    kinds = TIES if "ties" in inspect.signature(rule.forward).parameters else ()
    kinds = ("indices", "rows") if rule.name == "softmax_cross_entropy" else kinds
    return [f"{rule.name} {kind}" for kind in kinds] or [rule.name]


FAMILIES = ("layer", *(name for rule in PUBLIC.values() for name in variants(rule)))


def family(fault: Fault) -> str:
    """The one of FAMILIES to which it belongs, or "own: " and the name of the catalogue's own rule."""
    if isinstance(fault.rule, jaxcnn.Layer):
        return "layer"
    name = fault.right.name
    if PUBLIC.get(name) != fault.right:  # a rule of the catalogue's own may have a public one's name
        return f"own: {fault.rule.name}"
    if name == "softmax_cross_entropy":
        return f"{name} {'rows' if fault.arrays[1].ndim == 2 else 'indices'}"
    ties = fault.rule.static(**fault.static).get("ties")
    return f"{name} {ties}" if ties else name


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


def rows(with_peers: bool = False, faults: Sequence[Fault] = FAULTS) -> list[Row]:
    from rich.progress import track

    if with_peers:
        from planted_peers import PEERS
    result = []
    for fault in track(faults, "verifying"):
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
