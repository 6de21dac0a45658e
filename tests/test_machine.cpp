// Peak rates: the table by name against multiprocessors x units x clock.
#include "driver/machine.h"

#include "test.h"

namespace {

// From the makers' data sheets: multiprocessors, and the boost clocks in GHz behind the two peaks. Hopper's and
// Blackwell's tensor cores are rated at a lower clock than the highest.
struct Known {
    const char* name;
    int major, minor, multiprocessors;
    double tensor_clock, clock;
};
const Known cards[] = {
    {"NVIDIA GB200", 10, 0, 148, 2.062, 2.062},
    {"NVIDIA B200", 10, 0, 148, 1.856, 1.965},
    {"NVIDIA GH200 480GB", 9, 0, 132, 1.83, 1.98},
    {"NVIDIA H200", 9, 0, 132, 1.83, 1.98},
    {"NVIDIA H200 NVL", 9, 0, 132, 1.545, 1.785},
    {"NVIDIA H100 80GB HBM3", 9, 0, 132, 1.83, 1.98},
    {"NVIDIA H100 96GB HBM3", 9, 0, 132, 1.83, 1.98},
    {"NVIDIA H100 NVL", 9, 0, 132, 1.545, 1.785},
    {"NVIDIA H100 PCIe", 9, 0, 114, 1.62, 1.755},
    {"NVIDIA A100-SXM4-80GB", 8, 0, 108, 1.41, 1.41},
    {"NVIDIA A100-PCIE-40GB", 8, 0, 108, 1.41, 1.41},
    {"NVIDIA A30", 8, 0, 56, 1.44, 1.44},
    {"NVIDIA A40", 8, 6, 84, 1.74, 1.74},
    {"NVIDIA A10", 8, 6, 72, 1.695, 1.695},
    {"NVIDIA RTX A6000", 8, 6, 84, 1.8, 1.8},
    {"NVIDIA L40S", 8, 9, 142, 2.52, 2.52},
    {"NVIDIA L4", 8, 9, 58, 2.04, 2.04},
    {"NVIDIA RTX 6000 Ada Generation", 8, 9, 142, 2.505, 2.505},
    {"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 12, 0, 188, 2.617, 2.617},
    {"NVIDIA GeForce RTX 5090", 12, 0, 170, 2.407, 2.407},
    {"NVIDIA GeForce RTX 5080", 12, 0, 84, 2.617, 2.617},
    {"NVIDIA GeForce RTX 5070 Ti", 12, 0, 70, 2.452, 2.452},
    {"NVIDIA GeForce RTX 5070", 12, 0, 48, 2.512, 2.512},
    {"NVIDIA GeForce RTX 4090", 8, 9, 128, 2.52, 2.52},
    {"NVIDIA GeForce RTX 4080 SUPER", 8, 9, 80, 2.55, 2.55},
    {"NVIDIA GeForce RTX 4080", 8, 9, 76, 2.505, 2.505},
    {"NVIDIA GeForce RTX 4070 Ti SUPER", 8, 9, 66, 2.61, 2.61},
    {"NVIDIA GeForce RTX 4070 Ti", 8, 9, 60, 2.61, 2.61},
    {"NVIDIA GeForce RTX 4070 SUPER", 8, 9, 56, 2.475, 2.475},
    {"NVIDIA GeForce RTX 4070", 8, 9, 46, 2.475, 2.475},
    {"NVIDIA GeForce RTX 3090 Ti", 8, 6, 84, 1.86, 1.86},
    {"NVIDIA GeForce RTX 3090", 8, 6, 82, 1.695, 1.695},
    {"NVIDIA GeForce RTX 3080 Ti", 8, 6, 80, 1.665, 1.665},
    {"NVIDIA GeForce RTX 3080", 8, 6, 68, 1.71, 1.71},
    {"NVIDIA GeForce RTX 3070", 8, 6, 46, 1.725, 1.725},
    {"NVIDIA GeForce RTX 3060", 8, 6, 28, 1.777, 1.777},
};

}  // namespace

TEST_CASE("peak FLOP/s: the table agrees with units times clock", "[machine]") {
    for (const Known& card : cards)
        for (bool bf16 : {true, false}) {
            CAPTURE(card.name, bf16);
            const Card device = {card.name, card.major, card.minor, card.multiprocessors,
                                   1e9 * (bf16 ? card.tensor_clock : card.clock)};
            const Peak named = peak_by_name(device, bf16), counted = peak_by_units(device, bf16);
            CHECK(named.flops == Approx(counted.flops).epsilon(0.025));
            CHECK(find_peak(device, bf16).flops == named.flops);
            CHECK(find_peak(device, bf16).source == named.source);
        }
}

TEST_CASE("peak FLOP/s: names", "[machine]") {
    auto bf16 = [](const std::string& name) { return peak_by_name({name, 0, 0, 0, 0}, true).flops * 1e-12; };
    CHECK(bf16("NVIDIA H20") == Approx(148));
    CHECK(bf16("NVIDIA B300 SXM6 AC") == Approx(2250));
    CHECK(bf16("NVIDIA GB300") == Approx(2500));
    CHECK(bf16("NVIDIA L40") == Approx(181));
    CHECK(bf16("NVIDIA L40S") == Approx(362));
    CHECK(bf16("NVIDIA L4") == Approx(121));
    // Neither siblings with longer names, nor slices, nor laptops have their numbers.
    for (const char* name :
         {"NVIDIA A10G", "NVIDIA A100X", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3080 Laptop GPU",
          "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"}) {
        CAPTURE(name);
        const Peak peak = peak_by_name({name, 8, 0, 42, 1e9}, true);
        CHECK(peak.flops == 0);
        CHECK(peak.source.empty());
    }
}

TEST_CASE("peak FLOP/s: cards that are not in the table", "[machine]") {
    const Peak slice = find_peak({"NVIDIA A100-SXM4-80GB MIG 3g.40gb", 8, 0, 42, 1.41e9}, true);
    CHECK(slice.flops == Approx(42 * 2048 * 1.41e9));
    CHECK(slice.source == "42 multiprocessors x 2048 FLOPs x 1.410 GHz (compute capability 8.0, "
                          "dense bf16, fp32 accumulation)");
    const Peak laptop = find_peak({"NVIDIA GeForce RTX 4060 Laptop GPU", 8, 9, 24, 2.37e9}, true);
    CHECK(laptop.flops == Approx(24 * 512 * 2.37e9));
    CHECK(laptop.source.find("half rate on GeForce") != std::string::npos);
    const Peak fp32 = find_peak({"NVIDIA GeForce RTX 4060 Laptop GPU", 8, 9, 24, 2.37e9}, false);
    CHECK(fp32.flops == Approx(24 * 256 * 2.37e9));
    // No bf16: says so, and has fp32.
    for (const Card& old : {Card{"Tesla T4", 7, 5, 40, 1.59e9}, Card{"Quadro RTX 5000", 7, 5, 48, 1.815e9}}) {
        CHECK(find_peak(old, true).flops == 0);
        CHECK(find_peak(old, true).source.find("no bf16 tensor cores") != std::string::npos);
        CHECK(find_peak(old, false).flops == Approx(old.multiprocessors * 128 * old.clock).epsilon(0.025));
    }
    CHECK(find_peak({"NVIDIA Rubin", 99, 0, 200, 2e9}, true).flops == 0);
    CHECK(find_peak({"NVIDIA Rubin", 99, 0, 200, 2e9}, true).source == "not known for compute capability 99.0");
    CHECK(find_peak({"AMD EPYC 9654 96-Core Processor", 8, 0, 96, 2e9}, true).flops == 0);
}

TEST_CASE("MFU: its formula, with numbers", "[machine]") {
    Machine machine;
    machine.peak_flops = 989.4e12, machine.peak_source = "data sheet of H200";
    CHECK(mfu_formula(machine, 2.284e9, 8) ==
          "MFU = tokens/s x 2.284000e+09 FLOPs per token / (8 x 989.4 TFLOP/s: data sheet of H200)");
    machine.peak_flops = 0, machine.peak_source = "not known for this device";
    CHECK(mfu_formula(machine, 2.284e9, 1) == "no MFU: peak FLOP/s: not known for this device");
}
