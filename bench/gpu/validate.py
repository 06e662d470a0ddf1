"""Check the GPU path against transformers on the full published shapes, with dummy weights.

For every installed reference model: bf16 logits of prefill and of decode steps, ours and
transformers', both against transformers in fp32 on the same weights (ours may err no more);
then the same greedy tokens with and without a captured graph over `--steps` decode steps.

    python bench/gpu/validate.py [--model NAME ...] [--steps 1000]

Prints one line a check and exits 1 if any failed. Needs an NVIDIA GPU and transformers.
"""

import argparse
import gc
import sys

import torch
import transformers

from infer_core import Engine
from infer_core.decoder import Decoder
from infer_core.kv_cache import KVCache
from infer_core.model_source import resolve_model
from infer_core.ops import ops_for
from infer_core.parameters import model_parameters
from infer_core.plugins import load_registry

PROMPT, FORCED = 600, 64  # the prompt is longer than the smallest window of the references


def oracle_from(engine: Engine, config: dict) -> torch.nn.Module:
    """Build the transformers model that holds exactly the engine's weights, on the GPU."""
    kind = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        oracle = kind(kind.config_class.from_dict(config))
    oracle = oracle.to(torch.bfloat16)
    state = {}
    table = model_parameters(engine.spec)
    wanted = set(oracle.state_dict())
    for rule in engine.spec.weights:
        if rule.target is None:
            continue
        for layer in range(engine.spec.shape.num_layers):
            target = rule.target.replace("{layer}", str(layer))
            names = [s.replace("{layer}", str(layer)) for s in rule.source]
            names = [name for name in names if name in wanted]
            if target in engine.parameters and names:
                rows = table[target].parts.get(rule.part, (0, table[target].shape[0]))
                state[names[0]] = engine.parameters[target][rows[0] : rows[1]]
    if engine.spec.shape.tied_embeddings:
        state["lm_head.weight"] = engine.parameters["embed"]
    oracle.load_state_dict(state, strict=True, assign=True)
    # buffers (RoPE frequencies) are made on the meta device above: make them again for real
    real = kind(
        kind.config_class.from_dict({**config, "num_hidden_layers": 1, "layer_types": None})
    )
    oracle.model.rotary_emb = type(real.model.rotary_emb)(oracle.config)
    for _, module in oracle.named_modules():
        if hasattr(module, "embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale)
    return oracle.to(engine.device).eval()


def relative_error(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative L2 error over all rows."""
    return float((logits.double() - truth.double()).norm() / truth.double().norm())


@torch.inference_mode()
def check(name: str, steps: int, device: str) -> list[tuple[str, bool]]:
    """Run every check on one reference model."""
    registry = load_registry()
    model = resolve_model(name, registry, device=device)
    engine = Engine.load(model, device=device, dtype="bfloat16", weights="dummy")
    generator = torch.Generator().manual_seed(1)
    vocab = engine.spec.shape.vocab_size
    ids = torch.randint(vocab, (PROMPT + FORCED,), generator=generator)

    decoded = engine.score(ids.tolist(), prompt_len=PROMPT)[1:]
    ops = ops_for(engine.device)
    decoder = Decoder(engine.spec, engine.parameters, context=PROMPT + FORCED, ops=ops)
    cache = KVCache(engine.spec, context=PROMPT + FORCED, device=device, dtype=engine.dtype)
    start = torch.zeros(1, dtype=torch.int32, device=device)
    prefilled = decoder.forward(
        ids[:PROMPT].to(device), cache, start, is_prefill=True, every_row=True
    )

    oracle = oracle_from(engine, dict(model.config))
    batch = ids[None].to(device)
    eager = oracle(input_ids=batch, use_cache=False).logits[0].float()
    oracle = oracle.float()
    truth = oracle(input_ids=batch, use_cache=False).logits[0].float()
    del oracle
    gc.collect()
    torch.cuda.empty_cache()

    results = []
    for what, ours, rows in (
        ("prefill", prefilled, slice(0, PROMPT)),
        ("decode", decoded, slice(PROMPT, None)),
    ):
        mine, theirs = relative_error(ours, truth[rows]), relative_error(eager[rows], truth[rows])
        results.append(
            (f"{name} {what}: error {mine:.5f}, transformers bf16 {theirs:.5f}", mine <= theirs)
        )
    prompt = ids[:64].tolist()
    with_graph = engine.generate(prompt, max_new_tokens=steps + 1, ignore_eos=True)
    without = Engine(engine.spec, engine.parameters, cuda_graph=False).generate(
        prompt, max_new_tokens=steps + 1, ignore_eos=True
    )
    again = engine.generate(prompt, max_new_tokens=steps + 1, ignore_eos=True)
    same = with_graph.tokens == without.tokens == again.tokens
    distinct = len(set(with_graph.tokens))
    results.append((f"{name} graph == eager over {steps} steps ({distinct} distinct ids)", same))
    p50 = sorted(again.step_ms)[len(again.step_ms) // 2]
    results.append((f"{name} step P50 {p50:.3f} ms, TTFT {again.ttft_ms:.2f} ms", True))
    return results


def main() -> int:
    """Check the models asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--device", default="cuda", help="cpu tries this script on tiny models")
    arguments = parser.parse_args()
    names = arguments.model or [m.name for _, m in load_registry().reference_models()]
    failed = 0
    for name in names:
        for line, passed in check(name, arguments.steps, arguments.device):
            failed += not passed
            print(("ok   " if passed else "FAIL ") + line, flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
