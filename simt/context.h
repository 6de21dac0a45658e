// Switching stacks. On x86-64 a few instructions of our own: 3 ns, where Boost.Context's portable jump (used elsewhere)
// takes 8: that one saves the floating-point control words, which all lanes share, and its call without a
// return upsets the processor's return prediction.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <boost/context/detail/fcontext.hpp>
#endif

namespace simt {

using Context = void*;  // where a suspended stack goes on; null: none

#if defined(__x86_64__)

// A context that calls entry() on the stack [base, base + bytes). entry must not return.
inline Context make_context(char* base, size_t bytes, void (*entry)()) {
    auto top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(base + bytes) & ~uintptr_t{63});
    top[-1] = nullptr;  // the return address of entry: debuggers stop here
    top[-2] = reinterpret_cast<void*>(entry);
    return top - 2;
}

// Stores where we are in *from, goes on at `to`; returns when somebody switches back.
__attribute__((always_inline)) inline void switch_context(Context* from, Context to) {
    // The first line keeps off the red zone that a leaf function may use. Everything else is declared overwritten, so
    // that the compiler saves just what it still needs; rbx and rbp it would not let us declare.
    asm volatile(
        "leaq -128(%%rsp), %%rsp\n\t"
        "pushq %%rbp\n\t"
        "pushq %%rbx\n\t"
        "leaq 1f(%%rip), %%rax\n\t"
        "pushq %%rax\n\t"
        "movq %%rsp, (%%rdi)\n\t"
        "movq %%rsi, %%rsp\n\t"
        "popq %%rax\n\t"
        "jmp *%%rax\n"
        "1:\n\t"
        "popq %%rbx\n\t"
        "popq %%rbp\n\t"
        "leaq 128(%%rsp), %%rsp"
        : "+D"(from), "+S"(to)
        :
        : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "xmm0", "xmm1",
          "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
          "xmm15"
#if defined(__AVX512F__)
          ,
          "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",
          "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7"
#endif
    );
}

#else

namespace boost_context = boost::context::detail;
inline thread_local void (*context_entry)() = nullptr;

// Boost hands the context of whoever jumped to the one that wakes up: it is stored on that one's behalf.
inline void boost_entry(boost_context::transfer_t transfer) {
    *static_cast<Context*>(transfer.data) = transfer.fctx;
    context_entry();
}
inline Context make_context(char* base, size_t bytes, void (*entry)()) {
    context_entry = entry;
    return boost_context::make_fcontext(base + bytes, bytes, boost_entry);
}
inline void switch_context(Context* from, Context to) {
    boost_context::transfer_t transfer = boost_context::jump_fcontext(to, from);
    *static_cast<Context*>(transfer.data) = transfer.fctx;
}

#endif

}  // namespace simt
