"""One pass over scores, tile by tile in a core's cache, that counts ranks and keeps each row's first places.

The score of vectors u and v is Σ_k u_k v_k, its terms added up in their order, every product and every sum rounded:
equal vectors score the same, on every machine and whatever stands beside them. A tile holds some rows' scores of
neighboring items.
"""

from typing import Any, NamedTuple

import numpy as np

from polytask.kernels.compiled import compiled

Array = np.ndarray[Any, Any]

WIDTH = 256
"""Items of a tile: with 32 dimensions they fill two thirds of a core's first cache."""

TOGETHER = 4
"""Rows and dimensions multiplied at once; vectors [U, D] are padded with zeros to multiples of it."""

ROWS = 16
"""Rows of a tile, a multiple of TOGETHER: many enough that handing a tile on costs nothing beside filling it."""


_NEAR = 32  # scores of a tile that are looked at one by one if any of them is wanted


class Sweep(NamedTuple):
    """What a pass reads and writes of its rows [U].

    The items ``excluded[cursor[u]:ends[u]]``, ascending, are no candidates of row u; the cursors move on with the
    pass. ``scores[starts[u]:starts[u + 1]]`` are its targets', of which ``higher`` and ``same`` [N] count the
    candidates that score higher and the same. ``bad`` [U] tells of a candidate whose score is not finite. ``values``
    and ``items`` [U, k] hold the k best so far: heaps whose first is the worst, -inf and -1 where there is none.
    """

    excluded: Array
    cursor: Array
    ends: Array
    scores: Array
    starts: Array
    higher: Array
    same: Array
    bad: Array
    values: Array
    items: Array


@compiled
def _pack(items: Array, first: int, stop: int, panel: Array) -> None:
    """Write items [first:stop] of [I, d] as the columns of a panel [D, WIDTH], zeros behind them."""
    for place in range(stop - first):
        for k in range(items.shape[1]):
            panel[k, place] = items[first + place, k]
    for k in range(items.shape[1]):
        for place in range(stop - first, WIDTH):
            panel[k, place] = 0


@compiled
def _products(users: Array, panel: Array, tile: Array) -> None:
    """Scores of users [4, D] and a panel [D * WIDTH] into a tile [4 * WIDTH]; four terms at a time stay in registers.

    Panel and tile are flat, so that the compiler knows which of their parts cannot overlap.
    """
    for j in range(TOGETHER * WIDTH):
        tile[j] = 0
    for k in range(0, users.shape[1] - 3, 4):
        a0, a1, a2, a3 = users[0, k], users[0, k + 1], users[0, k + 2], users[0, k + 3]
        b0, b1, b2, b3 = users[1, k], users[1, k + 1], users[1, k + 2], users[1, k + 3]
        c0, c1, c2, c3 = users[2, k], users[2, k + 1], users[2, k + 2], users[2, k + 3]
        d0, d1, d2, d3 = users[3, k], users[3, k + 1], users[3, k + 2], users[3, k + 3]
        p = panel[k * WIDTH : (k + 4) * WIDTH]
        for j in range(WIDTH):
            p0, p1, p2, p3 = p[j], p[WIDTH + j], p[2 * WIDTH + j], p[3 * WIDTH + j]
            tile[j] = (((tile[j] + a0 * p0) + a1 * p1) + a2 * p2) + a3 * p3
            tile[WIDTH + j] = (((tile[WIDTH + j] + b0 * p0) + b1 * p1) + b2 * p2) + b3 * p3
            tile[2 * WIDTH + j] = (((tile[2 * WIDTH + j] + c0 * p0) + c1 * p1) + c2 * p2) + c3 * p3
            tile[3 * WIDTH + j] = (((tile[3 * WIDTH + j] + d0 * p0) + d1 * p1) + d2 * p2) + d3 * p3


@compiled
def _compare(scores: Array, bound: float) -> tuple[np.int32, np.int32]:
    """How many of the scores [WIDTH] are above the bound, and how many equal it."""
    above, equal = np.int32(0), np.int32(0)
    for j in range(WIDTH):  # 32 bits, so that 16 are added at once
        above = np.int32(above + (scores[j] > bound))
        equal = np.int32(equal + (scores[j] == bound))
    return above, equal


