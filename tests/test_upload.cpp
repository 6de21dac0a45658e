// Small tables on their way to the device.
#include <cstring>

#include "kernels/upload.cuh"
#include "test.h"

TEST_CASE("upload_values: any number of words, host memory is free at once", "[upload]") {
    Random random(4);
    for (size_t count : {size_t{1}, size_t{31}, size_t{960}, size_t{961}, size_t{1920}, size_t{5000}}) {
        std::vector<int> host(count), want;
        for (int& x : host) x = random.below(1 << 30);
        want = host;
        Device<int> device(count + 2);
        device.poison();
        upload_values(device.data + 1, host.data(), count * sizeof(int), nullptr);
        std::fill(host.begin(), host.end(), 7);
        const std::vector<int> got = device.read();
        INFO(count << " words");
        CHECK(memcmp(got.data() + 1, want.data(), count * sizeof(int)) == 0);
        CHECK(got.front() == -1);
        CHECK(got.back() == -1);
    }
}
