"""The training-speed benchmark: what its parts measure, and each side for a step on a small model."""

import dataclasses
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from finetune.model.base import Base
from tests.conftest import calibrated_align


@pytest.fixture(scope="module")
def modules(load_benchmarks):
    """The benchmark's modules."""
    return load_benchmarks(
        cells="speed_cells",
        data="speed_data",
        meter="speed_meter",
        memory="memory_watch",
        score="speed_score",
        table="speed_table",
        command="training_speed",
    )


def test_the_clock_leaves_warm_up_out_and_counts_all_between_two_starts(modules):
    called = []
    clock = modules["meter"].StepClock(warmup=2, steps=3, every=2, when_warm=lambda: called.append(len(clock._looks)))
    for rows in (8, 8, 8, 8, 5, 0):
        clock.start_step(rows)
    assert called == [0]
    (first, _), (second, _), (last, _) = clock._looks
    assert clock.rates == [16 / (second - first), 5 / (last - second)]
    assert clock.cpu_seconds >= 0


def test_memory_is_that_of_process_and_children_until_it_is_stopped(modules):
    watch = modules["memory"].MemoryWatch(0.001, modules["meter"].held_bytes)
    block = torch.ones(2**24)  # 64 MiB
    while not watch.peak > 2**26:
        pass
    watch.stop()
    assert watch.peak >= block.nbytes


def test_operations_are_those_of_a_step_that_is_computed(modules):
    lengths = [3, 5, 3, 8]
    counted = modules["meter"].count_flops(calibrated_align(), rank=4, image_size=64, lengths=lengths)
    targets = [*modules["meter"].IMAGE_TARGETS, *modules["meter"].TEXT_TARGETS]
    model = get_peft_model(calibrated_align(), LoraConfig(r=4, target_modules=targets))
    with FlopCounterMode(display=False) as counter:
        images = model.get_image_features(pixel_values=torch.randn(4, 3, 64, 64)).pooler_output
        texts = [
            model.get_text_features(
                input_ids=torch.ones(number, length, dtype=torch.long), attention_mask=torch.ones(number, length)
            ).pooler_output
            for length, number in Counter(lengths).items()
        ]
        (normalize(images, dim=-1) @ normalize(torch.cat(texts), dim=-1).T).sum().backward()
    assert counted == counter.get_total_flops() // 4


def record(side, number, rate, loss=2.0, **more):
    counted = {"flops_per_image": 1e9, "padded_flops_per_image": 2e9, "limit": 1e11, "is_bf16": False}
    about = {"task": "captions", "image_size": 96, "side": side, "round": number, "loss": loss}
    return {**about, "rates": [rate], "rate": rate, "cpu_seconds": 0.01, "memory": 2**30, **counted, **more}


def test_ratios_are_those_within_a_round_to_the_faster_tuned_peer(modules):
    rates = {"trainer": (1, 10, 2), "trainer-tuned": (2, 30, 4), "trainer-bf16": (4, 20, 2), "ours": (8, 90, 8)}
    records = [record(side, n, rate) for side, found in rates.items() for n, rate in enumerate(found)]
    lines = modules["table"].format_table(records, list(rates)).splitlines()
    assert [cell.strip() for cell in lines[-1].split("|")[3:10]] == [
        "ours",
        "8.0",
        "2.00",
        "8.00",
        "0.08",
        "0.16",
        "10.0",
    ]


def test_a_side_without_enough_memory_is_said_to_be_out_of_it(modules):
    nothing = dict.fromkeys(("rates", "rate", "cpu_seconds", "memory"))
    records = [{**record("trainer", 0, 1, None), **nothing}, record("ours", 0, 5.0)]
    table = modules["table"].format_table(records, ["trainer", "ours"])
    assert "| trainer | out of memory | - |" in table
    assert "| ours | 5.0 | - | - |" in table
    assert len(modules["table"].check_losses(records)) == 1


