"""The parts of `gpu.py` that train: parity, the loss, steps beside `mm1 budget`, resuming, and a real `mm1 train`."""

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from gpu_figures import Figures, base_model, sequences, sparse_model, synthetic_run
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor

from mm1 import checkpoint, dist
from mm1.budget.hardware import GPUS
from mm1.budget.planner import Planner
from mm1.budget.report import make_planner, requested_layout
from mm1.config.model import DecoderConfig
from mm1.config.run import RunConfig, override
from mm1.document import Batch
from mm1.model import sizes
from mm1.model.mllm import MLLM
from mm1.objectives import next_token
from mm1.objectives.index import objective_of
from mm1.objectives.next_token import LOGITS, NextToken, cross_entropy
from mm1.train import optim
from mm1.train.float8 import check_float8, use_float8
from mm1.train.log import read_metrics
from mm1.train.loop import Learner, Trainer
from mm1.train.parallel import init_weights, parallel_dims, parallelize

LIMITS = {"fp32": (1e-4, 1e-3), "bf16": (2e-2, 5e-2)}
"""How far loss (absolute) and gradient (of its norm) may be from the CPU's in fp32."""

SPARSE_LIMIT = 0.15
"""The same of a sparse model's gradient in bf16: where two experts are nearly equal, rounding selects the other."""


def parity(figures: Figures) -> None:
    """Loss and gradient of a small model in every precision, compiled and not, against the CPU in fp32."""
    for kind, model in (("dense", sizes.tiny()), ("sparse", sparse_model(tiny=True))):
        run = synthetic_run(model)
        run.model.image_token_id = base_model(tiny=True).image_token_id
        batch = sequences(run, [5, 0, 3, 1], seed=0)
        reference = NextToken(model_on_cpu(run), ["all"])
        value, gradient = loss_and_gradient(reference, batch, torch.device("cpu"))
        for precision, compiled in (("fp32", "never"), ("bf16", "never"), ("bf16", "auto")):
            with training(way := override(run, [f"precision={precision}", f"compile={compiled}"])):
                learner = learner_of(way)
                weights = reference.model.state_dict()
                set_model_state_dict(learner.objective.model, weights, options=StateDictOptions(full_state_dict=True))
                loss, other = loss_and_gradient(learner.objective, batch, figures.device)
            far = float((other - gradient).norm() / gradient.norm())
            name = f"parity {kind}, {precision}{', compiled' if compiled == 'auto' else ''}"
            figures.add(f"{name}: loss off", abs(loss - value))
            figures.add(f"{name}: gradient off", far)
            limits = LIMITS[precision]
            most = SPARSE_LIMIT if kind == "sparse" and precision == "bf16" else limits[1]
            if not (abs(loss - value) < limits[0] and far < most):
                raise AssertionError(f"{name}: loss {loss}, the CPU's {value}; gradient {far:.2g} off, at most {most}")


@contextmanager
def training(run: RunConfig) -> Iterator[None]:
    """Inside, this process computes as `mm1 train` does: repeatable, and in a group that the run's precision needs."""
    alone = dist.resolve_precision(run.precision, dist.device()) != torch.float32
    with dist.repeatable(), dist.connected(alone=alone):
        yield


def model_on_cpu(run: RunConfig) -> MLLM:
    """The run's model with its initial weights, on the CPU in fp32."""
    model = NextToken.build(run, ["all"]).model
    model.initialise(run.seed)
    return model


def loss_and_gradient(objective, batch: Batch, device: torch.device) -> tuple[float, torch.Tensor]:
    """The mean loss and its gradient as one vector on the CPU."""
    loss = objective.loss(batch.to(device))
    loss.scaled(weight=loss.weight, sequences=len(batch.tokens_BT)).backward()
    gradients = [whole(parameter.grad) for parameter in objective.model.parameters() if parameter.grad is not None]
    return float(loss.total.detach()) / loss.weight, torch.cat(
        [gradient.float().cpu().flatten() for gradient in gradients]
    )


