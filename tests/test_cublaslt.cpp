// cublasLtMatmul as this tree uses it: types, transposes, leading dimensions, batches, alpha and beta, every epilogue,
// against sums in float64. The same cases hold for the library on a GPU and for its stand-in.
#include <cublasLt.h>

#include <algorithm>

#include "environment.h"
#include "test.h"

namespace {

template <class T>
cudaDataType_t type_of() {
    return sizeof(T) == 2 ? CUDA_R_16BF : CUDA_R_32F;
}
template <class T>
double roundoff() {
    return sizeof(T) == 2 ? 0x1p-8 : 0x1p-24;
}

struct Case {
    int m, n, k;
    bool trans_a = false, trans_b = false;
    float alpha = 1, beta = 0;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    int pad = 0;  // added to every leading dimension
    int batch = 1;
    bool in_place = true, scalars_on_device = false;
    int algorithm = 0;  // which of those the library proposes
};

bool bias_in(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_BIAS || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
bool bias_out(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_DGELU_BGRAD || e == CUBLASLT_EPILOGUE_BGRADA || e == CUBLASLT_EPILOGUE_BGRADB;
}
bool aux_in(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_DGELU || e == CUBLASLT_EPILOGUE_DGELU_BGRAD;
}
bool aux_out(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
bool gelu_in(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU || e == CUBLASLT_EPILOGUE_GELU_BIAS || aux_out(e);
}

double gelu(double h) {
    return 0.5 * h * (1 + std::tanh(0.7978845608028654 * (h + 0.044715 * h * h * h)));
}
double dgelu(double h) {
    double t = std::tanh(0.7978845608028654 * (h + 0.044715 * h * h * h));
    return 0.5 * (1 + t) + 0.5 * h * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * h * h);
}

// One matrix of a batch: stored rows x cols, with `pad` more rows of memory below each column that nobody may touch.
template <class T>
struct Stored {
    int rows, cols, ld;
    int64_t stride;
    std::vector<T> host;
    Device<T> device;
    cublasLtMatrixLayout_t layout = nullptr;
    Stored(Random& random, int rows_, int cols_, int pad, int batch, double scale)
        : rows(rows_),
          cols(cols_),
          ld(rows_ + pad),
          stride(static_cast<int64_t>(ld) * cols),
          host(random.normals<T>(static_cast<size_t>(stride * batch), scale)),
          device(host) {
        REQUIRE(cublasLtMatrixLayoutCreate(&layout, type_of<T>(), static_cast<uint64_t>(rows),
                                           static_cast<uint64_t>(cols), ld) == CUBLAS_STATUS_SUCCESS);
        int32_t count = batch;
        cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count);
        cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride);
    }
    ~Stored() { cublasLtMatrixLayoutDestroy(layout); }
    size_t at(int i, int j, int b) const { return static_cast<size_t>(b * stride + static_cast<int64_t>(j) * ld + i); }
    double value(int i, int j, int b) const { return to_float(host[at(i, j, b)]); }
};

template <class T>
void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
    REQUIRE(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS);
}

