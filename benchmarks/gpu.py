"""How long does a training step take on a GPU, beside torch and beside what the GPU could do?

Every side starts from the same weights and data, which lie on the GPU, and must show the same losses over 10 steps.
nbflow's `Session.run` returns when a step is done; torch is waited for once a window. The floor is the operations of
the step's products and convolutions over the rate of one large product, measured in the same run in the same
arithmetic: float32, float32 by tf32, bfloat16 (weights and all). tf32 is an environment variable of cupy's, so each
arithmetic is a process of its own.

    mlp   4 layers of 4096 units, batch 1024
    conv  3 bottlenecks of a ResNet (1x1, 3x3, 1x1) on 56 x 56 places with 256 channels, batch 32, channels last
    gpt   4 blocks of GPT-2's smallest size (768 wide, 12 heads), 8 sequences of 512
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common  # first: it names the threads
import numpy as np

import nbflow as nf
from nbflow.backends import cupy as backend

LOSSES, RATE = 10, 1e-2
# Rounding differs by arithmetic: relative.
TOLERANCES = {"float32": 2e-4, "tf32": 5e-3, "bfloat16": 5e-2}
WIDE, BATCH, LAYERS, CLASSES = 4096, 1024, 4, 4096
PLACES, CHANNELS, NARROW, IMAGES, BOTTLENECKS = 56, 256, 64, 32, 3
MODEL, HEADS, LENGTH, SEQUENCES, BLOCKS = 768, 12, 512, 8, 4
Array = np.ndarray[Any, Any]
Weights = dict[str, Array]


def weights_of(model: str) -> Weights:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Array:
        fan = int(np.prod(shape[:-1]))
        return (rng.normal(size=shape) / np.sqrt(fan)).astype("float32")

    if model == "mlp":
        return {f"w{n}": drawn(WIDE, WIDE) for n in range(LAYERS)}
    if model == "conv":
        made = {"out": drawn(CHANNELS, 10)}
        for n in range(BOTTLENECKS):
            made |= {f"a{n}": drawn(1, 1, CHANNELS, NARROW), f"b{n}": drawn(3, 3, NARROW, NARROW)}
            made[f"c{n}"] = drawn(1, 1, NARROW, CHANNELS) * np.float32(0.5)
        return made
    made = {"out": drawn(MODEL, CLASSES)}
    for n in range(BLOCKS):
        made |= {f"q{n}": drawn(MODEL, MODEL), f"k{n}": drawn(MODEL, MODEL), f"v{n}": drawn(MODEL, MODEL)}
        made |= {f"o{n}": drawn(MODEL, MODEL), f"up{n}": drawn(MODEL, 4 * MODEL), f"down{n}": drawn(4 * MODEL, MODEL)}
    return made


def data_of(model: str) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    if model == "mlp":
        return rng.normal(size=(BATCH, WIDE)).astype("float32"), rng.integers(0, WIDE, BATCH)
    if model == "conv":
        x = rng.normal(size=(IMAGES, PLACES, PLACES, CHANNELS)).astype("float32")
        return x, rng.integers(0, 10, IMAGES)
    x = rng.normal(size=(SEQUENCES, LENGTH, MODEL)).astype("float32")
    return x, rng.integers(0, CLASSES, (SEQUENCES, LENGTH))


def flops_of(model: str) -> float:
    """Of products and convolutions, forward and backward."""
    if model == "mlp":
        return 3 * 2.0 * BATCH * WIDE * WIDE * LAYERS
    if model == "conv":
        return 3 * 2.0 * IMAGES * PLACES**2 * BOTTLENECKS * (2 * CHANNELS * NARROW + 9 * NARROW * NARROW)
    words = SEQUENCES * LENGTH
    block = 2.0 * words * (12 * MODEL * MODEL) + 2 * 2.0 * words * LENGTH * MODEL
    return 3 * (BLOCKS * block + 2.0 * words * MODEL * CLASSES)


# --- nbflow ----------------------------------------------------------------------------------------------------------


def by_nbflow(model: str, dtype: str) -> tuple[Callable[[int], list[float]], Callable[[int], object]]:
    graph = nf.Graph()
    with graph.as_default(), nf.device("/gpu:0"):
        x, y = data_of(model)
        w = {name: nf.astype(nf.constant(a), dtype) for name, a in weights_of(model).items()}
        w = {name: nf.Variable(a, name=name) for name, a in w.items()}
        logits = FORWARD[model](w, nf.astype(nf.constant(x), dtype))
        loss = nf.mean(nf.nn.softmax_cross_entropy(nf.astype(logits, "float32"), nf.constant(y)))
        step = nf.optim.SGD(RATE).minimize(loss)
    session = nf.Session(None, graph)

    def train(k: int) -> None:
        for _ in range(k):
            session.run(step)

    return lambda k: [float(session.run([loss, step])[0]) for _ in range(k)], train


def nbflow_mlp(w: dict[str, Any], h: Any) -> Any:
    for n in range(LAYERS):
        h = nf.matmul(h, w[f"w{n}"])
        h = nf.nn.relu(h) if n < LAYERS - 1 else h
    return h


def nbflow_conv(w: dict[str, Any], h: Any) -> Any:
    for n in range(BOTTLENECKS):
        a = nf.nn.relu(nf.nn.conv2d(h, w[f"a{n}"], padding="same"))
        b = nf.nn.relu(nf.nn.conv2d(a, w[f"b{n}"], padding="same"))
        h = nf.nn.relu(h + nf.nn.conv2d(b, w[f"c{n}"], padding="same"))
    return nf.matmul(nf.mean(h, axis=(1, 2)), w["out"])


def nbflow_gpt(w: dict[str, Any], h: Any) -> Any:
    def normal(x: Any) -> Any:
        centred = x - nf.mean(x, axis=-1, keepdims=True)
        return centred * nf.rsqrt(nf.mean(nf.square(centred), axis=-1, keepdims=True) + 1e-5)

    def heads(x: Any) -> Any:
        return nf.permute_dims(nf.reshape(x, (SEQUENCES, LENGTH, HEADS, MODEL // HEADS)), (0, 2, 1, 3))

    hidden = np.triu(np.full((LENGTH, LENGTH), -1e9, "float32"), 1)
    mask = nf.astype(nf.constant(hidden), h.dtype)
    for n in range(BLOCKS):
        a = normal(h)
        q, k, v = (heads(nf.matmul(a, w[f"{part}{n}"])) for part in "qkv")
        scores = nf.matmul(q, nf.matrix_transpose(k)) * (MODEL // HEADS) ** -0.5 + mask
        mixed = nf.permute_dims(nf.matmul(nf.nn.softmax(scores, axis=-1), v), (0, 2, 1, 3))
        h = h + nf.matmul(nf.reshape(mixed, (SEQUENCES, LENGTH, MODEL)), w[f"o{n}"])
        h = h + nf.matmul(nf.nn.relu(nf.matmul(normal(h), w[f"up{n}"])), w[f"down{n}"])
    return nf.matmul(normal(h), w["out"])


FORWARD = {"mlp": nbflow_mlp, "conv": nbflow_conv, "gpt": nbflow_gpt}


# --- torch -----------------------------------------------------------------------------------------------------------


def by_torch(model: str, dtype: str, compiled: bool) -> tuple[Callable[[int], list[float]], Callable[[int], object]]:
    import torch  # optional: only its own sides need it
    from torch.nn import functional

    kind = getattr(torch, dtype)
    x, y = (torch.from_numpy(a).cuda() for a in data_of(model))
    x = x.to(kind)
    w = {n: torch.from_numpy(a).cuda().to(kind) for n, a in weights_of(model).items()}
    if model == "conv":
        x = x.permute(0, 3, 1, 2)  # channels last in memory, as torch likes it too
        w = {
            n: a if a.ndim == 2 else a.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
            for n, a in w.items()
        }
    for a in w.values():
        a.requires_grad_(True)
    optimizer = torch.optim.SGD(w.values(), lr=RATE)

    def normal(h: Any) -> Any:
        return functional.layer_norm(h, (MODEL,), eps=1e-5)

    def heads(h: Any) -> Any:
        return h.view(SEQUENCES, LENGTH, HEADS, MODEL // HEADS).transpose(1, 2)

    def mlp(h: Any) -> Any:
        for n in range(LAYERS):
            h = h @ w[f"w{n}"]
            h = functional.relu(h) if n < LAYERS - 1 else h
        return h

    def conv(h: Any) -> Any:
        for n in range(BOTTLENECKS):
            a = functional.relu(functional.conv2d(h, w[f"a{n}"]))
            b = functional.relu(functional.conv2d(a, w[f"b{n}"], padding=1))
            h = functional.relu(h + functional.conv2d(b, w[f"c{n}"]))
        return h.mean(dim=(2, 3)) @ w["out"]

    def gpt(h: Any) -> Any:
        for n in range(BLOCKS):
            a = normal(h)
            q, k, v = (heads(a @ w[f"{part}{n}"]) for part in "qkv")
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + mixed.transpose(1, 2).reshape(SEQUENCES, LENGTH, MODEL) @ w[f"o{n}"]
            h = h + functional.relu(normal(h) @ w[f"up{n}"]) @ w[f"down{n}"]
        return normal(h) @ w["out"]

    forward = {"mlp": mlp, "conv": conv, "gpt": gpt}[model]

    def loss_of() -> Any:
        logits = forward(x).float()
        return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))

    called = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step() -> Any:
        optimizer.zero_grad()
        loss = called()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def train(k: int) -> None:
        for _ in range(k):
            step()
        torch.cuda.synchronize()

    return lambda k: [float(step()) for _ in range(k)], train


# --- one arithmetic, in a process of its own --------------------------------------------------------------------------


def peak(dtype: str) -> float:
    """Operations a second of one large product, by cuBLAS."""
    import cupy as cp  # optional: only a GPU needs it

    a = cp.random.standard_normal((8192, 8192), dtype="float32").astype(np.dtype(nf.spec.as_dtype(dtype)))
    times = []
    for _ in range(8):
        cp.cuda.Device().synchronize()
        start_s = time.perf_counter()
        cp.matmul(a, a)
        cp.cuda.Device().synchronize()
        times.append(time.perf_counter() - start_s)
    return 2.0 * 8192**3 / sorted(times)[len(times) // 2]


def one(arithmetic: str, wanted: list[str], rounds: int, peers: bool) -> list[dict[str, Any]]:
    dtype = "bfloat16" if arithmetic == "bfloat16" else "float32"
    rate = peak(dtype)
    rows = []
    for model in wanted:
        sides = {"nbflow": by_nbflow(model, dtype)}
        if peers:
            import torch  # optional: only its own sides need it

            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arithmetic == "tf32"
            sides["torch eager"] = by_torch(model, dtype, False)
            sides["torch.compile"] = by_torch(model, dtype, True)
        case = f"{model}, {arithmetic}"
        losses = {name: losses(LOSSES) for name, (losses, _) in sides.items()}
        common.compare_losses(case, losses, TOLERANCES[arithmetic])
        measured = common.measure(case, {name: train for name, (_, train) in sides.items()}, rounds=rounds, warm_up=1)
        floor_s = flops_of(model) / rate
        rows.append(
            {
                "case": case,
                "floor_ms": floor_s * 1e3,
                "peak_tflops": rate / 1e12,
                "losses": {name: found[-1] for name, found in losses.items()},
                "seconds": {name: list(found) for name, found in measured.seconds.items()},
            }
        )
    return rows


def told(report: common.Report, row: dict[str, Any]) -> None:
    measured = common.Measured(row["case"], row["seconds"])
    floor = common.Spread(row["floor_ms"], row["floor_ms"], row["floor_ms"])
    report.row(row["case"], "floor", floor, "ms")
    for side in measured.seconds:
        report.compare(measured, side, "nbflow", unit="ms")
        report.rows[-1]["times_the_floor"] = measured.per_step(side).median * 1e3 / row["floor_ms"]


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--models", default="mlp,conv,gpt")
    parser.add_argument("--arithmetic", default="float32,tf32,bfloat16")
    parser.add_argument("--alone", action="store_true", help="without torch")
    parser.add_argument("--one", help="one arithmetic, in this process; prints JSON")
    options = parser.parse_args()
    if backend.missing():
        print(f"no GPU: {backend.missing()}")
        return 1
    rounds = common.rounds(options, 6)
    if options.one:
        print(json.dumps(one(options.one, options.models.split(","), rounds, not options.alone)))
        return 0
    gpu = backend.gpus()[0]
    libraries = ("cupy-cuda12x", "cupy-cuda13x", "torch", "numpy")
    report = common.Report(f"How long does a training step take on a GPU? {gpu.name}", libraries)
    report.begin()
    for arithmetic in options.arithmetic.split(","):
        command = [sys.executable, str(Path(__file__).resolve()), "--one", arithmetic, "--models", options.models]
        command += ["--quick"] * options.quick + ["--alone"] * options.alone
        environment = {**os.environ, "CUPY_TF32": str(int(arithmetic == "tf32"))}
        made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
        if made.returncode:
            print(f"{arithmetic}: failed")
            continue
        for row in json.loads(made.stdout.splitlines()[-1]):
            told(report, row)
    if not options.quick:
        report.write(f"gpu_{gpu.name.replace(' ', '_')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
