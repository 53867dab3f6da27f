"""A run from its recipe: set it up or take it up where it stopped, train, leave a finished folder."""

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from mm1 import checkpoint, dist
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import SparseConfig
from mm1.config.run import RunConfig
from mm1.data.loader import Sequences, batches, sequences_of
from mm1.data.recorded import chat_format_of, check_tokenizer, record_text
from mm1.data.tokenizer import load_tokenizer
from mm1.document import Batch
from mm1.model.layers import sharded_like
from mm1.model.mllm import MLLM
from mm1.model.moe import upcycled
from mm1.model.sizes import non_embedding_parameters
from mm1.objectives.contrastive import Contrastive, ContrastiveModel
from mm1.objectives.loss import Objective
from mm1.objectives.next_token import NextToken
from mm1.scaling import law
from mm1.train import optim
from mm1.train.coordinator import Ranks, Stopped, meet
from mm1.train.guard import Guard
from mm1.train.health import Health
from mm1.train.log import RunLog, console, read_metrics
from mm1.train.loop import Trainer, train, validate
from mm1.train.meter import Meter, peak_flops
from mm1.train.parallel import Layout, layout, materialise, spread
from mm1.train.parameters import freeze
from mm1.train.profile import Profile
from mm1.train.trackers import boards

FREE = ("data.workers", "tensorboard", "wandb", "profile", "health_every", "parallel", "checkpoints")
"""Fields, and groups of them, that a run may change from one start to the next: no row, loss or weight depends on them
(docs/order.md)."""


def train_run(run: RunConfig, folder: Path) -> Path:
    """Train `run` in `folder` to its last step and return the folder.

    The same call continues a run that was stopped, from its newest whole checkpoint.

    Raises:
        ConfigError: the folder holds another run (the differences are named), fields or ranks disagree, or the run
            can't be spread over so many ranks.
        StoreError, CheckpointError: data or weights that cannot be read.
        Stopped: the process was told to end; what was done is saved.
    """
    if dist.rank() > 0:  # rank 0 says what concerns all
        console.quiet = True
        logging.getLogger("mm1").setLevel(logging.ERROR)
    with dist.connected():
        return _train_run(run, folder)


def _train_run(run: RunConfig, folder: Path) -> Path:
    run = _with_image_token(run)
    _same_run(run, folder)
    dist.prepare_process()
    over = layout(run)
    found = checkpoint.latest(folder, run.checkpoints.folder)
    meet(run, found.step if found else None)
    if found and found.step >= run.steps:
        console.print(f"{folder.name}  already trained ({run.steps} steps)", highlight=False)
        return folder
    with console.status(f"{folder.name}: reading and measuring the documents"):
        rows, held_out = _opened(run, folder)
    _agree(run, rows)
    while not _take_up(run, folder, found, over=over, rows=rows, held_out=held_out):
        gc.collect()  # it went back: what was trained must leave the memory before it is built again
        found = checkpoint.latest(folder, run.checkpoints.folder)
    return folder


def _with_image_token(run: RunConfig) -> RunConfig:
    """The run with the image token of its tokenizer.

    Raises:
        ConfigError: the run names another one.
    """
    image = load_tokenizer(run.data.tokenizer).image
    if run.model.image_token_id not in (None, image):
        raise ConfigError(
            f"model.image_token_id is {run.model.image_token_id}, but the image token of {run.data.tokenizer} is "
            f"{image}; leave the field out or give the tokenizer it belongs to"
        )
    run = run.model_copy(deep=True)
    run.model.image_token_id = image
    return run


def _opened(run: RunConfig, folder: Path) -> tuple[Sequences, dict[str, Sequences]]:
    """The rows of the run, and those of each validation store; what rank 0 measures the others find in the folder."""

    def every() -> tuple[Sequences, dict[str, Sequences]]:
        rows = sequences_of(run, folder)
        return rows, {name: sequences_of(run, folder, held_out={name: at}) for name, at in run.data.validation.items()}

    first: list[tuple[Sequences, dict[str, Sequences]]] = []
    dist.on_rank_zero(lambda: first.append(every()))
    return first[0] if first else every()


