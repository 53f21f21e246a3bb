"""How fast is a training step beside jax.value_and_grad that is compiled with the same options?

    python experiments/speed/same_options.py [--quick] [--out DIR]

On several CPU devices a step is compiled in the order that needs least memory, and with no kernel divided among
threads. `jax.jit` takes such options for any program, but makes none so by itself: the table of run.py has plain jax
without. Here it is with and without, on a device a core, one step at a time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcnn.benchmark.contestant import REFERENCE, Contestant, contestants
from jaxcnn.benchmark.result import Result, as_json
from jaxcnn.cli_bench import Bench, measure, settings_of
from jaxcnn.training.compiler import IN_ORDER
from jaxcnn.training.devices import available_cores, whole_kernels

sys.path.append(str(Path(__file__).parents[1]))
from command_line import parsed, parser_of

TOLD = ", a step's options"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__ or "", "batch 32 and short turns", "same_options.json")
    options = parsed(parser, __file__, arguments)
    if available_cores() == 1:
        parser.error("there is one core: a step has no such options there")
    settings = settings_of(Bench(quick=options.quick))
    results = measure(settings._replace(contestants=tuple(with_options(settings.contestants[1].devices))))
    ratios = [ratios_of(result) for result in results]
    print("How many times as fast as jax jaxcnn is, and as jax with the options:")
    for one in ratios:
        print(f"{one['network']} {one['size']}, {one['batch']}: {one['over']:.2f}, with {one['over_told']:.2f}")
    record = {"command": options.command, "ratios": ratios, **as_json(settings, results)}
    (options.out / "same_options.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def with_options(devices: int) -> list[Contestant]:
    """The reference, jax on all devices without and with the options, and jaxcnn."""
    by_name = {one.name: one for one in contestants(devices)}
    plain, told = by_name[f"jax, {devices} devices"], {"compiler_options": whole_kernels() | IN_ORDER}
    return [by_name[REFERENCE], plain, plain._replace(name=plain.name + TOLD, options=told), by_name["jaxcnn"]]


def ratios_of(result: Result) -> dict[str, Any]:
    """How many times as fast jaxcnn is as plain jax at its best, and as jax with the options."""
    rows = {row.contestant: row.median for row in result.rows if row.seconds}
    ours = rows.pop("jaxcnn")
    told = next(rows.pop(name) for name in list(rows) if name.endswith(TOLD))
    size = "×".join(map(str, result.network.input_shape))
    return {
        "network": result.network.model,
        "size": size,
        "batch": result.batch,
        "over": min(rows.values()) / ours,
        "over_told": told / ours,
    }


if __name__ == "__main__":
    sys.exit(main())