def whole(x: torch.Tensor) -> torch.Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def loss(figures: Figures) -> None:
    """Time and memory of the loss of one sequence with its gradients, and of its ways to normalise."""
    positions, width, classes = (256, 128, 4096) if figures.tiny else (4096, 2048, 32768)
    dtype, device = (torch.bfloat16 if figures.on_gpu else torch.float32), figures.device
    hidden = torch.randn(positions, width, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(classes, width, device=device, dtype=dtype).mul_(0.02).requires_grad_()
    targets = torch.randint(classes, (positions,), device=device)
    decoder = SimpleNamespace(output_weight=lambda: weight, config=DecoderConfig())
    model, here = SimpleNamespace(decoder=decoder), torch.arange(positions)
    here = here.to(device)

    def ours() -> None:
        cross_entropy(
            model,  # type: ignore[arg-type]
            hidden,
            targets=targets,
            positions=here,
            at_once=LOGITS[device.type],
        ).total.backward()

    def whole_logits() -> None:
        F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum").backward()

    parts, softmax = next_token.log_sum_by_parts, next_token.log_sum_by_softmax
    for way, name in ((parts, "by parts"), (softmax, "by softmax")):
        next_token.log_sum_by_parts = next_token.log_sum_by_softmax = way
        figures.forget()
        figures.add(f"loss {name}: ms", figures.seconds(ours) * 1e3, "ms")
        figures.add_peak(f"loss {name}: memory_gib")
    next_token.log_sum_by_parts, next_token.log_sum_by_softmax = parts, softmax
    figures.forget()
    figures.add("loss from whole logits: ms", figures.seconds(whole_logits) * 1e3, "ms")
    figures.add_peak("loss from whole logits: memory_gib")


def runs(tiny: bool) -> dict[str, RunConfig]:
    """The runs whose steps of eight sequences are measured, by the name of their figures.

    With a single sequence a micro-batch a GPU waits for the host, which takes 6 ms to launch a block's two passes. Four
    of the dense base take 83 GiB, so a smaller card gets two.
    """
    is_small = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 100e9
    at_once = 2 if is_small else 4
    dense = synthetic_run(base_model(tiny), micro_batches=8 // at_once, micro_batch_size=at_once)
    selective = synthetic_run(base_model(tiny), micro_batch_size=2)
    selective.parallel.activation_checkpointing = "selective"
    return {
        "dense": dense,
        "dense, fp8": dense.model_copy(update={"fp8": True}),
        "selective, 2 sequences": selective,
        "sparse": synthetic_run(sparse_model(tiny), micro_batch_size=2),
    }


def micro_batches(run: RunConfig) -> list[Batch]:
    """The micro-batches of a step, with nearly as many images as there may be; page-locked for a GPU, as a loader's."""
    most, count = run.data.max_images, run.batch_size // run.micro_batch_size
    counts = [[max(0, most - (5 * number + row) % 4) for row in range(run.micro_batch_size)] for number in range(count)]
    batches = [sequences(run, images, seed=seed) for seed, images in enumerate(counts)]
    return [batch.pin_memory() for batch in batches] if torch.cuda.is_available() else batches


def predict(figures: Figures, names: Iterable[str] = ("dense", "selective, 2 sequences", "sparse")) -> None:
    """Note what `mm1 budget` predicts of one H200 for these of the `runs`."""
    for name in names:
        run = runs(tiny=False)[name]
        budget(figures, name, run, micro_batches(run), kind="h200")


def dense(figures: Figures) -> None:
    """Steps of the base of the ablations, what waits for the device, and the kernels that take longest."""
    with training(run := runs(figures.tiny)["dense"]):
        trainer, batches = steps(figures, "dense", run)
        repeat(figures, trainer.objective, batches[0])
        if figures.on_gpu:
            count_waits(figures, trainer, batches)
            time_kernels(figures, trainer, batches)


def fp8(figures: Figures) -> None:
    """The same with matrix products in float8, on a GPU that has them."""
    name = "dense, fp8"
    run = runs(figures.tiny)[name]
    if figures.on_gpu:
        check_float8(run, figures.device)
    with training(run):
        steps(figures, name, run)


def selective(figures: Figures) -> None:
    """The same with selective activation checkpointing and two sequences a micro-batch."""
    name = "selective, 2 sequences"
    with training(run := runs(figures.tiny)[name]):
        steps(figures, name, run)


def sparse(figures: Figures) -> None:
    """Steps of a sparse model."""
    with training(run := runs(figures.tiny)["sparse"]):
        steps(figures, "sparse", run)


def steps(figures: Figures, name: str, run: RunConfig) -> tuple[Trainer, list[Batch]]:
    """Do steps of a run by its own trainer, and record what its metrics say of the last three of them."""
    batches = micro_batches(run)
    kind = next((kind for kind in GPUS if kind.upper() in figures.card), "" if figures.on_gpu else "cpu")
    if kind and not run.fp8:  # the budget knows the speed of bf16 only
        budget(figures, name, run, batches, kind=kind)
    figures.forget()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(run, Path(folder))
        trainer.step([sequences(run, [1] + [0] * (run.micro_batch_size - 1), seed=9), *batches[1:]])  # a rare shape
        for _ in range(2 if figures.tiny else 5):
            trainer.step(batches)
        records = read_metrics(Path(folder))[-3:]
    metrics = {metric: median(record[metric] for record in records) for metric in records[-1]}
    for metric, unit in (("mfu", ""), ("hfu", ""), ("tokens_per_second", "1/s"), ("images_per_second", "1/s")):
        figures.add(f"{name}: {metric}", metrics[metric], unit)
    figures.add(f"{name}: step_seconds", metrics["step_seconds"], "s")
    figures.add_peak(f"{name}: memory_gib")
    return trainer, batches


def trainer_of(run: RunConfig, folder: Path, *, done: int = 0) -> Trainer:
    """A trainer of the run; its checkpoints and metrics go to `folder`."""
    dims = parallel_dims(run)
    return Trainer(learner_of(run), folder, dims=dims, held_out={}, done=done)


def learner_of(run: RunConfig) -> Learner:
    """A new model of the run with its objective and optimizer, as `mm1 train` prepares them."""
    precision, peak = dist.resolve_precision(run.precision, dist.device()), 1e-4
    with torch.device("meta"):
        objective = objective_of(run).build(run, list(run.data.sources))
    if run.fp8:
        use_float8(objective.model, emulate=dist.device().type == "cpu")
    parallelize(objective.model, run, dims=parallel_dims(run), precision=precision)
    init_weights(objective.model, run.seed)
    return Learner(run, objective, optim.build(objective.model, run.optim, peak=peak), peak, precision)


def budget(figures: Figures, name: str, run: RunConfig, batches: list[Batch], *, kind: str) -> None:
    """Note what `mm1 budget` predicts for these micro-batches on a GPU of this kind, or on the CPU."""
    planner = make_planner(run, gpu=kind, gpus=1)
    layout = requested_layout(run, 1, node=1)
    ends = (batches[0], batches[-1])  # their mean is nearly that of the step
    budgets = [Planner(run, planner.hardware, precision=planner.precision, batch=each).budget(layout) for each in ends]
    seconds = sum(each.step_seconds for each in budgets) / len(budgets)
    figures.predicted[f"{name}: mfu"] = sum(each.mfu for each in budgets) / len(budgets)
    figures.predicted[f"{name}: tokens_per_second"] = run.batch_size * run.data.sequence_length / seconds
    figures.predicted[f"{name}: images_per_second"] = sum(batch.images for batch in batches) / seconds
    figures.predicted[f"{name}: step_seconds"] = seconds
    if kind != "cpu":
        figures.predicted[f"{name}: memory_gib"] = max(each.bytes for each in budgets) / 2**30


def repeat(figures: Figures, objective, batch: Batch) -> None:
    """Whether the same micro-batch twice gives the same gradients, bit for bit."""
    gradients = []
    for _ in range(2):
        objective.model.zero_grad(set_to_none=True)
        objective.loss(batch.to(figures.device)).total.backward()
        gradients.append({name: p.grad.clone() for name, p in objective.model.named_parameters() if p.grad is not None})
    objective.model.zero_grad(set_to_none=True)
    other = [name for name, gradient in gradients[0].items() if not equal(gradient, gradients[1][name])]
    figures.add("repeated gradients that differ", len(other), f"of {len(gradients[0])}", detail=", ".join(other[:8]))


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(whole(one), whole(other))


def count_waits(figures: Figures, trainer: Trainer, batches: list[Batch]) -> None:
    """How often the host waits for the device in a step, and where."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True, action="always") as caught:
        trainer.step(batches)
    torch.cuda.set_sync_debug_mode("default")
    waits = [f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchron" in str(each.message)]
    detail = ", ".join(f"{waits.count(where)} x {where}" for where in sorted(set(waits)))
    figures.add("dense: waits in a step", len(waits), "", detail=detail)


def time_kernels(figures: Figures, trainer: Trainer, batches: list[Batch]) -> None:
    """The kernels that take longest, in milliseconds of a step."""
    with torch.profiler.profile() as profiler:
        trainer.step(batches)
        figures.wait()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    for event in events[:16]:
        figures.add(f"kernel {event.key[:60]}", event.self_device_time_total / 1e3, "ms", detail=f"{event.count} calls")


def resume(figures: Figures) -> None:
    """Whether a run that is stopped and resumed has the weights of one that was not, bit for bit."""
    run = synthetic_run(base_model(tiny=True))
    if not figures.tiny:
        run.model.vision, run.model.decoder = sizes.vit_l_14_336(), sizes.decoder_85m()
        run.model.vision.layers = 4
        run = synthetic_run(run.model)
    batches = [sequences(run, [5 - number], seed=number) for number in range(4)]
    ends: list[dict[str, torch.Tensor]] = []
    with training(run), tempfile.TemporaryDirectory() as name:
        for stops in (False, True):
            folder = Path(name) / str(stops)
            folder.mkdir()
            trainer = trainer_of(run, folder)
            for step in range(4):
                trainer.step(batches)
                if stops and step == 1:
                    trainer.save()
                    trainer.saver.wait()
                    newest = checkpoint.newest(folder)
                    trainer = trainer_of(run, folder, done=2)
                    checkpoint.resume(newest, trainer.model, trainer.optimizer)
            ends.append({key: whole(value).clone() for key, value in trainer.model.state_dict().items()})
    other = [key for key, value in ends[0].items() if not torch.equal(value, ends[1][key])]
    figures.add("resumed weights that differ", len(other), f"of {len(ends[0])}", detail=", ".join(other[:8]))


def train(figures: Figures) -> None:
    """A real `mm1 train` with loader and checkpoints, then the same resumed from its middle."""
    steps = 4 if figures.tiny else 24
    words = [f"steps={steps}", f"checkpoint_every={steps // 2}", "data.validation={}", "health_every=0"]
    if not figures.tiny:
        words += ["batch_size=32", "micro_batch_size=16"]
    folder = figures.folder / "train"
    command = [sys.executable, "-m", "mm1", "train", "tiny", "start_from={}", *words, "--to", str(folder)]
    first = run_command(command, folder)
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    newest.rename(folder / "last")
    again = run_command(command, folder)
    pairs = [(a["loss"], b["loss"]) for a, b in zip(first, again, strict=True) if "loss" in a]
    figures.add("mm1 train: resumed losses that differ", sum(a != b for a, b in pairs), f"of {len(pairs)}")
    last = [record for record in first if "data_wait" in record][-3:]
    for metric, unit in (("data_wait", ""), ("step_seconds", "s"), ("images_per_second", "1/s")):
        figures.add(f"mm1 train: {metric}", median(record[metric] for record in last), unit)


def run_command(command: list[str], folder: Path) -> list[dict]:
    """The lines of the metrics of a run after this command."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{' '.join(command)}: {answer.stderr[-800:]}")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
