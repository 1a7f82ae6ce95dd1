"""Simulated strategies: loops of their own, bounds on staleness and rounds, by hand; and real plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import nbflow as nf
from nbflow import simulate
from nbflow.errors import GraphError
from nbflow.machines import Machine, parse_machine
from nbflow.simulate import Control, Described, Stragglers
from nbflow.simulate.engine import Engine
from nbflow.simulate.model import Model, Program, Task
from nbflow.simulate.times import Measured
from nbflow.simulate.zoo import step_of
from tests.unit.test_simulate import PS, W0, W1, gives, op, takes


def engine(*programs: Program, cycle: tuple[int, ...] = (0,), control: Control | None = None) -> Engine:
    model = Model(programs, 2, cycle)
    return Engine(model, {p.task_name: Machine() for p in programs}, control or Control())


def replica(number: int, seconds: float, *before: Task) -> Program:
    first = tuple(range(len(before)))
    device = (W0, W1)[number]
    return Program(device, (*before, op(seconds, *first), gives("g", PS, after=(len(before),))), number, loop=number)


def updates(number: int, seconds: float, *after: Task) -> Program:
    return Program(PS, (takes("g", (W0, W1)[number]), op(seconds, 0), *after), loop=number)


# --- loops -----------------------------------------------------------------------------------------------------------


def test_replicas_with_loops_of_their_own_do_not_wait_for_each_other() -> None:
    run = engine(replica(0, 1.0), updates(0, 0.25), replica(1, 4.0), updates(1, 0.25)).run(4)
    assert run.loops == [[1.25, 2.5, 3.75, 5.0], [4.25]]
    assert run.busy_s == {W0: 4.0, PS: 1.25, W1: 4.0}


def test_a_device_serves_its_loops_in_turn() -> None:
    """Gradients of both come at 1 and the ps takes 1 for each: one of them waits, and from then on they alternate."""
    run = engine(replica(0, 1.0), updates(0, 1.0), replica(1, 1.0), updates(1, 1.0)).run(4)
    assert run.loops == [[2.0, 4.0, 6.0, 8.0], [3.0, 5.0, 7.0]]
    # Three updates of each come at once, of the first loop the first: one of the other's is made between its two last.
    many = [
        Program(device, tuple(gives(f"g{n}", PS) for n in range(3)), number, loop=number)
        for number, device in enumerate((W0, W1))
    ]
    each = [
        Program(PS, (*(takes(f"g{n}", device) for n in range(3)), *(op(1.0, n) for n in range(3))), loop=number)
        for number, device in enumerate((W0, W1))
    ]
    assert engine(*many, *each).run(1).loops == [[4.0], []]


def test_each_loop_has_a_driver() -> None:
    control = Control(command_s=1.0, reply_s=0.5, latency_s=0.25)
    run = engine(replica(0, 10.0), updates(0, 0.0), replica(1, 10.0), updates(1, 0.0), control=control).run(1)
    # Commands leave at 1 and 2 in both loops; both parts are done at 11.25, which two replies of 0.5 say from 11.5 on.
    assert run.loops == [[12.5], []]


def paced(number: int, seconds: float, bound: int) -> tuple[Program, Program]:
    """A step that begins when the ps says so, and that the ps counts."""
    device = (W0, W1)[number]
    ps = (
        Task("pace", "pace", 0.0, (), need=bound),
        gives("go", device, after=(0,)),
        takes("g", device),
        Task("tick", "tick", 0.0, (2,)),
    )
    return replica(number, seconds, takes("go", PS)), Program(PS, ps, loop=number)


@pytest.mark.parametrize(("bound", "made"), [(0, 2), (1, 3), (2, 4), (100, 20)])
def test_a_bound_holds_the_faster_replica(bound: int, made: int) -> None:
    """One takes 10 s a step, the other 1 s. When the slow one has made a step, at 10, the fast one may begin that many
    more than one beyond the bound; by 20 it has made them."""
    programs = [*paced(0, 10.0, bound), *paced(1, 1.0, bound)]
    run = engine(*programs).run(20) if bound == 100 else engine(*programs).run(made)
    fast = run.loops[1]
    assert [e for e in fast if e <= 10.0] == [float(n + 1) for n in range(min(bound + 1, 10))]
    assert len(fast) == made or len(run.loops[0]) == made
    if bound < 100:
        assert fast[bound + 1 :] == [11.0 + n for n in range(made - bound - 1)]


def test_the_mean_of_loops_counts_all_that_they_make() -> None:
    run = engine(replica(0, 1.0), updates(0, 0.0), replica(1, 4.0), updates(1, 0.0)).run(9)
    assert run.loops == [[float(n) for n in range(1, 10)], [4.0, 8.0]]
    assert run.mean_s == pytest.approx(2 / (1.0 + 0.25))  # 1.25 steps a second of two replicas


# --- phases ----------------------------------------------------------------------------------------------------------


def test_steps_of_a_round_differ_and_take_turns() -> None:
    alone = [Program(device, (op(3.0),), number) for number, device in enumerate((W0, W1))]
    average = [
        Program(device, (op(3.0), gives(f"v{number}", PS, after=(0,))), number, phase=1)
        for number, device in enumerate((W0, W1))
    ]
    ps = Program(PS, (takes("v0", W0), takes("v1", W1), op(4.0, 0, 1)), phase=1)
    run = engine(*alone, *average, ps, cycle=(0, 0, 0, 1)).run(8)
    assert run.ends == [3.0, 6.0, 9.0, 16.0, 19.0, 22.0, 25.0, 32.0]
    assert run.mean_s == (3 * 3 + 7) / 4
    # What is sent ahead goes on while the ps makes its average, unless a step waits for it.
    ahead = engine(*alone, *average, ps, cycle=(0, 0, 0, 1), control=Control(ahead=4)).run(8)
    assert ahead.mean_s == 3.0


def test_a_device_without_part_in_a_phase_does_nothing_in_it() -> None:
    first, second = Program(W0, (op(1.0),)), Program(W1, (op(2.0),), phase=1)
    assert engine(first, second, cycle=(0, 1)).run(4).ends == [1.0, 3.0, 4.0, 6.0]
    assert engine(Program(W0, ()), Program(W1, (op(2.0),))).run(2).ends == [2.0, 4.0]


def test_a_bound_that_nobody_can_keep_is_an_error() -> None:
    held = Program(W0, (Task("pace", "pace", 0.0, (), need=-1),))
    with pytest.raises(GraphError, match="wait for each other"):
        engine(held).run(1)


# --- real plans ------------------------------------------------------------------------------------------------------
# All is free but what is named: a variable of 1 MB, links of 1 MB/s, and a forward pass of 3 s.

SECOND = Described(
    parse_machine("link=1e6"), control=Control(), rows=8, measured=Measured({"forward": 3.0}), ps_machine=None
)


def a_step(strategy: object) -> nf.Node:
    with nf.Graph().as_default():
        data = nf.data.from_arrays({"x": np.zeros((64, 1), np.float32)}).repeat().batch(8).next()
        weights = nf.Variable(nf.zeros((1, 250_000)), name="weights")
        found = nf.matmul(data["x"], weights, name="forward")
        return nf.optim.SGD(0.1).minimize(nf.mean(found**2), strategy=strategy)


def predicted(strategy: object, workers: int, steps: int = 8, **more: object) -> simulate.Prediction:
    return simulate.predict(a_step(strategy), workers, replace(SECOND, **more), ps=1, steps=steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_a_synchronous_step_pulls_computes_and_pushes(workers: int) -> None:
    """The last replica has the variable after as many seconds as there are replicas; the ps its gradient 4 later."""
    assert predicted(nf.train.DataParallel(), workers).step_s == pytest.approx(workers + 3 + 1, abs=1e-3)


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_a_ring_moves_twice_all_but_one_part(workers: int) -> None:
    found = predicted(nf.train.DataParallel(ps=None), workers)
    assert found.step_s == pytest.approx(3 + 2 * (workers - 1) / workers, abs=1e-3)
    assert (found.ps, found.batches, found.real) == (0, workers, workers)


@pytest.mark.parametrize("workers", [1, 2, 4, 5])
def test_asynchronous_replicas_fill_the_ps_link_and_no_more(workers: int) -> None:
    """Each pulls for 1 s, computes for 3 and pushes for 1: up to five find their turns on the link of the ps."""
    found = predicted(nf.train.DataParallel(sync=False), workers)
    assert found.step_s == pytest.approx(5.0, abs=1e-3)
    assert "asynchronous" in found.strategy


def test_more_asynchronous_replicas_than_the_link_carries_wait_for_it() -> None:
    assert predicted(nf.train.DataParallel(sync=False), 10, steps=12).step_s == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize(("bound", "expected"), [(0, 2 + 3 + 1), (1, 5.0)])
def test_a_bound_of_no_step_is_in_step(bound: int, expected: float) -> None:
    found = predicted(nf.train.DataParallel(sync=False, staleness=bound), 2)
    assert found.step_s == pytest.approx(expected, abs=1e-3)


def test_a_bound_lets_stragglers_hold_others_up() -> None:
    slow = Stragglers.parse("slow:0.2,4")
    free, bound, lockstep = (
        predicted(nf.train.DataParallel(sync=False, staleness=b), 4, 200, stragglers=slow).step_s for b in (None, 2, 0)
    )
    assert free < bound < lockstep


@pytest.mark.parametrize(("every", "expected"), [(1, 2 + 3 + 2), (2, (5 + 5) / 2), (4, (5 + 3 + 3 + 5) / 4)])
def test_local_sgd_moves_variables_once_a_round(every: int, expected: float) -> None:
    """Two replicas take the average for 2 s in the first step of a round, and give theirs for 2 s in the last."""
    found = predicted(nf.train.LocalSGD(every=every), 2)
    assert found.step_s == pytest.approx(expected, abs=1e-3)
    assert f"every {every} steps" in found.strategy


def in_layers(strategy: object) -> nf.Node:
    with nf.Graph().as_default():
        x = nf.data.from_arrays({"x": np.zeros((64, 16), np.float32)}).repeat().batch(24).next()["x"]
        for number in range(4):
            x = nf.matmul(x, nf.Variable(nf.zeros((16, 16)), name=f"w{number}"), name=f"layer{number}")
        return nf.optim.SGD(0.1).minimize(nf.mean(x**2), strategy=strategy)


def pipeline(first: int = 0, stages: int = 2, microbatches: int = 6) -> nf.train.Pipeline:
    return nf.train.Pipeline(tuple(f"/job:worker/task:{first + n}" for n in range(stages)), microbatches)


LAYERS = Described(
    parse_machine(""), control=Control(), rows=6, measured=Measured({f"layer{n}": 1.0 for n in range(4)})
)


@pytest.mark.parametrize(("workers", "expected"), [(1, 6 * 4.0), (2, 7 * 2.0), (4, 9 * 1.0)])
def test_a_pipeline_has_a_stage_a_worker(workers: int, expected: float) -> None:
    """Of m micro-batches and s stages, (m + s - 1) turns of one stage."""
    found = simulate.predict(in_layers(pipeline()), workers, LAYERS, steps=2)
    assert found.step_s == pytest.approx(expected, rel=1e-3)
    assert (found.ps, found.batches) == (0, 1)
    curve = simulate.scaling(in_layers(pipeline()), [workers], LAYERS)
    assert curve.speed_up(curve.predictions[-1]) == pytest.approx(24 / expected, rel=1e-3)


def test_pipelines_beside_each_other_each_make_a_batch() -> None:
    strategy = nf.train.DataParallel((pipeline(0), pipeline(2)))
    found = {n: simulate.predict(in_layers(strategy), n, LAYERS, ps=1, steps=2) for n in (1, 2, 4, 6)}
    assert [p.batches for p in found.values()] == [1, 1, 2, 3]
    assert [p.step_s for p in found.values()] == pytest.approx([24.0, 14.0, 14.0, 14.0], rel=1e-3)
    with pytest.raises(GraphError, match="not whole pipelines of 2 stages"):
        simulate.predict(in_layers(strategy), 3, LAYERS, ps=1)


@pytest.mark.parametrize(
    "strategy",
    [
        nf.train.DataParallel(sync=False),
        nf.train.DataParallel(sync=False, staleness=2, compress="bfloat16"),
        nf.train.LocalSGD(every=1),
        nf.train.LocalSGD(every=3),
    ],
)
@pytest.mark.parametrize("fed", [False, True], ids=["a dataset", "random data"])
@pytest.mark.parametrize("ps", [1, 2])
def test_copies_of_a_real_program_give_what_real_plans_give(strategy: object, ps: int, fed: bool) -> None:
    machine = parse_machine("flops=1e10/bytes=1e10/link=1e9/latency=100us")
    cluster = Described(machine, control=Control(4e-5, 4e-5, 1e-4), messages=simulate.Messages(5e-5, 5e-5), rows=32)
    step = step_of("mlp") if fed else in_layers(strategy)
    how = {"cluster": cluster, "ps": ps, "steps": 6, "strategy": strategy}
    copied = simulate.predict(step, 6, **how)  # type: ignore[arg-type]
    real = simulate.predict(step, 6, **how, real=6)  # type: ignore[arg-type]
    assert (copied.real, real.real) == (3, 6)
    assert copied.step_s == pytest.approx(real.step_s, rel=5e-3)
    assert copied.ps_in == pytest.approx(real.ps_in, rel=5e-3)


def test_what_a_strategy_cannot_be_is_said() -> None:
    with pytest.raises(GraphError, match="backup workers are of synchronous training"):
        simulate.predict(a_step(nf.train.DataParallel(sync=False)), 4, SECOND, ps=1, backups=1)
    with pytest.raises(GraphError, match="backup workers are of synchronous training"):
        simulate.predict(a_step(nf.train.LocalSGD()), 4, SECOND, ps=1, backups=1)
    with pytest.raises(GraphError, match="at most 64"):
        simulate.predict(a_step(nf.train.DataParallel(ps=None)), 65, SECOND)
    with pytest.raises(GraphError, match="would have nothing to compute"):
        simulate.predict(in_layers(pipeline()), 16, LAYERS)


@pytest.mark.parametrize("text", ["sync", "ring", "async", "async:0", "async:3", "local:1", "local:8"])
def test_a_strategy_in_words_takes_the_place_of_the_steps_own(text: str) -> None:
    step = a_step(nf.train.DataParallel())
    strategy = simulate.parse_strategy(text)
    own = simulate.predict(a_step(strategy), 2, SECOND, ps=1, steps=8)
    asked = simulate.predict(step, 2, SECOND, ps=1, steps=8, strategy=strategy)
    assert asked == own
    assert simulate.predict(step, 2, SECOND, ps=1, steps=8).strategy == "synchronous"  # the graph is as it was


@pytest.mark.parametrize(
    "text", ["", "rings", "async:", "async:x", "async:-1", "local", "local:0", "sync:2", "local:\u0663"]
)
def test_what_is_no_strategy_is_told_what_is(text: str) -> None:
    with pytest.raises(GraphError, match="write sync, ring"):
        simulate.parse_strategy(text)
