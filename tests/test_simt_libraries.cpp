// What the CPU machine's cublasLt and NCCL refuse. They are stricter than a GPU's libraries in places, so these tests
// are for the CPU machine only.
#include <cublasLt.h>
#include <nccl.h>

#include <functional>

#include "test.h"

namespace {

// A product that is accepted: bf16, 16 x 24, k = 32, every pointer 256-byte aligned. Tests spoil one thing.
struct Good {
    int m = 16, n = 24, k = 32;
    cudaDataType_t a_type = CUDA_R_16BF, b_type = CUDA_R_16BF, c_type = CUDA_R_16BF, d_type = CUDA_R_16BF,
                   scale_type = CUDA_R_32F;
    cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
    int lda = 16, ldb = 32, ldc = 16, ldd = 16, order = CUBLASLT_ORDER_COL, batch_a = 1, batch_d = 1;
    int pointer_mode = CUBLASLT_POINTER_MODE_HOST;
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    int bias_type = -1, aux_type = -1;
    int64_t aux_ld = 16;
    uint32_t promised = 256;                                      // alignment of A, B, C, D
    int a_bytes = 0, d_bytes = 0, bias_bytes = 0, aux_bytes = 0;  // shifts of the addresses
    bool null_bias = false, null_aux = false, d_is_b = false, null_c = false;
    bool alpha_on_device = false, beta_on_device = false;
    float beta = 0;
    cublasOperation_t op_a = CUBLAS_OP_N, op_b = CUBLAS_OP_N;
    bool a_scale = false, b_scale = false, c_scale = false, d_scale = false, amax_d = false, scale_on_host = false;
    int8_t fast_accum = 0;

    cublasStatus_t heuristic = CUBLAS_STATUS_SUCCESS, matmul = CUBLAS_STATUS_SUCCESS;
    int found = 0;

    Good& run() {
        Device<char> a(1 << 16), b(1 << 16), d(1 << 16), bias(1 << 16), aux(1 << 16);
        for (auto* buffer : {&a, &b, &d, &bias, &aux}) buffer->zero();
        cublasLtHandle_t handle = nullptr;
        cublasLtMatmulDesc_t desc = nullptr;
        cublasLtMatrixLayout_t la = nullptr, lb = nullptr, lc = nullptr, ld = nullptr;
        cublasLtMatmulPreference_t preference = nullptr;
        cublasLtCreate(&handle);
        cublasLtMatmulDescCreate(&desc, compute, scale_type);
        uint64_t a_rows = static_cast<uint64_t>(m), a_cols = static_cast<uint64_t>(k), b_rows = 32,
                 b_cols = static_cast<uint64_t>(n);
        if (op_a == CUBLAS_OP_T) std::swap(a_rows, a_cols);
        if (op_b == CUBLAS_OP_T) std::swap(b_rows, b_cols);
        cublasLtMatrixLayoutCreate(&la, a_type, a_rows, a_cols, lda);
        cublasLtMatrixLayoutCreate(&lb, b_type, b_rows, b_cols, ldb);
        cublasLtMatrixLayoutCreate(&lc, c_type, 16, static_cast<uint64_t>(n), ldc);
        cublasLtMatrixLayoutCreate(&ld, d_type, 16, static_cast<uint64_t>(n), ldd);
        cublasLtMatrixLayoutSetAttribute(la, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch_a, sizeof batch_a);
        for (auto layout : {lc, ld})
            cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch_d, sizeof batch_d);
        cublasLtMatrixLayoutSetAttribute(la, CUBLASLT_MATRIX_LAYOUT_ORDER, &order, sizeof order);
        auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
            REQUIRE(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS);
        };
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
        set(CUBLASLT_MATMUL_DESC_POINTER_MODE, pointer_mode);
        set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<void*>(null_bias ? nullptr : bias.data + bias_bytes));
        set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, bias_type);
        set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, static_cast<void*>(null_aux ? nullptr : aux.data + aux_bytes));
        set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux_ld);
        set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, aux_type);
        set(CUBLASLT_MATMUL_DESC_TRANSA, op_a);
        set(CUBLASLT_MATMUL_DESC_TRANSB, op_b);
        set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast_accum);
        Device<float> device_scale(std::vector<float>{2.0f});
        float host_scale = 2.0f;
        void* scale = scale_on_host ? &host_scale : device_scale.data;
        if (a_scale) set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scale);
        if (b_scale) set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scale);
        if (c_scale) set(CUBLASLT_MATMUL_DESC_C_SCALE_POINTER, scale);
        if (d_scale) set(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, scale);
        if (amax_d) set(CUBLASLT_MATMUL_DESC_AMAX_D_POINTER, scale);
        cublasLtMatmulPreferenceCreate(&preference);
        for (auto attribute :
             {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
              CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
            cublasLtMatmulPreferenceSetAttribute(preference, attribute, &promised, sizeof promised);
        }
        cublasLtMatmulHeuristicResult_t result = {};
        heuristic = cublasLtMatmulAlgoGetHeuristic(handle, desc, la, lb, lc, ld, preference, 1, &result, &found);
        const float alpha = 1;
        Device<float> scalars(std::vector<float>{alpha, beta});
        char* out = d_is_b ? b.data : d.data + d_bytes;
        matmul = cublasLtMatmul(handle, desc, alpha_on_device ? scalars.data : &alpha, a.data + a_bytes, la, b.data, lb,
                                beta_on_device ? scalars.data + 1 : &beta, null_c ? nullptr : out, lc, out, ld,
                                found ? &result.algo : nullptr, nullptr, 0, nullptr);
        cublasLtMatmulPreferenceDestroy(preference);
        for (auto layout : {la, lb, lc, ld}) cublasLtMatrixLayoutDestroy(layout);
        cublasLtMatmulDescDestroy(desc);
        cublasLtDestroy(handle);
        return *this;
    }
};

