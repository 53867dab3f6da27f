"""Where the metrics of a run can be watched, beside its own `metrics.jsonl`: TensorBoard, W&B."""

import secrets
from pathlib import Path
from typing import Protocol

from mm1.config.base import ConfigError
from mm1.config.run import RunConfig


class Tracker(Protocol):
    """Where records of steps are sent to."""

    def add(self, record: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError("tensorboard=true needs the package: pip install 'mm1[tensorboard]'") from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, record: dict[str, float]) -> None:
        for name, value in record.items():
            self._writer.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One W&B run for the folder of a run, however often that is stopped: its id is kept in `wandb_id`.

    The axis of metrics is the step: W&B's own counter can't go back, as a resumed run does.
    """

    def __init__(self, folder: Path, run: RunConfig):
        try:
            import wandb
        except ImportError:
            raise ConfigError(f"wandb={run.wandb} needs the package: pip install 'mm1[wandb]'") from None
        id_file = folder / "wandb_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=run.wandb,
                name=folder.name,
                id=id_file.read_text(),
                resume="allow",
                dir=str(folder),
                config=run.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise ConfigError(f"wandb={run.wandb}: {error}; log in, set WANDB_MODE=offline, or leave it out") from None
        self._run.define_metric("*", step_metric="step")

    def add(self, record: dict[str, float]) -> None:
        self._run.log(dict(record))

    def close(self) -> None:
        self._run.finish()


def open_trackers(folder: Path, run: RunConfig) -> list[Tracker]:
    """The trackers that the run asks for."""
    trackers: list[Tracker] = []
    if run.tensorboard:
        trackers.append(TensorBoard(folder))
    if run.wandb:
        trackers.append(WandB(folder, run))
    return trackers
