"""Weights and tokens as a function of names and positions alone: small enough to be written again in any language.

    key(name) = FNV-1a, 64 bit, of the tensor's name
    mix(z):     z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31
    u(i)      = uniform in [-1, 1): top 53 bits of mix(key + 0x9E3779B97F4A7C15*(i+1)),  i the flat index
    value(i)  = base + amp*u(i), computed in double, rounded to fp32
    token(k)  = mix(0x9E3779B97F4A7C15*(k+1)) % vocabulary

amp is 0.3 for two dimensions and 0.1 for one; base is the parameter's constant initial value, 0 for random ones. The
one exception is mhc_b: base 0, amp 1.

The cases of larger widths have weights that are exact in bf16 too, and activations of size 1:

    u(i)      = k/64 - 1,  k the top 7 bits of the same number
    amp       = 1/8 for one dimension; for two, with n the larger one, the power of two nearest to sqrt(3/n), at most 1/4;
                1 for embeddings that are not the head (wpe, model.embed_tokens) and for mhc_b
"""

import math

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def fnv1a(text):
    key = 0xCBF29CE484222325
    for byte in text.encode():
        key = ((key ^ byte) * 0x100000001B3) % 2**64
    return key


def mix(z):
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def counters(key, count):
    with np.errstate(over="ignore"):
        return np.uint64(key) + GOLDEN * np.arange(1, count + 1, dtype=np.uint64)


def weight(parameter):
    """The starting value of a parameter, fp32."""
    shape = parameter.shape
    bits = mix(counters(fnv1a(parameter.name), int(np.prod(shape))))
    u = 2 * ((bits >> np.uint64(11)).astype("f8") * 2.0**-53) - 1
    base, amp = parameter.initial(), 0.3 if len(shape) == 2 else 0.1
    if parameter.name.endswith(".mhc_b"):
        base, amp = 0.0, 1.0
    return (base + amp * u.reshape(shape)).astype("f4")


def size_weight(parameter):
    """The same for the cases of larger widths."""
    shape, name = parameter.shape, parameter.name
    bits = mix(counters(fnv1a(name), int(np.prod(shape))))
    u = (bits >> np.uint64(57)).astype("f8") / 64 - 1
    base, amp = parameter.initial(), 1 / 8
    if len(shape) == 2:
        amp = min(0.25, 2.0 ** round(0.5 * math.log2(3 / max(shape))))
    if name.endswith(("wpe.weight", "embed_tokens.weight", ".mhc_b")):
        base, amp = 0.0, 1.0
    return (base + amp * u.reshape(shape)).astype("f4")


def weights(parameters, value=weight):
    return {name: value(q) for name, q in parameters.items()}


def projections(name, values):
    """Products with eight vectors of +-1: element i of number j has the sign of bit 56+j, set: +, of mix(key + ...(i+1)),
    key that of "projection NAME"."""
    flat = np.asarray(values, "f8").ravel()
    bits = mix(counters(fnv1a("projection " + name), flat.size))
    return [float(flat @ np.where((bits >> np.uint64(56 + j)) & np.uint64(1), 1.0, -1.0)) for j in range(8)]


def tokens(count, vocabulary, first=0):
    """Tokens first .. first+count-1."""
    return (mix(counters(0, first + count))[first:] % np.uint64(vocabulary)).astype(np.int64)
