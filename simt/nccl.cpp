#define OMPI_SKIP_MPICXX
#include "nccl.h"

#include <mpi.h>
#include <omp.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "nccl_reduce.h"
#include "runtime.h"

struct ncclComm {
    int rank = 0, size = 1;
    MPI_Comm mpi = MPI_COMM_NULL;  // null for one rank
    bool aborted = false;
};

namespace {

using simt::nccl::can_reduce;
using simt::nccl::reduce_parts;
using simt::nccl::size_of;

thread_local std::string last_error;

ncclResult_t fail(ncclResult_t result, std::string why) {
    last_error = std::move(why);
    return result;
}

#define MPI_TRY(call) \
    if (int code = (call); code != MPI_SUCCESS) return mpi_failed(#call, code)
ncclResult_t mpi_failed(const char* call, int code) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    return fail(ncclRemoteError, std::string(call) + ": " + text);
}
#define TRY(call) \
    if (ncclResult_t result_ = (call); result_ != ncclSuccess) return result_

bool environment_has(const char* name) {
    return getenv(name) != nullptr;
}
bool under_launcher() {
    return environment_has("OMPI_COMM_WORLD_SIZE") || environment_has("PMI_SIZE") || environment_has("PMIX_RANK");
}

// Threads of a rank: its part of the cores, decided before the first parallel region. A launcher that binds ranks to
// cores or sockets says so; a bound rank sees only its cores, of a socket perhaps with others.
const bool cores_shared = [] {
    const char* local = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    if (!local) local = getenv("MPI_LOCALNRANKS");
    const int ranks = local ? atoi(local) : 1;
    if (ranks > 1 && !environment_has("OMP_NUM_THREADS")) {
        const int usable = omp_get_num_procs(), all = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
        const bool bound = environment_has("OMPI_MCA_orte_bound_at_launch");
        omp_set_num_threads(std::max(1, bound ? std::min(usable, all / ranks) : usable / ranks));
    }
    return true;
}();

// ---------------------------------------------------------------------------------------------------------------------
// Messages

constexpr int kCollectiveTag = 1, kPeerTag = 2;
constexpr size_t kMessageBytes = size_t{1} << 30;  // MPI counts in int
constexpr size_t kWindow = size_t{1} << 19;        // elements of one rank's piece of a reduction in work

struct Requests {
    MPI_Comm mpi;
    std::vector<MPI_Request> pending;
    int error = MPI_SUCCESS;
    explicit Requests(MPI_Comm comm) : mpi(comm) {}
    void send(const void* p, size_t bytes, int to, int tag = kCollectiveTag) {
        for (size_t at = 0; at < bytes; at += kMessageBytes) {
            const int n = static_cast<int>(std::min(kMessageBytes, bytes - at));
            note(MPI_Isend(static_cast<const char*>(p) + at, n, MPI_BYTE, to, tag, mpi, &add()));
        }
    }
    void recv(void* p, size_t bytes, int from, int tag = kCollectiveTag) {
        for (size_t at = 0; at < bytes; at += kMessageBytes) {
            const int n = static_cast<int>(std::min(kMessageBytes, bytes - at));
            note(MPI_Irecv(static_cast<char*>(p) + at, n, MPI_BYTE, from, tag, mpi, &add()));
        }
    }
    ncclResult_t wait() {
        note(MPI_Waitall(static_cast<int>(pending.size()), pending.data(), MPI_STATUSES_IGNORE));
        pending.clear();
        return error == MPI_SUCCESS ? ncclSuccess : mpi_failed("messages between ranks", error);
    }

