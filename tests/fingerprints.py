"""What identifies weights, read without torch."""

from pathlib import Path

from safetensors import deserialize

from finetune.core.files import fingerprint_tensors


def fingerprint_weights(folder: str | Path) -> str:
    """The fingerprint of the tensors of a folder's safetensors files, from their bytes."""
    shards = sorted(Path(folder).glob("model*.safetensors"))
    assert shards
    tensors = {name: tensor for shard in shards for name, tensor in deserialize(shard.read_bytes())}
    return fingerprint_tensors((name, value["dtype"], value["shape"], value["data"]) for name, value in tensors.items())
