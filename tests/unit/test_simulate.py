"""The simulation: its events by hand, its models against real plans, its statistics against theory."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

import nbflow as nf
from nbflow import simulate
from nbflow.errors import GraphError
from nbflow.machines import Machine
from nbflow.simulate import Control, Described, Messages, Stragglers, parse_machine
from nbflow.simulate.engine import Engine
from nbflow.simulate.model import Model, Program, Task, fused, with_quorum
from nbflow.simulate.plans import model_for
from nbflow.simulate.times import Measured
from nbflow.simulate.zoo import ZOO, step_of

W0, W1, PS = "/job:worker/task:0/null:0", "/job:worker/task:1/null:0", "/job:ps/task:0/null:0"
DESCRIBED = Described(parse_machine("flops=1e10/bytes=1e10/link=1e9/latency=100us"))


def engine(*programs: Program, machine: Machine | None = None, control: Control | None = None) -> Engine:
    model = Model(programs, sum(p.replica >= 0 for p in programs))
    return Engine(model, {p.task_name: machine or Machine() for p in programs}, control or Control())


def gives(key: str, to: str, nbytes: float = 0.0, after: tuple[int, ...] = (), seconds: float = 0.0) -> Task:
    return Task("send", key, seconds, after, key, to, nbytes)


def takes(key: str, of: str, seconds: float = 0.0) -> Task:
    return Task("recv", key, seconds, (), key, of)


def op(seconds: float, *after: int) -> Task:
    return Task("op", "op", seconds, after)


# --- events ----------------------------------------------------------------------------------------------------------


def test_a_device_takes_the_first_task_that_is_ready() -> None:
    waits = Program(W0, (takes("x", PS), op(1.0, 0), op(5.0), op(1.0, 2)))
    other = Program(PS, (op(2.0), gives("x", W0, after=(0,))))
    run = engine(waits, other).run(1)
    assert run.ends == [7.0]  # 5 while it waits, then what waited, then the rest
    assert run.busy_s == {W0: 7.0, PS: 2.0}


def test_tensors_hold_both_ends_of_a_link_one_after_the_other() -> None:
    machine = Machine(link_bytes_per_s=10.0, latency_s=0.5)
    to_both = Program(PS, (gives("a", W0, 10.0), gives("b", W1, 10.0)))
    run = engine(to_both, Program(W0, (takes("a", PS),)), Program(W1, (takes("b", PS),)), machine=machine).run(1)
    assert run.ends == [2.5]
    assert run.out_s["/job:ps/task:0"] == 2.0
    from_both = Program(PS, (takes("a", W0), takes("b", W1)))
    run = engine(from_both, Program(W0, (gives("a", PS, 10.0),)), Program(W1, (gives("b", PS, 10.0),)), machine=machine)
    assert run.run(1).ends == [2.5]  # both are sent at once, the second waits for the way in


def test_a_free_way_in_does_not_wait_for_what_comes_later() -> None:
    machine = Machine(link_bytes_per_s=10.0)
    late = Program(W0, (gives("x", W1, 50.0), gives("a", PS, 10.0)))  # "a" waits for its way out until 5
    early = Program("/job:worker/task:2/null:0", (op(2.0), gives("b", PS, 10.0, (0,))))
    ps = Program(PS, (takes("a", W0), takes("b", "/job:worker/task:2/null:0"), op(1.0, 1), op(1.0, 0)))
    run = engine(late, early, ps, Program(W1, (takes("x", W0),)), machine=machine).run(1)
    assert run.ends == [7.0]


def test_commands_and_replies_cost_the_driver() -> None:
    control = Control(command_s=1.0, reply_s=0.5, latency_s=0.25)
    programs = [Program(d, (op(10.0),)) for d in (W0, W1)]
    run = engine(*programs, control=control).run(2)
    # The second command leaves at 2, its device is done at 12.25, and says so at 12.5.
    assert run.ends == [13.0, 26.0]
    ahead = engine(*programs, control=replace(control, ahead=2)).run(3)
    assert ahead.step_s[-1] == 10.0


def test_steps_that_are_ahead_follow_each_other_on_each_device() -> None:
    programs = (
        Program(W0, (op(3.0), gives("x", PS, after=(0,)))),
        Program(PS, (takes("x", W0), op(2.0, 0))),
    )
    assert engine(*programs).run(3).ends == [5.0, 10.0, 15.0]
    assert engine(*programs, control=Control(ahead=3)).run(3).ends == [5.0, 8.0, 11.0]


def test_programs_that_wait_for_each_other_are_an_error() -> None:
    first = Program(W0, (takes("a", W1), gives("b", W1, after=(0,))))
    second = Program(W1, (takes("b", W0), gives("a", W0, after=(0,))))
    with pytest.raises(GraphError, match="wait for each other"):
        engine(first, second).run(1)
    with pytest.raises(GraphError, match="nobody receives"):
        engine(Program(W0, (gives("a", W1),)))


def test_a_quorum_leaves_the_late_behind_who_begin_late_again() -> None:
    workers = [
        Program(f"/job:worker/task:{n}/null:0", (op(1.0), gives(f"g{n}", PS, after=(0,))), replica=n) for n in range(3)
    ]
    ps = Program(PS, (*[takes(f"g{n}", workers[n].device) for n in range(3)], op(0.5, 0, 1, 2)))
    model = with_quorum(Model((*workers, ps), 3), 2)
    machines = {p.task_name: Machine() for p in model.programs}
    slow = [[1.0, 1.0, 7.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert Engine(model, machines, Control()).run(3, slow).ends == [1.5, 3.0, 4.5]
    # With two late ones the step waits for the faster of them; and the slower one is not back at once.
    slower = [[1.0, 3.0, 7.0], [9.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert Engine(model, machines, Control()).run(2, slower).ends == [3.5, 8.5]


def test_what_is_fused_takes_as_long() -> None:
    tasks = (takes("w", PS), op(1.0), op(1.0, 1), op(1.0, 0, 2), op(1.0, 3), gives("g", PS, after=(4,)), op(1.0, 4))
    ps = Program(PS, (gives("w", W0, 15.0), takes("g", W0), op(1.0, 1), op(2.0, 2)))
    whole = [Program(W0, tasks, replica=0), ps]
    short = [fused(p) for p in whole]
    assert [len(p.tasks) for p in short] == [5, 3]
    machine = Machine(link_bytes_per_s=10.0)
    assert engine(*short, machine=machine).run(3).ends == engine(*whole, machine=machine).run(3).ends


# --- cores -----------------------------------------------------------------------------------------------------------


def shared(*programs: Program, cores: float, control: Control | None = None) -> Engine:
    model = Model(programs, 0)
    return Engine(model, {p.task_name: Machine() for p in programs}, control or Control(), cores)


def test_jobs_beyond_the_cores_share_them() -> None:
    """Three jobs on two cores: until the short one is done, at 1.5, each has two thirds of a core and does 1 s; then
    two cores are enough."""
    third = "/job:worker/task:2/null:0"
    programs = [Program(device, (op(seconds),)) for device, seconds in ((W0, 1.0), (W1, 2.0), (third, 3.0))]
    assert shared(*programs, cores=2).run(1).ends == [pytest.approx(1.5 + 2.0)]
    assert shared(*programs, cores=3).run(1).ends == [3.0]
    # On one core: 3 s until the first is done, 2 more until the second, and 1.
    assert shared(*programs, cores=1).run(1).ends == [pytest.approx(6.0)]
    assert shared(*programs[:1], cores=0.5).run(1).ends == [2.0]


def test_the_driver_and_the_tasks_own_time_share_the_cores() -> None:
    control = Control(command_s=1.0, reply_s=0.5, task_s=2.0, step_s=0.25)
    programs = [Program(d, (op(4.0),)) for d in (W0, W1)]
    # Commands at 1.25 and 2.25; 2 + 4 s of each task; a reply at 7.25 + 0.5 and one at 8.25 + 0.5.
    assert engine(*programs, control=control).run(1).ends == [8.75]
    # On one core: until 1.25 one job; then the driver and a task half a core each, until 3.25 (the task has done 1);
    # both tasks until the first has done its other 5, at 13.25; then the second, which has 1 to go, beside the reply
    # of 0.5, until 14.25; the rest of it, 0.5, until 14.75; and a reply.
    assert shared(*programs, cores=1, control=control).run(1).ends == [pytest.approx(15.25)]


# --- stragglers ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_stragglers_and_more_workers_change_none() -> None:
    found = Stragglers.parse("lognormal:0.1+slow:0.1,3")
    few, many = found.factors(3, 5, seed=7), found.factors(3, 900, seed=7)
    assert few == [row[:5] for row in many]
    assert few == found.factors(3, 5, seed=7)
    assert few != found.factors(3, 5, seed=8)
    assert Stragglers.parse("").factors(3, 5, 0) == []


@pytest.mark.parametrize(
    ("text", "mean"),
    [("exponential:0.5", 1.5), ("slow:0.1,3", 1.2), ("pareto:3", 1.5), ("lognormal:0.2", math.exp(0.02))],
)
def test_distributions_have_their_means(text: str, mean: float) -> None:
    factors = Stragglers.parse(text).factors(40, 1000, seed=1)
    assert np.mean(factors) == pytest.approx(mean, rel=0.03)
    assert text.startswith("log") or np.min(factors) >= 1.0


@pytest.mark.parametrize("text", ["normal:1", "lognormal", "lognormal:x", "slow:0.1", "pareto:0", "exponential:-1"])
def test_what_is_no_distribution_is_told_what_is(text: str) -> None:
    with pytest.raises(GraphError, match="write lognormal"):
        Stragglers.parse(text)


def test_the_slowest_of_n_follows_the_harmonic_numbers() -> None:
    """E[max of n exponentials] = H_n; and with b backups the m-th smallest of m + b: H_n - H_b."""
    programs = [
        Program(f"/job:worker/task:{n}/null:0", (op(1.0), gives(f"g{n}", PS, after=(0,))), replica=n) for n in range(20)
    ]
    ps = Program(PS, (*[takes(f"g{n}", p.device) for n, p in enumerate(programs)], op(1e-9, *range(20))))
    factors = Stragglers.parse("exponential:1").factors(3000, 20, seed=3)
    harmonic = [sum(1 / k for k in range(1, n + 1)) for n in range(21)]
    whole = engine(*programs, ps).run(3000, factors)
    assert statistics.mean(whole.step_s) == pytest.approx(1 + harmonic[20], rel=0.02)
    slowest = [sorted(row)[-1] for row in factors]
    assert whole.step_s == pytest.approx([s + 1e-9 for s in slowest[1:]], abs=1e-6)


# --- plans -----------------------------------------------------------------------------------------------------------


def mlp(rows: int = 64) -> nf.Node:
    x = nf.layers.dense(nf.random.normal((rows, 96)), 512, activation=nf.nn.relu)
    loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(x, 10), nf.zeros((rows,), dtype="int64")))
    return nf.optim.Adam(0.1).minimize(loss, strategy=nf.train.DataParallel())


def embedding() -> nf.Node:
    ids = nf.random.randint((32,), 0, 100_000)
    table = nf.Variable(nf.zeros((100_000, 16)), name="table")
    loss = nf.mean(nf.layers.dense(nf.take(table, ids, axis=0), 1) ** 2)
    return nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())


def normalised() -> nf.Node:
    x = nf.layers.batch_norm(nf.layers.dense(nf.random.normal((32, 20)), 30))
    return nf.optim.SGD(0.1, momentum=0.9).minimize(nf.mean(x**2))


def compressed() -> nf.Node:
    loss = nf.mean(nf.layers.dense(nf.random.normal((32, 200)), 300) ** 2)
    return nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel(compress="bfloat16"))


@pytest.mark.parametrize("make", [mlp, embedding, normalised, compressed])
@pytest.mark.parametrize("ps", [1, 3])
def test_copies_of_a_real_program_give_what_real_plans_give(make: object, ps: int) -> None:
    with nf.Graph().as_default():
        step = make()  # type: ignore[operator]
    cluster = replace(DESCRIBED, messages=Messages(5e-5, 5e-5), control=Control(4e-5, 4e-5, 1e-4))
    copied = simulate.predict(step, 7, cluster, ps=ps, steps=3)
    real = simulate.predict(step, 7, cluster, ps=ps, steps=3, real=7)
    assert (copied.real, real.real) == (3, 7)
    assert copied.step_s == pytest.approx(real.step_s, rel=3e-3)
    assert copied.ps_in == pytest.approx(real.ps_in, rel=3e-3)


def test_a_step_takes_no_less_than_its_parts() -> None:
    with nf.Graph().as_default():
        step = mlp()
    nbytes = 4 * (96 * 512 + 512 + 512 * 10 + 10)
    one = simulate.predict(step, 1, DESCRIBED, ps=1)
    many = simulate.predict(step, 64, DESCRIBED, ps=1)
    assert one.step_s >= 2 * nbytes / 1e9
    assert many.step_s >= 64 * nbytes / 1e9
    assert many.ps_in > 0.4
    assert "links" in many.bound_by
    free = simulate.predict(step, 64, Described(parse_machine("op=1ms")), ps=1)
    assert free.step_s < many.step_s + 1.0
    assert free.ps_in == 0.0


def test_variables_on_the_workers_have_no_pattern() -> None:
    with nf.Graph().as_default():
        step = mlp()
    assert simulate.predict(step, 4, DESCRIBED, ps=0).real == 3
    _, model, _ = model_for(step, 5, 0, DESCRIBED)
    assert model.replicas == 5


def test_backups_of_a_strategy_are_simulated_when_asked_for() -> None:
    with nf.Graph().as_default():
        loss = nf.mean(nf.layers.dense(nf.random.normal((8, 4)), 1) ** 2)
        backed = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel(backup=1))
    assert simulate.predict(backed, 2, DESCRIBED, ps=1).step_s > 0


def test_rows_are_asked_for_where_the_graph_leaves_them_open() -> None:
    with nf.Graph().as_default():
        x = nf.placeholder("float32", (None, 256))
        data = nf.data.from_arrays({"x": np.zeros((100, 256), np.float32)}).repeat().batch(10).next()
        loss = nf.mean(nf.layers.dense(x, 256) ** 2) + nf.mean(nf.layers.dense(data["x"], 256) ** 2)
        step = nf.optim.SGD(0.1).minimize(loss)
    few, many = (simulate.predict(step, 1, replace(DESCRIBED, rows=n), ps=1).step_s for n in (10, 10_000))
    assert many > 100 * few * 0.5


def test_measured_times_replace_declared_ones() -> None:
    with nf.Graph().as_default():
        step = mlp()
    slow = replace(DESCRIBED, measured=Measured({"dense/matmul": 0.5}))
    assert 0.5 < simulate.predict(step, 2, slow, ps=1).step_s < 0.51


def test_what_a_late_replica_sent_compressed_is_waited_for_by_nobody() -> None:
    with nf.Graph().as_default():
        step = compressed()
    cluster = replace(DESCRIBED, stragglers=Stragglers.parse("slow:0.4,50"))
    times = [p.step_s for p in simulate.backups(step, 4, 3, cluster, ps=1, steps=40).curve.predictions]
    assert times[3] < 0.7 * times[0]


def test_backups_help_against_stragglers_and_cost_links() -> None:
    with nf.Graph().as_default():
        step = mlp(2048)
    cluster = replace(DESCRIBED, stragglers=Stragglers.parse("slow:0.2,5"))
    found = simulate.backups(step, 8, 3, cluster, ps=8, steps=60, seed=1)
    times = [p.step_s for p in found.curve.predictions]
    assert times[1] < times[0]
    assert times[2] < times[0]
    assert found.best.backups >= 1
    assert found.normalised(found.curve.predictions[0]) == 1.0
    assert [p.step_s for p in simulate.backups(step, 8, 3, cluster, ps=8, steps=60, seed=1).curve.predictions] == times
    with pytest.raises(GraphError, match="need ps tasks"):
        simulate.predict(step, 2, cluster, ps=0, backups=1)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"steps": 0}, {"ps": -1}, {"backups": -1}])
def test_counts_that_make_no_cluster_are_refused(wrong: dict[str, int]) -> None:
    with nf.Graph().as_default(), pytest.raises(GraphError, match="at least 1 worker"):
        simulate.predict(mlp(), **{"workers": 2, **wrong}, cluster=DESCRIBED)  # type: ignore[arg-type]


def test_a_curve_as_text_and_as_json() -> None:
    curve = simulate.scaling(step_of("mlp", 32), [4, 16], DESCRIBED, ps=2, title="an MLP")
    assert [p.workers for p in curve.predictions] == [1, 4, 16]
    assert curve.speed_up(curve.predictions[0]) == 1.0
    text = str(curve)
    assert "an MLP, simulated" in text
    assert "beyond 3 replicas" in text
    assert len(text.splitlines()[-1].split()) >= 9
    plain = curve.to_json()
    assert plain["schema"] == "nbflow.simulation.v1"
    assert plain["predictions"][2]["workers"] == 16
    assert simulate.up_to(100) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert simulate.default_ps(100) == 13


def test_models_to_begin_with() -> None:
    def parameters(step: nf.Node) -> int:
        variables = [n for n in step.graph.nodes.values() if n.op == "variable" and n.attrs["trainable"]]
        return sum(math.prod(v.outputs[0].shape or ()) for v in variables)

    assert parameters(step_of("mlp")) == 669_706
    assert parameters(step_of("transformer")) > 500_000
    inception = step_of("inception-v3", 1)
    assert parameters(inception) == 23_817_352
    flops = sum(
        n.definition.cost([t.spec for t in n.inputs], [t.spec for t in n.outputs], n.attrs).flops
        for n in inception.graph.nodes.values()
        if "gradients" not in n.name and n.op.startswith(("conv", "matmul"))
    )
    assert flops == pytest.approx(2 * 5.73e9, rel=0.02)  # 5.7 billion multiply-adds forward
    with pytest.raises(GraphError, match="mlp, inception-v3"):
        step_of("alexnet")
    assert set(ZOO) == {"mlp", "inception-v3", "transformer"}


def test_many_tensors_keep_hosts_busy_and_it_is_said() -> None:
    with nf.Graph().as_default():
        step = normalised()
    found = simulate.predict(step, 32, Described(parse_machine("op=1us"), messages=Messages(1e-3, 1e-3)), ps=1)
    assert found.bound_by == "the ps' messages"
    assert found.ps_messages > 0.7
    assert simulate.predict(step, 32, Described(parse_machine("op=1us")), ps=1).ps_messages == 0.0
