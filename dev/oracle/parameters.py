"""What a parameter is: its name in the checkpoint, its shape, how it starts and how AdamW treats it."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Parameter:
    """`init` is the constant starting value (a number or an array); None stands for a random one.

    cls is one of embed, head, matrix, auxmat, norm, bias, gate; --decay chooses by it. Unless the fields below say
    otherwise, a parameter follows the run's own learning rate, betas and decay.
    """

    name: str
    shape: tuple
    init: object = None
    cls: str = "matrix"
    lr: float = None  # peak learning rate instead of the run's
    lr_times: float = 1.0  # multiplier of the run's learning rate
    betas: tuple = None
    weight_decay: float = None  # decay instead of the run's, whatever --decay says
    frozen: bool = False  # kept in the forward pass, never updated, not in the gradient norm

    def initial(self):
        """The constant part of the initial value, as an array: zeros where it is random."""
        return np.broadcast_to(np.asarray(0.0 if self.init is None else self.init, "f8"), self.shape)


class Options:
    """residual_options, read key by key; whatever nobody reads is refused, as is a value out of range."""

    def __init__(self, values):
        self.values = dict(values)
        self.read = set()

    def has(self, key):
        return key in self.values

    def choice(self, key, allowed, default):
        self.read.add(key)
        value = str(self.values.get(key, default))
        if value not in allowed:
            raise SystemExit(f"residual option {key}={value}: choose from {', '.join(allowed)}")
        return value

    def flag(self, key, default):
        return self.choice(key, ["0", "1"], default) == "1"

    def integer(self, key, default):
        value = self.number(key, default)
        if value != int(value) or value < 1:
            raise SystemExit(f"residual option {key}={value}: it must be a positive whole number")
        return int(value)

    def number(self, key, default):
        self.read.add(key)
        return float(self.values.get(key, default))

    def refuse_unread(self, what):
        unread = sorted(set(self.values) - self.read)
        if unread:
            raise SystemExit(f"{what} reads no residual option {', '.join(unread)}")