// Runs the case and compares everything it writes. False: the library has no algorithm for it.
template <class In, class Out>
bool run(const Case& t) {
    CAPTURE(t.m, t.n, t.k, t.trans_a, t.trans_b, t.alpha, t.beta, static_cast<int>(t.epilogue), t.pad, t.batch,
            sizeof(In), sizeof(Out));
    Random random(static_cast<uint64_t>(t.m * 1000003 + t.n * 1009 + t.k));
    const double scale = 1 / std::sqrt(static_cast<double>(t.k));
    Stored<In> a(random, t.trans_a ? t.k : t.m, t.trans_a ? t.m : t.k, t.pad, t.batch, 1);
    Stored<In> b(random, t.trans_b ? t.n : t.k, t.trans_b ? t.k : t.n, t.pad, t.batch, scale);
    Stored<Out> c(random, t.m, t.n, t.pad, t.batch, 1), d(random, t.m, t.n, t.pad, t.batch, 1);
    Stored<Out> aux(random, t.m, t.n, t.pad, t.batch, 2);
    const int bias_count = t.epilogue == CUBLASLT_EPILOGUE_BGRADB ? t.n : t.m;
    const int bias_stride = (bias_count + 7) / 8 * 8;
    std::vector<Out> bias_host = random.normals<Out>(static_cast<size_t>(bias_stride * t.batch), 0.5);
    Device<Out> bias(bias_host);
    if (t.beta == 0 && t.pad == 0) d.device.poison();
    if (aux_out(t.epilogue) && t.pad == 0) aux.device.poison();
    if (bias_out(t.epilogue)) bias.poison();

    cublasLtHandle_t handle = nullptr;
    REQUIRE(cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS);
    cublasLtMatmulDesc_t desc = nullptr;
    REQUIRE(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS);
    set(desc, CUBLASLT_MATMUL_DESC_TRANSA, t.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(desc, CUBLASLT_MATMUL_DESC_TRANSB, t.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, t.epilogue);
    if (bias_in(t.epilogue) || bias_out(t.epilogue)) {
        set(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<void*>(bias.data));
        set(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of<Out>());
        set(desc, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, static_cast<int64_t>(bias_stride));
    }
    if (aux_in(t.epilogue) || aux_out(t.epilogue)) {
        set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, static_cast<void*>(aux.device.data));
        set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, static_cast<int64_t>(aux.ld));
        set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, aux.stride);
    }
    Device<float> scalars(std::vector<float>{t.alpha, t.beta});
    if (t.scalars_on_device) set(desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);

    cublasLtMatmulPreference_t preference = nullptr;
    REQUIRE(cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS);
    uint64_t workspace_bytes = 16 << 20;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                         sizeof workspace_bytes);
    Stored<Out>& source = t.in_place ? d : c;
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(t.algorithm) + 1);
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, desc, a.layout, b.layout, source.layout, d.layout,
                                                           preference, t.algorithm + 1, results.data(), &found);
    const bool supported = status == CUBLAS_STATUS_SUCCESS && found == t.algorithm + 1;
    if (supported) {
        const cublasLtMatmulHeuristicResult_t& result = results.back();
        cublasLtMatmulHeuristicResult_t checked = {};
        CHECK(cublasLtMatmulAlgoCheck(handle, desc, a.layout, b.layout, source.layout, d.layout, &result.algo,
                                      &checked) == CUBLAS_STATUS_SUCCESS);
        CHECK(checked.workspaceSize <= workspace_bytes);
        Device<char> workspace(workspace_bytes);
        const float *alpha = t.scalars_on_device ? scalars.data : &t.alpha,
                    *beta = t.scalars_on_device ? scalars.data + 1 : &t.beta;
        REQUIRE(cublasLtMatmul(handle, desc, alpha, a.device.data, a.layout, b.device.data, b.layout, beta,
                               source.device.data, source.layout, d.device.data, d.layout, &result.algo, workspace.data,
                               workspace_bytes, nullptr) == CUBLAS_STATUS_SUCCESS);
    }
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
    if (!supported) return false;

    std::vector<double> want, want_aux, want_bias(static_cast<size_t>(bias_stride * t.batch));
    std::vector<double> got, got_aux, got_bias = to_double(bias.read());
    const std::vector<Out> d_now = d.device.read(), aux_now = aux.device.read();
    bool padding_untouched = true;
    for (int z = 0; z < t.batch; z++) {
        for (int j = 0; j < t.n; j++) {
            for (int i = 0; i < t.m; i++) {
                double sum = 0;
                for (int l = 0; l < t.k; l++) {
                    sum += (t.trans_a ? a.value(l, i, z) : a.value(i, l, z)) *
                           (t.trans_b ? b.value(j, l, z) : b.value(l, j, z));
                }
                sum = t.alpha * sum + (t.beta != 0 ? t.beta * source.value(i, j, z) : 0);
                if (bias_in(t.epilogue)) sum += to_float(bias_host[static_cast<size_t>(z * bias_stride + i)]);
                if (aux_out(t.epilogue)) want_aux.push_back(sum), got_aux.push_back(to_float(aux_now[aux.at(i, j, z)]));
                if (gelu_in(t.epilogue)) sum = gelu(sum);
                if (aux_in(t.epilogue)) sum *= dgelu(aux.value(i, j, z));
                if (t.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD)
                    want_bias[static_cast<size_t>(z * bias_stride + i)] += sum;
                want.push_back(sum), got.push_back(to_float(d_now[d.at(i, j, z)]));
            }
            for (int i = t.m; i < d.ld; i++) {
                size_t at = d.at(i, j, z);
                if (to_float(d_now[at]) != to_float(d.host[at]) || to_float(aux_now[at]) != to_float(aux.host[at]))
                    padding_untouched = false;
            }
        }
        for (int l = 0; l < t.k; l++) {
            for (int i = 0; i < bias_count; i++) {
                double& sum = want_bias[static_cast<size_t>(z * bias_stride + i)];
                if (t.epilogue == CUBLASLT_EPILOGUE_BGRADA) sum += t.trans_a ? a.value(l, i, z) : a.value(i, l, z);
                if (t.epilogue == CUBLASLT_EPILOGUE_BGRADB) sum += t.trans_b ? b.value(i, l, z) : b.value(l, i, z);
            }
        }
    }
    // A sum of k products of size 1/sqrt(k) is of size 1; each of its k additions rounds a partial sum at 2^-24, which
    // together stays below 2^-24 sqrt(k) but for a factor; 8 covers the largest of all elements and the epilogue's own
    // few roundings. Then one rounding to the output type.
    const double atol = 8 * 0x1p-24 * std::sqrt(static_cast<double>(t.k) + 8),
                 rtol = 1.01 * roundoff<Out>() + 8 * 0x1p-24;
    CHECK(worst_error(got, want, atol, rtol) <= 1);
    if (aux_out(t.epilogue)) CHECK(worst_error(got_aux, want_aux, atol, rtol) <= 1);
    CHECK(padding_untouched);
    if (bias_out(t.epilogue)) {
        for (int z = t.batch - 1; z >= 0; z--) {  // drop what lies between the batches' vectors
            auto drop = [&](std::vector<double>& v) {
                v.erase(v.begin() + z * bias_stride + bias_count, v.begin() + (z + 1) * bias_stride);
            };
            drop(got_bias), drop(want_bias);
        }
        // Sums of n (or k) values of size 1, accumulated in fp32 at least.
        const double count = t.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD ? t.n : t.k;
        CHECK(worst_error(got_bias, want_bias, 8 * 0x1p-24 * count, rtol) <= 1);
    }
    return true;
}

