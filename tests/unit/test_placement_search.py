"""The search for a placement against exhaustive search, by simulated steps: no clock, no threads."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from nbflow import placement_search
from nbflow.placement_search import Assignment, NoRoom, Problem, places, search, simulate

CASES = 1000
DEVICES = 3


def random_problem(seed: int) -> Problem:
    """Up to 12 nodes over 3 devices: equal ones, faster and slower ones, or ones that are each good at something else;
    ops of 0.1 to 3 ms; moving takes from a twentieth of computing to ten times as much; some nodes are fixed, some may
    be on two devices only, some must be together."""
    rng = random.Random(seed)
    n = rng.randint(2, 12)
    kind, density = rng.choice(["equal", "rates", "own"]), rng.choice([0.15, 0.3, 0.5])
    moving = 10 ** rng.uniform(-1.3, 1.0)
    work = [1e-3 * 10 ** rng.uniform(-1, 0.5) for _ in range(n)]
    sizes = [1e-3 * 10 ** rng.uniform(-1, 0.5) * moving for _ in range(n)]
    inputs = [[(j, sizes[j]) for j in range(i) if rng.random() < density][:4] for i in range(n)]
    rates = [1.0 if kind == "equal" else 2 ** rng.uniform(-1, 1) for _ in range(DEVICES)]
    run_s = [[w * r * (2 ** rng.uniform(-0.7, 0.7) if kind == "own" else 1.0) for w in work] for r in rates]
    pairs = [[a != b for b in range(DEVICES)] for a in range(DEVICES)]
    latency_s = [[rng.choice([3e-5, 3e-4]) * apart for apart in row] for row in pairs]
    byte_s = [[2 ** rng.uniform(-1, 1) * apart for apart in row] for row in pairs]
    leader = list(range(n))
    for i in range(1, n):
        if rng.random() < 0.15:
            leader[i] = leader[rng.randrange(i)]
    number = {u: k for k, u in enumerate(dict.fromkeys(leader))}
    candidates = [_candidates(rng) for _ in number]
    unit_of = [number[u] for u in leader]
    tasks = list(range(DEVICES))
    return Problem(inputs, unit_of, candidates, run_s, latency_s, byte_s, task_of=tasks, task_s=rng.choice([0.0, 2e-4]))


def _candidates(rng: random.Random) -> list[int]:
    draw = rng.random()
    if draw < 0.15:
        return [rng.randrange(DEVICES)]
    return sorted(rng.sample(range(DEVICES), 2)) if draw < 0.25 else list(range(DEVICES))


def exhaustive(problem: Problem) -> float:
    """The least over all placements, tried one by one; a placement is left as soon as nodes that are placed already
    say that it is no better."""
    tails = placement_search.tails_of(problem)
    at: Assignment = [-1] * len(problem.candidates)
    order = list(dict.fromkeys(problem.unit_of))
    first_open = [
        next((n for n, u in enumerate(problem.unit_of) if u not in order[: k + 1]), len(problem.unit_of))
        for k in range(len(order))
    ]
    best = math.inf

    def visit(depth: int) -> None:
        nonlocal best
        if depth == len(order):
            best = min(best, simulate(problem, at).seconds)
            return
        for device in problem.candidates[order[depth]]:
            at[order[depth]] = device
            if _bound(problem, at, first_open[depth], tails) < best:
                visit(depth + 1)

    visit(0)
    return best


def _bound(problem: Problem, at: Assignment, nodes: int, tails: list[float]) -> float:
    """What a step takes at least whose first `nodes` nodes are where `at` says: they run in order, so later nodes
    change nothing of it."""
    prefix = Problem(
        problem.inputs[:nodes],
        problem.unit_of[:nodes],
        problem.candidates,
        problem.run_s,
        problem.latency_s,
        problem.byte_s,
        task_of=problem.task_of,
    )
    found = simulate(prefix, at)
    return max((f + tails[n] for n, f in enumerate(found.finish_s)), default=0.0)


def test_exhaustive_search_tries_everything() -> None:
    for seed in range(0, 400, 20):
        problem = random_problem(seed)
        if math.prod(len(c) for c in problem.candidates) <= 3**6:
            everything = min(simulate(problem, list(at)).seconds for at in itertools.product(*problem.candidates))
            assert exhaustive(problem) == pytest.approx(everything, rel=1e-12)


def test_within_ten_percent_of_the_best_in_95_of_100_random_cases() -> None:
    ratios = []
    for seed in range(CASES):
        problem = random_problem(seed)
        found = simulate(problem, search(problem, places(problem)[0][2])).seconds
        ratios.append(found / exhaustive(problem))
    assert min(ratios) >= 1 - 1e-9, "nothing is better than the best"
    near = sum(r <= 1.10 for r in ratios) / CASES
    assert near >= 0.95, f"{near:.1%} are within 10 %"
    # What is reached today, so that losing it is noticed: 99.6 % (docs/decisions/0008).
    assert near >= 0.99


def test_the_same_problem_has_the_same_placement() -> None:
    for seed in range(20):
        problem = random_problem(seed)
        start = places(problem)[0][2]
        assert search(problem, start) == search(random_problem(seed), start)


def test_nothing_is_put_where_there_is_no_room() -> None:
    chain = [[], [(0, 1.0)], [(1, 1.0)]]
    apart = [[0.0, 1.0], [1.0, 0.0]]
    full = Problem(
        chain, [0, 1, 2], [[0, 1]] * 3, [[1.0] * 3] * 2, apart, apart, weight=[4, 4, 4], room=[8, 8], task_of=[0, 1]
    )
    at = search(full, places(full)[0][2])
    assert sorted(sum(w for w, d in zip(full.weight, at, strict=True) if d == k) for k in (0, 1)) == [4, 8]
    with pytest.raises(NoRoom):
        places(Problem(chain, [0, 1, 2], [[0, 1]] * 3, [[1.0] * 3] * 2, apart, apart, weight=[9, 1, 1], room=[8, 8]))
