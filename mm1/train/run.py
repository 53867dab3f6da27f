"""Training a run from its recipe: start it, or resume it where it stopped, and leave a complete folder."""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from mm1 import checkpoint, dist
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.run import RunConfig
from mm1.data.loader import Sequences, batches, sequences_of, workers_of
from mm1.data.recorded import chat_format_of, check_tokenizer, record_text, recorded_text
from mm1.data.tokenizer import Tokenizer, load_tokenizer
from mm1.model.sizes import non_embedding_parameters
from mm1.objectives.index import objective_of
from mm1.scaling import peak_rate
from mm1.train import optim
from mm1.train.adapters import add_adapters, check_adapters
from mm1.train.coordinator import Stopped, check_same_start
from mm1.train.float8 import check_float8, use_float8
from mm1.train.inputs import check_inputs, check_start_tokenizers
from mm1.train.log import console
from mm1.train.loop import Learner, Trainer, train
from mm1.train.parallel import ParallelDims, init_weights, parallel_dims, parallelize
from mm1.train.parameters import freeze
from mm1.train.schedule import rate
from mm1.train.starts import load_starts

FREE = (
    *("data.workers", "tensorboard", "wandb", "profile", "health_every", "parallel", "checkpoints"),
    *("checkpoint_every", "guard", "data.validation", "validate_every", "validation_sequences"),
)
"""Fields, and groups of fields, that may change when a run is resumed: no sequence, loss or weight of the steps that
are done depends on them (docs/order.md)."""


@dataclass(frozen=True, slots=True)
class Data:
    """The sequences that a run trains on, and those of each validation set by its name."""

    train: Sequences
    held_out: dict[str, Sequences]


def train_run(run: RunConfig, folder: Path, *, longer: bool = False) -> Path:
    """Train `run` in `folder` to its last step and return the folder.

    The same call resumes a run that was stopped from its newest valid checkpoint. With `longer` the folder may hold
    the same run with fewer steps: it goes on with its weights and moments. Its rate is that of the longer schedule
    from the next step on, which the terminal says.

    Raises:
        ConfigError: the folder holds another run (the differences are named), fields or ranks disagree, or the run
            can't be divided over so many ranks.
        StoreError, CheckpointError: data or weights can't be read.
        Stopped: the process received SIGTERM; what was done is saved.
    """
    if dist.rank() > 0:  # rank 0 speaks for all
        console.quiet = True
        logging.getLogger("mm1").setLevel(logging.ERROR)
    precision = dist.resolve_precision(run.precision, dist.device())
    dist.prepare_process()
    with dist.repeatable(), dist.connected(alone=precision != torch.float32):
        return _train_run(run, folder, longer=longer)


def _train_run(run: RunConfig, folder: Path, *, longer: bool) -> Path:
    objective_of(run).check(run)
    check_float8(run, dist.device())
    check_adapters(run)
    check_inputs(run, folder)
    tokenizer = load_tokenizer(run.data.tokenizer)
    run = _with_rate(_with_image_token(run, tokenizer))
    check_start_tokenizers(run, tokenizer)
    earlier = _check_folder(run, folder, tokenizer=tokenizer, longer=longer)
    dims = parallel_dims(run)
    newest = checkpoint.latest(folder, run.checkpoints.folder)
    check_same_start(run, newest.step if newest else None)
    if newest and newest.step >= run.steps:
        console.print(f"{folder.name}  already trained ({run.steps} steps)", highlight=False)
        return folder
    if newest and earlier and earlier.steps != run.steps:
        _say_rates(earlier, run, done=newest.step)
    with console.status(f"{folder.name}: reading and measuring the documents"):
        data = _open_data(run, folder)
    _check_vocabulary(run, data.train)
    while not _train_from(newest, run, folder=folder, dims=dims, data=data):
        gc.collect()  # after a spike: free the model before it is built again
        newest = checkpoint.latest(folder, run.checkpoints.folder)
    return folder