  private:
    MPI_Request& add() { return pending.emplace_back(MPI_REQUEST_NULL); }
    void note(int code) {
        if (code != MPI_SUCCESS) error = code;
    }
};

const char* at(const void* base, size_t elements, size_t size) {
    return static_cast<const char*>(base) + elements * size;
}
char* at(void* base, size_t elements, size_t size) {
    return static_cast<char*>(base) + elements * size;
}

std::vector<char>& scratch(size_t bytes) {
    thread_local std::vector<char> memory;
    if (memory.size() < bytes) memory.resize(bytes);
    return memory;
}

struct Op {
    enum Kind { all_reduce, reduce, reduce_scatter, all_gather, broadcast, send, recv } kind;
    const void* from;
    void* to;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    int peer;  // or root
    ncclComm_t comm;
};

// Every rank receives the others' n values at from + offset(receiver) and reduces them into `to`, in the order of
// ranks.
template <class Offset>
ncclResult_t exchange_and_reduce(const Op& o, void* to, size_t n_mine, Offset&& piece) {
    ncclComm& comm = *o.comm;
    const size_t size = size_of(o.type), ranks = static_cast<size_t>(comm.size);
    std::vector<char>& memory = scratch(ranks * n_mine * size);
    std::vector<const void*> parts(ranks);
    Requests requests(comm.mpi);
    for (int r = 0; r < comm.size; r++) {
        parts[static_cast<size_t>(r)] = memory.data() + static_cast<size_t>(r) * n_mine * size;
        if (r != comm.rank) requests.recv(memory.data() + static_cast<size_t>(r) * n_mine * size, n_mine * size, r);
    }
    for (int r = 0; r < comm.size; r++) {
        const auto [offset, n] = piece(r);
        if (r == comm.rank)
            parts[static_cast<size_t>(r)] = at(o.from, offset, size);
        else
            requests.send(at(o.from, offset, size), n * size, r);
    }
    TRY(requests.wait());
    if (n_mine > 0) reduce_parts(to, parts.data(), comm.size, n_mine, o.type, o.op);
    return ncclSuccess;
}

struct Piece {
    size_t offset, count;
};

ncclResult_t all_reduce(const Op& o) {
    ncclComm& comm = *o.comm;
    const size_t size = size_of(o.type), ranks = static_cast<size_t>(comm.size);
    if (o.count * size <= 32768) {  // one exchange is quicker than two
        return exchange_and_reduce(o, o.to, o.count, [&](int) { return Piece{0, o.count}; });
    }
    for (size_t base = 0; base < o.count; base += ranks * kWindow) {
        const size_t n = std::min(ranks * kWindow, o.count - base), share = (n + ranks - 1) / ranks;
        auto piece = [&](int r) {
            const size_t begin = std::min(n, static_cast<size_t>(r) * share);
            return Piece{base + begin, std::min(share, n - begin)};
        };
        const Piece mine = piece(comm.rank);
        TRY(exchange_and_reduce(o, at(o.to, mine.offset, size), mine.count, piece));
        Requests requests(comm.mpi);
        for (int r = 0; r < comm.size; r++) {
            if (r != comm.rank) requests.recv(at(o.to, piece(r).offset, size), piece(r).count * size, r);
        }
        for (int r = 0; r < comm.size; r++) {
            if (r != comm.rank) requests.send(at(o.to, mine.offset, size), mine.count * size, r);
        }
        TRY(requests.wait());
    }
    return ncclSuccess;
}

ncclResult_t reduce_scatter(const Op& o) {
    const size_t size = size_of(o.type);
    for (size_t base = 0; base < o.count; base += kWindow) {
        const size_t n = std::min(kWindow, o.count - base);
        TRY(exchange_and_reduce(o, at(o.to, base, size), n, [&](int r) {
            return Piece{static_cast<size_t>(r) * o.count + base, n};
        }));
    }
    return ncclSuccess;
}

ncclResult_t reduce_to_root(const Op& o) {
    const size_t size = size_of(o.type);
    const bool root = o.comm->rank == o.peer;
    for (size_t base = 0; base < o.count; base += kWindow) {
        const size_t n = std::min(kWindow, o.count - base);
        TRY(exchange_and_reduce(o, root ? at(o.to, base, size) : nullptr, root ? n : 0, [&](int r) {
            return Piece{base, r == o.peer ? n : 0};
        }));
    }
    return ncclSuccess;
}

ncclResult_t all_gather(const Op& o) {
    ncclComm& comm = *o.comm;
    const size_t size = size_of(o.type), bytes = o.count * size;
    char* own = at(o.to, static_cast<size_t>(comm.rank) * o.count, size);
    Requests requests(comm.mpi);
    for (int r = 0; r < comm.size; r++) {
        if (r != comm.rank) requests.recv(at(o.to, static_cast<size_t>(r) * o.count, size), bytes, r);
    }
    for (int r = 0; r < comm.size; r++) {
        if (r != comm.rank) requests.send(o.from, bytes, r);
    }
    if (own != o.from) memcpy(own, o.from, bytes);
    return requests.wait();
}

ncclResult_t broadcast(const Op& o) {
    const size_t bytes = o.count * size_of(o.type);
    if (o.comm->rank == o.peer && o.from != o.to) memcpy(o.to, o.from, bytes);
    for (size_t base = 0; base < bytes; base += kMessageBytes) {
        MPI_TRY(MPI_Bcast(at(o.to, base, 1), static_cast<int>(std::min(kMessageBytes, bytes - base)), MPI_BYTE, o.peer,
                          o.comm->mpi));
    }
    return ncclSuccess;
}

ncclResult_t run_collective(const Op& o) {
    if (o.count == 0) return ncclSuccess;
    if (o.comm->size == 1) {
        if (o.from != o.to) memcpy(o.to, o.from, o.count * size_of(o.type));
        return ncclSuccess;
    }
    switch (o.kind) {
        case Op::all_reduce:
            return all_reduce(o);
        case Op::reduce:
            return reduce_to_root(o);
        case Op::reduce_scatter:
            return reduce_scatter(o);
        case Op::all_gather:
            return all_gather(o);
        default:
            return broadcast(o);
    }
}

// For the checking mode, which does not see what MPI and memcpy do.
void note_memory(const Op& o, bool before) {
    const size_t bytes = o.count * size_of(o.type), all = bytes * static_cast<size_t>(o.comm->size);
    const bool root = o.peer == o.comm->rank;
    const bool reads = o.kind != Op::recv && (o.kind != Op::broadcast || root);
    const bool writes = o.kind != Op::send && (o.kind != Op::reduce || root);
    if (before && reads) simt::note_read(o.from, o.kind == Op::reduce_scatter ? all : bytes);
    if (!before && writes) simt::note_written(o.to, o.kind == Op::all_gather ? all : bytes);
}

// Sends and receives start first, collectives run in the order of their calls, then everything is waited for.
ncclResult_t run_together(const std::vector<Op>& ops) {
    for (const Op& o : ops) note_memory(o, true);
    std::vector<Requests> requests;
    std::vector<const Op*> to_self, from_self;
    for (bool receiving : {true, false}) {
        for (const Op& o : ops) {
            if (o.kind != (receiving ? Op::recv : Op::send)) continue;
            if (o.peer == o.comm->rank) {
                (receiving ? from_self : to_self).push_back(&o);
                continue;
            }
            Requests& r = requests.emplace_back(o.comm->mpi);
            if (receiving)
                r.recv(o.to, o.count * size_of(o.type), o.peer, kPeerTag);
            else
                r.send(o.from, o.count * size_of(o.type), o.peer, kPeerTag);
        }
    }
    if (to_self.size() != from_self.size())
        return fail(ncclInvalidUsage, "a rank sends to itself what it does not receive");
    for (size_t i = 0; i < to_self.size(); i++) {
        const Op &s = *to_self[i], &r = *from_self[i];
        if (s.count != r.count || s.type != r.type) return fail(ncclInvalidUsage, "send and receive differ in length");
        if (s.count > 0 && s.from != r.to) memmove(r.to, s.from, s.count * size_of(s.type));
    }
    for (const Op& o : ops) {
        if (o.kind != Op::send && o.kind != Op::recv) TRY(run_collective(o));
    }
    for (Requests& r : requests) TRY(r.wait());
    for (const Op& o : ops) note_memory(o, false);
    return ncclSuccess;
}

thread_local int group_depth = 0;
thread_local std::vector<Op> group;

ncclResult_t enqueue(Op o) {
    const bool reduces = o.kind == Op::all_reduce || o.kind == Op::reduce || o.kind == Op::reduce_scatter;
    const bool has_peer = o.kind == Op::reduce || o.kind == Op::broadcast || o.kind == Op::send || o.kind == Op::recv;
    if (!o.comm) return fail(ncclInvalidArgument, "null communicator");
    if (simt::capturing_stream) {  // the library could be captured; ours keeps exchanges outside of graphs
        simt::spoil(simt::capturing_stream, cudaErrorStreamCaptureUnsupported);
        return fail(ncclInvalidUsage, "not while a stream captures");
    }
    if (o.comm->aborted) return fail(ncclInvalidUsage, "the communicator was aborted");
    if (size_of(o.type) == 0) return fail(ncclInvalidArgument, "data type not supported");
    if (reduces && !can_reduce(o.type, o.op))
        return fail(ncclInvalidArgument, "operation not supported for this data type");
    if (has_peer && (o.peer < 0 || o.peer >= o.comm->size)) return fail(ncclInvalidArgument, "no such rank");
    const bool needs_from = o.kind != Op::recv && !(o.kind == Op::broadcast && o.comm->rank != o.peer);
    const bool needs_to = o.kind != Op::send && !(o.kind == Op::reduce && o.comm->rank != o.peer);
    if (o.count > 0 && ((needs_from && !o.from) || (needs_to && !o.to)))
        return fail(ncclInvalidArgument, "null buffer");
    const bool alone = o.peer == o.comm->rank && (o.kind == Op::send || o.kind == Op::recv);
    if (group_depth == 0 && alone) return fail(ncclInvalidUsage, "a rank sends to itself only within a group");
    if (group_depth == 0) return run_together({o});
    group.push_back(o);
    return ncclSuccess;
}

// ---------------------------------------------------------------------------------------------------------------------
// Start and end

int live_communicators = 0;
bool something_aborted = false;

// A rank that leaves with communicators open has failed: without MPI_Finalize the launcher sees that and ends the
// others, with it they would all wait.
void finalize_at_exit() {
    if (live_communicators == 0 && !something_aborted) MPI_Finalize();
}

ncclResult_t start_mpi() {
    int initialized = 0;
    MPI_Initialized(&initialized);
    if (initialized) return ncclSuccess;
    // Reading another process's memory is forbidden in most containers, and Open MPI finds out too late.
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
    int provided = 0;
    MPI_TRY(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
    atexit(finalize_at_exit);
    return ncclSuccess;
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
    if (!version) return fail(ncclInvalidArgument, "null argument");
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
    switch (result) {
        case ncclSuccess:
            return "no error";
        case ncclUnhandledCudaError:
            return "unhandled cuda error";
        case ncclSystemError:
            return "unhandled system error";
        case ncclInternalError:
            return "internal error";
        case ncclInvalidArgument:
            return "invalid argument";
        case ncclInvalidUsage:
            return "invalid usage";
        case ncclRemoteError:
            return "remote process exited or there was a network error";
        case ncclInProgress:
            return "operation in progress";
        default:
            return "unknown result code";
    }
}
const char* ncclGetLastError(ncclComm_t) {
    return last_error.c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    if (!id) return fail(ncclInvalidArgument, "null argument");
    if (getrandom(id->internal, sizeof id->internal, 0) != static_cast<ssize_t>(sizeof id->internal)) {
        return fail(ncclSystemError, "no random numbers");
    }
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank) {
    if (!comm || nranks < 1 || rank < 0 || rank >= nranks) return fail(ncclInvalidArgument, "rank or number of ranks");
    ncclComm made;
    made.rank = rank;
    made.size = nranks;
    if (nranks > 1) {
        if (!under_launcher()) return fail(ncclSystemError, "on the CPU machine several ranks are started with mpirun");
        TRY(start_mpi());
        int world = 0, world_rank = 0;
        MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
        MPI_TRY(MPI_Comm_size(MPI_COMM_WORLD, &world));
        MPI_TRY(MPI_Comm_rank(MPI_COMM_WORLD, &world_rank));
        // All ranks must agree that all is well, lest some wait for the others for ever.
        ncclUniqueId root_id = id;
        MPI_TRY(MPI_Bcast(root_id.internal, sizeof root_id.internal, MPI_BYTE, 0, MPI_COMM_WORLD));
        int bad[2] = {world != nranks || world_rank != rank,
                      memcmp(root_id.internal, id.internal, sizeof id.internal) != 0};
        int any_bad[2] = {0, 0};
        MPI_TRY(MPI_Allreduce(bad, any_bad, 2, MPI_INT, MPI_MAX, MPI_COMM_WORLD));
        if (any_bad[0])
            return fail(ncclInvalidArgument, "ranks are not those of the launcher (all of them must take part)");
        if (any_bad[1]) return fail(ncclInvalidArgument, "the ranks hold different unique ids");
        MPI_TRY(MPI_Comm_dup(MPI_COMM_WORLD, &made.mpi));
        live_communicators++;
    }
    *comm = new ncclComm(made);
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (!comm) return fail(ncclInvalidArgument, "null communicator");
    if (comm->size > 1 && !comm->aborted) {
        MPI_TRY(MPI_Comm_free(&comm->mpi));
        live_communicators--;
    }
    delete comm;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    if (!comm) return fail(ncclInvalidArgument, "null communicator");
    if (comm->size > 1) something_aborted = true;
    delete comm;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
    if (!comm || !error) return fail(ncclInvalidArgument, "null argument");
    *error = ncclSuccess;
    return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
    if (!comm || !count) return fail(ncclInvalidArgument, "null argument");
    *count = comm->size;
    return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
    if (!comm || !rank) return fail(ncclInvalidArgument, "null argument");
    *rank = comm->rank;
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t) {
    return enqueue({Op::all_reduce, sendbuff, recvbuff, count, type, op, 0, comm});
}
ncclResult_t ncclReduce(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t type, ncclRedOp_t op,
                        int root, ncclComm_t comm, cudaStream_t) {
    return enqueue({Op::reduce, sendbuff, recvbuff, count, type, op, root, comm});
}
ncclResult_t ncclReduceScatter(const void* sendbuff, void* recvbuff, size_t recvcount, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t) {
    return enqueue({Op::reduce_scatter, sendbuff, recvbuff, recvcount, type, op, 0, comm});
}
ncclResult_t ncclAllGather(const void* sendbuff, void* recvbuff, size_t sendcount, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t) {
    return enqueue({Op::all_gather, sendbuff, recvbuff, sendcount, type, ncclSum, 0, comm});
}
ncclResult_t ncclBroadcast(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t) {
    return enqueue({Op::broadcast, sendbuff, recvbuff, count, type, ncclSum, root, comm});
}
ncclResult_t ncclSend(const void* sendbuff, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t) {
    return enqueue({Op::send, sendbuff, nullptr, count, type, ncclSum, peer, comm});
}
ncclResult_t ncclRecv(void* recvbuff, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t) {
    return enqueue({Op::recv, nullptr, recvbuff, count, type, ncclSum, peer, comm});
}

ncclResult_t ncclGroupStart() {
    group_depth++;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
    if (group_depth == 0) return fail(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group_depth > 0) return ncclSuccess;
    const std::vector<Op> ops = std::move(group);
    group.clear();
    return run_together(ops);
}
