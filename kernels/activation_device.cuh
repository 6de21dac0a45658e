// The functions of kernels/activation.cuh and kernels/swiglu.cuh, value and slope of one number: what every kernel that
// applies them shares. Sums of products are spelled out as fmaf, so that a compiler has nothing to contract: the bits
// are the same in every kernel, whatever else it computes from the same numbers.
// exp2_approx and reciprocal_approx are an instruction each on a GPU; expf and a division are twenty, and kernels that
// write 8 bits would wait for arithmetic instead of memory.
#pragma once
#include <ptx.cuh>  // exp2_approx, reciprocal_approx

#include "kernels/common.cuh"

struct ActivationPoint {
    float value, slope;
};

// value = sigma(x) = 1 / (1 + e^-x) and rest = 1 - sigma(x) = e^-x sigma(x), for y = -x / ln 2: small ones keep their
// digits, which slopes multiply with up to 34. Where e^-x is infinite both are zero; rest only ever meets value.
struct Sigmoid {
    float value, rest;

    static __device__ __forceinline__ Sigmoid at(float y) {
        const float e = exp2_approx(y), value = reciprocal_approx(1.0f + e);
        return {value, fminf(e, 3.402823466e38f) * value};
    }
};
constexpr float LOG2E = 1.4426950408889634f;

// tanh(u) = 2 sigma(2u) - 1, so that gelu_new(h) = h sigma(2u): one exponential and no cancellation for negative h.
// u = sqrt(2/pi) (h + 0.044715 h^3); the slope is sigma + h sigma (1 - sigma) 2 du/dh.
struct GeluNew {
    static constexpr float SCALE = 2 * 0.7978845608028654f;  // 2 sqrt(2/pi)
    static constexpr float CUBIC = 0.044715f;

    static __device__ __forceinline__ ActivationPoint at(float h) {
        const float h2 = h * h;
        const Sigmoid s = Sigmoid::at(h * fmaf(-LOG2E * SCALE * CUBIC, h2, -LOG2E * SCALE));
        const float v = h * s.value;
        return {v, fmaf(v * s.rest, fmaf(SCALE * 3 * CUBIC, h2, SCALE), s.value)};
    }
};

// gelu(h) = h Phi(h) with Phi the normal distribution function. The upper tail is Q(a) = 1 - Phi(a) = e^(-a^2/2) t
// P(t), t = 1 / (1 + 0.35 a), a >= 0; P interpolates at Chebyshev nodes over 0 <= a <= 13, relative error 4e-8. Below
// e^(-13^2/2) fp32 has nothing left. erff would cost a call per element on the CPU machine; and the slope needs
// e^(-h^2/2) anyway.
struct Gelu {
    static constexpr float DENSITY = 0.3989422804014327f;  // 1 / sqrt(2 pi)

    static __device__ __forceinline__ ActivationPoint at(float h) {
        const float bell = exp2_approx(-0.5f * LOG2E * h * h), t = reciprocal_approx(fmaf(0.35f, fabsf(h), 1.0f));
        float p = -0.02952030812f;
        p = fmaf(p, t, 0.1458046663f);
        p = fmaf(p, t, -0.2595086626f);
        p = fmaf(p, t, 0.1634932637f);
        p = fmaf(p, t, -0.02605236568f);
        p = fmaf(p, t, 0.1067301772f);
        p = fmaf(p, t, 0.1195322885f);
        p = fmaf(p, t, 0.139901687f);
        p = fmaf(p, t, 0.1396192375f);
        const float distribution = fmaf(bell * t, h < 0.0f ? p : -p, h < 0.0f ? 0.0f : 1.0f);
        return {h * distribution, fmaf(h * DENSITY, bell, distribution)};
    }
};

struct Silu {
    static __device__ __forceinline__ ActivationPoint at(float g) {
        const Sigmoid s = Sigmoid::at(-LOG2E * g);
        const float v = g * s.value;
        return {v, fmaf(v, s.rest, s.value)};
    }
};

// An activation as the map of an MLP: PARTS columns of pre for one of act.
template <class Function>
struct Pointwise {
    static constexpr int PARTS = 1;
    static __device__ __forceinline__ float act(const float (&pre)[1]) { return Function::at(pre[0]).value; }
    // dpre of dact; returns act.
    static __device__ __forceinline__ float backward(float (&dpre)[1], float dact, const float (&pre)[1]) {
        const ActivationPoint point = Function::at(pre[0]);
        dpre[0] = dact * point.slope;
        return point.value;
    }
};
struct Swiglu {  // gate, up
    static constexpr int PARTS = 2;
    static __device__ __forceinline__ float act(const float (&pre)[2]) {
        return Silu::at(pre[0]).value * pre[1];
    }
    static __device__ __forceinline__ float backward(float (&dpre)[2], float dact, const float (&pre)[2]) {
        const ActivationPoint silu = Silu::at(pre[0]);
        dpre[0] = dact * pre[1] * silu.slope;
        dpre[1] = dact * silu.value;
        return silu.value * pre[1];
    }
};
