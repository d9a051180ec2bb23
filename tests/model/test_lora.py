"""Adapters: which layers, how many parameters, saved and read back."""

import copy
import json
import re
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AlignModel

from finetune.core.errors import CheckpointError
from finetune.model.adapter import load_adapter, save_adapter
from finetune.model.base import Base
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.towers import AlignTowers

IMAGE_KINDS = ["pointwise", "squeeze_excite", "stem"]
TEXT_KINDS = ["attention", "feed_forward", "projection", "embedding"]


def adapted_names(model) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}


def randomise(model, seed: int = 0, scale: float = 0.05) -> None:
    """As training would leave it: every trainable tensor moved away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("pointwise", r"vision_model\..*(expand_conv|project_conv)"),
        ("squeeze_excite", r"vision_model\..*squeeze_excite\.(reduce|expand)"),
        ("stem", r"vision_model\.embeddings\.convolution"),
    ],
)
def test_image_kinds_name_exactly_their_layers(tiny, kind, pattern):
    model = Base.open(tiny).load()
    wanted = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    attach_lora(model, TowerLora(layers=[kind]), None)
    assert adapted_names(model) == wanted
    assert wanted


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("attention", r"text_model\.encoder\..*attention\.(self\.(query|key|value)|output\.dense)"),
        ("feed_forward", r"text_model\.encoder\.layer\.\d\.(intermediate|output)\.dense"),
        ("projection", r"text_projection"),
        ("embedding", r"text_model\.embeddings\.word_embeddings"),
    ],
)
def test_text_kinds_name_exactly_their_layers(tiny, kind, pattern):
    model = Base.open(tiny).load()
    wanted = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    attach_lora(model, None, TowerLora(layers=[kind]))
    assert adapted_names(model) == wanted
    assert wanted


def test_default_never_touches_the_unused_text_pooler(tiny):
    model = Base.open(tiny).load()
    attach_lora(model, TowerLora(), TowerLora())
    assert not any("pooler" in name for name in adapted_names(model))
    with pytest.raises(ValueError, match="text_lora.layers .* got 'pooler.dense'"):
        attach_lora(Base.open(tiny).load(), None, TowerLora(layers=["pooler.dense"]))


def test_each_tower_has_its_own_rank_alpha_and_dropout(tiny):
    model = Base.open(tiny).load()
    attach_lora(model, TowerLora(rank=2, alpha=4.0, dropout=0.1), TowerLora(rank=3, alpha=12.0, dropout=0.0))
    for name in adapted_names(model):
        layer = model.get_submodule(name)
        is_image = name.startswith("vision_model")
        assert layer.r["default"] == (2 if is_image else 3)
        assert layer.scaling["default"] == (2.0 if is_image else 4.0)
        assert isinstance(layer.lora_dropout["default"], torch.nn.Dropout if is_image else torch.nn.Identity)


def test_last_blocks_counts_from_the_embedding_and_keeps_the_projection(tiny):
    model = Base.open(tiny).load()
    attach_lora(model, TowerLora(last_blocks=2), TowerLora(last_blocks=1))
    blocks = len(model.vision_model.encoder.blocks)
    numbers = {int(found[1]) for name in adapted_names(model) if (found := re.search(r"blocks\.(\d+)", name))}
    assert numbers == {blocks - 2, blocks - 1}
    assert {name.split(".")[3] for name in adapted_names(model) if "layer." in name} == {"1"}
    assert "text_projection" in adapted_names(model)


def test_module_names_are_taken_as_peft_takes_them(tiny):
    model = Base.open(tiny).load()
    attach_lora(model, None, TowerLora(layers=["query", "value"]))
    assert {name.rsplit(".", 1)[-1] for name in adapted_names(model)} == {"query", "value"}


@pytest.mark.parametrize(
    ("image_lora", "text_lora", "message"),
    [
        (TowerLora(layers=["pointwize"]), None, "image_lora.layers .*'pointwize'. Did you mean 'pointwise'"),
        (TowerLora(layers=["pointwise", "query"]), None, "image_lora.layers .* got 'query'"),
        (TowerLora(layers=["stem"], last_blocks=1), None, "None lies in the last 1 blocks"),
        (None, TowerLora(layers=["expand_conv"]), "text_lora.layers .* got 'expand_conv'"),
        (TowerLora(use_dora=True), TowerLora(), "image_lora.use_dora and text_lora.use_dora to be equal"),
    ],
)
def test_layers_that_match_nothing_are_refused(tiny, image_lora, text_lora, message):
    with pytest.raises(ValueError, match=message):
        attach_lora(Base.open(tiny).load(), image_lora, text_lora)


def test_squeeze_excite_of_align_mini_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="computes the identity there"):
        attach_lora(Base.open("align-mini").load(), TowerLora(layers=["squeeze_excite"]), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank to be at least 1, but got 0"),
        ({"alpha": 0.0}, "alpha to be positive"),
        ({"dropout": 1.0}, r"dropout to be in \[0, 1\)"),
        ({"last_blocks": 0}, "last_blocks to be at least 1"),
        ({"layers": []}, "layers to name at least one layer"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TowerLora(**arguments)


def test_only_adapters_and_temperature_are_trained(tiny):
    towers = AlignTowers(attach_lora(Base.open(tiny).load(), TowerLora(), TowerLora()), True, 0.01)
    trained = {name for name, parameter in towers.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"model.base_model.model.temperature"}


@pytest.fixture
def saved(tiny, tmp_path, batch):
    """An adapter folder, and the embeddings of the model that it was saved from."""
    model = Base.open(tiny).load()
    adapted = attach_lora(model, TowerLora(rank=2), TowerLora(rank=3, layers=TEXT_KINDS))
    randomise(adapted)
    model.temperature.data.fill_(0.123456789)
    save_adapter(adapted, tmp_path, Base("owner/name", Path(tiny)))
    with torch.no_grad():
        return tmp_path, AlignTowers(adapted, False, 0.01)(batch)


def test_saved_adapter_gives_the_same_embeddings_in_plain_peft(tiny, saved, batch):
    """Opened weights lie in the file as it maps into memory, and convolutions round as their weights are aligned."""
    folder, expected = saved
    plain = copy.deepcopy(peft.PeftModel.from_pretrained(AlignModel.from_pretrained(tiny), folder))
    with torch.no_grad():
        found = AlignTowers(plain, False, 0.01)(batch)
    assert torch.equal(found.image_features, expected.image_features)
    assert torch.equal(found.text_features, expected.text_features)


def test_load_adapter_restores_embeddings_and_temperature(tiny, saved, batch):
    folder, expected = saved
    with torch.no_grad():
        found = AlignTowers(load_adapter(Base.open(tiny), folder), False, 0.01)(batch)
    assert torch.equal(found.image_features, expected.image_features)
    assert torch.equal(found.text_features, expected.text_features)
    assert torch.equal(found.temperature, expected.temperature)


def test_adapter_config_is_sorted(saved):
    config = json.loads((saved[0] / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("align-mini", (None, None)),
        (None, (None, None)),
    ],
)
def test_adapter_names_a_base_of_the_hub_and_no_place(tiny, tmp_path, name, expected):
    base = Base.open(tiny) if name is None else Base(name, Path(tiny))
    save_adapter(attach_lora(base.load(), None, TowerLora(rank=2)), tmp_path, base)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == expected
    assert json.loads((tmp_path / "temperature.json").read_text())["base_model"] == base.public_name
    assert not any(str(tiny).encode() in path.read_bytes() for path in tmp_path.iterdir())
    peft.PeftModel.from_pretrained(AlignModel.from_pretrained(tiny), tmp_path)


def test_adapter_of_another_base_is_refused(saved):
    with pytest.raises(CheckpointError, match="Use the checkpoint the adapter was trained on"):
        load_adapter(Base.open("align-mini"), saved[0])


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "temperature.json"])
def test_missing_adapter_file_is_named(tiny, saved, name):
    (saved[0] / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_adapter(Base.open(tiny), saved[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}},
            "but got 'PROMPT_TU",
        ),
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "ALIGN's own layers, but got 'megatron_co"),
        ({"megatron_core": "evil"}, "ALIGN's own layers, but got 'megatron_core': 'evil'"),
        ({"layer_replication": [[0, 4]]}, "ALIGN's own layers, but got 'layer_replication'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "ALIGN's own layers, but got 'auto_map'"),
        ({"base_model_name_or_path": "../../elsewhere"}, "a hub id or null, but got '../../elsewhere'"),
        ({"base_model_name_or_path": "/etc/model"}, "a hub id or null"),
    ],
)
def test_a_configuration_cannot_reach_out(tiny, saved, values, message):
    path = saved[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(CheckpointError, match=message):
        load_adapter(Base.open(tiny), saved[0])
    assert "evil" not in sys.modules


def test_unexpected_and_missing_adapter_tensors_are_refused(tiny, saved):
    path = saved[0] / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "base_model.model.stranger.lora_A.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 are unexpected, among them base_model.model.stranger"):
        load_adapter(Base.open(tiny), saved[0])
    name = min(tensors)
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(CheckpointError, match=f"1 are missing, among them {re.escape(name)}"):
        load_adapter(Base.open(tiny), saved[0])
