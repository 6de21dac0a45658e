// Which algorithms the model's products run: measured in a rehearsal, or given.
#include "model/model_state.h"

bool model_has_gemm_choice(Model& model) {
    return matmul_has_choice(model.mm);
}
void model_use_gemms(Model& model, const std::vector<MatmulChoice>& choices) {
    matmul_use(model.mm, choices);
    while (!model.graphs->known.empty()) model.graphs->forget_oldest();  // recorded with other algorithms
}
std::vector<MatmulChoice> model_gemms(const Model& model) {
    return matmul_choices(model.mm);
}

// A micro-batch of random tokens meets every product of a training step, a rule's own too, with weights and activations
// as a run begins with; what it leaves behind is wiped out.
void model_rehearse(Model& model) {
    CHECK(model.use == Use::training && model.accumulated == 0);
    const size_t N = static_cast<size_t>(model.B) * static_cast<size_t>(model.T);
    std::vector<int> tokens(N + 1);
    uint32_t state = 12345;
    for (int& token : tokens) {
        state = state * 1664525u + 1013904223u;
        token = static_cast<int>((state >> 8) % static_cast<uint32_t>(model.config.vocab));
    }
    const int64_t passes = model.passes;
    const Fp8State fp8 = model_read_fp8(model);
    const bool graphs = model.graphs->on;  // a recorded pass measures nothing
    model.graphs->on = false;
    matmul_tune(model.mm, true);
    model_forward_backward(model, tokens.data(), tokens.data() + 1, model.B, model.T, 1.0 / static_cast<double>(N));
    model_average_grads(model, nullptr);
    if (model.fp8.on) forward(model, model.B, model.T, true);  // evaluation multiplies in floatX
    matmul_tune(model.mm, false);
    model.graphs->on = graphs;
    model.passes = passes;
    model.accumulated = 0;
    model.alpha_time = -1;
    CUDA_CHECK(cudaMemsetAsync(model.grads, 0, static_cast<size_t>(model.registry.arena) * sizeof(float), model.stream));
    model_write_fp8(model, fp8);
    model_take_loss(model);
}
