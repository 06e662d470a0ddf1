"""transformers, the oracle: a small model with random weights, and what it says of a prompt."""

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def why_no_oracle(config: Mapping[str, Any]) -> str | None:
    """Say what is missing before transformers can run this config; None when nothing is."""
    if importlib.util.find_spec("transformers") is None:
        return "needs transformers, the oracle, which is not installed (infer-core[test])"
    import transformers

    name = _architecture(config)
    if getattr(getattr(transformers, name, None), "config_class", None) is None:
        return f"transformers {transformers.__version__} does not know {name}"
    return None


def build_oracle(
    config: Mapping[str, Any], *, embed_std: float = 0.1, seed: int = 0
) -> torch.nn.Module:
    """Build a config's model in fp32, with the random weights of `randomise`."""
    import transformers

    kind = getattr(transformers, _architecture(config))
    model: torch.nn.Module = kind(kind.config_class.from_dict(copy.deepcopy(dict(config))))
    return randomise(model.float().eval(), embed_std=embed_std, seed=seed)


def randomise(model: torch.nn.Module, *, embed_std: float = 0.1, seed: int = 0) -> torch.nn.Module:
    """Give a model random weights under which every part shows in the logits, in place.

    Matrices keep the variance of what they multiply, embeddings are too small to outweigh the
    layers, and norm weights and biases are moved away from their neutral start.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.3 * draw)
            else:
                is_embedding = id(parameter) in embeddings
                std = embed_std if is_embedding else parameter[0].numel() ** -0.5
                parameter.copy_(draw * std)
    return model


def save_oracle(model: torch.nn.Module, folder: Path) -> None:
    """Write config.json and safetensors as transformers does."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)  # type: ignore[operator]


@torch.no_grad()
def oracle_logits(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """Logits after every token of `ids`: [len(ids), vocab_size], float32, on the CPU."""
    device = next(model.parameters()).device
    batch = torch.tensor([list(ids)], device=device)
    logits: torch.Tensor = model(input_ids=batch, use_cache=False).logits[0]
    return logits.float().cpu()


def oracle_greedy(model: torch.nn.Module, prompt: Sequence[int], *, new_tokens: int) -> list[int]:
    """Continue a prompt greedily, each step over the whole sequence: no cache to be wrong."""
    ids = list(prompt)
    for _ in range(new_tokens):
        ids.append(int(oracle_logits(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or ["(no `architectures`)"]
    return str(names[0])
