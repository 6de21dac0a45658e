// Which algorithms a run's products use: a checkpoint's, so that a resumed run repeats the same bits; else those kept
// on disk; else measured now.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/gemm_record.h"
#include "model/model.h"
#include "parallel/comm.h"

// record: of the checkpoint that is resumed, or empty; afterwards what the model uses, for the next checkpoint. Without
// `measure` nothing is measured nor looked up on disk.
void tune_gemms(Model& model, bool measure, GemmRecord& record, std::vector<std::string>& notes);

// Rank 0's choices on every rank: with other algorithms on other ranks, bits would depend on who measured what. What
// has not been chosen runs what the library names first, the same everywhere.
void share_gemms(Model& model, Comm* comm, const GemmRecord& record);
