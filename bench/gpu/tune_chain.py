"""Check the decode chain on this GPU, then time it over tiles: python tune_chain.py OUT CONFIG...

Every time is a whole step in a captured graph over the full model's weights, so that nothing
stays in the L2 cache that would not in use. Warm-up compiles all variants in many processes.
"""

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

import chain_model
from infer_core.chain_tiles import AttentionTile, default_tiles
from infer_core.kernels.chain_types import StagedTile, Tile

BUCKET = 2048
BANDWIDTH = 4.404e12


def staged(*tiles):
    return [StagedTile(*t) for t in tiles]


def plain(*tiles):
    return [Tile(*t) for t in tiles]


def variants(spec, num_sms: int) -> dict[str, list]:
    """Staged: (slices, chunk, warps, stages, per_sm, ahead); plain: (rows, warps, per_sm)."""
    kinds: dict[str, list] = {
        "attention": [AttentionTile(*t) for t in ((16384, 8), (16384, 4), (8192, 4))],
        "attn_out": plain((4, 8, 2), (8, 8, 1), (8, 8, 2), (2, 8, 2), (4, 8, 1)),
        "qkv": plain((2, 4, 4), (4, 4, 4), (4, 8, 2), (8, 4, 2)),
        "gate_up": plain((2, 8, 4), (2, 4, 4), (4, 4, 4), (4, 4, 3), (4, 8, 2)),
        "mlp_out": plain((2, 8, 2), (1, 8, 4), (1, 4, 4), (1, 4, 5), (2, 4, 2)),
        "lm_head": plain((8, 4, 4), (4, 2, 8)),
    }
    if spec.shape.hidden_size == 2048:
        kinds["qkv"] += staged((8, 64, 4, 3, 3, 2))
        kinds["gate_up"] += staged((4, 64, 4, 10, 2, 9))
        kinds["mlp_out"] += staged((8, 64, 4, 8, 2, 7))
    else:
        kinds["gate_up"] += staged((1, 64, 8, 9, 1, 8))
    return kinds


def descend(time_tiles, tiles, kinds, order, until):
    """Coordinate descent over the tiles of each kind."""
    best, seen = time_tiles(tiles), {}
    for kind in order:
        rows = []
        for tile in kinds[kind]:
            trial = replace(tiles, **{kind: tile})
            if trial not in seen:
                if time.time() > until:
                    break
                seen[trial] = time_tiles(trial)
            rows.append((seen[trial], tile))
        rows.sort(key=lambda row: row[0])
        print(
            f"  {kind:9}",
            " ".join(
                f"{'/'.join(map(str, list(asdict(t).values())[:6]))}:{us:.0f}" for us, t in rows
            ),
            flush=True,
        )
        if rows and rows[0][0] < best:
            best, tiles = rows[0][0], replace(tiles, **{kind: rows[0][1]})
    return best, tiles


def compile_one(job) -> None:
    import triton

    from compile_chain import Sm90
    from triton.runtime.jit import JITFunction

    folder, kind, tile, sms, pdl = job
    if not getattr(JITFunction, "patched", False):
        triton.runtime.driver.set_active(Sm90())
        original = JITFunction.run

        def compile_only(self, *args, grid, warmup, **kwargs):
            return original(self, *args, grid=grid, warmup=True, **kwargs)

        JITFunction.run, JITFunction.patched = compile_only, True
    spec = chain_model.read(folder)
    tiles = default_tiles(spec, sms)
    if kind is not None:
        tiles = replace(tiles, **{kind: tile})
    chain = chain_model.build(spec, BUCKET, device="meta", pdl=pdl, sms=sms, tiles=tiles)
    if kind is None:
        chain.begin(0, 0)
        chain.step(greedy=True)
        return
    launches = {"qkv": 0, "attention": 1, "attn_out": 2, "gate_up": 3, "mlp_out": 4, "lm_head": -1}
    chain._launches[launches[kind]]()
    if kind == "qkv":  # the first layer has no norm of a previous block
        chain._launches[5]()
    if kind == "attention":  # the other side of the merge
        chain._launches[2]()
    if kind in ("attention", "attn_out") and spec.attention[0].window is not None:
        chain._launches[26](), chain._launches[27]()  # a layer of another cache size


