// Which algorithm a product runs. The library proposes several; while a Matmul is tuning, each is timed on the
// product's own operands, whose results are worth nothing meanwhile, under the same conditions: in turn, round by
// round, so that a clock that drifts is seen by all of them. Its favourite stays unless another is clearly faster.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/matmul_plan.cuh"

namespace {

constexpr int PROPOSALS = 16;
constexpr int ROUNDS = 5;                // the median of these counts
constexpr double ROUND_US = 200;         // short products are repeated until a round takes this long,
constexpr int MAX_REPEATS = 20;          // but not more often than that
constexpr double HOPELESS = 1.5;         // slower than the best by this factor at first sight: not measured further
constexpr double CLEARLY_FASTER = 0.99;  // of the time of what it replaces

struct Timer {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    explicit Timer(cudaStream_t on) : stream(on) {
        CUDA_CHECK(cudaEventCreate(&begin));
        CUDA_CHECK(cudaEventCreate(&end));
    }
    ~Timer() {
        cudaEventDestroy(begin);
        cudaEventDestroy(end);
    }
    double us(const std::function<void()>& work, int repeats) {
        CUDA_CHECK(cudaEventRecord(begin, stream));
        for (int i = 0; i < repeats; i++) work();
        CUDA_CHECK(cudaEventRecord(end, stream));
        CUDA_CHECK(cudaEventSynchronize(end));
        float ms = 0;
        CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
        return 1e3 * static_cast<double>(ms) / repeats;
    }
};

// Median microseconds of a call of each work.
std::vector<double> measure(const std::vector<std::function<void()>>& works, cudaStream_t stream) {
    Timer timer(stream);
    std::vector<double> result;
    for (const std::function<void()>& work : works) {
        work();  // the library loads its kernel
        result.push_back(timer.us(work, 1));
    }
    if (works.size() == 1) return result;
    const double best = *std::min_element(result.begin(), result.end());
    std::vector<std::vector<double>> times(works.size());
    for (int round = 0; round < ROUNDS; round++)
        for (size_t i = 0; i < works.size(); i++)
            if (result[i] <= HOPELESS * best)
                times[i].push_back(
                    timer.us(works[i], std::clamp(static_cast<int>(ROUND_US / std::max(best, 1.0)), 1, MAX_REPEATS)));
    for (size_t i = 0; i < works.size(); i++) {
        if (times[i].empty()) continue;
        std::nth_element(times[i].begin(), times[i].begin() + ROUNDS / 2, times[i].end());
        result[i] = times[i][ROUNDS / 2];
    }
    return result;
}

std::string to_hex(const cublasLtMatmulAlgo_t& algo) {
    unsigned char bytes[sizeof algo];
    memcpy(bytes, &algo, sizeof bytes);
    std::string text;
    for (unsigned char byte : bytes) text += format("%02x", byte);
    return text;
}
bool from_hex(cublasLtMatmulAlgo_t& algo, const std::string& text) {
    unsigned char bytes[sizeof algo];
    if (text.size() != 2 * sizeof bytes || text.find_first_not_of("0123456789abcdef") != std::string::npos)
        return false;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = static_cast<unsigned char>(std::stoi(text.substr(2 * i, 2), nullptr, 16));
    memcpy(&algo, bytes, sizeof bytes);
    return true;
}

// Whether an algorithm from elsewhere can run this product here.
bool fits(Matmul* mm, const ProductPlan& plan, const cublasLtMatmulAlgo_t& algo) {
    cublasLtMatmulHeuristicResult_t result = {};
    return cublasLtMatmulAlgoCheck(mm->handle, plan.desc, plan.a, plan.b, plan.d, plan.d, &algo, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= MATMUL_WORKSPACE;
}

}  // namespace

std::vector<cublasLtMatmulAlgo_t> propose(Matmul* mm, const ProductPlan& plan, const ProductKey& key, int wanted) {
    const cublasLtMatmulPreference_t preference = make_preference(key.align_a, key.align_b, key.align_c, key.align_d);
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(wanted));
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(mm->handle, plan.desc, plan.a, plan.b, plan.d, plan.d,
                                                                 preference, wanted, results.data(), &found);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED)
        programming_error("matmul: cublasLtMatmulAlgoGetHeuristic",
                          format("%s for %s", cublasLtGetStatusString(status), plan.product.c_str()).c_str(), __FILE__,
                          __LINE__);
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found; i++)
        if (results[static_cast<size_t>(i)].state == CUBLAS_STATUS_SUCCESS)
            algorithms.push_back(results[static_cast<size_t>(i)].algo);
    return algorithms;
}

