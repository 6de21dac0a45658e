// Collectives between processes: `mpirun -np N ranks` prints `ok` from rank 0 if every rank finds everything right, and
// ends with 0. Without mpirun it is rank 0 of 1. `ranks abort`: the last rank fails while the others wait for it; the
// program must end, with that rank's status 3.
#include <cuda_bf16.h>
#include <nccl.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "driver/tuning.h"
#include "kernels/error.h"
#include "parallel/comm.h"
#include "parallel/rendezvous.h"

namespace {

int rank = 0, ranks = 1, failures = 0;
ncclComm_t nccl = nullptr;

void check(bool good, const std::string& what) {
    if (good) return;
    failures++;
    fprintf(stderr, "rank %d of %d: %s\n", rank, ranks, what.c_str());
}
void require(int status, const char* call) {
    if (status == 0) return;
    fprintf(stderr, "rank %d of %d: %s gives %d: %s\n", rank, ranks, call, status, ncclGetLastError(nullptr));
    _exit(4);
}
#define REQUIRE_OK(call) require(static_cast<int>(call), #call)

template <class T>
struct Array {
    T* data = nullptr;
    size_t count;
    explicit Array(const std::vector<T>& host) : count(host.size()) {
        REQUIRE_OK(cudaMalloc(reinterpret_cast<void**>(&data), count * sizeof(T) + 16));
        REQUIRE_OK(cudaMemcpy(data, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    }
    explicit Array(size_t n) : Array(std::vector<T>(n)) { REQUIRE_OK(cudaMemset(data, 0xFF, n * sizeof(T))); }
    ~Array() { cudaFree(data); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    std::vector<T> read() const {
        std::vector<T> host(count);
        REQUIRE_OK(cudaDeviceSynchronize());
        REQUIRE_OK(cudaMemcpy(host.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
        return host;
    }
};

template <class T>
constexpr bool is_bf16 = false;
template <>
constexpr bool is_bf16<__nv_bfloat16> = true;

double to_double(double x) {
    return x;
}
double to_double(__nv_bfloat16 x) {
    return static_cast<double>(__bfloat162float(x));
}

// Element i of rank r: around 1 for floating point, small numbers for integers, so that a sum fits even a uint8.
template <class T>
T element(int r, size_t i) {
    uint64_t z = (static_cast<uint64_t>(r) + 1) * 0x9E3779B97F4A7C15ull + i * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 31)) * 0x94D049BB133111EBull;
    z ^= z >> 29;
    if constexpr (is_bf16<T>)
        return __float2bfloat16_rn(static_cast<float>(z % 4001) / 1000.0f - 2.0f);
    else if constexpr (std::is_floating_point_v<T>)
        return static_cast<T>(static_cast<double>(z % 4000001) / 1e6 - 2);
    else
        return static_cast<T>(z % 5 + 1);
}
template <class T>
std::vector<T> elements(int r, size_t count, size_t begin = 0) {
    std::vector<T> out(count);
    for (size_t i = 0; i < count; i++) out[i] = element<T>(r, begin + i);
    return out;
}

template <class T>
double reduced(ncclRedOp_t op, size_t i) {
    double out = to_double(element<T>(0, i));
    for (int r = 1; r < ranks; r++) {
        const double value = to_double(element<T>(r, i));
        if (op == ncclProd)
            out *= value;
        else if (op == ncclMax)
            out = std::fmax(out, value);
        else if (op == ncclMin)
            out = std::fmin(out, value);
        else
            out += value;
    }
    return op == ncclAvg ? out / ranks : out;
}

// Floating point: one rounding per addition and one to the type, of values and partial sums below 2 * ranks (products
// below 2^ranks). Integers: exact, an average truncates.
template <class T>
bool right(T got, ncclRedOp_t op, size_t i) {
    const double want = reduced<T>(op, i);
    if constexpr (std::is_integral_v<T>) {
        return static_cast<double>(got) == std::trunc(want);
    } else {
        const double unit = is_bf16<T> ? 0x1p-8 : sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
        const double inner = is_bf16<T> ? 0x1p-24 : unit, size = op == ncclProd ? std::exp2(ranks) : 2.0 * ranks;
        return std::fabs(to_double(got) - want) <= unit * std::fabs(want) + inner * ranks * size;  // false for NaN
    }
}

template <class T>
void reductions(ncclDataType_t type, std::initializer_list<ncclRedOp_t> ops, const char* name) {
    // The last count needs several windows of the stand-in's exchange; odd, so that the pieces differ in length.
    for (size_t count : {size_t{1}, size_t{7}, size_t{1000}, size_t{70001}, size_t{1700003}}) {
        for (ncclRedOp_t op : ops) {
            if (count > 100000 && (type != ncclFloat32 || op != ncclAvg)) continue;
            for (bool in_place : {false, true}) {
                const std::string where =
                    format("%s, op %d, count %zu%s", name, static_cast<int>(op), count, in_place ? ", in place" : "");
                auto all_right = [&](const std::vector<T>& got, size_t begin) {
                    for (size_t i = 0; i < got.size(); i++) {
                        if (!right(got[i], op, begin + i)) return false;
                    }
                    return true;
                };
                {
                    std::vector<T> first;
                    for (int again = 0; again < 2; again++) {
                        Array<T> from(elements<T>(rank, count)), to(count);
                        REQUIRE_OK(
                            ncclAllReduce(from.data, in_place ? from.data : to.data, count, type, op, nccl, nullptr));
                        const std::vector<T> got = (in_place ? from : to).read();
                        check(all_right(got, 0), "all-reduce of " + where);
                        if (!in_place)
                            check(memcmp(from.read().data(), elements<T>(rank, count).data(), count * sizeof(T)) == 0,
                                  "all-reduce writes its input: " + where);
                        if (again)
                            check(memcmp(first.data(), got.data(), count * sizeof(T)) == 0,
                                  "all-reduce has other bits the second time: " + where);
                        first = got;
                    }
                }
                {
                    const size_t total = count * static_cast<size_t>(ranks), begin = count * static_cast<size_t>(rank);
                    Array<T> from(elements<T>(rank, total)), to(count);
                    T* out = in_place ? from.data + begin : to.data;
                    REQUIRE_OK(ncclReduceScatter(from.data, out, count, type, op, nccl, nullptr));
                    std::vector<T> got = (in_place ? from : to).read();
                    if (in_place)
                        got = std::vector<T>(got.begin() + static_cast<long>(begin),
                                             got.begin() + static_cast<long>(begin + count));
                    check(all_right(got, begin), "reduce-scatter of " + where);
                }
                {
                    const int root = ranks - 1;
                    Array<T> from(elements<T>(rank, count)), to(count);
                    REQUIRE_OK(
                        ncclReduce(from.data, in_place ? from.data : to.data, count, type, op, root, nccl, nullptr));
                    if (rank == root) check(all_right((in_place ? from : to).read(), 0), "reduce of " + where);
                }
            }
        }
    }
}

void copies() {
    for (size_t count : {size_t{1}, size_t{1001}, size_t{300007}}) {
        const size_t total = count * static_cast<size_t>(ranks);
        std::vector<float> want;
        for (int r = 0; r < ranks; r++) {
            for (float x : elements<float>(r, count)) want.push_back(x);
        }
        const std::vector<float> own = elements<float>(rank, count);
        {
            Array<float> from(own), to(total);
            REQUIRE_OK(ncclAllGather(from.data, to.data, count, ncclFloat32, nccl, nullptr));
            check(to.read() == want, format("all-gather of %zu", count));
        }
        {
            std::vector<float> start(total, NAN);
            std::copy(own.begin(), own.end(), start.begin() + static_cast<long>(count) * rank);
            Array<float> both(start);
            REQUIRE_OK(ncclAllGather(both.data + count * static_cast<size_t>(rank), both.data, count, ncclFloat32, nccl,
                                     nullptr));
            check(both.read() == want, format("all-gather in place of %zu", count));
        }
        for (int root = 0; root < ranks; root++) {
            Array<float> from(own), to(count), both(own);
            REQUIRE_OK(ncclBroadcast(from.data, to.data, count, ncclFloat32, root, nccl, nullptr));
            REQUIRE_OK(ncclBroadcast(both.data, both.data, count, ncclFloat32, root, nccl, nullptr));
            check(to.read() == elements<float>(root, count), format("broadcast of %zu from %d", count, root));
            check(both.read() == elements<float>(root, count),
                  format("broadcast in place of %zu from %d", count, root));
        }
    }
}

// Everything at once in one group: a ring of sends and receives (to itself with one rank), and two reductions after
// them, the second of what the first gives.
void groups() {
    const size_t count = 200003;
    const int next = (rank + 1) % ranks, previous = (rank + ranks - 1) % ranks;
    Array<float> mine(elements<float>(rank, count)), got(count), sum(elements<float>(rank, 10));
    REQUIRE_OK(ncclGroupStart());
    REQUIRE_OK(ncclSend(mine.data, count, ncclFloat32, next, nccl, nullptr));
    REQUIRE_OK(ncclRecv(got.data, count, ncclFloat32, previous, nccl, nullptr));
    REQUIRE_OK(ncclGroupStart());
    REQUIRE_OK(ncclAllReduce(sum.data, sum.data, 10, ncclFloat32, ncclSum, nccl, nullptr));
    REQUIRE_OK(ncclGroupEnd());
    REQUIRE_OK(ncclAllReduce(sum.data, sum.data, 10, ncclFloat32, ncclMax, nccl, nullptr));
    REQUIRE_OK(ncclGroupEnd());
    check(got.read() == elements<float>(previous, count), "ring of sends and receives");
    const std::vector<float> sums = sum.read();
    for (size_t i = 0; i < 10; i++) check(right(sums[i], ncclSum, i), "reductions in a group");
    if (ranks > 1) {
        if (rank == 0) REQUIRE_OK(ncclSend(mine.data, count, ncclFloat32, 1, nccl, nullptr));
        if (rank == 1) REQUIRE_OK(ncclRecv(got.data, count, ncclFloat32, 0, nccl, nullptr));
        if (rank == 1) check(got.read() == elements<float>(0, count), "send and receive without a group");
    }
}

// parallel/comm.h
void communicator(Comm* comm) {
    check(comm_local_rank(comm) >= 0 && comm_local_rank(comm) < ranks, "local rank");
    const size_t count = 100003;
    Array<float> gradient(elements<float>(rank, count));
    comm_average(comm, gradient.data, count, nullptr);
    const std::vector<float> average = gradient.read();
    bool good = true;
    for (size_t i = 0; i < count; i++) good = good && right(average[i], ncclAvg, i);
    check(good, "comm_average");
    comm_average(comm, gradient.data, 0, nullptr);

    // In rank order: adding 1 to 2^53 first loses it, adding it to another 1 does not.
    double values[3] = {rank + 1.0, rank == 0 ? 0x1p53 : 1.0, -0.5};
    double in_order = 0x1p53;
    for (int r = 1; r < ranks; r++) in_order += 1.0;
    comm_sum(comm, values, 3);
    check(values[0] == ranks * (ranks + 1) / 2.0 && values[1] == in_order && values[2] == -0.5 * ranks, "comm_sum");
    std::vector<double> many(2000, rank);
    comm_sum(comm, many.data(), 2000);
    check(many[0] == ranks * (ranks - 1) / 2.0 && many[1999] == many[0], "comm_sum of more than fits at first");

    for (int count : {1, 3}) {  // the second needs more room than the first
        std::vector<double> own, all;
        for (int i = 0; i < count; i++) own.push_back(10.0 * rank + i);
        for (int r = 0; r < ranks; r++)
            for (int i = 0; i < count; i++) all.push_back(10.0 * r + i);
        const Array<double> mine(own);
        std::vector<double> found(all.size());
        const double* gathered = comm_gather(comm, mine.data, count, nullptr);
        REQUIRE_OK(cudaMemcpy(found.data(), gathered, found.size() * sizeof(double), cudaMemcpyDeviceToHost));
        check(found == all, "comm_gather");
    }

    const int64_t big = (int64_t{1} << 62) + 12345;
    check(comm_broadcast(comm, rank == 0 ? big : -7) == big, "comm_broadcast");
    check(comm_max(comm, -100 - rank) == -100, "comm_max");
    check(comm_max(comm, big + rank) == big + ranks - 1, "comm_max of large numbers");
    comm_barrier(comm);
}

// Rank 0 measures; the others then run what it has found, which they can know from it alone.
void gemm_choices(Comm* comm) {
    setenv("SIMT_GEMM_ALGOS", "2", 1);
    ModelConfig config = preset_config("gpt2-nano");
    config.layers = 1;
    config.context = 64;
    const ModelPtr model = model_create(config, 1, config.context, Use::training);
    model_init_weights(*model, 1);
    GemmRecord record;
    if (rank == 0) {
        model_rehearse(*model);
        record.choices = model_gemms(*model);
        check(record.choices.size() >= 10, "products measured in a rehearsal");
    }
    share_gemms(*model, comm, record);
    const std::vector<int> tokens(static_cast<size_t>(config.context) + 1, 7);
    model_forward_backward(*model, tokens.data(), tokens.data() + 1, 1, config.context, 1.0);
    std::string met;
    for (const MatmulChoice& choice : model_gemms(*model)) met += choice.product + choice.algorithm;
    const int64_t own = static_cast<int64_t>(std::hash<std::string>()(met));
    check(!met.empty() && comm_broadcast(comm, own) == own, "algorithms of rank 0 on every rank");
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const Launch launch = launch_from_environment();
        Comm* comm = comm_create();
        rank = comm_rank(comm);
        ranks = comm_size(comm);
        check(rank == launch.rank && ranks == launch.size, "rank and size");

        if (argc > 1 && strcmp(argv[1], "abort") == 0) {
            if (rank == ranks - 1) comm_abort(comm, 3);
            comm_barrier(comm);
            sleep(60);
            return 0;
        }

        communicator(comm);

        // A communicator of our own beside that one.
        ncclUniqueId id = {};
        if (rank == 0) REQUIRE_OK(ncclGetUniqueId(&id));
        rendezvous(launch, &id, sizeof id);
        REQUIRE_OK(ncclCommInitRank(&nccl, ranks, id, rank));
        int value = 0;
        REQUIRE_OK(ncclCommCount(nccl, &value));
        check(value == ranks, "ncclCommCount");
        REQUIRE_OK(ncclCommUserRank(nccl, &value));
        check(value == rank, "ncclCommUserRank");

        reductions<float>(ncclFloat32, {ncclSum, ncclAvg, ncclMax, ncclMin, ncclProd}, "fp32");
        reductions<double>(ncclFloat64, {ncclSum, ncclAvg, ncclMax}, "fp64");
        reductions<__nv_bfloat16>(ncclBfloat16, {ncclSum, ncclAvg}, "bf16");
        reductions<int32_t>(ncclInt32, {ncclSum, ncclMax, ncclMin, ncclAvg}, "int32");
        reductions<int64_t>(ncclInt64, {ncclSum, ncclMax, ncclProd}, "int64");
        reductions<uint8_t>(ncclUint8, {ncclSum, ncclMax}, "uint8");
        copies();
        groups();
        gemm_choices(comm);

        // Nobody says ok before all are done.
        double all_failures = failures;
        comm_sum(comm, &all_failures, 1);
        REQUIRE_OK(ncclCommDestroy(nccl));
        comm_destroy(comm);
        if (rank == 0 && all_failures == 0) printf("ok\n");
        return all_failures == 0 ? 0 : 1;
    } catch (const UserError& error) {
        fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