@compiled
def _any_above(scores: Array, bound: float) -> np.bool:
    """Whether any of the scores is above the bound."""
    count = np.int32(0)
    for j in range(len(scores)):
        count = np.int32(count + (scores[j] > bound))
    return count > 0


@compiled
def _not_finite(scores: Array) -> np.int32:
    count = np.int32(0)
    for j in range(WIDTH):
        count = np.int32(count + (scores[j] - scores[j] != 0))
    return count


@compiled
def _wild(values: Array, bound: float) -> np.bool:
    """Whether any of the values [A, B] is not within -bound and bound, or is NaN."""
    count = np.int32(0)
    for a in range(values.shape[0]):
        for b in range(values.shape[1]):
            count = np.int32(count + (not abs(values[a, b]) <= bound))
    return count > 0


@compiled
def _offer(scores: Array, first: int, values: Array, items: Array) -> None:
    """Put the scores [WIDTH] of items from ``first`` on into a row's heap [k], where they belong there.

    Items come in ascending order, so that an equal score later in the row never replaces one that is there.
    """
    if not _any_above(scores, values[0]):
        return
    for start in range(0, WIDTH, _NEAR):
        if not _any_above(scores[start : start + _NEAR], values[0]):
            continue
        for j in range(start, start + _NEAR):
            if scores[j] > values[0]:
                _replace_worst(scores[j], first + j, values, items)


@compiled
def _replace_worst(score: float, item: int, values: Array, items: Array) -> None:
    """Put a score and its item in the place of the first of a heap [k], and sift it down."""
    at, child = 0, 1
    while child < len(values):
        other = child + 1  # the worse child moves up: of equal ones the later item
        if other < len(values) and (
            values[other] < values[child] or (values[other] == values[child] and items[other] > items[child])
        ):
            child = other
        if values[child] >= score:
            break
        values[at], items[at] = values[child], items[child]
        at, child = child, 2 * child + 1
    values[at], items[at] = score, item


@compiled
def _take(tile: Array, row: int, first: int, stop: int, doubtful: bool | np.bool, sweep: Sweep) -> None:
    """Count and keep what a tile [B, WIDTH] tells of the rows from ``row`` on, and the items [first:stop]."""
    excluded, cursor, ends, scores, starts, higher, same, bad, values, items = sweep
    for line in range(min(len(tile), len(ends) - row)):
        own, u = tile[line], row + line
        hidden = WIDTH - (stop - first)
        for j in range(stop - first, WIDTH):
            own[j] = -np.inf
        at, end = cursor[u], ends[u]
        while at < end and excluded[at] < stop:
            own[excluded[at] - first] = -np.inf
            hidden += 1
            at += 1
        cursor[u] = at
        if doubtful and _not_finite(own) > hidden:
            bad[u] = True
        for n in range(starts[u], starts[u + 1]):
            above, equal = _compare(own, scores[n])
            higher[n] += above
            same[n] += equal
        if values.shape[1]:
            _offer(own, first, values[u], items[u])


@compiled
def _skip(first: int, rows: tuple[int, int], sweep: Sweep) -> None:
    """Move the cursors of rows from one to before the other to the first excluded item that is not before ``first``."""
    for row in range(rows[0], rows[1]):
        own = sweep.excluded[sweep.cursor[row] : sweep.ends[row]]
        sweep.cursor[row] += np.searchsorted(own, first)


