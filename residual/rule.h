// A residual rule, host side: which parameters and activations it has, and what it does at each seam.
//
// Sublayers are numbered k = 1..2L, layers l = 1..L (residual papers count from one); seam s stands behind sublayer s,
// seam 0 behind the embedding, and seam 2L feeds the head. At seam s a rule takes sublayer s's output u_s, changes its
// state (the stream, several streams, or the list of earlier outputs), and forms the next sublayer's input z_s =
// N_in(read(state)).
//
// The model runs:     embedding -> embedding();            forward(0)
//                     for s = 1..2L: sublayer s reads input(s-1), writes output(s);   forward(s)
//                     the head reads input(2L)
// and backwards:      the head writes d_input();   for s = 2L..1: backward(s), then sublayer s reads d_output(s) and
//                     writes d_input();   backward(0);  the embedding reads d_embedding()
//
// Most rules have one stream and stand in the frame of row_kernel.cuh: residual/stream_rule.h does their bookkeeping. A
// new rule is one file with a functor and a short class, and one line in the list of rules.cpp.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common.cuh"
#include "kernels/matmul.cuh"
#include "residual/options.h"
#include "residual/recompute.h"
#include "residual/scheme.h"
#include "residual/seam.cuh"

// Sublayer k's layer, both from one.
inline int layer_of(int k) { return (k + 1) / 2; }

// ---------------------------------------------------------------------------------------------------------------------
// Parameters

enum class Place { sublayer, layer, model };

struct RuleParameter {
    std::string name;  // the checkpoint name's last part
    Place place;
    int index;                   // sublayer k or layer l, from one; unused for the model's
    std::vector<int64_t> shape;  // (n) or (rows, cols)
    std::vector<float> initial;  // one value for all elements, or one for each; the mean when std > 0
    float std = 0.0f;            // normal
    bool decays = false;         // with the run's weight decay, like the 2-D weights; otherwise not at all
    bool product = false;   // operand of a GEMM: it has a working copy in floatX, with rows padded to a multiple of 8
    double lr_scale = 1.0;  // times the run's learning rate
    double own_lr = 0.0;    // > 0: peak learning rate instead of the run's, on the same schedule
    double beta1 = 0.0, beta2 = 0.0;  // > 0: instead of the run's
    double own_decay = -1.0;          // >= 0: weight decay instead of the run's
    bool frozen = false;
    bool clipped_gate = false;  // takes part in the joint clip of gate gradients
};

// Where a parameter lies, once there is memory.
struct RuleTensor {
    const float* value = nullptr;  // fp32
    const floatX* copy = nullptr;  // floatX, of product parameters
    float* grad = nullptr;         // fp32, accumulated over micro-steps; null in inference
};

// The tensors of a sublayer's last linear map, whose gradients give a scalar's (see branch_scale.cuh).
struct LastMap {
    const floatX *weight = nullptr, *bias = nullptr;
    float *dweight = nullptr, *dbias = nullptr;
    int64_t weight_count = 0, bias_count = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// What a rule is told

struct RuleShape {
    int L = 0, C = 0;
    NormKind kind = NormKind::layer;
    float eps = 1e-5f;
    int64_t N = 0;  // tokens of the largest micro-batch
    bool training = true;
    Scheme scheme;
    bool prores = false;  // a schedule multiplies every branch
    Recompute recompute = Recompute::none;
    bool fp8 = false;  // sublayers multiply in 8 bits in training: what they read is kept so
    int last() const { return 2 * L; }
    const SublayerNorms& norms(int k) const { return scheme.sublayers[static_cast<size_t>(k - 1)]; }
    bool out(int s) const { return s > 0 && norms(s).out; }
    bool post(int s) const { return s > 0 ? norms(s).post : scheme.embed_norm; }
    bool in(int s) const { return s < last() ? norms(s + 1).in : scheme.final_norm; }
};

// Asks for device memory, by segment of the dry run's table.
class Planner {
  public:
    virtual ~Planner() = default;
    template <class T>
    void want(const std::string& segment, int64_t count, T*& pointer) {
        request(segment, static_cast<size_t>(count) * sizeof(T), [&pointer](void* p) { pointer = static_cast<T*>(p); });
    }
    virtual void request(const std::string& segment, size_t bytes, std::function<void(void*)> assign) = 0;
};

// One pass over a micro-batch. A training pass is recorded once as a graph and then repeated: between begin() and
// end_backward() a rule only queues work on `stream`, with the same arguments each time. What changes from pass to pass
// lies in device memory; set_time() and set_alpha() come before.
struct Pass {
    int64_t N;  // tokens of this micro-batch
    cudaStream_t stream;
    Matmul* mm;
    float* scratch;    // at least scratch_bytes()
    bool fp8 = false;  // inputs are wanted in 8 bits: see inputs8
};

// ---------------------------------------------------------------------------------------------------------------------

// One buffer of `count` elements for each wanted seam s. Inference keeps nothing for a backward pass: there `ring`
// buffers take turns.
template <class T, class Wanted>
void want_seams(Planner& planner, const std::string& segment, int64_t count, std::vector<T*>& pointers, bool training,
                int ring, Wanted wanted) {
    const int seams = static_cast<int>(pointers.size());
    for (int first = 0; first < (training ? seams : ring); first++) {
        std::vector<T**> sharing;
        for (int s = first; s < seams; s += training ? seams : ring)
            if (wanted(s)) sharing.push_back(&pointers[static_cast<size_t>(s)]);
        if (sharing.empty()) continue;
        planner.request(segment, static_cast<size_t>(count) * sizeof(T), [sharing](void* p) {
            for (T** pointer : sharing) *pointer = static_cast<T*>(p);
        });
    }
}

class Rule {
  public:
    explicit Rule(const RuleShape& shape) : shape_(shape) {}
    virtual ~Rule() = default;