def _take_up(
    run: RunConfig,
    folder: Path,
    found: checkpoint.Checkpoint | None,
    *,
    over: Layout,
    rows: Sequences,
    held_out: dict[str, Sequences],
) -> bool:
    """Train from the checkpoint `found` on; whether the last step is done (see `train`)."""
    trainer = _trainer(run, rows, over)
    start = 0
    if found:
        checkpoint.resume(found, trainer.model, trainer.optimizer)
        start = found.step
        console.print(f"{folder.name}  continues from step {start} ({found.path})", highlight=False)
    else:
        _start_from(run, trainer.model)
    # only now: a mistake in what is opened above claims no folder
    dist.on_rank_zero(lambda: _claim(run, folder, rows))
    stream = batches(
        rows,
        start_sequence=start * run.batch_size,
        batch_size=run.batch_size,
        micro_batch_size=run.micro_batch_size,
        rank=over.data_rank,
        world=over.data_ranks,
    )
    saver, ranks = checkpoint.Saver(folder, run.checkpoints), Ranks(data_rank=over.data_rank)
    shown = boards(folder, run) if dist.rank() == 0 else ()
    with RunLog(folder, name=folder.name, start=start, steps=run.steps, boards=shown) as run_log:
        records = dist.on_rank_zero(lambda: read_metrics(folder))
        # ranks of one `tensor` line count the same places, and share the work
        meter = Meter(run, peak=over.tp * peak_flops(trainer.device, trainer.precision))
        after = _after_step(
            trainer, folder, held_out, start=start, run_log=run_log, meter=meter, saver=saver, ranks=ranks
        )
        try:
            with ranks.listening():
                return train(
                    trainer,
                    ranks.until_stopped(stream),
                    start=start,
                    log=run_log,
                    meter=meter,
                    guard=Guard(run, folder, say=run_log.say, forget=saver.forget, records=records),
                    health=Health(trainer.model, lambda batch: validate(trainer, [batch]), every=run.health_every),
                    ranks=ranks,
                    broken=max((record.get("broken_images", 0) for record in records), default=0),
                    after_step=after,
                )
        except Stopped as stop:
            if stop.step not in (start, saver.step):
                saver.save(stop.step, trainer.model, trainer.optimizer)
            raise
        finally:
            saver.wait()


def _same_run(run: RunConfig, folder: Path) -> None:
    """Check that the folder is this run's, with its tokenizer, or no run's yet."""
    recorded = folder / "config.json"
    if not recorded.exists():
        return
    changed = config.differences(config.load(recorded), run)
    changed = {
        name: values for name, values in changed.items() if name not in FREE and name.partition(".")[0] not in FREE
    }
    if changed:
        lines = "\n".join(f"  {name}: {theirs!r} there, {ours!r} now" for name, (theirs, ours) in changed.items())
        raise ConfigError(f"{folder} holds another run:\n{lines}\nUse another --to folder, or remove this one.")
    check_tokenizer(folder, load_tokenizer(run.data.tokenizer))


def _claim(run: RunConfig, folder: Path, rows: Sequences) -> None:
    """Make the folder this run's: write all that using it needs, the config last."""
    record_text(folder, rows.tokenizer, chat_format=chat_format_of(source.store for source in rows.sources))
    config.save(run, folder / "config.json")


def _agree(run: RunConfig, rows: Sequences) -> None:
    vocabulary, width = rows.tokenizer.vocabulary, run.model.decoder.vocabulary
    if vocabulary > width:
        raise ConfigError(
            f"the tokenizer has {vocabulary} entries; set model.decoder.vocabulary={vocabulary} (is {width})"
        )