@pytest.mark.parametrize(
    ("loss", "is_bf16", "word"), [(2.0001, False, "equal"), (2.01, False, "DIFFERENT"), (2.01, True, "equal")]
)
def test_first_losses_are_compared(modules, loss, is_bf16, word):
    records = [record("bare", 0, 1), record("ours", 0, 1, loss, is_bf16=is_bf16)]
    assert modules["table"].check_losses(records)[0].startswith(word)


def test_the_time_to_a_score_is_the_first_that_reaches_it(modules):
    scores = [[1.0, 0.2], [2.0, 0.5], [3.0, 0.4]]
    assert modules["score"].first_time(scores, 0.4) == 2.0
    assert modules["score"].first_time(scores, 0.6) is None


def test_results_of_other_sizes_stay(modules, tmp_path):
    path = tmp_path / "cpu.jsonl"
    first, second = ({**record("ours", 0, 1.0), "batch_size": 64, "image_size": size} for size in (96, 160))
    modules["command"].write_records([first, second], path)
    modules["command"].write_records([{**first, "rate": 2.0}], path)
    found = pd.read_json(path, lines=True)
    assert sorted(zip(found["image_size"], found["rate"], strict=True)) == [(96, 2.0), (160, 1.0)]


@pytest.fixture(scope="module")
def job(modules, tiny, tmp_path_factory):
    """Two batches of drawn pictures for a tiny model."""
    folder = tmp_path_factory.mktemp("drawn")
    table = modules["data"].draw_tables(folder, batch_size=8, steps=1)["captions"]
    return modules["data"].Job("captions", "", tiny, str(table), 64, 8, 1, 1, 0, False, rank=4)


def losses_of(modules, job, task, sides):
    found = [modules["cells"].measure_side(dataclasses.replace(job, task=task, side=side)) for side in sides]
    assert all(len(cell["rates"]) == 1 and cell["rate"] > 0 and cell["memory"] > 0 for cell in found)
    return [cell["loss"] for cell in found]


def test_the_bare_loops_compute_the_same(modules, job):
    plain, fused = losses_of(modules, job, "captions", ["bare", "bare-fused"])
    assert fused == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["captions", "prompts", "head"])
def test_all_sides_train(modules, job, task):
    plain = losses_of(modules, job, task, ["trainer", "trainer-tuned", "bare"])
    fused = losses_of(modules, job, task, ["bare-fused", "ours"])
    assert plain == pytest.approx(3 * plain[:1], rel=1e-5)
    assert fused == pytest.approx(2 * fused[:1], rel=1e-5)
    assert task != "captions" or fused[0] == pytest.approx(plain[0], rel=1e-5)


@pytest.mark.slow
def test_both_sides_train_to_a_score(modules, job):
    longer = dataclasses.replace(job, table=str(modules["data"].hold_all_out(Path(job.table))), epochs=1)
    ours = modules["score"].train_to_score(dataclasses.replace(longer, side="ours"), 0)
    peer = modules["score"].train_to_score(dataclasses.replace(longer, side="trainer-tuned"), 0)
    assert len(peer) == 1
    assert all(seconds > 0 and 0 <= score <= 1 for seconds, score in [*ours, *peer])
    assert [seconds for seconds, _ in ours] == sorted(seconds for seconds, _ in ours)


@pytest.mark.slow
def test_padding_counts_as_much_as_the_longest_text_of_a_batch(modules, job):
    counted = modules["cells"].count_step(job)
    lengths = list(modules["cells"]._text_lengths(modules["cells"].Side(job)))
    longest = [max(batch) for batch in lengths for _ in batch]
    expected = modules["meter"].count_flops(Base.open(job.checkpoint).load(), job.rank, job.image_size, longest)
    assert counted["padded_flops_per_image"] == expected > counted["flops_per_image"]
    assert [*map(len, lengths)] == [8, 8]
