"""A short run of the whole GPU path, made for compute-sanitizer: prefill, decode, sampling.

    compute-sanitizer --tool memcheck --error-exitcode 1 python bench/gpu/memcheck.py

For every installed reference model, cut to its first layers, dummy weights: a prompt longer than
the window in two pieces, then decode steps, greedy and with every sampling transform, captured and
not. Prints one line a model; what is out of bounds the sanitizer says. Needs an NVIDIA GPU.
"""

import argparse
from typing import Any

import torch

from infer_core import Engine, SamplingParams
from infer_core.dummy_weights import dummy_weights
from infer_core.plugins import load_registry

PROMPT, CHUNK, STEPS = 600, 512, 6
SAMPLED = SamplingParams(
    temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1, seed=1
)


def first_layers(config: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """Cut a config.json to its first layers."""
    cut = {**config, "num_hidden_layers": num_layers}
    if cut.get("layer_types") is not None:
        cut["layer_types"] = cut["layer_types"][:num_layers]
    return cut


def main() -> None:
    """Run the models asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*")
    parser.add_argument("--layers", type=int, default=6, help="6: both kinds of a 5:1 layout")
    arguments = parser.parse_args()
    registry = load_registry()
    for name in arguments.model or [m.name for _, m in registry.reference_models()]:
        config = dict(registry.reference_model(name).config)
        spec = registry.resolve(first_layers(config, arguments.layers))
        weights = dummy_weights(spec, device="cuda", dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(3)
        prompt = torch.randint(spec.shape.vocab_size, (PROMPT,), generator=generator).tolist()
        for cuda_graph in (False, True):
            engine = Engine(spec, weights, cuda_graph=cuda_graph, prefill_chunk=CHUNK)
            for sampling in (SamplingParams(), SAMPLED):
                tokens = engine.generate(
                    prompt, max_new_tokens=STEPS + 1, sampling=sampling, ignore_eos=True
                ).tokens
                kind = "greedy" if sampling.greedy else "sampled"
                print(f"{name} {kind} {'captured' if cuda_graph else 'eager'}: {tokens}")


if __name__ == "__main__":
    main()
