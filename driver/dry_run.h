// What --dry-run prints about a run that would be.
#pragma once
#include "driver/options.h"

struct RunSizes {
    int B, T;             // of a micro-batch
    int64_t total_batch;  // tokens of an update, all ranks
    int64_t micro_steps;  // of an update, each rank
    int ranks;
};
// Parameters, FLOPs, memory by segment, and for every level of recomputation its memory, its cost and the largest batch
// for the memory of --memory, or of the device that answers; and how MFU is computed.
void print_dry_run(const TrainOptions& options, const ModelConfig& config, const RunSizes& sizes);
