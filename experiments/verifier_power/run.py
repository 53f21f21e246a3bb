"""What do the verifier and other gradient checkers find, and how small a fault?

    python experiments/verifier_power/run.py [--quick] [--out DIR]

A part of the catalogue of planted faults, by kind of rule; the right rules, where nothing may be found; and faults that
get smaller and smaller, in all elements of a gradient or in one of many. The whole catalogue, in an hour:
`python tests/planted_faults.py --peers`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxcnn

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[2] / "tests"))
import common
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
from planted_base import Fault, broken, draws, fault
from planted_faults import FAULTS, Row, cause_given, counts, family, rows
from planted_peers import NO_TWIN, PEERS

VERIFY = "jaxcnn.verify"
CHECKERS = (VERIFY, *PEERS)
KINDS = {
    "convolution": (planted_convolution, planted_convolution_1d_3d, planted_transposed),
    "pooling": (planted_pooling, planted_average_pooling),
    "resizing": (planted_resize, planted_upsampling),
    "normalisation": (planted_normalization, planted_normalization_of_samples),
    "activation": (planted_activation, planted_piecewise_activation, planted_smooth_activation),
    "dropout": (planted_dropout,),
    "dense, joining": (planted_dense, planted_join),
    "loss": (planted_loss, planted_losses),
    "users' small rules": (planted_small, planted_overridden),
    "layers": (planted_layers, planted_structure),
}
EVERY = 20  # one fault in so many of a kind's, in the catalogue's order
TIMED = 4  # one right rule in so many
SIZES = tuple(10.0**-k for k in range(13))
QUICK, QUICK_SIZES = ("dense, joining", "users' small rules"), SIZES[2:9:6]


# --- the catalogue --------------------------------------------------------------------------------------------------


def sample(every: int) -> dict[str, list[Fault]]:
    """By kind of rule."""
    return {kind: of_kind(kind)[::every] for kind in KINDS}


def of_kind(kind: str) -> list[Fault]:
    return [f for module in KINDS[kind] for f in module.FAULTS]


def right_ones(faults: Sequence[Fault]) -> list[Fault]:
    """Each right twin of these once, with the arrays of the first. Left out: a gradient reversal, which passes back
    what is not the derivative of its forward pass, so that every checker has to object.
    """
    twins = {(id(f.right), str(f.static)): f for f in reversed(faults) if f.right.name != "gradient_reversal"}
    return [f._replace(rule=f.right, why="autodiff") for f in reversed(twins.values())]


def asked_of(faults: Sequence[Fault]) -> list[Row]:
    """What all checkers say of these."""
    found = rows(with_peers=True, faults=faults)
    jax.clear_caches()  # the programs of hundreds of rules fill gigabytes
    return found


def answers(row: Row) -> dict[str, str]:
    """Of each checker "found", "missed" or "n/a"."""
    return {VERIFY: "missed" if row.given == "missed" else "found"} | {
        peer: answer.split(":")[0] for peer, answer in row.peers.items()
    }


def found_by(asked: Sequence[Row]) -> dict[str, Any]:
    """Of these faults, the number that each checker finds, misses, and cannot be asked about."""
    made: dict[str, Any] = {checker: {"found": 0, "missed": 0, "n/a": 0} for checker in CHECKERS}
    for row in asked:
        for checker, answer in answers(row).items():
            made[checker][answer] += 1
    total = counts(list(asked))
    return {"faults": len(asked), "named right": total["named right"], **made}


def alarms(right: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Of each checker: the number of right rules that it was asked about, and those that it refuses."""
    made = {}
    for checker in CHECKERS:
        # What a peer answers of a right rule that it refuses is that it refuses the right twin too.
        given = [row.given if checker == VERIFY else row.peers[checker] for row in right]
        refused = [family(row.fault) for row, said in zip(right, given, strict=True) if _refused(checker, said)]
        made[checker] = {"asked": given.count("missed") + len(refused), "refused": refused}
    return made


def _refused(checker: str, said: str) -> bool:
    return said != "missed" if checker == VERIFY else said == NO_TWIN


