"""Which program of `fused_mlp` multiplies which tiles, and when: plain numbers, no GPU.

The down projection of some columns can start as soon as the tiles of the hidden activation that
they need are done. So instead of two kernels, each of which ends with a round of programs that
is mostly idle, one program a multiprocessor takes tiles of the first product and then tiles of
the second. Those are cut along their width into as many parts, of such sizes, as make the last
program end first.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import ceil

BLOCK = 128  # tokens; columns of the hidden activation (as many gate and up rows); rows of a half
BLOCK_WIDTH = 64  # a step
MAX_PARTS = 6

# Kinds of work. NOTHING fills up the lists of programs that have less to do. UP makes a block of
# the hidden activation; DOWN makes of a block of tokens two blocks of rows of the result, ACROSS
# of two blocks of tokens the block of rows that an odd number leaves over.
NOTHING, UP, DOWN, ACROSS = range(4)

# In steps, of 0.6 us each on an H200: what ending a tile takes, how long after it others can load
# what was made, and what each part costs whoever adds them up.
UP_END, DOWN_END, SEEN, PART = 2.2, 3.0, 3.0, 2.0
COLUMN_STEPS = BLOCK // BLOCK_WIDTH


@dataclass(frozen=True, slots=True)
class Work:
    """One tile: its kind, first block of tokens and of columns, first step, steps, part."""

    kind: int
    tokens: int
    columns: int
    first: int
    steps: int
    part: int


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The work of each program in order, in how many parts the result comes, and when it ends.

    Equal only to itself, so that it costs nothing as a key.
    """

    programs: tuple[tuple[Work, ...], ...]
    parts: int
    steps: float


def part_rows(num_tokens: int) -> int:
    """Rows of a part in memory: whole tiles, or its last one would write into the next part."""
    return ceil(num_tokens / (2 * BLOCK)) * 2 * BLOCK


def flags_shape(num_tokens: int, inner_size: int) -> tuple[int, int]:
    """A flag a tile of the hidden activation: [blocks of tokens, blocks of columns]."""
    return ceil(num_tokens / BLOCK), ceil(inner_size / BLOCK)


@cache
def schedule_mlp(token_blocks: int, hidden_size: int, inner_size: int, num_sms: int) -> Schedule:
    """Schedule `token_blocks` blocks of tokens, in the parts that end first."""
    tried = (
        _schedule(token_blocks, hidden_size, inner_size, num_sms, sizes)
        for sizes in _part_sizes(ceil(inner_size / BLOCK))
    )
    return min(tried, key=lambda schedule: schedule.steps + PART * schedule.parts)


def _part_sizes(columns: int) -> Iterator[list[int]]:
    """Ways to cut `columns` blocks: evenly, or so that some parts are about half of the others.

    Small parts even out what the programs with a tile more or less of the first product have left.
    """
    for large in range(1, MAX_PARTS + 1):
        for small in range(0, MAX_PARTS + 1 - large, 2):
            shares = [2] * large + [1] * small
            ends = [sum(shares[:part]) * columns // sum(shares) for part in range(len(shares) + 1)]
            sizes = [end - begin for begin, end in pairwise(ends)]
            if all(sizes):
                yield sizes


def _schedule(
    token_blocks: int, hidden_size: int, inner_size: int, num_sms: int, sizes: list[int]
) -> Schedule:
    """Give each tile to the program that is free first; all of the first product come first."""
    up_steps = ceil(hidden_size / BLOCK_WIDTH)
    ends = [sum(sizes[:part]) for part in range(len(sizes) + 1)]
    free = [(0.0, program) for program in range(num_sms)]
    programs: list[list[Work]] = [[] for _ in free]
    seen: dict[tuple[int, int], float] = {}

    # In the order in which parts come to the columns, each going from its first to its last: the
    # tiles of the last round are done late, so the columns needed last are to be among them.
    first_needed = sorted(
        (column - begin, column) for begin, end in pairwise(ends) for column in range(begin, end)
    )
    for _, column in first_needed:
        for tokens in range(token_blocks):
            time, program = heapq.heappop(free)
            programs[program].append(Work(UP, tokens, column, 0, up_steps, 0))
            time += up_steps + UP_END
            seen[tokens, column] = time + SEEN
            heapq.heappush(free, (time, program))

    row_blocks = ceil(hidden_size / BLOCK)
    tiles = [
        (DOWN, tokens, rows)
        for rows in range(0, row_blocks - 1, 2)
        for tokens in range(token_blocks)
    ]
    if row_blocks % 2:
        tiles += [(ACROSS, tokens, row_blocks - 1) for tokens in range(0, token_blocks, 2)]
    for part in sorted(range(len(sizes)), key=lambda part: -sizes[part]):  # the longest first
        columns = range(ends[part], ends[part + 1])
        first, steps = columns.start * COLUMN_STEPS, len(columns) * COLUMN_STEPS
        for kind, tokens, rows in tiles:
            time, program = heapq.heappop(free)
            programs[program].append(Work(kind, tokens, rows, first, steps, part))
            for column in columns:
                time = max(time, seen[tokens, column])
                if kind == ACROSS:
                    time = max(time, seen.get((tokens + 1, column), 0.0))
                time += COLUMN_STEPS
            heapq.heappush(free, (time + DOWN_END, program))
    return Schedule(tuple(map(tuple, programs)), len(sizes), max(free)[0])
