#include "kernels/bias.cuh"
#include "kernels/partials.cuh"

#include <cstring>

#include "test.h"

TEST_CASE("bias gradient") {
    Random random(1);
    for (int OC : {PackX::size, 16, 128, 760, 1128, 2304, 6400, 8192}) {
        for (int64_t N : {1, 5, 199, 3000}) {
            if (N == 3000 && OC > 1128) continue;
            INFO("N=" << N << " OC=" << OC);
            // With a mean: a sum that only random walks would hide a lost row.
            auto dout = random.normals<floatX>(static_cast<size_t>(N) * OC, 1.0, 0.5);
            auto before = random.normals<float>(OC);
            std::vector<double> want = to_double(before);
            for (int64_t n = 0; n < N; n++)
                for (int c = 0; c < OC; c++) want[c] += to_float(dout[n * OC + c]);
            Device<floatX> d(dout);
            Device<float> scratch(bias_scratch_bytes(OC) / sizeof(float));
            std::vector<float> first;
            for (int run = 0; run < 2; run++) {
                Device<float> dbias(before);
                scratch.poison();
                bias_backward(dbias.data, d.data, scratch.data, N, OC, true, nullptr);
                auto got = dbias.read();
                // fp32 sums of N terms of one sign: each of the partial sums has its rounding, sqrt(N) * 2^-24 in all.
                CHECK(relative_error(to_double(got), want) < 0x1p-24 * (3 + std::sqrt(static_cast<double>(N))));
                if (run == 0) first = got;
                else CHECK(memcmp(first.data(), got.data(), got.size() * sizeof(float)) == 0);
            }
        }
    }
}

TEST_CASE("bias gradient with a factor in device memory") {
    Random random(3);
    const int OC = 128;
    for (int64_t N : {1, 199, 3000}) {
        for (float scale : {-0.37f, 0.0f, 3.0f}) {
            INFO("N=" << N << " scale=" << scale);
            auto dout = random.normals<floatX>(static_cast<size_t>(N) * OC, 1.0, 0.5);
            auto before = random.normals<float>(OC);
            std::vector<double> want = to_double(before);
            for (int64_t n = 0; n < N; n++)
                for (int c = 0; c < OC; c++) want[c] += static_cast<double>(scale) * to_float(dout[n * OC + c]);
            Device<floatX> d(dout);
            Device<float> dbias(before), scratch(bias_scratch_bytes(OC) / sizeof(float)),
                factor(std::vector<float>{1e30f, scale});
            scratch.poison();
            bias_backward(dbias.data, d.data, scratch.data, N, OC, true, nullptr, factor.data + 1);
            // As without a factor; its product rounds every partial sum once more. What was there before can cancel
            // the sum, which the error is relative to: all of it is allowed by its size.
            double size = 0;
            for (int c = 0; c < OC; c++) size += std::pow(std::fabs(want[c] - before[c]) + std::fabs(before[c]), 2);
            std::vector<double> got = to_double(dbias.read());
            double error = 0;
            for (int c = 0; c < OC; c++) error += std::pow(got[c] - want[c], 2);
            CHECK(std::sqrt(error / size) < 0x1p-24 * (4 + std::sqrt(static_cast<double>(N))));
        }
    }
}

TEST_CASE("the second stage of a two-stage sum") {
    Random random(2);
    for (int rows : {1, 63, 64, 255, 256, 700})
        for (int C : {1, 31, 200}) {
            INFO("rows=" << rows << " C=" << C);
            const int M = 3;
            auto partial = random.normals<float>(static_cast<size_t>(rows) * M * C, 1.0, 0.5), before = random.normals<float>(C);
            std::vector<double> want[M];
            for (int m = 0; m < M; m++) {
                want[m] = to_double(before);
                for (int r = 0; r < rows; r++)
                    for (int c = 0; c < C; c++) want[m][c] += partial[(static_cast<size_t>(r) * M + m) * C + c];
            }
            Device<float> d(partial), first(before), third(before);
            PartialTargets target;
            target.total[0] = first.data;
            target.total[2] = third.data;  // nobody wants the second
            add_partials(target, d.data, rows, M, C, nullptr);
            const double tolerance = 0x1p-24 * (3 + std::sqrt(rows));
            CHECK(relative_error(to_double(first.read()), want[0]) < tolerance);
            CHECK(relative_error(to_double(third.read()), want[2]) < tolerance);
        }
}