def capture(chain):
    chain.begin(5, 40)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        chain.step(greedy=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain.step(greedy=True)
    return graph


def time_us(chain, graph, position: int, steps: int = 24, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        chain.begin(5, position)
        for _ in range(3):
            graph.replay()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / steps * 1e3)
    return median(times)


def roll(chain, graph, steps: int, kv):
    """Run greedy steps from a fixed state; return what they left behind."""
    torch.manual_seed(0)
    for k, v in kv:
        k.normal_(), v.normal_()
    chain.begin(5, 30)
    for _ in range(steps):
        graph.replay()
    torch.cuda.synchronize()
    return [
        chain.sequence[31 : 31 + steps].clone(),
        chain.logits.clone(),
        *(k.clone() for k, _ in kv),
    ]


def main() -> None:
    out, folders = Path(sys.argv[1]), sys.argv[2:]
    budget = float(os.environ.get("TUNE_S", "40"))
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    print(torch.cuda.get_device_name(0), sms, torch.__version__)
    begun = time.time()
    jobs = []
    for folder in folders:
        jobs += [(folder, None, None, sms, True), (folder, None, None, sms, False)]
        if budget:
            for kind, tiles in variants(chain_model.read(folder), sms).items():
                jobs += [(folder, kind, tile, sms, True) for tile in tiles]
    with ProcessPoolExecutor(15, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(compile_one, job) for job in jobs]:
            try:
                future.result(timeout=100)
            except Exception as error:  # a tile may not fit
                print("compile:", repr(error)[:200])
    print(f"compiled {len(jobs)} in {time.time() - begun:.0f} s", flush=True)
    results = {}
    for folder in folders:
        spec = chain_model.read(folder)
        params = chain_model.parameters(spec, "cuda")
        kv = chain_model.caches(spec, BUCKET, "cuda")
        build = lambda **k: chain_model.build(
            spec, BUCKET, device="cuda", params=params, kv=kv, **k
        )  # noqa: E731
        chain = build(pdl=True)
        graph = capture(chain)
        first = time.time()
        chain.begin(5, 64)
        truth = chain_model.reference_step(spec, params, kv, 5, 64, torch.float32)
        eager = chain_model.reference_step(spec, params, kv, 5, 64, torch.bfloat16).float()
        chain.step(greedy=True)
        torch.cuda.synchronize()
        scale = truth.abs().max()
        record = results[spec.name] = {
            "error": float((chain.logits.float() - truth).abs().max() / scale),
            "eager_error": float((eager - truth).abs().max() / scale),
        }
        plain = build(pdl=False)
        plain_graph = capture(plain)
        same = [
            torch.equal(a, b)
            for a, b in zip(roll(chain, graph, 1000, kv), roll(plain, plain_graph, 1000, kv))
        ]
        record["pdl_equal"] = all(same)
        record["default"] = {p: round(time_us(chain, graph, p), 1) for p in (64, 512, 1024, 2000)}
        record["no_pdl"] = time_us(plain, plain_graph, 64)
        record["floor"] = chain_model.floor_us(spec, params, 64, BANDWIDTH)
        print(spec.name, json.dumps(record), flush=True)
        best_tiles = chain._tiles
        if budget:

            def time_tiles(tiles):
                try:
                    trial = build(pdl=True, tiles=tiles)
                    graph = capture(trial)
                    return sum(time_us(trial, graph, p, repeats=3) for p in (80, 500, 1500)) / 3
                except Exception as error:
                    print(tiles, repr(error)[:300])
                    return 1e9

            kinds = variants(spec, sms)
            order = ["attention", "attn_out", "gate_up", "mlp_out", "qkv", "lm_head"]
            ahead = replace(
                best_tiles,
                **{k: tiles[-1] for k, tiles in kinds.items() if isinstance(tiles[-1], StagedTile)},
            )
            print("  staged", round(time_tiles(ahead), 1))
            starts = {"plain": best_tiles}
            found = []
            for name, tiles in starts.items():
                print(" ", name, "start", round(time_tiles(tiles), 1))
                found.append(descend(time_tiles, tiles, kinds, order + order, time.time() + budget))
            record["found"] = [(us, asdict(tiles)) for us, tiles in found]
            best_tiles = min(found, key=lambda row: row[0])[1]
            chain = build(pdl=True, tiles=best_tiles)
            graph = capture(chain)
            record["best"] = {p: round(time_us(chain, graph, p), 1) for p in (64, 512, 1024, 2000)}
            record["best_tiles"] = asdict(best_tiles)
            for bucket, position in ((512, 384), (1152, 576), (2048, 1536)):
                kv_b = chain_model.caches(spec, bucket, "cuda")
                for name, tiles in (("default", None), ("best", best_tiles)):
                    trial = chain_model.build(
                        spec, bucket, device="cuda", pdl=True, params=params, kv=kv_b, tiles=tiles
                    )
                    record[f"{name}_{bucket}_{position}"] = round(
                        time_us(trial, capture(trial), position), 1
                    )
                del kv_b, trial
            print("  cases", {k: v for k, v in record.items() if k.count("_") == 2})
            torch.manual_seed(0)
            for k, v in kv:
                k.normal_(), v.normal_()
            truth = chain_model.reference_step(spec, params, kv, 5, 64, torch.float32)
            chain.begin(5, 64)
            graph.replay()
            torch.cuda.synchronize()
            record["best_error"] = float(
                (chain.logits.float() - truth).abs().max() / truth.abs().max()
            )
            runs = [roll(chain, graph, 1000, kv) for _ in range(2)]
            record["repeatable"] = all(torch.equal(a, b) for a, b in zip(*runs))
            print("  error", record["best_error"], "repeatable", record["repeatable"])
            print(
                "  best",
                record["best"],
                {k: tuple(v.values()) for k, v in record["best_tiles"].items()},
            )
        # what a step loses without one kind of kernel
        launches = list(chain._launches)
        record["without"] = {}
        for i, kind in enumerate(("qkv", "attention", "attn_out", "gate_up", "mlp_out")):
            chain._launches = [
                l for n, l in enumerate(launches) if n % 5 != i or n == len(launches) - 1
            ]
            less = time_us(chain, capture(chain), 64, repeats=3)
            record["without"][kind] = (
                (record.get("best") or record["default"])[64] - less
            ) / spec.shape.num_layers
        chain._launches = launches[:-1]
        less = time_us(chain, capture(chain), 64, repeats=3)
        record["without"]["lm_head"] = (record.get("best") or record["default"])[64] - less
        print(
            "  without",
            {k: round(v, 2) for k, v in record["without"].items()},
            f"{time.time() - first:.0f} s",
            flush=True,
        )
        del chain, graph, plain, plain_graph, params, kv
        torch.cuda.empty_cache()
    (out / "chain.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