@compiled
def sweep_vectors(users: Array, row: int, items: Array, span: tuple[int, int], sweep: Sweep) -> None:
    """Take the scores of users [U', D], padded, the rows from ``row`` on, and of a ``span`` of items [I, d], d <= D."""
    panel = np.zeros((users.shape[1], WIDTH), users.dtype)
    tile = np.empty((ROWS, WIDTH), users.dtype)
    bound = np.sqrt(np.finfo(users.dtype).max / (4 * users.shape[1]))  # no sum of products within it is infinite
    wild = _wild(users, bound)
    first, last = span
    _skip(first, (row, min(row + len(users), len(sweep.ends))), sweep)
    for at in range(first, last, WIDTH):
        stop = min(at + WIDTH, last)
        _pack(items, at, stop, panel)
        doubtful = wild or _wild(panel, bound)
        for start in range(0, len(users), ROWS):
            lines = min(ROWS, len(users) - start)
            for line in range(0, lines, TOGETHER):
                together = users[start + line : start + line + TOGETHER]
                _products(together, panel.reshape(-1), tile[line : line + TOGETHER].reshape(-1))
            _take(tile[:lines], row + start, at, stop, doubtful, sweep)


@compiled
def sweep_scores(scores: Array, row: int, first: int, sweep: Sweep) -> None:
    """Take scores [B, I] of the rows from ``row`` on, of the items from ``first`` on."""
    tile = np.empty((TOGETHER, WIDTH), scores.dtype)
    _skip(first, (row, row + len(scores)), sweep)
    for line in range(0, len(scores), TOGETHER):  # more rows at once are too many places in memory to read from
        lines = min(TOGETHER, len(scores) - line)
        for at in range(first, scores.shape[1], WIDTH):
            stop = min(at + WIDTH, scores.shape[1])
            for n in range(lines):
                for j in range(stop - at):
                    tile[n, j] = scores[line + n, at + j]
            _take(tile[:lines], row + line, at, stop, True, sweep)


@compiled
def score_pairs(users: Array, items: Array, rows: Array, places: Array, scores: Array) -> None:
    """Scores [N] of the users' rows [N] of [U', D] and the items' places [N] of [I, d]."""
    for n in range(len(rows)):
        user, item, score = users[rows[n]], items[places[n]], scores.dtype.type(0)
        for k in range(len(item)):
            score += user[k] * item[k]
        scores[n] = score


@compiled
def read_pairs(pairs: Array, rows: int, width: int, starts: Array) -> int:
    """Count pairs [E, 2] of row and item into starts [rows + 1]; 2: one is out of range, 1: not ascending, 0: fine."""
    row, item, unordered = np.int64(-1), np.int64(-1), False
    for n in range(len(pairs)):
        before, last = row, item
        row, item = pairs[n, 0], pairs[n, 1]
        if row < 0 or row >= rows or item < 0 or item >= width:
            return 2
        unordered |= (row < before) | ((row == before) & (item <= last))
        starts[np.uint64(row + 1)] += 1
    for n in range(rows):
        starts[n + 1] += starts[n]
    return int(unordered)


@compiled
def order_pairs(pairs: Array, width: int, items: Array, ends: Array) -> None:
    """Put the items of each row of pairs [E, 2], ascending and once, behind ``ends`` [U], which move on with them.

    Items are below ``width``. It counts and deals twice, by item and then by row, and compares nothing. Numbers that
    are looked up are unsigned: of others it is asked whether they count from the end.
    """
    places = np.zeros(width + 1, np.int64)
    for n in range(len(pairs)):
        places[np.uint64(pairs[n, 1] + 1)] += 1
    for item in range(width):
        places[item + 1] += places[item]
    by_item, begun = np.empty(pairs.shape, np.uint64), ends.copy()
    for n in range(len(pairs)):
        own = np.uint64(pairs[n, 1])
        place = np.uint64(places[own])
        by_item[place, 0], by_item[place, 1] = pairs[n, 0], own
        places[own] += 1
    for n in range(len(by_item)):
        row = by_item[n, 0]
        end = ends[row]
        if end == begun[row] or items[np.uint64(end - 1)] != np.int64(by_item[n, 1]):
            items[np.uint64(end)] = by_item[n, 1]
            ends[row] = end + 1


@compiled
def count_excluded(rows: Array, places: Array, excluded: Array, starts: Array, ends: Array) -> int:
    """How many of the items ``places`` [N] are excluded from their rows [N]."""
    count = 0
    for n in range(len(rows)):
        own = excluded[starts[rows[n]] : ends[rows[n]]]
        at = np.searchsorted(own, places[n])
        count += at < len(own) and own[at] == places[n]
    return count
