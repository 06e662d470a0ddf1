"""Which program of `fused_mlp` multiplies which tiles, and when: plain numbers, no GPU.

The down projection of some columns can start as soon as the tiles of the hidden activation that
they need are done. So instead of two kernels, each of which ends with a round of programs that
is mostly idle, one program a multiprocessor takes tiles of the first product and then tiles of
the second. A tile of the second is cut along its width into as many parts as make the last
program end first.
"""

import heapq
from dataclasses import dataclass
from functools import cache
from math import ceil

BLOCK_TOKENS = 128
BLOCK_COLUMNS = 128  # of the hidden activation: as many gate rows and as many up rows
BLOCK_ROWS = 256  # of the down projection; the last tile may be half as wide
BLOCK_WIDTH = 64  # a step
MAX_PARTS = 8

# Kinds of work; NOTHING fills up the lists of programs that have less to do.
NOTHING, UP, DOWN, HALF_DOWN = range(4)

# Costs in steps of a whole tile, 0.6 us each on an H200: what a tile takes beside its steps, a step
# of half a tile, and what each part costs whoever adds them up.
UP_END, DOWN_END, HALF_STEP, PART = 2.2, 3.0, 0.75, 2.0


@dataclass(frozen=True, slots=True)
class Work:
    """One tile: its kind, block of tokens and of columns, its first step, its steps, its part."""

    kind: int
    tokens: int
    columns: int
    first: int
    steps: int
    part: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """The work of each program in order, in how many parts the result comes, and when it ends."""

    programs: tuple[tuple[Work, ...], ...]
    parts: int
    steps: float


@cache
def schedule_mlp(token_blocks: int, hidden_size: int, inner_size: int, num_sms: int) -> Schedule:
    """Schedule `token_blocks` blocks of tokens in the number of parts that ends first."""
    columns = ceil(inner_size / BLOCK_COLUMNS)
    tried = [
        _schedule(token_blocks, hidden_size, inner_size, num_sms, parts)
        for parts in range(1, min(MAX_PARTS, columns) + 1)
    ]
    return min(tried, key=lambda schedule: schedule.steps + PART * schedule.parts)


def _schedule(
    token_blocks: int, hidden_size: int, inner_size: int, num_sms: int, parts: int
) -> Schedule:
    """Give each tile to the program that is free first; all of the first product come first."""
    up_steps = ceil(hidden_size / BLOCK_WIDTH)
    num_columns = ceil(inner_size / BLOCK_COLUMNS)
    ends = [part * num_columns // parts for part in range(parts + 1)]
    # A part goes through its columns from the first to the last. The tiles of the last round are
    # done late, so they are to be the last columns of every part.
    late_last = sorted(
        (column - ends[part + 1], column)
        for part in range(parts)
        for column in range(ends[part], ends[part + 1])
    )
    work = [
        (up_steps + UP_END, Work(UP, tokens, column, 0, up_steps, 0))
        for _, column in late_last
        for tokens in range(token_blocks)
    ]
    down_columns = ceil(hidden_size / BLOCK_ROWS)
    has_half = 0 < hidden_size % BLOCK_ROWS <= BLOCK_ROWS // 2
    for kind, step, some in (
        (DOWN, 1.0, range(down_columns - has_half)),
        (HALF_DOWN, HALF_STEP, range(down_columns - has_half, down_columns)),
    ):
        for part in range(parts):
            first = ends[part] * BLOCK_COLUMNS // BLOCK_WIDTH
            steps = ends[part + 1] * BLOCK_COLUMNS // BLOCK_WIDTH - first
            work += [
                (step * steps + DOWN_END, Work(kind, tokens, column, first, steps, part))
                for column in some
                for tokens in range(token_blocks)
            ]
    free = [(0.0, program) for program in range(num_sms)]
    programs: list[list[Work]] = [[] for _ in free]
    for cost, tile in work:
        time, program = heapq.heappop(free)
        programs[program].append(tile)
        heapq.heappush(free, (time + cost, program))
    return Schedule(tuple(map(tuple, programs)), parts, max(free)[0])