def _with_image_token(run: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """The run with the image token of its tokenizer.

    Raises:
        ConfigError: the run has another one.
    """
    image = tokenizer.image
    if run.model.image_token_id not in (None, image):
        raise ConfigError(
            f"model.image_token_id is {run.model.image_token_id}, but the image token of {run.data.tokenizer} is "
            f"{image}; leave the field out or give the tokenizer it belongs to"
        )
    run = run.model_copy(deep=True)
    run.model.image_token_id = image
    return run


def _with_rate(run: RunConfig) -> RunConfig:
    """The run with the rate that the law of a file gives, so that its folder needs no such file."""
    if str(run.optim.learning_rate).startswith("law:"):
        run = run.model_copy(deep=True)
        run.optim.learning_rate = peak_rate(run.optim.learning_rate, non_embedding_parameters(run.model.decoder))
    return run


def _open_data(run: RunConfig, folder: Path) -> Data:
    """The data of the run. Rank 0 measures it first; the others find the results in the folder."""

    def open_all() -> Data:
        sequences = sequences_of(run, folder)
        stores = run.data.validation.items()
        return Data(sequences, {name: sequences_of(run, folder, held_out={name: store}) for name, store in stores})

    opened: list[Data] = []
    dist.on_rank_zero(lambda: opened.append(open_all()))
    return opened[0] if opened else open_all()


def _train_from(
    start: checkpoint.Checkpoint | None, run: RunConfig, *, folder: Path, dims: ParallelDims, data: Data
) -> bool:
    """Train from a checkpoint on, or from the beginning; whether the last step is done (see `train`)."""
    learner = _build_learner(run, data.train.names, dims=dims, seed=None if start else run.seed)
    model = learner.objective.model
    if start:
        checkpoint.resume(start, model, learner.optimizer)
        console.print(f"{folder.name}  continues from step {start.step} ({start.path})", highlight=False)
    else:
        load_starts(run, model)
    # only now: a mistake in what was opened above claims no folder
    dist.on_rank_zero(lambda: _claim(run, folder, sequences=data.train))
    done = start.step if start else 0
    stream = batches(
        data.train,
        start_sequence=done * run.batch_size,
        batch_size=run.batch_size,
        micro_batch_size=run.micro_batch_size,
        rank=dims.data_rank,
        world=dims.data_ranks,
    )
    cores = f"this machine's cores: {dist.cores()}, ranks: {dist.ranks_here()}"
    console.print(f"{folder.name}  data.workers={workers_of(run.data)} ({cores})", highlight=False)
    trainer = Trainer(learner, folder, dims=dims, held_out=data.held_out, done=done)
    with trainer.log:
        try:
            with trainer.coordinator.running():
                return train(trainer, trainer.coordinator.until_stopped(stream))
        except Stopped:
            if trainer.done not in (done, trainer.saver.step):
                trainer.save()
            raise
        finally:
            trainer.saver.wait()


def decides(field: str) -> bool:
    """Whether a sequence, a loss or a weight depends on the field of this dotted name."""
    return not any(field == free or field.startswith(f"{free}.") for free in FREE)


def deciding_differences(there: RunConfig, now: RunConfig) -> str:
    """The fields that decide a sequence, a loss or a weight and differ, a line each; empty if there are none."""
    changed = config.differences(there, now).items()
    return "\n".join(f"  {field}: {old!r} there, {new!r} now" for field, (old, new) in changed if decides(field))


def _check_folder(run: RunConfig, folder: Path, *, tokenizer: Tokenizer, longer: bool) -> RunConfig | None:
    """Check that the folder holds this run with its tokenizer, or no run yet; the run that it holds.

    Raises:
        ConfigError: it holds another run, or, without `longer`, one of fewer steps.
    """
    recorded = folder / "config.json"
    if not recorded.exists():
        return None
    there = config.load(recorded)
    same_steps = there.model_copy(update={"steps": run.steps})
    if lines := deciding_differences(same_steps, run):
        raise ConfigError(f"{folder} holds another run:\n{lines}\nUse another --to folder, or remove this one.")
    if there.steps != run.steps and not (longer and there.steps < run.steps):
        more = f"--continue-to {run.steps} goes on with it" if there.steps < run.steps else "it can't become shorter"
        raise ConfigError(
            f"{folder} holds this run with steps={there.steps}, not {run.steps}: {more}, another --to folder begins"
        )
    check_tokenizer(folder, tokenizer)
    return there


def _say_rates(there: RunConfig, run: RunConfig, *, done: int) -> None:
    """Say what a longer schedule makes of the learning rate at the next step."""
    peak = peak_rate(run.optim.learning_rate, non_embedding_parameters(run.model.decoder))
    last = rate(there.optim, done - 1, steps=there.steps, peak=peak)
    following = rate(run.optim, done, steps=run.steps, peak=peak)
    console.print(
        f"continues to step {run.steps} instead of {there.steps}: the learning rate was {last:.3g} at step {done}, and "
        f"is {following:.3g} from there on, as the {run.optim.schedule} schedule of {run.steps} steps has it",
        highlight=False,
        soft_wrap=True,
    )


def _claim(run: RunConfig, folder: Path, *, sequences: Sequences) -> None:
    """Make the folder this run's: write all that is needed to use it, the config last."""
    sources = sequences.sources
    record_text(
        folder,
        sequences.tokenizer,
        chat_format=chat_format_of(source.store for source in sources),
        template=template.source if (template := sequences.tokenizer.template) is not None else "",
        images=any(source.has_images for source in sources) or _starts_with_vision(run),
    )
    config.save(run, folder / "config.json")


def _starts_with_vision(run: RunConfig) -> bool:
    whole = run.start_from.get("model")
    return "vision" in run.start_from or (whole is not None and recorded_text(Path(whole)).images)


def _check_vocabulary(run: RunConfig, sequences: Sequences) -> None:
    vocabulary, width = sequences.tokenizer.vocabulary, run.model.decoder.vocabulary
    if vocabulary > width:
        raise ConfigError(
            f"the tokenizer has {vocabulary} entries; set model.decoder.vocabulary={vocabulary} (is {width})"
        )


def _build_learner(run: RunConfig, sources: list[str], *, dims: ParallelDims, seed: int | None) -> Learner:
    """The run's objective with a new model, and its optimizer. `seed` draws its weights; None draws nothing."""
    precision = dist.resolve_precision(run.precision, dist.device())
    with torch.device("meta"):  # so that no rank needs memory for the whole model
        objective = objective_of(run).build(run, sources)
    if run.lora is not None:
        add_adapters(objective.model, run.lora)
    freeze(objective.model, run.frozen)
    if run.fp8:
        use_float8(objective.model)
    parallelize(objective.model, run, dims=dims, precision=precision)
    init_weights(objective.model, seed)
    peak = peak_rate(run.optim.learning_rate, non_embedding_parameters(run.model.decoder))
    return Learner(run, objective, optim.build(objective.model, run.optim, peak=peak), peak, precision)
