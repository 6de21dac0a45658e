// What a training step must move and compute: every launch says it, a recorder adds it up, by operation.
//
// A launch is preceded by one declaration of the arrays that it touches,
//
//     MOVES("attention_delta", {reads(dout, n), reads(out, n), writes(delta, rows)});
//     launch(attention_delta_kernel, ...);
//
// in elements of the pointers' types. What counts are unique bytes of device memory: what must cross the memory bus when
// nothing stays in a cache from one kernel to the next. An array that the launch reads several times counts once; what it
// writes and reads again itself counts as written; null pointers, and an array named twice, count once or not at all.
// tests/test_traffic.cpp compares every declaration with what the CPU machine's checking mode sees.
//
// While nobody counts, a declaration costs one branch.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace traffic {

inline bool counting = false;

struct Array {
    const void* data;
    int64_t bytes;
    bool read, written;
    bool operator==(const Array&) const = default;
};

// One operation: its launches since start(), by the range that they were made in.
struct Operation {
    std::string range, name;  // "attention", "matmul_forward"; without a layer's number
    int64_t launches = 0;
    int64_t read = 0, written = 0;  // bytes
    double flops = 0;               // floating-point operations that it performs, of products and attention
    double ms = 0;                  // 0 if not timed
    bool product = false;           // a matrix product: its bytes are those of its operands
};
constexpr const char* UNDECLARED = "undeclared";  // the name of launches that nobody has declared

// Counts from now on, with everything at zero. timed: events stand around every launch, so that each has its time; one
// that is captured into a graph cannot be timed.
void start(bool timed);
// Ends the counting (synchronises if timed). In the order in which operations came first.
std::vector<Operation> stop();

// Called behind every launch with what that launch declared; null: nobody. For tests.
inline void (*listener)(const Operation& launch) = nullptr;

void declare(const char* name, std::initializer_list<Array> arrays, double flops = 0);
void declare_more(std::initializer_list<Array> arrays);
void declare_product(const char* name, std::initializer_list<Array> arrays, double flops);
void begin_launch(cudaStream_t stream);
void end_launch(cudaStream_t stream);

// Lives around a launch.
struct Launch {
    cudaStream_t stream;
    explicit Launch(cudaStream_t s) : stream(s) {
        if (counting) begin_launch(stream);
    }
    ~Launch() {
        if (counting) end_launch(stream);
    }
    Launch(const Launch&) = delete;
    Launch& operator=(const Launch&) = delete;
};

// For as long as it lives, launches belong to this operation of this layer (from 0; -1: none): an NVTX range "NAME l",
// which profilers show, and the recorder's `range`. They may be nested; the innermost counts. Nothing is allocated.
class Range {
  public:
    explicit Range(const char* name, int layer = -1);
    ~Range();
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;

  private:
    const char* outer_;
};

}  // namespace traffic

template <class T>
traffic::Array reads(const T* data, int64_t count) {
    return {data, data ? count * static_cast<int64_t>(sizeof(T)) : 0, true, false};
}
template <class T>
traffic::Array writes(const T* data, int64_t count) {
    return {data, data ? count * static_cast<int64_t>(sizeof(T)) : 0, false, true};
}
template <class T>
traffic::Array updates(const T* data, int64_t count) {  // reads, then writes
    return {data, data ? count * static_cast<int64_t>(sizeof(T)) : 0, true, true};
}

// Arrays whose addresses only the device knows.
inline traffic::Array reads_bytes(int64_t bytes) {
    return {nullptr, bytes, true, false};
}
inline traffic::Array writes_bytes(int64_t bytes) {
    return {nullptr, bytes, false, true};
}

// MOVES(name, {arrays...}[, flops]) declares the launch that follows; MOVES_MORE({arrays...}) adds to it.
#define MOVES(...)                                                    \
    do {                                                              \
        if (traffic::counting) traffic::declare(__VA_ARGS__);         \
    } while (false)
#define MOVES_MORE(...)                                               \
    do {                                                              \
        if (traffic::counting) traffic::declare_more(__VA_ARGS__);    \
    } while (false)