// By the heuristic (which then has found nothing) and by the product itself.
void refused(cublasStatus_t status, const char* what, const std::function<void(Good&)>& spoil) {
    INFO(what);
    Good good;
    spoil(good);
    good.run();
    CHECK(good.heuristic == status);
    CHECK(good.found == 0);
    CHECK(good.matmul == status);
}
// Only by the product: it depends on addresses that the heuristic does not see.
void refused_late(cublasStatus_t status, const char* what, const std::function<void(Good&)>& spoil) {
    INFO(what);
    Good good;
    spoil(good);
    good.run();
    CHECK(good.heuristic == CUBLAS_STATUS_SUCCESS);
    CHECK(good.matmul == status);
}
void accepted(const char* what, const std::function<void(Good&)>& change) {
    INFO(what);
    Good good;
    change(good);
    good.run();
    CHECK(good.found == 1);
    CHECK(good.matmul == CUBLAS_STATUS_SUCCESS);
}

}  // namespace

TEST_CASE("cublasLt stand-in: what is refused", "[simt][cublaslt]") {
    const auto NOT = CUBLAS_STATUS_NOT_SUPPORTED, INVALID = CUBLAS_STATUS_INVALID_VALUE;
    accepted("the case that the others spoil", [](Good&) {});
    accepted("bf16 into fp32", [](Good& g) { g.c_type = g.d_type = CUDA_R_32F; });
    accepted("16-byte alignment when so promised", [](Good& g) { g.promised = 16, g.a_bytes = 16; });

    refused(NOT, "fp16", [](Good& g) { g.a_type = g.b_type = g.c_type = g.d_type = CUDA_R_16F; });
    refused(NOT, "mixed operands", [](Good& g) { g.b_type = CUDA_R_32F; });
    refused(NOT, "fp32 into bf16", [](Good& g) { g.a_type = g.b_type = CUDA_R_32F; });
    refused(NOT, "C of another type than D", [](Good& g) { g.c_type = CUDA_R_32F; });
    refused(NOT, "TF32", [](Good& g) { g.compute = CUBLAS_COMPUTE_32F_FAST_TF32; });
    refused(NOT, "fp64 scaling", [](Good& g) { g.scale_type = CUDA_R_64F; });
    refused(NOT, "vector of alphas", [](Good& g) { g.pointer_mode = CUBLASLT_POINTER_MODE_DEVICE_VECTOR; });
    refused(NOT, "row-major", [](Good& g) { g.order = CUBLASLT_ORDER_ROW; });
    refused(NOT, "RELU", [](Good& g) { g.epilogue = CUBLASLT_EPILOGUE_RELU; });
    refused(NOT, "bf16 leading dimension of 20", [](Good& g) { g.lda = 20; });
    refused(NOT, "less than 16-byte alignment", [](Good& g) {
        g.promised = 8;
        g.a_bytes = 8;
    });
    refused(INVALID, "leading dimension less than rows", [](Good& g) { g.ldb = 24; });
    refused(INVALID, "shapes", [](Good& g) { g.k = 24; });
    refused(INVALID, "batch counts", [](Good& g) { g.batch_a = 2; });
    refused(NOT, "fp32 bias for a bf16 D",
            [](Good& g) { g.epilogue = CUBLASLT_EPILOGUE_BIAS, g.bias_type = CUDA_R_32F; });
    refused(NOT, "bf16 bias for an fp32 D", [](Good& g) {
        g.c_type = g.d_type = CUDA_R_32F, g.epilogue = CUBLASLT_EPILOGUE_BIAS, g.bias_type = CUDA_R_16BF;
    });
    refused(NOT, "misaligned bias", [](Good& g) { g.epilogue = CUBLASLT_EPILOGUE_BIAS, g.bias_bytes = 8; });
    for (uint32_t aux : {CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU,
                         CUBLASLT_EPILOGUE_DGELU_BGRAD}) {
        CAPTURE(aux);
        accepted("wider auxiliary matrix", [=](Good& g) { g.epilogue = aux, g.aux_ld = 24; });
        refused(NOT, "auxiliary leading dimension of 20", [=](Good& g) { g.epilogue = aux, g.aux_ld = 20; });
        refused(INVALID, "auxiliary leading dimension of 8", [=](Good& g) { g.epilogue = aux, g.aux_ld = 8; });
        refused(NOT, "auxiliary matrix of another type", [=](Good& g) { g.epilogue = aux, g.aux_type = CUDA_R_32F; });
        refused(NOT, "misaligned auxiliary matrix", [=](Good& g) { g.epilogue = aux, g.aux_bytes = 8; });
        refused_late(INVALID, "no auxiliary matrix", [=](Good& g) { g.epilogue = aux, g.null_aux = true; });
    }
    for (uint32_t bias : {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_DGELU_BGRAD,
                          CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB}) {
        refused_late(INVALID, "no bias", [=](Good& g) { g.epilogue = bias, g.null_bias = true; });
    }
    refused_late(NOT, "A less aligned than promised", [](Good& g) { g.a_bytes = 128; });
    refused_late(NOT, "D less aligned than promised", [](Good& g) { g.promised = 32, g.d_bytes = 16; });
    refused_late(INVALID, "D on B", [](Good& g) { g.d_is_b = true; });
    refused_late(INVALID, "C in place with another leading dimension", [](Good& g) { g.ldc = 24, g.beta = 1; });
}