template <class In, class Out>
void required(const Case& t) {
    if (!run<In, Out>(t)) FAIL("no algorithm for m " << t.m << " n " << t.n << " k " << t.k);
}

}  // namespace

TEMPLATE_TEST_CASE("cublasLt: products of all transposes and awkward sizes", "[cublaslt]", float, __nv_bfloat16) {
    const int k = sizeof(TestType) == 2 ? 40 : 37;
    for (bool trans_a : {false, true}) {
        for (bool trans_b : {false, true}) {
            for (int n : {8, 200}) {
                required<TestType, TestType>({.m = 24, .n = n, .k = k, .trans_a = trans_a, .trans_b = trans_b});
                required<TestType, float>(
                    {.m = 136, .n = n, .k = k, .trans_a = trans_a, .trans_b = trans_b, .beta = 1});
            }
        }
    }
    for (int n : {1, 5, 199}) required<TestType, TestType>({.m = 1128, .n = n, .k = 760, .trans_a = true});
    for (int n : {1, 3}) required<TestType, float>({.m = 8, .n = 24, .k = n, .trans_b = true, .beta = 1});
}

TEMPLATE_TEST_CASE("cublasLt: leading dimensions, scalars, C beside D", "[cublaslt]", float, __nv_bfloat16) {
    required<TestType, TestType>({.m = 40, .n = 19, .k = 48, .trans_a = true, .alpha = 0.5f, .beta = -2, .pad = 8});
    required<TestType, TestType>({.m = 40, .n = 19, .k = 48, .alpha = 0.5f, .beta = -2, .pad = 8, .in_place = false});
    required<TestType, float>({.m = 40, .n = 19, .k = 48, .alpha = 0.5f, .beta = 3, .pad = 8, .in_place = false});
    required<TestType, TestType>({.m = 40, .n = 19, .k = 48, .alpha = 0.5f, .beta = 3, .scalars_on_device = true});
    // D is filled with NaN first: a beta of 0 on the device must keep it out as one on the host does.
    required<TestType, TestType>({.m = 40, .n = 19, .k = 48, .alpha = -3, .beta = 0, .scalars_on_device = true});
    required<TestType, float>(
        {.m = 40, .n = 48, .k = 19, .trans_b = true, .alpha = 0.125f, .beta = 1, .scalars_on_device = true});
}

TEMPLATE_TEST_CASE("cublasLt: batches", "[cublaslt]", float, __nv_bfloat16) {
    required<TestType, TestType>({.m = 16, .n = 24, .k = 32, .trans_a = true, .batch = 5});
    required<TestType, TestType>({.m = 16, .n = 17, .k = 32, .beta = 1, .pad = 8, .batch = 3});
}

TEMPLATE_TEST_CASE("cublasLt: epilogues", "[cublaslt]", float, __nv_bfloat16) {
    int tried = 0, supported = 0;
    for (auto epilogue :
         {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX,
          CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU_BGRAD}) {
        for (int n : {8, 199}) {
            for (int pad : {0, 8}) {
                tried++;
                supported += run<TestType, TestType>(
                    {.m = 120, .n = n, .k = 64, .trans_a = pad > 0, .epilogue = epilogue, .pad = pad});
            }
        }
    }
    for (auto epilogue : {CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB}) {
        for (bool trans_a : {false, true}) {
            for (bool trans_b : {false, true}) {
                tried++;
                supported += run<TestType, TestType>(
                    {.m = 136, .n = 200, .k = 64, .trans_a = trans_a, .trans_b = trans_b, .epilogue = epilogue});
            }
        }
    }
    for (int n : {8, 199}) {
        tried++;
        supported += run<TestType, TestType>({.m = 120,
                                              .n = n,
                                              .k = 64,
                                              .alpha = -0.75f,
                                              .epilogue = CUBLASLT_EPILOGUE_DGELU,
                                              .scalars_on_device = true});
    }
    // A library may lack some of them; then matmul.cu takes two steps. The stand-in has all.
    UNSCOPED_INFO(tried - supported << " of " << tried << " not supported");
    CHECK(supported >= tried / 2);
    // The other sides of the matrix: one column, and more rows than one piece of work has.
    required<TestType, TestType>({.m = 2056, .n = 1, .k = 8, .epilogue = CUBLASLT_EPILOGUE_BIAS});
    required<TestType, TestType>({.m = 2056, .n = 9, .k = 8, .epilogue = CUBLASLT_EPILOGUE_GELU_BIAS});
}

