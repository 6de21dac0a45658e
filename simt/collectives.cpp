// The parts of collectives.cuh that only the last lane runs.
#include <collectives.cuh>

#include "engine.h"

namespace simt {

template <class Op>
void fold_groups(Block& block, unsigned group, int values) {
    if (block.alive != block.threads || block.threads % kWarp || block.num_warps % group) [[unlikely]]
        die("a sum over a row or block needs all threads, in full warps (%u of %u are left)", block.alive,
            block.threads);
    for (int k = 0; k < values; k++) {
        for (unsigned first = 0; first < block.num_warps; first += group) {
            float partial[kWarp];
            for (unsigned w = 0; w < group; w++) partial[w] = fold<Op, kWarp>(block.warps[first + w].value[k]);
            float result = fold_warps<Op>(partial, group);
            for (unsigned w = 0; w < group; w++) block.warps[first + w].result[k] = result;
        }
    }
}
template void fold_groups<Sum>(Block&, unsigned, int);
template void fold_groups<Max>(Block&, unsigned, int);

void check_scratch(const char* name, void* scratch, size_t bytes) {
    Block& block = *self.block;
    auto* p = static_cast<unsigned char*>(scratch);
    if (p < block.shared || p + bytes > block.shared + block.shared_bytes) [[unlikely]]
        die("%s: its scratch of %zu bytes does not lie in the block's shared memory of %zu bytes", name, bytes,
            block.shared_bytes);
#ifdef SIMT_CHECK
    check_scratch_used(scratch, bytes);
#endif
}

double block_sum_double(double value, double* scratch) {
    struct Args {
        double value, result;
    } args{value, 0};
    block_collective("block_sum", args, [&](Args* const* threads, unsigned count) {
        check_scratch("block_sum", scratch, 32 * sizeof(double));
        Block& block = *self.block;
        if (block.alive != block.threads || block.threads % kWarp)
            die("block_sum needs all threads, in full warps (%u of %u are left)", block.alive, block.threads);
        double partial[kWarp] = {};
        for (unsigned w = 0; w < block.num_warps; w++) {
            double t[kWarp];
            for (unsigned i = 0; i < kWarp; i++) t[i] = threads[w * kWarp + i]->value;
            for (unsigned n = kWarp / 2; n > 0; n /= 2)
                for (unsigned i = 0; i < n; i++) t[i] += t[i + n];
            partial[w] = t[0];
        }
        for (unsigned n = power_of_two_from(block.num_warps) / 2; n > 0; n /= 2)
            for (unsigned i = 0; i < n; i++) partial[i] += partial[i + n];
        for (unsigned i = 0; i < count; i++) threads[i]->result = partial[0];
    });
    return args.result;
}

// What a block keeps: who waits at its barrier, and the objects that live as long as it does.

void release_block(Block& b) {
    b.waiting = 0;
    for (unsigned w = 0; w < b.num_warps; w++) {
        b.warps[w].ready |= b.warps[w].at_block;
        b.warps[w].at_block = 0;
    }
    // The running lane, if it stood at the barrier, goes on by itself.
    self.warp->ready &= ~(1u << self.lane);
    check_block_synced(b);
}

Local* find_local(const void* type) {
    for (Local* l = self.block->locals; l; l = l->next)
        if (l->type == type) return l;
    return nullptr;
}

Local* add_local(const void* type, void* object, void (*destroy)(void*)) {
    return self.block->locals = new Local{type, object, destroy, self.block->locals};
}

void drop_locals(Block& b) {
    while (Local* local = b.locals) {
        b.locals = local->next;
        local->destroy(local->object);
        delete local;
    }
}

}  // namespace simt