TEST_CASE("cublasLt stand-in: what is refused of fp8", "[simt][cublaslt][fp8]") {
    const auto NOT = CUBLAS_STATUS_NOT_SUPPORTED, INVALID = CUBLAS_STATUS_INVALID_VALUE;
    auto fp8 = [](const std::function<void(Good&)>& change) {
        return [change](Good& g) {
            g.n = 48;
            g.a_type = g.b_type = CUDA_R_8F_E4M3;
            g.op_a = CUBLAS_OP_T;
            g.lda = 32;
            g.a_scale = g.b_scale = true;
            change(g);
        };
    };
    accepted("the case that the others spoil", fp8([](Good&) {}));
    accepted("e4m3 times e5m2", fp8([](Good& g) { g.b_type = CUDA_R_8F_E5M2; }));
    accepted("e5m2 times e4m3 into fp32", fp8([](Good& g) {
                 g.a_type = CUDA_R_8F_E5M2;
                 g.c_type = g.d_type = CUDA_R_32F;
             }));
    accepted("bias, fast accumulation, no scales", fp8([](Good& g) {
                 g.epilogue = CUBLASLT_EPILOGUE_BIAS;
                 g.fast_accum = 1;
                 g.a_scale = g.b_scale = false;
             }));

    refused(NOT, "e5m2 times e5m2", fp8([](Good& g) { g.a_type = g.b_type = CUDA_R_8F_E5M2; }));
    refused(NOT, "fp8 times bf16", fp8([](Good& g) {
                g.b_type = CUDA_R_16BF;
                g.b_scale = false;
            }));
    refused(NOT, "fp8 into fp16", fp8([](Good& g) { g.c_type = g.d_type = CUDA_R_16F; }));
    refused(NOT, "fp8 into fp8", fp8([](Good& g) { g.d_type = CUDA_R_8F_E4M3; }));
    refused(NOT, "C of another type than D", fp8([](Good& g) { g.c_type = CUDA_R_32F; }));
    refused(NOT, "A not transposed", fp8([](Good& g) {
                g.op_a = CUBLAS_OP_N;
                g.lda = 16;
            }));
    refused(NOT, "B transposed", fp8([](Good& g) {
                g.op_b = CUBLAS_OP_T;
                g.ldb = 48;
            }));
    refused(NOT, "a dimension of 24", fp8([](Good& g) { g.n = 24; }));
    refused(NOT, "a leading dimension of 40", fp8([](Good& g) { g.lda = 40; }));
    refused(NOT, "GELU", fp8([](Good& g) { g.epilogue = CUBLASLT_EPILOGUE_GELU; }));
    refused(NOT, "bias into fp32", fp8([](Good& g) {
                g.epilogue = CUBLASLT_EPILOGUE_BIAS;
                g.c_type = g.d_type = CUDA_R_32F;
            }));
    refused(INVALID, "fast accumulation of 2", fp8([](Good& g) { g.fast_accum = 2; }));
    refused(INVALID, "a scale of a bf16 C", fp8([](Good& g) { g.c_scale = true; }));
    refused(INVALID, "a scale of a bf16 D", fp8([](Good& g) { g.d_scale = true; }));
    refused(INVALID, "the abs-max of a bf16 D", fp8([](Good& g) { g.amax_d = true; }));
    refused(INVALID, "a scale of a bf16 A", [](Good& g) { g.a_scale = true; });
    refused(INVALID, "a scale of a bf16 B", [](Good& g) { g.b_scale = true; });
    refused_late(INVALID, "a scale in host memory", fp8([](Good& g) { g.scale_on_host = true; }));
}