def _trainer(run: RunConfig, rows: Sequences, over: Layout) -> Trainer:
    device = dist.device()
    precision = _precision(run, device)
    model: ContrastiveModel | MLLM
    objective: Objective
    with torch.device("meta"):  # no rank need hold the whole model
        model = ContrastiveModel(run.model) if run.objective == "contrastive" else MLLM(run.model)
    if isinstance(model, ContrastiveModel):
        objective = Contrastive(model, rows.names)
    else:
        objective = NextToken(model, rows.names, z_loss_weight=run.z_loss_weight)
    freeze(model, run.frozen)
    spread(model, run, over=over, precision=precision)
    materialise(model, run.seed)
    peak = run.optim.learning_rate
    if peak == "law":
        peak = law(non_embedding_parameters(run.model.decoder))
    return Trainer(
        config=run,
        model=model,
        objective=objective,
        optimizer=optim.build(model, run.optim, peak=peak),
        device=device,
        precision=precision,
        peak=peak,
    )


def _precision(run: RunConfig, device: torch.device) -> torch.dtype:
    """bf16 where the device has matrix units for it; fp32 on a CPU, where bf16 runs at half the speed."""
    if run.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[run.precision]


def _start_from(run: RunConfig, model: nn.Module) -> None:
    for name, folder in run.start_from.items():
        part = "" if name == "model" else name
        if name != "vision" and run.model.decoder.sparse.experts and _is_dense(Path(folder)):
            found = _upcycle(run, Path(folder), model=model, part=part)
            console.print(f"started {name} from {found.path}, each expert from its feed-forward", highlight=False)
        else:
            found = checkpoint.load_part(Path(folder), model, part)
            console.print(f"started {name} from {found.path}", highlight=False)


def _is_dense(folder: Path) -> bool:
    return not config.load(folder / "config.json").model.decoder.sparse.experts


@torch.no_grad()
def _upcycle(run: RunConfig, folder: Path, *, model: nn.Module, part: str) -> checkpoint.Checkpoint:
    """Start a sparse model (or its decoder) from a dense run."""
    shape = run.model.model_copy(deep=True)
    shape.decoder.sparse = SparseConfig()
    dense = MLLM(shape)
    found = checkpoint.load_part(folder, dense, part)
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith(part)}
    for name, value in upcycled(dense.state_dict(), wanted).items():
        wanted[name].copy_(value if value is wanted[name] else sharded_like(value, wanted[name]))
    return found


def _after_step(
    trainer: Trainer,
    folder: Path,
    held_out: dict[str, Sequences],
    *,
    start: int,
    run_log: RunLog,
    meter: Meter,
    saver: checkpoint.Saver,
    ranks: Ranks,
) -> Callable[[int], None]:
    """Saving and validating when due, as a function of the step just done; and a trace of the steps asked for.

    Validating comes first, since the last step's checkpoint says that all of the run is done.
    """
    run = trainer.config
    profile = Profile(folder, run.profile)
    profile.after(start)

    def validation() -> dict[str, float]:
        found: dict[str, float] = {}
        for name, rows in held_out.items():
            for figure, value in validate(trainer, _fixed_batches(rows, run)).items():
                found[f"validation/{name}" if figure == "loss" else f"validation/{name}/{figure}"] = value
        return found

    def after(step: int) -> None:
        last = step == run.steps
        if held_out and (last or (run.validate_every and step % run.validate_every == 0)):
            ranks.at(step, "validating")
            run_log.validation(step, validation())
        if last or step % run.checkpoint_every == 0:
            ranks.at(step, "saving a checkpoint")
            saver.save(step, trainer.model, trainer.optimizer)
        profile.after(step)
        meter.restart()

    return after


def _fixed_batches(rows: Sequences, run: RunConfig) -> Iterator[Batch]:
    """The first rows of a validation store, at most one epoch of them; each rank does all, so that all do the same."""
    count = min(run.validation_sequences, rows.sources[0].plan.epoch_sequences)
    for first in range(0, count, run.micro_batch_size):
        yield rows.batch(list(range(first, min(first + run.micro_batch_size, count))))