TEST_CASE("cublasLt: products larger than a tile", "[cublaslt]") {
    // 2048 x 1024 x 1024 is the stand-in's tile for bf16; 1 Mi elements its panel for fp32 epilogues.
    required<__nv_bfloat16, __nv_bfloat16>(
        {.m = 2056, .n = 9, .k = 1032, .trans_a = true, .beta = 1, .epilogue = CUBLASLT_EPILOGUE_BIAS});
    required<__nv_bfloat16, float>({.m = 16, .n = 1040, .k = 1032, .trans_b = true, .beta = 1});
    required<__nv_bfloat16, __nv_bfloat16>({.m = 16, .n = 1040, .k = 2056});
    required<float, float>({.m = 4100, .n = 300, .k = 5, .beta = 1, .epilogue = CUBLASLT_EPILOGUE_BIAS});
}

// The stand-in has more than one algorithm when it is asked to: split sums, of parts of equal and of unequal length.
TEMPLATE_TEST_CASE("cublasLt: other algorithms than the first", "[cublaslt]", float, __nv_bfloat16) {
    const Environment more("SIMT_GEMM_ALGOS", "3");
    for (int algorithm : {1, 2}) {
        for (bool trans_a : {false, true}) {
            for (bool trans_b : {false, true}) {
                const Case plain{.m = 136, .n = 200, .k = 1032, .trans_a = trans_a, .trans_b = trans_b,
                                 .algorithm = algorithm};
                Case scaled = plain;
                scaled.alpha = 0.5f, scaled.beta = -2, scaled.pad = 8;
                required<TestType, TestType>(plain);
                required<TestType, TestType>(scaled);
                required<TestType, float>(scaled);
                scaled.in_place = false;
                required<TestType, TestType>(scaled);
                required<TestType, float>(scaled);
            }
        }
        for (auto epilogue : {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS})
            required<TestType, TestType>(
                {.m = 136, .n = 40, .k = 1032, .trans_a = true, .epilogue = epilogue, .algorithm = algorithm});
        int supported = 0;  // a library may not split these
        for (auto epilogue : {CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU_BGRAD})
            supported += run<TestType, TestType>(
                {.m = 136, .n = 40, .k = 1032, .epilogue = epilogue, .algorithm = algorithm});
        supported += run<TestType, float>({.m = 136, .n = 40, .k = 1032, .trans_b = true, .beta = 1,
                                           .epilogue = CUBLASLT_EPILOGUE_BGRADB, .algorithm = algorithm});
        CHECK(supported >= 1);
    }
}

TEST_CASE("cublasLt: the same bits again", "[cublaslt]") {
    auto product = [] {
        Random random(3);
        const int m = 384, n = 257, k = 768;
        Device<float> a(random.normals<float>(static_cast<size_t>(m * k))),
            b(random.normals<float>(static_cast<size_t>(k * n)));
        Device<float> d(static_cast<size_t>(m * n));
        cublasLtHandle_t handle = nullptr;
        cublasLtMatmulDesc_t desc = nullptr;
        cublasLtMatrixLayout_t la = nullptr, lb = nullptr, ld = nullptr;
        cublasLtCreate(&handle);
        cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
        cublasLtMatrixLayoutCreate(&la, CUDA_R_32F, m, k, m);
        cublasLtMatrixLayoutCreate(&lb, CUDA_R_32F, k, n, k);
        cublasLtMatrixLayoutCreate(&ld, CUDA_R_32F, m, n, m);
        const float alpha = 1, beta = 0;
        REQUIRE(cublasLtMatmul(handle, desc, &alpha, a.data, la, b.data, lb, &beta, d.data, ld, d.data, ld, nullptr,
                               nullptr, 0, nullptr) == CUBLAS_STATUS_SUCCESS);
        for (auto layout : {la, lb, ld}) cublasLtMatrixLayoutDestroy(layout);
        cublasLtMatmulDescDestroy(desc);
        cublasLtDestroy(handle);
        return d.read();
    };
    const std::vector<float> first = product();
    for (int i = 0; i < 3; i++) CHECK(product() == first);
}
