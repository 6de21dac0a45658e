// An update's first micro-batch stores the gradients of linear maps, and later ones add to them.
#include "model/model_state.h"
#include "test.h"

namespace {

std::vector<float> gradients(Model& model, const std::vector<int>& tokens, int T) {
    model_forward_backward(model, tokens.data(), tokens.data() + 1, 2, T, 1.0 / (2 * T));
    std::vector<float> grads(static_cast<size_t>(model.registry.arena));
    model_read_grads(model, grads.data());
    return grads;
}

std::vector<double> part(const std::vector<float>& arena, const Tensor& t, double factor = 1) {
    std::vector<double> out;
    for (int64_t i = 0; i < t.count; i++) out.push_back(factor * arena[static_cast<size_t>(t.offset + i)]);
    return out;
}

bool of_linear_map(const std::string& name) {
    for (const char* map :
         {"wte", "lm_head", "c_attn", "c_proj", "c_fc", "qkv_proj", "o_proj", "gate_up_proj", "down_proj"})
        if (name.find(map) != std::string::npos) return true;
    return false;
}

}  // namespace

TEST_CASE("the first micro-batch stores what others add to", "[model]") {
    for (const char* preset : {"gpt2-nano", "llama-71m"}) {
        for (bool tie : {true, false}) {
            ModelConfig config = preset_config(preset);
            config.layers = 2, config.heads = config.kv_heads = 2, config.channels = 32, config.vocab = 61;
            config.ffn = 64, config.context = 16, config.tie = tie, config.init = "normal02";
            const int T = config.context;
            const ModelPtr owner = model_create(config, 2, T, Use::training);
            Model& model = *owner;
            model_init_weights(model, 3);
            Random random(1);
            std::vector<int> tokens(static_cast<size_t>(2 * T + 1));
            for (int& token : tokens) token = random.below(config.vocab);

            const std::vector<float> one = gradients(model, tokens, T), two = gradients(model, tokens, T);
            model.accumulated = 0;  // as after an update, but that the gradients were not wiped out
            model.chunk = 12;       // the head in several pieces, of which the first alone may store
            const std::vector<float> again = gradients(model, tokens, T);
            int maps = 0;
            for (const Tensor& t : model.registry.tensors) {
                if (!of_linear_map(t.name)) continue;
                // The token embedding takes part only where the head's product, which stores, has the same weight.
                if (!tie && t.offset == model.wte) continue;
                maps++;
                INFO(preset << (tie ? " tied: " : ": ") << t.name);
                CHECK(relative_error(part(two, t), part(one, t, 2)) < 16 * 0x1p-24);
                CHECK(relative_error(part(again, t), part(one, t)) < 64 * 0x1p-24 + (sizeof(floatX) == 2 ? 1e-3 : 0));
            }
            CHECK(maps >= 8);
        }
    }
}
