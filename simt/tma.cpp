// Twins of TMA copies and of the fence between the proxies. The contracts stand in kernels/gpu/ptx_sm90.cuh.
#include <algorithm>
#include <cstring>

#include "async.h"
#include "report.h"

#define CALL(name)                        \
    Call {                                \
        name, __builtin_return_address(0) \
    }

namespace simt {
namespace {

struct Store {
    TensorMap map;
    int c[5];
    uint32_t from, bytes;
    uint64_t group;
    bool add;           // in fp32, to what lies there
    bool read = false;  // `tile` holds the box, dense and without swizzle
    std::vector<unsigned char> tile;
};
struct Stores {  // of one lane
    std::deque<Store> waiting;
    uint64_t groups = 0;  // committed so far; also the number of the group that is open
};

uint32_t box_bytes(const TensorMap& map) {
    uint64_t bytes = map.stride[0];
    for (int i = 0; i < 5; i++) bytes *= map.box[i];
    return static_cast<uint32_t>(bytes);
}

// Calls row(global, first, count, dense) for each row of the box, `dense` being its offset in the dense box: elements
// first.. first + count - 1 of it lie in the tensor, the first of these at `global`. count is 0 for rows outside.
template <class Row>
void for_each_row(const TensorMap& map, const int (&c)[5], Row&& row) {
    const int64_t begin = std::max<int64_t>(0, -int64_t{c[0]});
    const int64_t end = std::min<int64_t>(map.box[0], static_cast<int64_t>(map.size[0]) - c[0]);
    const uint32_t row_bytes = map.box[0] * static_cast<uint32_t>(map.stride[0]);
    uint32_t i[5] = {}, dense = 0;
    for (;;) {
        bool inside = end > begin;
        const unsigned char* global = map.base + (c[0] + begin) * static_cast<int64_t>(map.stride[0]);
        for (int d = 1; d < 5; d++) {
            const int64_t at = int64_t{c[d]} + i[d];
            inside = inside && at >= 0 && at < static_cast<int64_t>(map.size[d]);
            global += at * static_cast<int64_t>(map.stride[d]);
        }
        row(const_cast<unsigned char*>(global), inside ? static_cast<uint32_t>(begin) : 0,
            inside ? static_cast<uint32_t>(end - begin) : 0, dense);
        dense += row_bytes;
        int d = 1;
        while (d < 5 && ++i[d] == map.box[d]) i[d++] = 0;
        if (d == 5) return;
    }
}

// Where the 16 bytes at `dense` of a box at `tile` lie.
uint32_t placed(const TensorMap& map, uint32_t tile, uint32_t dense) {
    return (tile + dense) ^ swizzle_bits(map.swizzle, tile + dense);
}

void check_map(Call call, const TensorMap& map, int rank) {
    if (map.mark != kTensorMapMark) fail(call, "not a map that make_tensor_map made");
    if (map.rank != rank) fail(call, "the map is of a tensor of rank %d", map.rank);
}
uint32_t check_tile(Call call, const TensorMap& map, const void* tile) {
    const unsigned alignment =
        std::max(128u, map.swizzle == Swizzle::none ? 0 : 128u << static_cast<unsigned>(map.swizzle));
    return shared_offset(call, tile, box_bytes(map), alignment);
}

void read_tile(Store& store) {
    const Async& a = async_state();
    store.tile.resize(store.bytes);
    for (uint32_t i = 0; i < store.bytes; i += 16)
        memcpy(store.tile.data() + i, a.view + placed(store.map, store.from, i), 16);
    store.read = true;
}
void stop_reading(Async& a, const Store& store, const void* pc) {
    std::vector<uint16_t> pieces;
    for (uint32_t i = store.from / 16; i < (store.from + store.bytes) / 16; i++) {
        a.reading[i]--;
        if (kChecking) pieces.push_back(static_cast<uint16_t>(i));
    }
    check_async_read_over(check_async_event(), false, pieces.data(), pieces.size(), pc);
}
void write_out(const Store& store) {
    const size_t element = store.map.stride[0];
    for_each_row(store.map, store.c, [&](unsigned char* global, uint32_t first, uint32_t count, uint32_t dense) {
        const unsigned char* from = store.tile.data() + dense + first * element;
        if (!store.add) {
            memcpy(global, from, count * element);
            return;
        }
        for (uint32_t i = 0; i < count; i++) {
            float there, more;
            memcpy(&there, global + 4 * i, 4);
            memcpy(&more, from + 4 * i, 4);
            there += more;
            memcpy(global + 4 * i, &there, 4);
        }
    });
}

// The box at `tile` of shared memory is on its way to map's element c.
void start_store(Call call, const TensorMap& map, const int (&c)[5], uint32_t tile, bool add) {
    Async& a = async_state();
    Store store{map, {}, tile, box_bytes(map), lane_local<Stores>().groups, add, false, {}};
    std::copy(c, c + 5, store.c);
    a.publish();
    for (uint32_t i = store.from / 16; i < (store.from + store.bytes) / 16; i++) {
        if (a.arriving[i]) fail(call, "a load to byte %u of shared memory is on its way", 16 * i);
        a.reading[i]++;
    }
    for_each_row(map, store.c, [&](unsigned char* global, uint32_t first, uint32_t count, uint32_t dense) {
        // What lies outside the tensor need not have been written.
        const uint32_t from_byte = first * static_cast<uint32_t>(map.stride[0]),
                       end_byte = from_byte + count * static_cast<uint32_t>(map.stride[0]);
        for (uint32_t i = from_byte; i < end_byte; i = i / 16 * 16 + 16)
            check_async_read(placed(map, store.from, dense + i / 16 * 16) + i % 16, std::min(end_byte - i, 16 - i % 16),
                             call.pc);
        if (add) check_read(global, count * map.stride[0], call.pc);
        check_write(global, count * map.stride[0], call.pc);
    });
    lane_local<Stores>().waiting.push_back(std::move(store));
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Loads

void tma_load(void* to, const TensorMap& map, uint64_t* barrier, const int* c, int rank) {
    const Call call{rank == 2 ? "tma_load_2d" : rank == 3 ? "tma_load_3d" : "tma_load_4d", __builtin_return_address(0)};
    Async& a = async_state();
    check_map(call, map, rank);
    const uint32_t tile = check_tile(call, map, to), bytes = box_bytes(map);
    const Mbarrier& m = find_mbarrier(call, barrier);
    if (!m.fenced) fail(call, "no mbarrier_init_fence after the mbarrier at byte %u was initialised", m.at);
    a.publish();
    for (uint32_t i = tile / 16; i < (tile + bytes) / 16; i++) {
        if (a.arriving[i]) fail(call, "another load to byte %u of shared memory is on its way", 16 * i);
        if (a.reading[i])
            fail(call, "a product or store on its way still reads byte %u of shared memory, to which this load goes",
                 16 * i);
    }
    Load load{map, {}, tile, bytes, m.at, self.thread, check_load_issued(tile, bytes, call.pc)};
    std::copy(c, c + rank, load.c);
    for_each_row(map, load.c, [&](unsigned char* global, uint32_t, uint32_t count, uint32_t) {
        check_read(global, count * map.stride[0], call.pc);
    });
    memset(self.block->shared + tile, 0xff, bytes);
    std::fill(a.arriving.begin() + tile / 16, a.arriving.begin() + (tile + bytes) / 16, 1);
    a.loads.push_back(load);
}

bool arrive_one_load() {
    Async& a = async_state();
    if (a.loads.empty()) return false;
    const auto which = a.loads.begin() + choose(static_cast<unsigned>(a.loads.size()));
    const Load load = *which;
    a.loads.erase(which);
    const size_t element = load.map.stride[0];
    const uint32_t row_bytes = load.map.box[0] * static_cast<uint32_t>(element);
    for_each_row(load.map, load.c, [&](unsigned char* global, uint32_t first, uint32_t count, uint32_t dense) {
        unsigned char row[1024] = {};
        memcpy(row + first * element, global, count * element);
        for (uint32_t i = 0; i < row_bytes; i += 16) {
            const uint32_t at = placed(load.map, load.to, dense + i);
            memcpy(self.block->shared + at, row + i, 16);
            memcpy(a.view + at, row + i, 16);
        }
    });
    std::fill(a.arriving.begin() + load.to / 16, a.arriving.begin() + (load.to + load.bytes) / 16, 0);
    complete_load(load);
    return true;
}

void describe_loads(std::string& text) {
    const Async& a = async_state();
    if (!a.loads.empty()) text += "\n  " + std::to_string(a.loads.size()) + " TMA loads are on their way";
}

// ---------------------------------------------------------------------------------------------------------------------
// Stores

void tma_store(const TensorMap& map, const void* from, const int* c, int rank) {
    const Call call{rank == 2   ? "tma_store_2d"
                    : rank == 3 ? "tma_store_3d"
                                : "tma_store_4d",
                    __builtin_return_address(0)};
    async_state();
    check_map(call, map, rank);
    int at[5] = {};
    std::copy(c, c + rank, at);
    start_store(call, map, at, check_tile(call, map, from), false);
}

void bulk_copy(void* to, const void* from, unsigned bytes, bool add) {
    const Call call{add ? "bulk_add" : "bulk_store", __builtin_return_address(0)};
    async_state();
    if (bytes == 0 || bytes % 16) fail(call, "%u bytes are not a multiple of 16", bytes);
    if (reinterpret_cast<uintptr_t>(to) % 16) fail(call, "the global address %p is not a multiple of 16", to);
    TensorMap row;  // as a box of one row
    row.base = static_cast<const unsigned char*>(to);
    row.stride[0] = 4;
    std::fill(row.size, row.size + 5, 1);
    std::fill(row.box, row.box + 5, 1);
    row.size[0] = row.box[0] = bytes / 4;
    start_store(call, row, {}, shared_offset(call, from, bytes, 16), add);
}

void tma_store_commit() {
    async_state();
    lane_local<Stores>().groups++;
}

void tma_store_wait(unsigned newest, bool read_only) {
    Async& a = async_state();
    Stores& stores = lane_local<Stores>();
    for (Store& store : stores.waiting) {
        if (store.group + newest >= stores.groups) break;
        if (!store.read) {
            read_tile(store);
            stop_reading(a, store, __builtin_return_address(0));
        }
        if (!read_only) write_out(store);
    }
    if (!read_only)
        while (!stores.waiting.empty() && stores.waiting.front().group + newest < stores.groups)
            stores.waiting.pop_front();
}

void finish_stores(bool last_lane) {
    const Call call{"end of the thread", nullptr};
    for (const Store& store : lane_local<Stores>().waiting) {
        if (store.group >= lane_local<Stores>().groups) fail(call, "a TMA store was not committed");
        if (!store.read) fail(call, "a TMA store may still read shared memory: no tma_store_wait_read came after it");
    }
    // The end of the block waits for what has been read.
    if (!last_lane) return;
    PerLane<Stores>& all = block_local<PerLane<Stores>>();
    for (unsigned t = 0; t < self.block->threads; t++)
        for (const Store& store : all.items[t].waiting) write_out(store);
}

void tma_prefetch(const TensorMap& map) {
    if (map.mark != kTensorMapMark)
        fail({"tma_prefetch", __builtin_return_address(0)}, "not a map that make_tensor_map made");
}

void fence_proxy_async() {
    check_proxy_fence();
    async_state().fences = true;
}

}  // namespace simt
