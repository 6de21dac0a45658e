"""What every residual rule has: its parameters, the four places where it acts, and two shared formulas."""

import torch

from parameters import Parameter


class Rule:
    """`state` is whatever a rule carries between sublayers: one tensor, several streams, a list of earlier outputs.

    k = 1..2L counts sublayers, l = 1..L layers. u is what the sublayer proposes to add, alpha the ProRes factor of its
    layer (1 without ProRes).
    """

    def __init__(self, arch, scheme, options):
        self.arch, self.scheme, self.options = arch, scheme, options
        self.setup(options)

    def setup(self, options):
        """Reads the rule's options."""

    def parameters(self):
        return []

    def start(self, p, x0, clock):
        """The state before the first sublayer; x0 is the embedding output."""
        return x0

    def before(self, p, k, state):
        """What happens to the state before sublayer k reads it."""
        return state

    def read(self, p, k, state):
        """z_k, what sublayer k sees."""
        return state

    def after_norm(self, p, k, z):
        """A change of the sublayer's input behind N_in."""
        return z

    def write(self, p, k, state, u, alpha):
        raise NotImplementedError

    def readout(self, p, state):
        """What the final norm sees."""
        return state

    # Names and parameters. `decays`: with the run's weight decay.

    def layers(self):
        return range(1, self.arch.layers + 1)

    def sublayers(self):
        return range(1, 2 * self.arch.layers + 1)

    def layer_name(self, l, name):
        return f"{self.arch.prefix(l)}residual.{name}"

    def sub_name(self, k, name):
        return f"{self.arch.layer_prefix(k)}residual_{'attn' if k % 2 else 'mlp'}.{name}"

    def parameter(self, name, shape, init, decays=False, **how):
        return Parameter(name, shape, init, "auxmat" if decays else "gate", **how)


def rms0(x, eps):
    """RMSNorm without a gain."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def depth_attention(w, gain, sources, eps):
    """DA(w, gain; v_0, v_1, ...): per token, softmax over the sources by <w*gain, RMS0(v_i)>, mean of the raw v_i."""
    v = torch.stack(sources)
    logits = (w * gain * rms0(v, eps)).sum(-1)
    return (torch.softmax(logits, dim=0)[..., None] * v).sum(0)