TEST_CASE("cublasLt stand-in: alpha and beta lie where the pointer mode says", "[simt][cublaslt]") {
    const auto INVALID = CUBLAS_STATUS_INVALID_VALUE;
    auto scalars = [](int mode, bool alpha, bool beta) {
        return [=](Good& g) { g.pointer_mode = mode, g.alpha_on_device = alpha, g.beta_on_device = beta; };
    };
    const int host = CUBLASLT_POINTER_MODE_HOST, device = CUBLASLT_POINTER_MODE_DEVICE;
    accepted("both in host memory", scalars(host, false, false));
    accepted("both in device memory", scalars(device, true, true));
    refused_late(INVALID, "alpha on the device, host mode", scalars(host, true, false));
    refused_late(INVALID, "beta on the device, host mode", scalars(host, false, true));
    refused_late(INVALID, "alpha in host memory, device mode", scalars(device, false, true));
    refused_late(INVALID, "beta in host memory, device mode", scalars(device, true, false));
    accepted("a beta of 0 in host memory needs no C", [](Good& g) { g.null_c = true; });
    refused_late(INVALID, "a beta of 0 on the device does", [&](Good& g) {
        scalars(device, true, true)(g);
        g.null_c = true;
    });
}

TEST_CASE("cublasLt stand-in: an algorithm is for the problem it was made for", "[simt][cublaslt]") {
    cublasLtHandle_t handle = nullptr;
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t square = nullptr, smaller = nullptr;
    cublasLtMatmulPreference_t preference = nullptr;
    REQUIRE(cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS);
    cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatrixLayoutCreate(&square, CUDA_R_32F, 16, 16, 16);
    cublasLtMatrixLayoutCreate(&smaller, CUDA_R_32F, 8, 8, 16);
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    CHECK(cublasLtMatmulAlgoGetHeuristic(handle, desc, square, square, square, square, preference, 1, &result,
                                         &found) == CUBLAS_STATUS_SUCCESS);
    Device<float> a(256), b(256), d(256);
    a.zero(), b.zero();
    const float alpha = 1, beta = 0;
    auto run = [&](cublasLtMatrixLayout_t l) {
        return cublasLtMatmul(handle, desc, &alpha, a.data, l, b.data, l, &beta, d.data, l, d.data, l, &result.algo,
                              nullptr, 0, nullptr);
    };
    CHECK(run(square) == CUBLAS_STATUS_SUCCESS);
    CHECK(run(smaller) == CUBLAS_STATUS_NOT_SUPPORTED);
    int32_t mode = CUBLASLT_POINTER_MODE_DEVICE;  // another pointer mode is another problem
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode, sizeof mode);
    Device<float> scalars(std::vector<float>{1, 0});
    CHECK(cublasLtMatmul(handle, desc, scalars.data, a.data, square, b.data, square, scalars.data + 1, d.data, square,
                         d.data, square, &result.algo, nullptr, 0, nullptr) == CUBLAS_STATUS_NOT_SUPPORTED);
    // Attributes are of one size.
    int64_t wide = 0;
    CHECK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &wide, sizeof wide) ==
          CUBLAS_STATUS_INVALID_VALUE);
    int32_t op = -1;
    size_t written = 0;
    CHECK(cublasLtMatmulDescGetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &op, sizeof op, &written) ==
          CUBLAS_STATUS_SUCCESS);
    CHECK((op == CUBLAS_OP_N && written == sizeof op));
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(square);
    cublasLtMatrixLayoutDestroy(smaller);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
}