    std::vector<RuleParameter> parameters;  // declared by the constructor
    std::vector<RuleTensor> tensors;        // the same, set by the model before ready()
    std::vector<LastMap> last_maps;         // (2L+1), by s; set by the model
    float output_init_scale = 1.0f;         // of the initial spread of output projections
    double gate_clip = 0.0;                 // joint norm to which the gradients of clipped gates are clipped; 0: off
    // (2L+1), by s; gains set by the model, statistics by plan()
    std::vector<SeamNorm> out_norms, post_norms, in_norms;
    // (2L+1), by s; set by the model where sublayer s+1 multiplies in 8 bits
    std::vector<Fp8Input> inputs8;

    // Memory. The base asks for what every rule has: u, z, statistics of norms, dz.
    virtual void plan(Planner& planner);
    virtual size_t scratch_bytes() const { return seam_scratch_bytes(shape_.C); }
    // Memory and parameters are there: pointer tables can be built.
    virtual void ready(cudaStream_t) {}
    // The schedule's branch factors (2L+1, by s; [0] unused), where has_beta(); called when they change.
    void set_alpha(const std::vector<float>& alpha, cudaStream_t stream);
    virtual bool has_beta() const { return shape_.prores; }
    // A schedule of its own: t completed updates, `passes` training passes of this rank up to and with the coming one.
    virtual void set_time(int64_t /*t*/, int64_t /*passes*/, bool /*evaluation*/, cudaStream_t) {}

    virtual void begin(const Pass&) {}  // at the start of every forward pass
    virtual void forward(const Pass& pass, int s) = 0;
    // Recomputation (residual/recompute.h). From level norm on inputs share one buffer: input(s) once more, asked for
    // between backward(s+1) and backward(s), at level block also in front of backward(s+2).
    virtual void input_again(const Pass& pass, int s) = 0;
    // At level block, in front of backward(2l): which of layer l's seams and outputs, s = 2l-1 and 2l, must be run
    // again. Where seam 2l-1 need not, its input is still asked for.
    bool seam_again(int s) const { return drops_inside() && (s % 2 == 1 || end_again(s)); }
    bool output_again(int s) const { return drops_inside() && (seam_again(s) || keeps_u(s)); }

    virtual void begin_backward(const Pass&) {}
    virtual void backward(const Pass& pass, int s) = 0;
    virtual void end_backward(const Pass&) {}
    // Once per update, behind the last micro-step: gradients that follow from accumulated ones.
    virtual void finish_gradients(const Pass&) {}

    virtual floatX* embedding() = 0;  // (N,C)
    // What stands behind sublayer s before any norm of the next: the stream, all streams, or what attention over depth
    // reads; for statistics. (N, stream_channels()), valid between forward(s) and the backward pass.
    virtual const floatX* stream(int s) = 0;
    virtual int stream_channels() const { return shape_.C; }
    virtual floatX* input(int s) { return z_[static_cast<size_t>(s)]; }   // (N,C) of sublayer s+1, or the head
    // Whether forward(s) and input_again(s), in a pass with fp8, write inputs8[s] instead of input(s).
    virtual bool quantizes(int s) const { return s < shape_.last() && shape_.in(s); }
    virtual floatX* output(int s) { return u_[static_cast<size_t>(s)]; }  // (N,C) of sublayer s
    // (N,C) what the product that makes output(s) adds to it, where a rule is a plain sum: the product reads the stream
    // at its end, and the seam behind it has nothing left to do but its norms. null: nothing.
    virtual const floatX* addend(int) { return nullptr; }
    virtual const floatX* d_output(int s) = 0;  // (N,C) gradient of output(s) without branch_scale(s)
    floatX* d_input() { return dz_; }           // (N,C)
    virtual const floatX* d_embedding() = 0;    // (N,C)
    // Device scalar that the products behind d_output(s) must take as alpha; null: 1.
    virtual const float* branch_scale(int s) const { return prores() && !shape_.out(s) ? beta_ + s : nullptr; }
    // The last linear map's gradients accumulate without branch_scale(s); finish_gradients() completes them.
    virtual bool raw_last_map(int) const { return false; }
    const RuleShape& shape() const { return shape_; }

