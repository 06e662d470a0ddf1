from collections import Counter

import pytest

from infer_core.kernels.mlp_schedule import (
    ACROSS,
    BLOCK,
    BLOCK_WIDTH,
    UP,
    schedule_mlp,
)

# hidden and intermediate size of the reference models, and sizes that no tile divides
SIZES = [(2048, 8192), (2048, 6144), (1152, 6912), (1000, 1400), (256, 128), (64, 8)]
STEPS_A_TILE = BLOCK // BLOCK_WIDTH


def cases():
    for sizes in SIZES:
        for token_blocks in (1, 5, 8, 16):
            for num_sms in (1, 78, 132):
                yield pytest.param(token_blocks, *sizes, num_sms)


def blocks_of(tile, token_blocks, row_blocks):
    """The blocks of the result, (tokens, rows), that a tile of the down projection makes."""
    if tile.kind == UP:
        return []
    pair = [(tile.tokens, tile.columns), (tile.tokens, tile.columns + 1)]
    if tile.kind == ACROSS:
        pair[1] = (tile.tokens + 1, tile.columns)
    return [(t, r) for t, r in pair if t < token_blocks and r < row_blocks]


@pytest.mark.parametrize(("token_blocks", "hidden", "inner", "num_sms"), list(cases()))
def test_every_tile_is_made_once_and_from_all_of_its_width(token_blocks, hidden, inner, num_sms):
    schedule = schedule_mlp(token_blocks, hidden, inner, num_sms)

    assert len(schedule.programs) == num_sms
    for program in schedule.programs:
        is_down = [tile.kind != UP for tile in program]
        assert is_down == sorted(is_down), "what nobody waits for comes before what others need"
    work = [tile for program in schedule.programs for tile in program]
    columns, row_blocks = -(-inner // BLOCK), -(-hidden // BLOCK)
    ups = Counter((tile.tokens, tile.columns) for tile in work if tile.kind == UP)
    assert ups == Counter((t, c) for t in range(token_blocks) for c in range(columns))
    assert all(tile.steps == -(-hidden // BLOCK_WIDTH) for tile in work if tile.kind == UP)
    covered = Counter(
        (tokens, rows, step)
        for tile in work
        for tokens, rows in blocks_of(tile, token_blocks, row_blocks)
        for step in range(tile.first, tile.first + tile.steps)
    )
    assert set(covered.values()) == {1}
    assert len(covered) == token_blocks * row_blocks * columns * STEPS_A_TILE
    downs = Counter((tile.tokens, tile.columns) for tile in work if tile.kind != UP)
    assert set(downs.values()) == {schedule.parts}
    assert {tile.part for tile in work if tile.kind != UP} == set(range(schedule.parts))


@pytest.mark.parametrize(("token_blocks", "hidden", "inner", "num_sms"), list(cases()))
def test_programs_that_run_at_once_never_wait_for_ever(token_blocks, hidden, inner, num_sms):
    """Whatever comes first in a list waits for tiles only that some program has still to reach."""
    queues = [
        list(program) for program in schedule_mlp(token_blocks, hidden, inner, num_sms).programs
    ]
    done = set()
    while any(queues):
        ready = []
        for queue in queues:
            if not queue:
                continue
            tile = queue[0]
            first, last = tile.first // STEPS_A_TILE, (tile.first + tile.steps) // STEPS_A_TILE
            both = (0, 1) if tile.kind == ACROSS and tile.tokens + 1 < token_blocks else (0,)
            needed = {(tile.tokens + t, column) for t in both for column in range(first, last)}
            if tile.kind == UP or needed <= done:
                ready.append(queue)
        assert ready, "every program waits"
        for queue in ready:
            tile = queue.pop(0)
            if tile.kind == UP:
                done.add((tile.tokens, tile.columns))


@pytest.mark.parametrize(("hidden", "inner", "parts"), [(1152, 6912, 4), (2048, 8192, 2)])
def test_the_parts_are_those_that_end_first(hidden, inner, parts):
    """1,024 tokens on 132 multiprocessors: measured beside the next best on an H200."""
    assert schedule_mlp(1024 // BLOCK, hidden, inner, 132).parts == parts


def test_the_tiles_made_last_are_those_that_every_part_needs_last():
    programs = schedule_mlp(8, 1152, 6912, 132).programs
    begins = {tile.first for program in programs for tile in program if tile.kind != UP}
    after = {  # how many columns a part goes through before this one
        column: column - max(b // STEPS_A_TILE for b in begins if b // STEPS_A_TILE <= column)
        for column in range(54)
    }
    fourth = {program[3].columns for program in programs if program[3].kind == UP}
    before = {tile.columns for program in programs for tile in program[:3]}
    assert min(after[column] for column in fourth) >= max(after[c] for c in before - fourth)