TEST_CASE("NCCL stand-in: what is refused", "[simt][nccl]") {
    ncclComm_t comm = nullptr;
    ncclUniqueId id = {};
    REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
    CHECK(ncclCommInitRank(&comm, 1, id, 1) == ncclInvalidArgument);
    CHECK(ncclCommInitRank(&comm, 0, id, 0) == ncclInvalidArgument);
    if (!getenv("OMPI_COMM_WORLD_SIZE") && !getenv("PMI_SIZE") && !getenv("PMIX_RANK")) {
        CHECK(ncclCommInitRank(&comm, 2, id, 0) == ncclSystemError);
        CHECK(std::string(ncclGetLastError(nullptr)).find("mpirun") != std::string::npos);
    }
    REQUIRE(ncclCommInitRank(&comm, 1, id, 0) == ncclSuccess);
    Device<float> x(std::vector<float>{1, 2, 3}), y(3);
    CHECK(ncclAllReduce(x.data, x.data, 3, ncclFloat16, ncclSum, comm, nullptr) == ncclInvalidArgument);
    CHECK(ncclAllReduce(x.data, x.data, 3, ncclBfloat16, ncclMax, comm, nullptr) == ncclInvalidArgument);
    CHECK(ncclAllReduce(nullptr, x.data, 3, ncclFloat32, ncclSum, comm, nullptr) == ncclInvalidArgument);
    CHECK(ncclAllReduce(x.data, x.data, 3, ncclFloat32, ncclSum, nullptr, nullptr) == ncclInvalidArgument);
    CHECK(ncclBroadcast(x.data, x.data, 3, ncclFloat32, 1, comm, nullptr) == ncclInvalidArgument);
    CHECK(ncclSend(x.data, 3, ncclFloat32, 0, comm, nullptr) == ncclInvalidUsage);  // to itself, not in a group
    CHECK(ncclGroupEnd() == ncclInvalidUsage);
    // A group does nothing before its end.
    ncclGroupStart();
    CHECK(ncclAllReduce(x.data, y.data, 3, ncclFloat32, ncclSum, comm, nullptr) == ncclSuccess);
    y.zero();
    CHECK(y.read() == std::vector<float>(3));
    CHECK(ncclGroupEnd() == ncclSuccess);
    CHECK(y.read() == x.read());
    ncclGroupStart();
    CHECK(ncclSend(x.data, 3, ncclFloat32, 0, comm, nullptr) == ncclSuccess);
    CHECK(ncclGroupEnd() == ncclInvalidUsage);  // nobody receives it
    CHECK(ncclCommDestroy(comm) == ncclSuccess);
}
