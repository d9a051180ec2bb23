"""The scaling model against arithmetic of its own kind, and the benchmark in real processes."""

import dataclasses
import json
import platform
import sys

import numpy as np
import pytest

COSTS = {
    **{"step": 0.1, "image": 0.01, "loss": 0.002, "pair": 1e-7, "hop": 1e-4, "gather_rate": 1e8, "reduce_rate": 5e8},
    **{
        "gathers": 18.0,
        "gather_bytes": 7788.0,
        "reduces": 1.0,
        "smalls": 8.0,
        "gradient_bytes": 4e6,
        "dimension": 320.0,
    },
    **{"memory": 3e8, "image_memory": 2e7, "pair_memory": 200.0, "decode": 1e-3, "headers": 2e-5, "index": 3e-6},
    **{"image_bytes": 15_000.0, "tar_bytes": 17_000.0, "index_bytes": 13.0},
}


@pytest.fixture(scope="module")
def modules(load_benchmarks):
    """The benchmark's modules."""
    return load_benchmarks(
        model="scaling_model", costs="scaling_costs", plan="scaling_plan", table="scaling_table", command="scaling"
    )


@pytest.fixture(scope="module")
def costs(modules):
    return modules["costs"].Costs(**COSTS)


def gather_around_a_ring(parts):
    """Passes each device's part to its neighbour until all have all; returns hops and bytes that each received."""
    devices, received = len(parts), np.zeros(len(parts))
    held = [{number: part} for number, part in enumerate(parts)]
    for hop in range(devices - 1):
        for device in range(devices):
            number = (device - 1 - hop) % devices
            held[device][number] = held[device - 1][number]
            received[device] += parts[number].nbytes
    assert all(len(one) == devices for one in held)
    return devices - 1, received


def reduce_around_a_ring(vectors):
    """Sums vectors chunk by chunk around a ring, then passes the sums on; returns hops and bytes that each received."""
    devices, received = len(vectors), np.zeros(len(vectors))
    chunks = [np.array_split(vector.copy(), devices) for vector in vectors]
    for hop in range(2 * (devices - 1)):
        sent = [chunks[device][(device - hop) % devices].copy() for device in range(devices)]
        for device in range(devices):
            number, arrived = (device - 1 - hop) % devices, sent[device - 1]
            chunks[device][number] = arrived + chunks[device][number] if hop < devices - 1 else arrived
            received[device] += arrived.nbytes
    for own in chunks:
        np.testing.assert_allclose(np.concatenate(own), np.sum(vectors, axis=0))
    return 2 * (devices - 1), received


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_messages_are_those_of_a_ring(modules, costs, devices):
    rows, numbers = 6, 24 * 100
    costs = dataclasses.replace(costs, gather_bytes=40, gradient_bytes=8 * numbers, gathers=1, reduces=1)
    plan = modules["model"].Plan(devices, rows * devices)
    step = modules["model"].predict_step(costs, plan)
    hops, gathered = gather_around_a_ring([np.zeros((rows, 5))] * devices)
    assert step.gather == pytest.approx(hops * 1e-4 + gathered[0] / 1e8)
    hops, reduced = reduce_around_a_ring(list(np.random.default_rng(0).normal(size=(devices, numbers))))
    assert step.reduce == pytest.approx(hops * 1e-4 + reduced[0] / 5e8)
    assert step.small == pytest.approx(8 * hops * 1e-4)
    assert modules["model"].received_bytes(costs, plan) == pytest.approx(gathered[0] + reduced[0])


def test_one_device_has_no_messages(modules, costs):
    step = modules["model"].predict_step(costs, modules["model"].Plan(1, 64))
    assert step == pytest.approx((0.1 + 0.64, 0.002 + 1e-7 * 64 * 64, 0, 0, 0))


