"""What a run of the command line is told: its options, their defaults and their bounds."""

from __future__ import annotations

import dataclasses

from jaxcnn.training.augment import from_text
from jaxcnn.training.data import DIGITS
from jaxcnn.training.image_files import size_from
from jaxcnn.training.microbatch import AUTO
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.samples import DataError
from jaxcnn.training.step import BACKWARD

OPTIMIZERS = ("adamw", "adam", "sgd", "muon")
SCHEDULES = ("cosine", "constant", "one-cycle")
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: with the data, everything that its result depends on. Epochs and rates as None are those of the
    model's recipe, the augmentation and the validation part are those of the data."""

    data: str = DIGITS
    data_dir: str | None = None
    model: str = "source"
    backward: str = "manual"
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    weight_decay: float | None = None
    optimizer: str = "adamw"
    momentum: float | None = None
    schedule: str = "cosine"
    warmup: float | None = None
    clip: float | None = None
    average: float | None = None
    freeze: list[str] = dataclasses.field(default_factory=list)
    seed: int = 0
    seeds: int = 1  # from `seed` on
    validation: float | None = None
    augment: str | None = None
    classes: int = 10
    image_size: str | None = None
    cache: str | None = None
    microbatch: int | str = AUTO
    precision: str = "float32"
    skip_nonfinite: int = 0

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def complete(self) -> Config:
        """With the defaults of the model and the data; raises DataError for a value that makes no sense."""
        if self.model not in RECIPES:
            raise DataError(f"--model: got {self.model!r}, required one of {', '.join(RECIPES)}")
        recipe = RECIPES[self.model]
        epochs, rate, decay = recipe.digits if self.data == DIGITS else recipe.other
        decay = 0.0 if self.optimizer == "adam" else decay
        momentum = 0.9 if self.optimizer == "sgd" else None
        validation = 0.0 if self.data == DIGITS else 0.1
        warmup = 0.3 if self.schedule == "one-cycle" else 0.0
        full = dataclasses.replace(
            self,
            epochs=epochs if self.epochs is None else self.epochs,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            weight_decay=decay if self.weight_decay is None else self.weight_decay,
            momentum=momentum if self.momentum is None else self.momentum,
            warmup=warmup if self.warmup is None else self.warmup,
            validation=validation if self.validation is None else self.validation,
        )
        for name, known in (
            ("backward", BACKWARD),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(full, name) not in known:
                raise DataError(f"--{name}: got {getattr(full, name)!r}, required one of {', '.join(known)}")
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("classes", 2),
            ("seed", 0),
            ("seeds", 1),
            ("weight_decay", 0),
            ("skip_nonfinite", 0),
        ):
            if not getattr(full, name) >= least:
                raise DataError(f"--{name.replace('_', '-')}: got {getattr(full, name)}, required at least {least}")
        if full.microbatch != AUTO and (isinstance(full.microbatch, str) or full.microbatch < 1):
            raise DataError(f"--microbatch: got {full.microbatch}, required {AUTO} or a number of images, at least 1")
        if not full.seed + full.seeds <= 2**32:
            last = f", with --seeds {full.seeds}" if full.seeds > 1 else ""
            raise DataError(f"--seed: got {full.seed}{last}, required seeds less than {2**32}")
        if not (full.learning_rate or 0) > 0:
            raise DataError(f"--learning-rate: got {full.learning_rate}, required more than 0")
        if full.momentum is not None and full.optimizer != "sgd":
            raise DataError(
                f"--momentum: got {full.momentum}, but it belongs to sgd, and --optimizer is {full.optimizer}"
            )
        for name in ("momentum", "warmup"):
            value = getattr(full, name)
            if value is not None and not 0 <= value < 1:
                raise DataError(f"--{name}: got {value}, required from 0 to less than 1")
        if full.average is not None and not 0 < full.average < 1:
            raise DataError(f"--average: got {full.average}, required more than 0 and less than 1")
        if full.clip is not None and not full.clip > 0:
            raise DataError(f"--clip: got {full.clip}, required more than 0")
        if full.image_size is not None:
            size_from(full.image_size)
        if full.augment is not None:
            try:
                from_text(full.augment)
            except ValueError as error:
                raise DataError(f"--augment: {error}") from None
        return full


# On resuming; all else the result depends on. Of the data the place may be another: their digest is compared.
CHANGEABLE = ("data", "data_dir", "cache", "skip_nonfinite")