def seconds_of(right: Sequence[Row]) -> dict[str, float | None]:
    """Of each checker the median CPU time for some right rules that all accept, nothing being compiled before; None of
    one that is not installed.
    """
    accepted = [row for row in right if row.given == "missed" and NO_TWIN not in row.peers.values()]
    timed = accepted[::TIMED]

    def median(checker, ask):
        if any(row.peers.get(checker, "missed") != "missed" for row in timed):
            return None
        return statistics.median(_seconds(ask, row.fault) for row in timed)

    return {checker: median(checker, ask) for checker, ask in {VERIFY: cause_given, **PEERS}.items()}


def _seconds(ask: Callable[[Fault], str], fault: Fault) -> float:
    jax.clear_caches()
    start = time.process_time()
    ask(fault)
    return time.process_time() - start


# --- smaller and smaller faults -------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a gradient is wrong by a factor 1 + ε."""

    name: str
    rule: jaxcnn.Rule
    arrays: tuple[np.ndarray, ...]
    argument: str
    one: bool  # of its elements, or all

    def fault(self, size: float) -> Fault:
        def changed(gradient):
            if not self.one:
                return gradient * (1 + size)
            flat = gradient.ravel()
            return flat.at[flat.size // 2].multiply(1 + size).reshape(gradient.shape)

        cotangents: dict[str, Any] = {self.argument: changed}
        return fault(f"{self.name}: {size:g}", broken(self.rule, **cotangents), self.arrays, "scaled")


def places() -> list[Place]:
    normal, _ = draws(0)

    def line(n):
        x = normal(n)
        x[n // 2] = 0.5  # the element that is wrong: the same for every n
        return (x,)

    image = normal(2, 5, 5, 2), normal(3, 3, 3, 2), normal(3)
    return [
        Place("conv2d, dfilters, all of 54", jaxcnn.conv2d, image, "filters", False),
        Place("sigmoid, dx, all of 256", jaxcnn.sigmoid, line(256), "x", False),
        *(Place(f"sigmoid, dx, 1 of {n}", jaxcnn.sigmoid, line(n), "x", True) for n in (16, 256, 4096)),
    ]


def power(place: Place, sizes: Sequence[float]) -> dict[str, Any]:
    """Of each checker its answer to every size."""
    asked = asked_of([place.fault(size) for size in sizes])
    return {"place": place.name, **{c: [answers(row)[c] for row in asked] for c in CHECKERS}}


def smallest(found: Sequence[str], sizes: Sequence[float]) -> float | None:
    """The size down to which every fault is found; None where the largest is missed already."""
    last = None
    for size, answer in zip(sizes, found, strict=True):
        if answer != "found":
            break
        last = size
    return last


# --- the whole ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    quick = "one fault of two kinds, one place, two sizes"
    options = common.options_of(__file__, __doc__ or "", quick, arguments)
    chosen = {kind: of_kind(kind)[:1] for kind in QUICK} if options.quick else sample(EVERY)
    sizes, where = (QUICK_SIZES, places()[-3:-2]) if options.quick else (SIZES, places())
    asked = {kind: asked_of(faults) for kind, faults in chosen.items()}
    whole = [row for rows_ in asked.values() for row in rows_]
    right = asked_of(right_ones([row.fault for row in whole]))
    seconds = seconds_of(right)
    found = [power(place, sizes) for place in where]
    record = common.write(
        options,
        catalogue=len(FAULTS),
        every=EVERY,
        found={kind: found_by(rows_) for kind, rows_ in asked.items()} | {"all": found_by(whole)},
        counts=counts(whole),
        right_rules=alarms(right),
        seconds_for_one=seconds,
        sizes=sizes,
        power=[{**one, "smallest": {c: smallest(one[c], sizes) for c in CHECKERS}} for one in found],
        faults=[
            {"fault": r.fault.name, "rule": family(r.fault), "causes": r.fault.causes, "given": r.given, **r.peers}
            for r in whole
        ],
    )
    for line in (found_table(record), checkers_table(record), power_table(record)):
        print(line, end="\n\n")
    if any("not installed" in row.peers["torch gradcheck"] for row in whole):
        print("PyTorch is not installed: its gradcheck is n/a")
    draw(record, options.out / "verifier_power.png")
    return 0


def _lines(rows_: Sequence[Sequence[str]]) -> str:
    """As in experiments/README.md."""
    heading, *others = rows_
    return "\n".join("| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *others))


def found_table(record: dict) -> str:
    """Of each kind: found, and what could not be asked in brackets."""
    made = [["kind of rule", "faults", VERIFY, "named", *PEERS]]
    for kind, found in record["found"].items():
        cells = [f"{found[c]['found']}" + _asked(found[c]) for c in CHECKERS]
        made.append([kind, str(found["faults"]), cells[0], str(found["named right"]), *cells[1:]])
    return _lines(made)


def _asked(found: Mapping[str, int]) -> str:
    return f" ({found['n/a']} n/a)" if found["n/a"] else ""


def checkers_table(record: dict) -> str:
    made = [["checker", "right rules", "false alarms", "CPU seconds for one"]]
    for checker, of_right in record["right_rules"].items():
        seconds = record["seconds_for_one"][checker]
        said = "n/a" if seconds is None else f"{seconds:.2f}"
        made.append([checker, str(of_right["asked"]), str(len(of_right["refused"])), said])
    return _lines(made)


def power_table(record: dict) -> str:
    """The smallest ε that is found, every larger one being found too."""

    def cell(one, checker):
        if all(answer == "n/a" for answer in one[checker]):
            return "n/a"
        size = one["smallest"][checker]
        return "none" if size is None else f"{size:.0e}"

    made = [["dx·(1 + ε)", *CHECKERS]]
    made += [[one["place"], *(cell(one, checker) for checker in CHECKERS)] for one in record["power"]]
    return _lines(made)


def draw(record: dict, path: Path) -> None:
    """Left the share found by kind and checker, in the middle what size each finds, right its CPU time."""
    made, axes = common.figure(1, 3, width=5.6, height=4.6)
    left, middle, right = axes[0]
    kinds = list(record["found"])
    found = np.array([[record["found"][k][c]["found"] / record["found"][k]["faults"] for c in CHECKERS] for k in kinds])
    left.imshow(found, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for (i, j), share in np.ndenumerate(found):
        cell = record["found"][kinds[i]]
        text = "n/a" if cell[CHECKERS[j]]["n/a"] == cell["faults"] else f"{100 * share:.0f}"
        left.text(j, i, text, ha="center", va="center", fontsize="small")
    left.set_xticks(range(len(CHECKERS)), [c.replace(" ", "\n") for c in CHECKERS], fontsize="x-small")
    left.set_yticks(range(len(kinds)), [f"{k} ({record['found'][k]['faults']})" for k in kinds], fontsize="small")
    left.set_title("planted faults found, %", fontsize="medium")
    left.grid(visible=False)

    sizes, places_ = np.array(record["sizes"]), record["power"]
    for j, (checker, marker) in enumerate(zip(CHECKERS, "osDv^", strict=True)):
        least = [one["smallest"][checker] for one in places_]
        at = [i + 0.12 * (j - 2) for i in range(len(places_))]
        # None, where not even a doubled gradient is found, stands above.
        shown = [10 * sizes[0] if size is None else size for size in least]
        middle.plot(at, shown, marker, label=checker, markersize=6)
    middle.axhline(3 * sizes[0], color="black", linewidth=0.8)
    middle.set_yscale("log")
    names = [one["place"].replace(", ", "\n").replace(" of", "\nof") for one in places_]
    middle.set_xticks(range(len(places_)), names, fontsize="x-small")
    middle.set_title("smallest ε of dx·(1 + ε) found; above the line: none", fontsize="medium")
    middle.legend(fontsize="x-small")

    seconds = [record["seconds_for_one"][checker] or 0.0 for checker in CHECKERS]
    right.barh(range(len(CHECKERS)), seconds)
    for i, checker in enumerate(CHECKERS):
        of_right = record["right_rules"][checker]
        text = f"  {len(of_right['refused'])} of {of_right['asked']} refused"
        right.text(seconds[i], i, text, va="center", fontsize="small")
    right.set_yticks(range(len(CHECKERS)), CHECKERS, fontsize="small")
    right.invert_yaxis()
    right.set_xlim(0, 1.5 * max(seconds) or 1.0)
    right.set_title("CPU seconds for a right rule, median; right rules refused", fontsize="medium")
    made.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