def test_processes_share_cores_and_parts_take_longer(modules, costs):
    plan, predict = modules["model"].Plan, modules["model"].predict_step
    assert predict(costs, plan(4, 64, cores=2)).compute == pytest.approx(2 * predict(costs, plan(4, 64)).compute)
    assert predict(costs, plan(2, 32, cores=4)) == predict(costs, plan(2, 32))
    assert predict(costs, plan(4, 64, micro_batch=8)).compute == pytest.approx(
        1.5 * predict(costs, plan(4, 64)).compute
    )
    assert predict(costs, plan(4, 64, micro_batch=16)) == predict(costs, plan(4, 64))


@pytest.mark.parametrize("devices", [1, 2, 5])
def test_the_slowest_device_is_waited_for(modules, costs, devices):
    plan = modules["model"].Plan(devices, 16 * devices)
    step = modules["model"].predict_step(costs, plan)
    assert modules["model"].simulate_seconds(costs, plan, [1.0]) == pytest.approx(step.seconds)
    found = modules["model"].simulate_seconds(costs, plan, [1.0, 2.0], steps=20_000)
    slow = 1 - 0.5**devices  # one of them at least takes twice as long
    assert found.mean() == pytest.approx(step.seconds + slow * (step.compute + step.loss), rel=0.01)


def test_memory_is_that_of_a_part_and_a_chunk(modules, costs):
    plan, memory = modules["model"].Plan, modules["model"].memory_bytes
    assert memory(costs, plan(4, 64)) == pytest.approx(3e8 + 16 * 2e7 + 16 * 64 * 200)
    assert memory(costs, plan(256, 256 * 1024, micro_batch=32)) == pytest.approx(3e8 + 32 * 2e7 + 2**22 * 200)


def measured(costs):
    """What would be measured if everything cost exactly so much."""

    def training(processes, rows, seconds):
        parts = {
            "seconds": {"step": seconds, "gather": 0.1, "reduce": 0.05, "small": 0.05},
            "bytes": {"gather": (processes - 1) * rows / processes * costs.gather_bytes},
            "messages": {"gather": 18.0, "reduce": 1.0, "small": 8.0},
        }
        return {
            **{"processes": processes, "batch_size": rows, "rates": [rows / seconds]},
            "cpu_seconds": processes * seconds / rows,
            **{
                "memory": 3e8 + 2e7 * rows / processes,
                "gradient_bytes": 4e6,
                "dimension": 320,
                "wire": 1e7,
                "round": 0,
            },
            **parts,
        }

    messages = [
        {"kind": kind, "processes": n, "bytes": size, "seconds": 2 * (n - 1) * (1e-4 + size * per_byte(n))}
        for n in (2, 4)
        for kind, size, per_byte in (
            ("gather", 10_000, lambda _: 1e-8),
            ("gather", 1_000_000, lambda _: 1e-8),
            ("reduce", 4_000_000, lambda n: 1 / (5e8 * n)),
            ("small", 8 * n, lambda _: 0.0),
        )
    ]
    pairs = [(64, 1024), (128, 32768), (512, 32768)]
    loss = [
        {"rows": a, "columns": b, "seconds": 0.002 + a * b * 1e-7, "memory": 200 * min(a * b, 2**22)} for a, b in pairs
    ]
    shard = {"rows": 10, "headers": 2e-5, "index": 3e-6, "read": 4e-4, "decode": 6e-4}
    shard["bytes"] = {"tar": 17_000.0, "picture": 15_000.0, "kept": 13.0}
    order = {"rows": 746_972_269, "batch_size": 32_768, "first": 0.01, "later": 0.01}
    alone = [training(1, rows, 0.1 + 0.01 * rows + 0.002 + 1e-7 * rows**2) for rows in (16, 32, 64)]
    return {
        "trainings": [*alone, training(2, 32, 0.4), training(2, 64, 0.7), training(4, 64, 1.0)],
        "messages": messages,
        "units": {"loss": loss, "shard": shard, "order": order},
        "spread": [0.9, 1.0, 1.1],
        "settings": {**dict.fromkeys(("rows", "steps", "warmup", "rounds"), 16), "batch_size": 64, "bf16": False}
        | {"checkpoint": "align-mini", "image_size": 96},
        "machine": {"cores": 2, "threads": 1, "cpu": "CPU", "torch": "2", "load": 0.0},
    }