  protected:
    bool prores() const { return shape_.prores; }
    // The frame's scale and out_scale: the branch factor, and whether N_out^T must see it.
    const float* seam_scale(int s) const { return has_beta() ? beta_ + s : nullptr; }
    const float* seam_out_scale(int s) const { return shape_.out(s) && !branch_scale(s) ? seam_scale(s) : nullptr; }
    virtual bool keeps_u(int s) const { return shape_.out(s) || u_is_state(); }  // for the backward pass
    virtual bool u_is_state() const { return false; }                            // outputs are kept in inference too
    virtual bool has_u(int) const { return true; }                               // output(s) is a buffer of its own
    // Whether level block drops the state inside a layer. A rule that comes back to it from other layers keeps it.
    virtual bool can_drop_inside() const { return false; }
    // Whether a layer's last seam saves more for its backward pass than the state behind it and statistics.
    virtual bool end_again(int s) const { return shape_.post(s); }
    bool drops_inside() const { return shape_.recompute == Recompute::block && can_drop_inside(); }
    bool keeps_inputs() const { return shape_.training && shape_.recompute < Recompute::norm && !shape_.fp8; }
    // Where this pass wants the input at seam s in 8 bits.
    Fp8Input input8(const Pass& pass, int s) const {
        return pass.fp8 && quantizes(s) ? inputs8[static_cast<size_t>(s)] : Fp8Input{};
    }
    // Memory for the state at seams, of which level block keeps what stands between layers; and for what no other layer
    // needs.
    template <class T, class Wanted>
    void want_state(Planner& planner, const std::string& segment, int64_t count, std::vector<T*>& pointers, int ring,
                    Wanted wanted) const {
        if (!drops_inside()) return want_seams(planner, segment, count, pointers, shape_.training, ring, wanted);
        want_seams(planner, segment, count, pointers, true, 1, [&](int s) { return s % 2 == 0 && wanted(s); });
        want_seams(planner, segment, count, pointers, false, 2, [&](int s) { return s % 2 == 1 && wanted(s); });
    }
    template <class T, class Wanted>
    void want_inside(Planner& planner, const std::string& segment, int64_t count, std::vector<T*>& pointers,
                     Wanted wanted) const {
        const bool keep = shape_.training && !drops_inside();
        want_seams(planner, segment, count, pointers, keep, drops_inside() ? 2 : 1, wanted);
    }
    // input_again() where x (N,C) is what stands before N_in.
    void norm_again(const Pass& pass, int s, const floatX* x) {
        const size_t i = static_cast<size_t>(s);
        if (!shape_.in(s)) return;
        norm_rows_again(x, z_[i], in_norms[i], seam_shape(pass, s), pass.stream, input8(pass, s));
    }
    SeamShape seam_shape(const Pass& pass, int s) const {
        return {pass.N, shape_.C, shape_.kind, shape_.eps, s > 0 ? shape_.norms(s).skip : 1.0f};
    }
    int add(RuleParameter parameter) {
        parameters.push_back(std::move(parameter));
        return static_cast<int>(parameters.size()) - 1;
    }
    const float* value(int i) const { return tensors[static_cast<size_t>(i)].value; }
    float* grad(int i) const { return tensors[static_cast<size_t>(i)].grad; }

    RuleShape shape_;
    std::vector<floatX*> u_, z_;  // (2L+1), by s; u_[0] unused; z_[s] null where the scheme has no N_in
    floatX* dz_ = nullptr;
    float* alpha_ = nullptr;  // (2L+1) device: the schedule's factors
    float* beta_ = nullptr;   // (2L+1) device: the whole branch factors, alpha times a learned one if the rule has it
};

struct RuleEntry {
    const char* name;
    const char* summary;
    const char* schemes;  // in which it is defined, separated by spaces
    std::unique_ptr<Rule> (*make)(const RuleShape& shape, RuleOptions& options);
    bool vanilla_kernels = false;  // it has no kernel of its own, and takes vanilla's number of channels
};
// Sets of schemes for `schemes`.
#define PRE_SCHEMES "pre sandwich peri lns outnorm"
#define ALL_SCHEMES "pre post sandwich peri deepnorm mix lns keel outnorm"

template <class R>
std::unique_ptr<Rule> make_rule(const RuleShape& shape, RuleOptions& options) {
    return std::make_unique<R>(shape, options);
}