void choose_algorithm(Matmul* mm, ProductPlan& plan, const ProductKey& key, const Product& p, cudaStream_t stream) {
    const auto known = mm->choices.find(plan.product);
    if (known != mm->choices.end() && from_hex(plan.algo, known->second.algorithm) && fits(mm, plan, plan.algo)) {
        plan.supported = plan.compared = true;
        plan.fused = known->second.fused;
        return;
    }
    std::vector<cublasLtMatmulAlgo_t> algorithms = propose(mm, plan, key, mm->tuning ? PROPOSALS : 1);
    plan.supported = !algorithms.empty();
    if (!plan.supported) return;
    plan.algo = algorithms[0];
    if (!mm->tuning) return;

    // What the library proposes and then refuses is left out.
    std::erase_if(algorithms, [&](const cublasLtMatmulAlgo_t& algo) {
        return run_plan(mm, plan, algo, p, stream) != CUBLAS_STATUS_SUCCESS;
    });
    if (algorithms.empty()) return;
    std::vector<std::function<void()>> works;
    for (const cublasLtMatmulAlgo_t& algo : algorithms)
        works.push_back([&, algo] { CUBLAS_CHECK(run_plan(mm, plan, algo, p, stream)); });
    const std::vector<double> us = measure(works, stream);
    size_t best = static_cast<size_t>(std::min_element(us.begin(), us.end()) - us.begin());
    if (us[best] > CLEARLY_FASTER * us[0]) best = 0;
    plan.algo = algorithms[best];
    mm->choices[plan.product] = {plan.product, to_hex(plan.algo), true, us[best], us[0], 0};
}

void compare_two_steps(Matmul* mm, ProductPlan& plan, const std::function<void()>& fused,
                       const std::function<void()>& two_steps, cudaStream_t stream) {
    plan.compared = true;
    const bool outer = std::exchange(mm->comparing, true);
    const std::vector<double> us = measure({fused, two_steps}, stream);
    mm->comparing = outer;
    plan.fused = us[1] > CLEARLY_FASTER * us[0];
    const auto choice = mm->choices.find(plan.product);
    if (choice == mm->choices.end()) return;
    choice->second.fused = plan.fused;
    choice->second.two_steps_us = us[1];
}

bool matmul_has_choice(Matmul* mm) {
    const int size = 256;
    floatX* operand = static_cast<floatX*>(mm->workspace);
    const Product p{.name = "matmul",
                    .m = size,
                    .n = size,
                    .k = size,
                    .op_a = CUBLAS_OP_T,
                    .op_b = CUBLAS_OP_N,
                    .a = operand,
                    .b = operand,
                    .d = operand};
    return propose(mm, find_plan(mm, p, nullptr), ProductKey(p), 2).size() > 1;
}

void matmul_tune(Matmul* mm, bool on) {
    if (on) drop_plans(mm);  // what was met before is met anew
    mm->tuning = on;
}

void matmul_use(Matmul* mm, const std::vector<MatmulChoice>& choices) {
    drop_plans(mm);
    for (const MatmulChoice& choice : choices) mm->choices[choice.product] = choice;
}

std::vector<MatmulChoice> matmul_choices(const Matmul* mm) {
    std::vector<MatmulChoice> choices;
    for (const auto& [key, plan] : mm->plans) {
        const auto choice = mm->choices.find(plan.product);
        if (plan.used && choice != mm->choices.end()) choices.push_back(choice->second);
    }
    std::sort(choices.begin(), choices.end(), [](const auto& a, const auto& b) { return a.product < b.product; });
    return choices;
}