def test_costs_are_found_again(modules, costs):
    found = dataclasses.asdict(modules["costs"].fit_costs(measured(costs)))
    assert found == pytest.approx(COSTS, rel=1e-6)


def test_tables_say_what_was_measured(modules, costs):
    tables = modules["table"].tables_of(measured(costs))
    scaling = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables["scaling"].splitlines()]
    assert scaling[4][:7] == ["same rows a process", "4 (share the cores)", "64", "64.0", "1.05", "2", "0.52"]
    assert scaling[6][:7] == ["same batch", "2", "64", "91.4", "1.06", "2", "0.53"]
    assert "| 4 | 64 | 1.000 | 80.0 % | 10.0 % | 5.0 % | 5.0 % |" in tables["split"]
    assert "| 747,000,000 | 12.7 TB | 130 GB | 9.71 GB | 4.15 h |" in tables["plan"]
    predicted = 0.1 + 0.32 + 0.002 + 1e-7 * 32 * 64  # of two processes: what one costs, for half of the rows
    assert "| 2 | 64 | 0.700 |" in tables["check"]
    assert f"| 1.400 | {2 * predicted:.3f} |" in tables["check"]
    page = "".join(f"<!-- {name} -->\nold\n<!-- / -->\n" for name in tables)
    filled = modules["table"].fill_page(page, tables)
    assert all(table in filled for table in tables.values())
    assert "old" not in filled
    assert modules["table"].fill_page(filled, tables) == filled
    with pytest.raises(SystemExit, match="<!-- costs --> once, but got 0"):
        modules["table"].fill_page("", {"costs": "new"})


def test_what_is_given_stands_for_what_was_measured(modules, costs):
    words = ["--images-per-second", "1000", "--network", "1e10", "--latency", "1e-5", "--dimension", "640"]
    found, given = modules["plan"].give(costs, modules["plan"].build_parser().parse_args(words))
    assert (found.step, found.image, found.gather_rate, found.hop) == (0, 1e-3, 1e10, 1e-5)
    assert found.pair == pytest.approx(1e-8)  # ten times as fast as measured, as images are
    assert found.gather_bytes == 7788 + 3 * 2 * 320 * 4
    assert given[:-1] == ["images per second 1000", "network 1e+10", "latency 1e-05", "dimension 640"]
    assert "pairs per second 1e+08, faster than measured" in given[-1]
    alone = {**measured(costs), "messages": []}
    with pytest.raises(SystemExit, match="--network and --latency"):
        modules["plan"].describe_plan(alone, [])
    assert "Given: images per second 1000" in modules["plan"].describe_plan(alone, words)


@pytest.mark.slow
def test_two_processes_are_measured(modules, tiny, tmp_path, monkeypatch, capsys):
    words = [
        "--processes",
        "1",
        "2",
        "--rows",
        "4",
        "--batch-size",
        "8",
        "--steps",
        "2",
        "--warmup",
        "1",
        "--split",
        "1",
        "--rounds",
        "1",
    ]
    more = ["--image-size", "64", "--checkpoint", tiny, "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["scaling.py", *words, *more])
    modules["command"].main()
    assert "| same batch | 2 | 8 |" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text())
    assert platform.node() not in path.read_text()
    found = [(one["processes"], one["batch_size"]) for one in results["trainings"]]
    assert found == [(1, 4), (1, 8), (2, 8)]
    assert all(rate > 0 for one in results["trainings"] for rate in one["rates"])
    two, fitted = results["trainings"][-1], modules["costs"].fit_costs(results)
    assert two["bytes"]["reduce"] == two["gradient_bytes"]  # around a ring of two: half of it, twice
    assert fitted.gather_bytes >= 2 * 64 * 2 * 4  # features of both towers, and their gradients back
    assert two["seconds"]["step"] > sum(two["seconds"][kind] for kind in ("gather", "reduce", "small"))
    assert {(one["kind"], one["processes"]) for one in results["messages"]} == {
        (kind, 2) for kind in ("gather", "reduce", "small")
    }
