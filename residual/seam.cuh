// The residual seam: what happens between two sublayers, in one kernel forward and one backward.
//
//     v     = beta*N_out(u)       the sublayer's output, normalised if the scheme asks for it; beta: see scale below
//     p     = rule(x, v)          vanilla: a*x + v
//     x_new = N_post(p)           post-type schemes
//     z     = scale * N_in(x_new) the next sublayer's input (or the head's: N_f is the last seam's N_in)
//
// A norm scheme is a sequence of seams; each of N_out, N_post, N_in is present or not. The first seam of a network has
// no u: x_new = x (not written again), z = N_in(x). The frame is residual/row_kernel.cuh; a rule is one file beside it.
#pragma once
#include "kernels/fp8.cuh"

enum class NormKind { layer, rms };

// One norm of a seam. Absent when gain is null.
struct SeamNorm {
    const float* gain = nullptr;   // (C) fp32 in every build, like all parameters of the residual path
    const float* bias = nullptr;   // (C), null: none (and always for rms)
    float* mean = nullptr;         // (N) fp32, written forward, read backward; layer only
    float* rstd = nullptr;         // (N) fp32
    float* dgain = nullptr;        // (C) fp32, accumulated (+=) by the backward pass
    float* dbias = nullptr;        // (C) fp32
    float scale = 1.0f;            // fixed factor behind gain and bias (LayerNorm scaling), N_in only
    const float* factor = nullptr;  // N_in only: device scalar times its output; null: 1
    bool factor_backward = true;    // whether the backward pass has the factor too
};

struct SeamShape {
    int64_t N;  // tokens
    int C;      // channels, a multiple of 16 bytes
    NormKind kind;
    float eps;
    float skip = 1.0f;  // a, the scheme's factor of the stream
};

// What a sublayer reads where it multiplies in 8 bits: the rows rounded to floatX first and then to e4m3, as
// fp8_quantize makes them of floatX.
struct Fp8Input {
    e4m3* data = nullptr;  // (N,C), C a multiple of 16; null: the sublayer reads floatX
    Fp8Slot slot = {};     // its scale is read, its amax written
};

struct SeamForward {
    const floatX* x;        // (N,C) the stream before; null: zeros
    const floatX* u;        // (N,C) the sublayer's output; null at the first seam
    floatX* x_new;          // (N,C) the stream after; may be x; ignored at the first seam
    floatX* z;              // (N,C) null when there is no N_in (then x_new itself is the next input)
    floatX* p;              // (N,C) the sum before N_post, saved for the backward pass; null without N_post
    SeamNorm out, post, in;
    // beta, a device scalar (null: 1): a schedule's value (ProRes), a learned factor (ReZero), or their product. The
    // backward pass leaves it out of du, so that du can stay dx's memory; the products behind it take it as their alpha.
    const float* scale = nullptr;
    Fp8Input z8 = {};  // instead of z, where there is N_in
};

struct SeamBackward {
    const floatX* dx_new;   // (N,C) gradient of the stream after, from later seams; null: zero (the last seam)
    const floatX* dz;       // (N,C) gradient of z; without N_in z is x_new itself, and dz is added to dx_new; may be null
    const floatX* x_new;    // (N,C) saved (N_in's input)
    const floatX* p;        // (N,C) saved (N_post's input); null without N_post
    const floatX* u;        // (N,C) saved (N_out's input); needed only with N_out
    floatX* dx;             // (N,C) gradient of x; may be dx_new
    floatX* du;             // (N,C) gradient of u / beta; may be dx when both are equal (vanilla, skip 1, no N_out)
    SeamNorm out, post, in;
    // Only for rules that read v, and for the gain of N_out: with out_scale, beta is applied in front of N_out^T, and du
    // then is whole. null: 1.
    const float* scale = nullptr;
    const float* out_scale = nullptr;
    bool first = false;  // the first seam: there is no u
    // Factors of dx_new on loading it: a rule whose dx and du differ by a factor stores them once.
    float dx_new_factor = 1.0f;
    const float* dx_new_scale = nullptr;  // device scalar; null: 1
};

// Bytes of scratch for the parameter partials of one backward seam.
size_t seam_scratch_bytes(int C);

// The most channels: of vanilla's seam, and of rules with kernels of their own.
int max_seam_channels();
int max_rule_channels();

// Vanilla: p = skip*x + v. Without u it is a row of norms alone.
void vanilla_forward(const SeamForward& seam, const SeamShape& shape, cudaStream_t stream);
void vanilla_backward(const SeamBackward& seam, const SeamShape& shape, float* scratch, cudaStream_t stream);

// A norm by itself: y (N,C) = norm(x (N,C)). Backward in place: d (N,C), the gradient of y, becomes that of x.
void norm_rows_forward(const floatX* x, floatX* y, const SeamNorm& norm, const SeamShape& shape, cudaStream_t stream);
// The same from statistics that are there already: the same bits, in y or instead in y8. norm.scale and norm.factor
// count.
void norm_rows_again(const floatX* x, floatX* y, const SeamNorm& norm, const SeamShape& shape, cudaStream_t stream,
                     const Fp8Input& y8 = {});
void norm_rows_backward(floatX* d, const floatX* x, const SeamNorm& norm, const SeamShape& shape, float* scratch,
                        cudaStream_t stream);
