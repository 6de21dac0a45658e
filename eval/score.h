// Log-likelihoods of continuations behind their contexts, as lm-evaluation-harness's HFLM takes them: white space at
// the end of the context moves to the continuation; the continuation's tokens are those that context and continuation
// together have more than the context alone; an empty context is the end-of-text token; what is longer than the model's
// context loses tokens on the left.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dataloader/tokenizer.h"
#include "parallel/comm.h"

struct Model;

struct Request {
    std::vector<int> tokens;  // the last at most T+1 of context and continuation
    int scored = 0;           // of them, the last so many are the continuation
    bool truncated = false;   // the context lost tokens
    bool fits = false;        // the continuation has 1 to T tokens: otherwise there is nothing to score it by
};
Request make_request(const Tokenizer& tokenizer, const std::string& context, const std::string& continuation, int T);

struct Likelihood {
    double log = 0;       // natural, summed over the continuation's tokens
    bool greedy = false;  // each of them is the likeliest one
};

// B, T: of model_create. Requests go in order of their length, as many at a time as fit into B*T tokens, padded on the
// right to a multiple of 16. Padding stands behind what is scored, and causal attention never sees it. Ranks take turns
// at the batches, which are the same for any number of ranks, and so are the results.
// comm: null is one rank.
std::vector<Likelihood> score(Model& model, const std::vector<Request>& requests, int B, int T, Comm* comm);

// How ranks share batches: whose turn it is, and everyone's results (0 where it was another's turn) afterwards.
bool my_turn(const Comm* comm, int64_t batch);
void share_results(Comm* comm, std::vector<double>& results);
